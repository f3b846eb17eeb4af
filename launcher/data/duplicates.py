"""Images that a dataset holds more than once, by their bytes."""

from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from store.dataset.bad_samples import check_machine
from store.dataset.index import Index
from store.dataset.threads import map_in_threads

_CHUNK = 2**20  # bytes that are read at a time


@dataclass(frozen=True)
class DuplicateImages:
    """Images whose bytes are the same."""

    names: list[str]


def find_duplicates(index: Index) -> list[DuplicateImages]:
    """All images that are there twice or more. Reads those alone that share their length with another one.

    Raises LockstepError where an image cannot be read.
    """
    rows = _list_suspects(index.lengths)
    digests = map_in_threads(lambda row: _digest_image(index, row), rows, releases_gil=True)
    groups: dict[bytes, list[int]] = {}
    for row, digest in zip(rows, digests, strict=True):
        groups.setdefault(digest, []).append(row)
    return [DuplicateImages([index[row].name for row in group]) for group in groups.values() if len(group) > 1]


def _list_suspects(lengths: NDArray[np.int64]) -> list[int]:
    """The rows whose length another row has, too."""
    _, which, counts = np.unique(lengths, return_inverse=True, return_counts=True)
    suspects: list[int] = np.flatnonzero(counts[which] > 1).tolist()
    return suspects


def _digest_image(index: Index, row: int) -> bytes:
    sample = index[row]
    digest = sha256()
    try:
        with index.open(sample) as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        check_machine(index.path_of(sample), error)
        raise
    return digest.digest()[:16]

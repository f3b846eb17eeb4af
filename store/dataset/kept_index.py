"""Indexes that are kept for later runs: `<cache folder>/index/<key>/0001/`, one folder for each time that it changed.

A folder is made under a name of its own and renamed, so what is visible is whole, whoever builds at the same time; the
newest counts. Runs that began with an older one have it in their run directory.
"""

import errno
import itertools
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from configs.errors import LockstepError, UserError
from store.dataset.bad_samples import format_bad_samples, parse_bad_samples
from store.dataset.index import Index
from store.dataset.sample import BadSample
from store.files import sync_directory

_NUMBER = re.compile(r"[0-9]{4,}")
_BUILDING = ".building-"
_ABANDONED = 7 * 24 * 3600  # seconds after which nobody builds there any more
_REPLACED = 24 * 3600  # seconds: a submit that just read an index has to link it yet


@dataclass(frozen=True)
class KeptIndex:
    """An index, and what is wrong with the samples that it leaves out."""

    index: Index
    bad_samples: list[BadSample]
    path: Path | None  # of its file; None where it is not kept


def name_index_folder(cache_folder: Path, *identities: str) -> Path:
    """Where the indexes of what has these identities are kept."""
    return cache_folder / "index" / sha256(json.dumps(identities).encode()).hexdigest()[:16]


def open_newest_index(folder: Path) -> KeptIndex | None:
    """The newest of `folder`; None where there is none that can be read."""
    for number in reversed(_list_numbers(folder)):
        path = folder / number
        try:
            bad_samples = parse_bad_samples((path / "bad-samples.jsonl").read_text())
            return KeptIndex(Index.open_file(path / "dataset.arrow"), bad_samples, path / "dataset.arrow")
        except (OSError, ValueError, KeyError, LockstepError):
            continue  # removed since, damaged, or of another version: it only saves time
    return None


def is_index_current(kept: KeptIndex) -> bool:
    """Whether nothing came, went or was renamed since it was built, by the times of folders and lists. An image that
    was written over is not noticed: whoever trains builds the index again, which is quick."""
    assert kept.path is not None
    try:
        watched = json.loads((kept.path.parent / "watched.json").read_text())
        return all(os.stat(path).st_mtime_ns == before for path, before in watched.items())
    except (OSError, ValueError):
        return False


def keep_index(folder: Path, write: Callable[[Path], list[BadSample]], watched: Mapping[Path, int]) -> KeptIndex:
    """The index that `write` writes into a file, as the newest of `folder`.

    watched: what tells when samples came or went, and its times in ns. Raises UserError where the folder cannot be
    written or is full; nothing is left there then.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=_BUILDING, dir=folder) as temporary:
            place = Path(temporary, "index")
            place.mkdir()
            bad_samples = write(place / "dataset.arrow")
            _write_durably(place / "bad-samples.jsonl", format_bad_samples(bad_samples))
            _write_durably(place / "watched.json", json.dumps({str(path): at for path, at in watched.items()}))
            path = _rename_to_next(place, folder)
    except OSError as error:
        cure = "name another folder with runs, or with data.cache_folder"
        raise UserError(f"{folder}: the index cannot be written ({error.strerror or error}); {cure}") from None
    _remove_older(folder)
    return KeptIndex(Index.open_file(path / "dataset.arrow"), bad_samples, path / "dataset.arrow")


def _rename_to_next(place: Path, folder: Path) -> Path:
    """A rename onto a folder that holds something fails: somebody else was quicker, and the next number is ours."""
    sync_directory(place)
    while True:
        numbers = _list_numbers(folder)
        path = folder / f"{int(numbers[-1]) + 1 if numbers else 1:04d}"
        try:
            os.rename(place, path)
            break
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
    sync_directory(folder)
    return path


def _remove_older(folder: Path) -> None:
    """What was left behind, and indexes that have had a newer one for so long that no command still reads them."""
    numbers = _list_numbers(folder)
    followed = {folder / older: folder / newer for older, newer in itertools.pairwise(numbers)}
    paths = [older for older, newer in followed.items() if _measure_age(newer) > _REPLACED]
    paths += [path for path in folder.glob(f"{_BUILDING}*") if _measure_age(path) > _ABANDONED]
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)  # another user's stays


def _measure_age(path: Path) -> float:
    """In seconds; 0 where it is gone."""
    with suppress(FileNotFoundError):
        return time.time() - path.stat().st_mtime
    return 0.0


def _list_numbers(folder: Path) -> list[str]:
    try:
        names = os.listdir(folder)
    except OSError:
        return []  # whoever writes there is told why it cannot be
    return sorted((name for name in names if _NUMBER.fullmatch(name)), key=int)


def _write_durably(path: Path, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())

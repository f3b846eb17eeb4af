"""The files of a checkpoint: named 1-D fragments in safetensors, written in one pass and read by byte range.

The library's own writer wants all tensors in one piece of memory and hashes nothing; this one streams and digests. What
it writes is plain safetensors (little-endian length, JSON header, raw fp32), and the library reads it.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from store.checkpoint.manifest import FileEntry, Identity


@dataclass(frozen=True)
class StoredFragment:
    """Elements [offset, offset + length) of one kind of value (see Manifest.kinds) of parameter `name`."""

    kind: str
    name: str
    offset: int
    length: int

    @property
    def key(self) -> str:
        return f"{self.kind}:{self.name}:{self.offset}"


def fragment_file_name(rank: int) -> str:
    return f"fragments-{rank:05d}.safetensors"


def write_fragments(
    path: Path, pieces: list[StoredFragment], values: list[NDArray[np.float32]], identity: Identity
) -> FileEntry:
    """Write one rank's pieces to a new file and make it durable. Raises OSError (ENOSPC, …)."""
    header: dict[str, object] = {"__metadata__": identity.as_text()}
    end = 0
    for piece in pieces:
        begin, end = end, end + 4 * piece.length
        header[piece.key] = {"dtype": "F32", "shape": [piece.length], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest, size = hashlib.sha256(), 0
    with open(path, "xb", buffering=0) as file:
        parts: list[bytes | memoryview] = [len(text).to_bytes(8, "little"), text]
        for part in parts + [value.data.cast("B") for value in values]:
            _write_all(file, part)
            digest.update(part)
            size += len(part)
        os.fsync(file.fileno())
    return FileEntry(path.name, size, digest.hexdigest())


def _write_all(file: FileIO, part: bytes | memoryview) -> None:
    """A raw file may take less than it is given, and never more than 2 GiB at once."""
    rest = memoryview(part)
    while rest:
        rest = rest[file.write(rest[: 1 << 30]) :]


class FragmentReader:
    """Any element range of any value of a checkpoint, whoever wrote it: reads headers first, then only these bytes.

    Raises ValueError, naming the file, where one does not open.
    """

    def __init__(self, paths: list[Path]):
        self.pieces: dict[tuple[str, str], list[tuple[int, int, str, Path]]] = {}
        self.files = {path: _open(path) for path in paths}
        for path, file in self.files.items():
            for key in file.keys():  # noqa: SIM118  (it is no dict)
                kind, rest = key.split(":", 1)
                name, offset = rest.rsplit(":", 1)
                length = file.get_slice(key).get_shape()[0]
                self.pieces.setdefault((kind, name), []).append((int(offset), length, key, path))
        for found in self.pieces.values():
            found.sort(key=lambda piece: piece[0])

    def metadata(self) -> dict[Path, dict[str, str]]:
        return {path: file.metadata() or {} for path, file in self.files.items()}

    def kinds(self) -> set[str]:
        return {kind for kind, _ in self.pieces}

    def sizes(self, kind: str) -> dict[str, int]:
        """Elements of each parameter; raises ValueError where pieces leave a gap or overlap."""
        sizes = {}
        for (of, name), found in self.pieces.items():
            if of == kind:
                end = 0
                for offset, length, _, path in found:
                    if offset != end:
                        raise ValueError(f"{path}: {name} has a gap or an overlap at element {end}")
                    end += length
                sizes[name] = end
        return sizes

    def read(self, kind: str, name: str, offset: int, length: int) -> NDArray[np.float32]:
        """`length` elements from `offset`, fp32. Raises KeyError where the value is not there."""
        values = np.empty(length, np.float32)
        filled = 0
        for begin, size, key, path in self.pieces[kind, name]:
            low, high = max(offset, begin), min(offset + length, begin + size)
            if low < high:
                values[low - offset : high - offset] = self.files[path].get_slice(key)[low - begin : high - begin]
                filled += high - low
        if filled != length:
            raise KeyError(f"{kind} of {name}: elements {offset} to {offset + length} are not all there")
        return values


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: does not read ({error})") from None

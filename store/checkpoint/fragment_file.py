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
    """Elements [offset, offset + length) of one value of parameter `name`: its weights, a state or its average."""

    kind: str  # weights, a state of the optimizer (configs/optimizers.py) or ema; fp32 each
    name: str
    offset: int
    length: int

    @property
    def key(self) -> str:
        """Its name in a safetensors file."""
        return f"{self.kind}:{self.name}:{self.offset}"


@dataclass(frozen=True)
class _Location:
    """Where a reader finds a fragment."""

    path: Path
    key: str
    begin: int
    end: int


def fragment_file_name(rank: int) -> str:
    """The file that `rank` writes in a checkpoint's folder."""
    return f"fragments-{rank:05d}.safetensors"


def write_fragments(
    path: Path, fragments: list[StoredFragment], values: list[NDArray[np.float32]], identity: Identity
) -> FileEntry:
    """Write one rank's `fragments`, whose elements are `values`, to a new file and make it durable.

    Raises OSError (ENOSPC, …).
    """
    header = _render_header(fragments, identity)
    digest, size = hashlib.sha256(), 0
    with open(path, "xb", buffering=0) as file:
        parts: list[bytes | memoryview] = [len(header).to_bytes(8, "little"), header]
        parts += [value.data.cast("B") for value in values]
        for part in parts:
            _write_all(file, part)
            digest.update(part)
            size += len(part)
        os.fsync(file.fileno())
    return FileEntry(path.name, size, digest.hexdigest())


def _render_header(fragments: list[StoredFragment], identity: Identity) -> bytes:
    """safetensors' JSON header, padded to whole words of 8 bytes as its own writer does."""
    header: dict[str, object] = {"__metadata__": identity.as_text()}
    end = 0
    for fragment in fragments:
        begin, end = end, end + 4 * fragment.length
        header[fragment.key] = {"dtype": "F32", "shape": [fragment.length], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    return text + b" " * (-len(text) % 8)


def _write_all(file: FileIO, part: bytes | memoryview) -> None:
    """A raw file may take less than it is given, and never more than 2 GiB at once."""
    rest = memoryview(part)
    while rest:
        rest = rest[file.write(rest[: 1 << 30]) :]


class FragmentReader:
    """Any element range of any value of a checkpoint, whoever wrote it: reads headers first, then only these bytes.

    Raises ValueError, naming the file, where one cannot be opened.
    """

    def __init__(self, paths: list[Path]):
        self._files = {path: _open(path) for path in paths}
        self._locations: dict[tuple[str, str], list[_Location]] = {}  # by kind and parameter, in the elements' order
        for path, file in self._files.items():
            for key in file.keys():  # noqa: SIM118  (it is no dict)
                kind, name_and_offset = key.split(":", 1)
                name, offset = name_and_offset.rsplit(":", 1)
                length = file.get_slice(key).get_shape()[0]
                location = _Location(path, key, int(offset), int(offset) + length)
                self._locations.setdefault((kind, name), []).append(location)
        for locations in self._locations.values():
            locations.sort(key=lambda location: location.begin)

    def metadata(self) -> dict[Path, dict[str, str]]:
        """What each file's header says of the checkpoint that it belongs to."""
        return {path: file.metadata() or {} for path, file in self._files.items()}

    def kinds(self) -> set[str]:
        """Which kinds there are."""
        return {kind for kind, _ in self._locations}

    def sizes(self, kind: str) -> dict[str, int]:
        """Elements of each parameter; raises ValueError where fragments leave a gap or overlap."""
        sizes = {}
        for (kind_there, name), locations in self._locations.items():
            if kind_there != kind:
                continue
            end = 0
            for location in locations:
                if location.begin != end:
                    raise ValueError(f"{location.path}: {name} has a gap or an overlap at element {end}")
                end = location.end
            sizes[name] = end
        return sizes

    def read(self, kind: str, name: str, offset: int, length: int) -> NDArray[np.float32]:
        """`length` elements from `offset`, fp32. Raises KeyError where the value is not there."""
        values = np.empty(length, np.float32)
        filled = 0
        for location in self._locations[kind, name]:
            low, high = max(offset, location.begin), min(offset + length, location.end)
            if low < high:
                stored = self._files[location.path].get_slice(location.key)
                values[low - offset : high - offset] = stored[low - location.begin : high - location.begin]
                filled += high - low
        if filled != length:
            raise KeyError(f"{kind} of {name}: elements {offset} to {offset + length} are not all there")
        return values


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None

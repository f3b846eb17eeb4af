"""Where the encodings of one index lie: a part for each chunk of its samples while they are encoded, then one map.

Ranks memory-map the map, so that what it costs them does not grow with the dataset. A part is written once its chunk is
done, by whichever rank or job was the first; where two were, both are right, and the last one stays.
"""

import json
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from store.encodings.family import KEY_BYTES, KEY_DTYPE
from store.files import write_atomic

_NO_CONTENT = bytes(KEY_BYTES)
_CHUNKS = 64  # of a small dataset, so that many ranks have something to do
_SMALLEST, _LARGEST = 8, 512  # samples of a chunk


@dataclass(frozen=True)
class ShardRow:
    """Where an encoding lies."""

    shard: str
    row: int


class SampleContent(NamedTuple):
    """KEY_BYTES each; None where it is not known or does not matter."""

    stamp: bytes | None  # of the sample's name, and of size and time of its file: as long as it stays, so does `digest`
    digest: bytes | None  # of the bytes of its image


@dataclass(frozen=True)
class ChunkMap:
    """What is known of some samples: stamp and digest of each one's content, zero where it is None, and the place of
    each encoding, by its key: a row of one of `names`."""

    stamps: NDArray[np.bytes_]
    contents: NDArray[np.bytes_]
    keys: NDArray[np.bytes_]
    shards: NDArray[np.uint32]  # numbers in `names`
    rows: NDArray[np.uint32]
    names: Sequence[str]

    @classmethod
    def from_places(cls, contents: Sequence[SampleContent], places: Mapping[bytes, ShardRow]) -> "ChunkMap":
        names = sorted({place.shard for place in places.values()})
        numbers = {name: number for number, name in enumerate(names)}
        return cls(
            _join([content.stamp or _NO_CONTENT for content in contents]),
            _join([content.digest or _NO_CONTENT for content in contents]),
            _join(list(places)),
            np.array([numbers[place.shard] for place in places.values()], np.uint32),
            np.array([place.row for place in places.values()], np.uint32),
            names,
        )

    def list_places(self) -> Iterator[tuple[bytes, ShardRow]]:
        """Every key with its place."""
        for number in range(len(self.keys)):
            key = self.keys[number : number + 1].tobytes()
            yield key, ShardRow(self.names[self.shards[number]], int(self.rows[number]))


def list_chunks(samples: int) -> list[range]:
    """The chunks in which `samples` are encoded: a function of their number alone, so that all jobs have the same."""
    size = min(_LARGEST, max(_SMALLEST, -(-samples // _CHUNKS)))
    return [range(first, min(samples, first + size)) for first in range(0, samples, size)]


def write_chunk_map(folder: Path, chunk: int, part: ChunkMap) -> None:
    """Whole or not at all. Raises OSError."""
    write_atomic(folder / _name_chunk_map(chunk), _render(part))


def list_chunk_maps(folder: Path) -> set[int]:
    """The chunks whose maps are there now. Raises OSError."""
    names = os.listdir(folder) if folder.is_dir() else []
    return {int(name.partition(".")[0]) for name in names if not name.startswith(".")}


def read_chunk_map(folder: Path, chunk: int) -> ChunkMap | None:
    """None where it is not there, or not whole."""
    try:
        with safe_open(folder / _name_chunk_map(chunk), framework="np") as file:
            names = json.loads(file.metadata()["shards"])
            tensors = {name: file.get_tensor(name) for name in ("stamps", "contents", "keys", "shards", "rows")}
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None
    stamps, contents, keys = (tensors[name].reshape(-1).view(KEY_DTYPE) for name in ("stamps", "contents", "keys"))
    return ChunkMap(stamps, contents, keys, tensors["shards"], tensors["rows"], names)


def write_map(path: Path, parts: Sequence[ChunkMap], order: NDArray[np.intp] | None = None) -> None:
    """The map of `parts`, those of all chunks in order, sorted by key. Whole or not at all. Raises OSError.

    `order`: the samples that the chunks have one after the other; None: all as the index has them.
    """
    names = sorted({name for part in parts for name in part.names})
    numbers = {name: number for number, name in enumerate(names)}
    shards = [np.array([numbers[name] for name in part.names], np.uint32)[part.shards] for part in parts]
    keys, first = np.unique(np.concatenate([part.keys for part in parts]), return_index=True)
    stamps = _sort_back(np.concatenate([part.stamps for part in parts]), order)
    contents = _sort_back(np.concatenate([part.contents for part in parts]), order)
    rows = np.concatenate([part.rows for part in parts])
    write_atomic(path, _render(ChunkMap(stamps, contents, keys, np.concatenate(shards)[first], rows[first], names)))


def _sort_back(in_chunks: NDArray[np.bytes_], order: NDArray[np.intp] | None) -> NDArray[np.bytes_]:
    if order is None:
        return in_chunks
    sorted_back = np.empty_like(in_chunks)
    sorted_back[order] = in_chunks
    return sorted_back


def _join(keys: Sequence[bytes]) -> NDArray[np.bytes_]:
    return np.frombuffer(b"".join(keys), KEY_DTYPE)


def _name_chunk_map(chunk: int) -> str:
    return f"{chunk:06d}.safetensors"


def _render(part: ChunkMap) -> bytes:
    keys = {"stamps": part.stamps, "contents": part.contents, "keys": part.keys}
    tensors = {name: np.ascontiguousarray(value).view(np.uint8).reshape(-1, KEY_BYTES) for name, value in keys.items()}
    return save(tensors | {"shards": part.shards, "rows": part.rows}, {"shards": json.dumps(list(part.names))})


class EncodingMap:
    """A map, memory-mapped. Raises OSError or ValueError where there is none, or it is not whole."""

    def __init__(self, path: Path):
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        if 8 + length + end != len(mapped):
            raise ValueError(f"{path}: is cut off")

        def view(name: str) -> memoryview:
            begin, end = header[name]["data_offsets"]
            return mapped[8 + length + begin : 8 + length + end]

        try:
            self._stamps, self._contents, self._keys = view("stamps"), view("contents"), view("keys")
            self._shards, self._rows = view("shards").cast("I"), view("rows").cast("I")
            self.shards: list[str] = json.loads(header["__metadata__"]["shards"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}: is not a map of encodings ({error})") from None

    def __len__(self) -> int:
        """Encodings that are in it."""
        return len(self._rows)

    def content_at(self, sample: int) -> bytes | None:
        """The digest of the bytes of a sample of the index; None where they could not be read."""
        content = bytes(self._contents[sample * KEY_BYTES : (sample + 1) * KEY_BYTES])
        return None if content == _NO_CONTENT else content

    def read_contents(self) -> tuple[NDArray[np.bytes_], NDArray[np.bytes_]]:
        """Stamps and digests of all samples, without a copy; zero where they are not known."""
        return np.frombuffer(self._stamps, KEY_DTYPE), np.frombuffer(self._contents, KEY_DTYPE)

    def find(self, key: bytes) -> ShardRow | None:
        """Where the encoding of `key` lies; None where there is none. By bisection: a few pages are looked at."""
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if self._key_at(middle) < key:
                low = middle + 1
            else:
                high = middle
        if low == len(self) or self._key_at(low) != key:
            return None
        return ShardRow(self.shards[self._shards[low]], self._rows[low])

    def _key_at(self, number: int) -> bytes:
        return bytes(self._keys[number * KEY_BYTES : (number + 1) * KEY_BYTES])

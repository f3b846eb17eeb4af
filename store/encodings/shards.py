"""Shards: files of encodings of one shape, each with its key and its checksum; written once, never changed.

Plain safetensors (little-endian length, JSON header, raw values), written here because the library's NumPy side has no
bfloat16, and because single rows are read by their place in the file.
"""

import json
import os
import secrets
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np

from store.encodings.family import KEY_BYTES, FamilyFolder
from store.files import sync_directory

SUFFIX = ".safetensors"
WIDTHS = {"F32": 4, "F16": 2, "BF16": 2}  # bytes of one value, by safetensors' name of its dtype
_OPENED = 512  # shards that one reader holds open, of the 1,024 files that a process may
_LONGEST_HEADER = 1 << 20
_ENCODINGS, _KEYS, _CHECKSUMS = "encodings", "keys", "checksums"


class DamagedEncoding(Exception):
    """An encoding is not there, or not what was written. Whoever asks for it encodes anew."""


@dataclass(frozen=True)
class Encoding:
    """One encoding as it is stored: `dtype` is safetensors' name of it."""

    dtype: str
    shape: tuple[int, ...]
    values: bytearray


def write_shard(folder: Path, dtype: str, shape: tuple[int, ...], rows: Sequence[tuple[bytes, bytes]]) -> str:
    """Write `rows`, each a key and the bytes of its encoding, to a new file of `folder` and make it durable.

    Answers its name. A kill at any instant leaves all of it, or a hidden file that nobody reads. Raises OSError.
    """
    name = secrets.token_hex(16) + SUFFIX
    temporary = folder / f".{name}"
    try:
        with open(temporary, "xb") as file:
            file.write(_render_header(dtype, shape, len(rows)))
            for _, values in rows:
                file.write(values)
            file.write(b"".join(key for key, _ in rows))
            file.write(np.array([_checksum(key, values) for key, values in rows], "<u4").tobytes())
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(folder / name)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(folder)
    return name


def _render_header(dtype: str, shape: tuple[int, ...], count: int) -> bytes:
    """Length and header, padded as safetensors' own writer does."""
    size = WIDTHS[dtype] * int(np.prod(shape))
    tensors = ((_ENCODINGS, dtype, [count, *shape], size), (_KEYS, "U8", [count, KEY_BYTES], KEY_BYTES))
    header: dict[str, object] = {}
    end = 0
    for name, kind, full_shape, width in (*tensors, (_CHECKSUMS, "U32", [count], 4)):
        begin, end = end, end + count * width
        header[name] = {"dtype": kind, "shape": full_shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _checksum(key: bytes, values: bytes | bytearray) -> int:
    """Of both, so that values under another's key are found, too."""
    return zlib.crc32(values, zlib.crc32(key))


def measure_shards(family: FamilyFolder) -> int:
    """Bytes of all encodings of a family."""
    if not family.shards_path.is_dir():
        return 0
    return sum(path.stat().st_size for path in family.shards_path.iterdir())


class Shard:
    """One file, open. Raises DamagedEncoding where it is none of ours, or not whole."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = FileIO(path)
            self._read_header()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedEncoding(f"{path}: cannot be read ({error})") from None

    def _read_header(self) -> None:
        length = int.from_bytes(self._read(0, 8), "little")
        if length > _LONGEST_HEADER:
            raise ValueError("it has no header")
        header = json.loads(self._read(8, length))
        encodings, keys, checksums = (header[name] for name in (_ENCODINGS, _KEYS, _CHECKSUMS))
        self.dtype, (self.count, *shape) = encodings["dtype"], encodings["shape"]
        self.shape: tuple[int, ...] = tuple(shape)
        self._width = WIDTHS[self.dtype] * int(np.prod(shape))
        self._begin = 8 + length + encodings["data_offsets"][0]
        self._keys, self._checksums = (8 + length + entry["data_offsets"][0] for entry in (keys, checksums))
        size = os.fstat(self._file.fileno()).st_size
        if size != 8 + length + checksums["data_offsets"][1]:
            raise ValueError("it is cut off")

    def _read(self, begin: int, length: int) -> bytearray:
        values = bytearray(length)
        rest = memoryview(values)
        while rest:
            count = os.preadv(self._file.fileno(), [rest], begin + length - len(rest))
            if count == 0:
                raise ValueError("it is cut off")
            rest = rest[count:]
        return values

    def read_keys(self) -> bytes:
        """All of them, in the order of the rows. Raises DamagedEncoding."""
        try:
            return bytes(self._read(self._keys, self.count * KEY_BYTES))
        except (OSError, ValueError) as error:
            raise DamagedEncoding(f"{self.path}: cannot be read ({error})") from None

    def list_keys(self) -> Iterator[bytes]:
        keys = self.read_keys()
        for begin in range(0, len(keys), KEY_BYTES):
            yield keys[begin : begin + KEY_BYTES]

    def read(self, row: int, key: bytes) -> Encoding:
        """The encoding in `row`, which is to be that of `key`."""
        try:
            stored_key = self._read(self._keys + row * KEY_BYTES, KEY_BYTES)
            checksum = int.from_bytes(self._read(self._checksums + 4 * row, 4), "little")
            values = self._read(self._begin + row * self._width, self._width)
        except (OSError, ValueError) as error:
            raise DamagedEncoding(f"{self.path}: row {row} cannot be read ({error})") from None
        if stored_key != key:
            raise DamagedEncoding(f"{self.path}: row {row} has another key")
        if _checksum(key, values) != checksum:
            raise DamagedEncoding(f"{self.path}: row {row} is damaged (its checksum is another)")
        return Encoding(self.dtype, self.shape, values)


class ShardReader:
    """The shards of a folder, of which the last that were asked for stay open."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._open: OrderedDict[str, Shard] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, name: str, row: int, key: bytes) -> Encoding:
        """Raises DamagedEncoding."""
        with self._lock:  # threads may share it
            shard = self._open.get(name)
            if shard is None:
                shard = self._open[name] = Shard(self.folder / name)
                if len(self._open) > _OPENED:
                    self._open.popitem(last=False)  # which is closed once nobody reads it
            self._open.move_to_end(name)
        return shard.read(row, key)

    def list_names(self) -> set[str]:
        """Of every shard that is there now. Raises OSError."""
        names = os.listdir(self.folder) if self.folder.is_dir() else []
        return {name for name in names if name.endswith(SUFFIX) and not name.startswith(".")}

"""The images of one parquet file, copied into shards that are read by offset: a row of a parquet file costs its whole
row group.

A shard is two files, named by the first row group in it: `000000.images`, the images one after another, and
`000000.arrow`, where each lies and its SHA-256. Both appear whole, the table last: a copy that was killed goes on after
its last shard, and two that are made at once write the same.
"""

import hashlib
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from store.files import sync_directory, write_atomic

SHARD_BYTES = 2**30  # a shard ends with the row group in which it becomes longer
_ABANDONED = 3600  # seconds in which nobody wrote to a temporary file: its writer is gone
_SCHEMA = pa.schema([pa.field("offset", pa.int64()), pa.field("length", pa.int64()), pa.field("sha256", pa.binary(32))])


@dataclass(frozen=True)
class CopiedImage:
    """Where the image of a row lies."""

    file: str  # relative to the copies' folder
    offset: int
    length: int
    sha256: bytes  # of the image


@dataclass(frozen=True)
class _Shard:
    first: int  # row group
    end: int  # the row group after its last
    groups: int  # of the whole file
    table: pa.Table

    @property
    def name(self) -> str:
        return f"{self.first:06d}.images"


def list_copies(folder: Path) -> Iterator[CopiedImage | None]:
    """The image of each row that is copied, in order; None where the row has none."""
    for shard in _list_shards(folder):
        for batch in shard.table.to_batches(max_chunksize=2**14):
            for offset, length, sha256 in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield None if sha256 is None else CopiedImage(shard.name, offset, length, sha256)


def count_copied_groups(folder: Path) -> int:
    """The row groups that are copied, which are the first of their file."""
    return max((shard.end for shard in _list_shards(folder)), default=0)


def is_copied(folder: Path) -> bool:
    """Whether all row groups are copied; not told of a file that has none."""
    return any(shard.end == shard.groups for shard in _list_shards(folder))


def write_copies(folder: Path, first: int, total: int, groups: Iterable[Iterable[memoryview | None]]) -> None:
    """Copy the images of row groups, the one numbered `first` and those after it, of `total`: of each, those of its
    rows.

    Raises OSError where `folder` cannot be written, and whatever `groups` raises; whole shards stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder)
    shard = None
    try:
        for group, images in enumerate(groups, first):
            shard = shard or _NewShard(folder, group)
            for image in images:
                shard.add(image)
            if shard.length >= SHARD_BYTES:
                shard.finish(group + 1, total)
                shard = None
        if shard is not None:
            shard.finish(group + 1, total)
    finally:
        if shard is not None:
            shard.discard()


class _NewShard:
    """A shard that is being written, under a name that nobody reads."""

    def __init__(self, folder: Path, first: int):
        self._folder, self._first = folder, first
        self._temporary = folder / f".{first:06d}.images.{secrets.token_hex(8)}"
        self._file = os.fdopen(os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "wb", 2**20)
        self._offsets: list[int] = []
        self._lengths: list[int] = []
        self._digests: list[bytes | None] = []
        self.length = 0  # bytes

    def add(self, image: memoryview | None) -> None:
        content = b"" if image is None else image
        self._file.write(content)
        self._offsets.append(self.length)
        self._lengths.append(len(content))
        self._digests.append(None if image is None else hashlib.sha256(image).digest())
        self.length += len(content)

    def finish(self, end: int, groups: int) -> None:
        """Show the shard, whose last row group is the one before `end`; `groups`: of the whole file."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._temporary, self._folder / f"{self._first:06d}.images")
        sync_directory(self._folder)
        columns = [self._offsets, self._lengths, self._digests]
        sink = pa.BufferOutputStream()
        schema = _SCHEMA.with_metadata({"end": str(end), "groups": str(groups)})
        with pa.ipc.new_file(sink, schema) as writer:
            arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
        write_atomic(self._folder / f"{self._first:06d}.arrow", sink.getvalue().to_pybytes())

    def discard(self) -> None:
        """Leave nothing of a shard that is not finished."""
        with suppress(OSError):  # a full disk, of which whoever wrote there has heard already
            self._file.close()
        self._temporary.unlink(missing_ok=True)


def _list_shards(folder: Path) -> Iterator[_Shard]:
    """As long as one follows the other, and each has all its images."""
    first = 0
    while (path := folder / f"{first:06d}.arrow").is_file():
        with pa.memory_map(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
        facts = table.schema.metadata
        shard = _Shard(first, int(facts[b"end"]), int(facts[b"groups"]), table)
        images = folder / shard.name
        if table.num_rows and not (images.is_file() and images.stat().st_size >= _last_byte(table)):
            return
        yield shard
        first = shard.end


def _last_byte(table: pa.Table) -> int:
    return int(table["offset"][-1].as_py() + table["length"][-1].as_py())


def _remove_abandoned(folder: Path) -> None:
    """What writers that were killed have left."""
    for path in folder.glob(".*"):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _ABANDONED:
                path.unlink()

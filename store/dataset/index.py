"""The index of a dataset: all its samples in their fixed order, in one Arrow IPC file that is memory-mapped.

Opening it reads no rows, and what ranks read of it is shared by them in the page cache. The samples of each source lie
together, in the order of the sources.
"""

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from configs.errors import LockstepError
from store.dataset.columns import make_bytes, make_numbers, make_text_lists, make_texts
from store.dataset.image_file import open_image_file
from store.dataset.sample import Sample, format_sample

_FORMAT = b"1"
_BATCH_ROWS = 2**16  # of every record batch but the last: where a row lies follows from its number
_SCHEMA = pa.schema(
    [
        pa.field("name", pa.large_string(), nullable=False),
        pa.field("file", pa.large_string()),  # null where it is the name
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("length", pa.int64(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("captions", pa.list_(pa.large_string()), nullable=False),
        pa.field("stamp", pa.binary(), nullable=False),
    ],
    metadata={b"lockstep": _FORMAT},
)


class Index:
    """Made by `open_file` or `from_samples`."""

    digest: str  # the identity of the dataset: SHA-256 of its samples' names, captions and lengths
    version: str  # changes also with the size or the time of any file
    roots: list[Path]  # of each source: the folder that its files are relative to
    source_sizes: list[int]  # samples of each source

    def __init__(self, source: pa.NativeFile | pa.Buffer):
        """Raises ValueError where `source` is no whole index, or another Arrow file."""
        reader = pa.ipc.open_file(source)
        if reader.schema.metadata != _SCHEMA.metadata:
            raise ValueError("another format")
        last, metadata = reader.get_batch_with_custom_metadata(reader.num_record_batches - 1)
        facts = json.loads(metadata[b"facts"])
        self.digest = facts["digest"]
        self.version = facts["version"]
        self.roots = [Path(root) for root in facts["roots"]]
        self.source_sizes = facts["source_sizes"]
        self._ends = list(accumulate(self.source_sizes))
        self._batches = [reader.get_batch(number) for number in range(reader.num_record_batches - 1)]
        assert last.num_rows == 0

    @classmethod
    def open_file(cls, path: Path) -> "Index":
        """The index in `path`, memory-mapped. Raises LockstepError where it is damaged or of a newer version."""
        try:
            return cls(pa.memory_map(str(path)))
        except (ValueError, KeyError) as error:
            cure = "submit the run again, which writes it anew"
            raise LockstepError(f"{path}: is damaged, or of another version of Lockstep ({error}); {cure}") from None

    @classmethod
    def from_samples(cls, samples: Iterable[Sample], roots: Sequence[Path]) -> "Index":
        """An index in memory, of samples in the order of their sources."""
        sink = pa.BufferOutputStream()
        _write_table(sink, samples, roots)
        return cls(sink.getvalue())

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[Sample]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Sample:
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        batch = self._batches[number // _BATCH_ROWS]
        values = [column[number % _BATCH_ROWS].as_py() for column in batch.columns]
        name, file, offset, length, width, height, captions, stamp = values
        source = bisect_right(self._ends, number)
        return Sample(source, name, file or name, offset, length, width, height, tuple(captions), stamp)

    def path_of(self, sample: Sample) -> Path:
        """The file that holds the image."""
        return self.roots[sample.source] / sample.file

    def open(self, sample: Sample) -> BinaryIO:
        """The bytes of the image. Raises OSError where they cannot be read."""
        return open_image_file(self.roots[sample.source], sample)

    @property
    def has_sizes(self) -> bool:
        """Whether widths and heights are known, which earlier versions did not look at."""
        return len(self) > 0 and self[0].width > 0

    @property
    def caption_count(self) -> int:
        """Captions of all samples; each has one or more."""
        return sum(len(batch.column("captions").flatten()) for batch in self._batches)

    @property
    def widths(self) -> NDArray[np.int32]:
        """Of all upright images, in pixels. A copy, which the index does not keep: 4 bytes for each."""
        return self._read_numbers("width")

    @property
    def heights(self) -> NDArray[np.int32]:
        """As `widths`."""
        return self._read_numbers("height")

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Of all images' files, in bytes; as `widths`."""
        return self._read_numbers("length")

    def read_stamps(self, start: int, stop: int) -> Iterator[bytes]:
        """Of the samples `start` to `stop`."""
        for number, batch in enumerate(self._batches):
            first = number * _BATCH_ROWS
            part = batch.column("stamp").slice(max(0, start - first), max(0, stop - max(start, first)))
            yield from part.to_pylist()

    def _read_numbers(self, column: str) -> NDArray[Any]:
        # to_numpy() would import pandas where that is installed: 30 MB of every rank
        parts = [np.from_dlpack(batch.column(column)) for batch in self._batches]
        return np.concatenate([np.empty(0, np.int32), *parts])


def write_index(path: Path, samples: Iterable[Sample], roots: Sequence[Path]) -> None:
    """Write the index of `samples`, which are in the order of their sources. Holds one record batch in memory. Raises
    OSError where it cannot be written.

    `roots`: of each source, the folder that its files are relative to.
    """
    with open(path, "wb") as file:
        _write_table(file, samples, roots)
        file.flush()
        os.fsync(file.fileno())


def _write_table(sink: pa.NativeFile | BinaryIO, samples: Iterable[Sample], roots: Sequence[Path]) -> None:
    digest, stamps = hashlib.sha256(), hashlib.sha256()
    sizes = [0] * len(roots)
    rows = iter(samples)
    with pa.ipc.new_file(sink, _SCHEMA) as writer:
        while chunk := list(islice(rows, _BATCH_ROWS)):
            for sample in chunk:
                if sample.source and not sizes[sample.source]:
                    digest.update(f'{{"source": {sample.source}}}\n'.encode())
                digest.update(format_sample(sample).encode())
                stamps.update(sample.stamp)
                sizes[sample.source] += 1
            writer.write_batch(_make_batch(chunk))
        facts = {
            "digest": digest.hexdigest(),
            "version": hashlib.sha256(digest.digest() + stamps.digest()).hexdigest(),
            "roots": [str(root) for root in roots],
            "source_sizes": sizes,
        }
        writer.write_batch(_make_batch([]), custom_metadata={"facts": json.dumps(facts)})  # known only now


def _make_batch(samples: list[Sample]) -> pa.RecordBatch:
    columns = [
        make_texts([sample.name for sample in samples]),
        make_texts([None if sample.file == sample.name else sample.file for sample in samples]),
        make_numbers([sample.offset for sample in samples], pa.int64()),
        make_numbers([sample.length for sample in samples], pa.int64()),
        make_numbers([sample.width for sample in samples], pa.int32()),
        make_numbers([sample.height for sample in samples], pa.int32()),
        make_text_lists([sample.captions for sample in samples]),
        make_bytes([sample.stamp for sample in samples]),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=_SCHEMA)

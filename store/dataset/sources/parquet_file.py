"""One parquet file with images' bytes and captions among its columns."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as pt

from configs.errors import UserError
from store.dataset.bad_samples import describe_unreadable, format_path
from store.dataset.sources.captions import CAPTION_KEYS

_AT_ONCE = 2**24  # bytes of images that are decoded at a time, or one image
_BUFFER = 2**20  # bytes that are read at a time; else a column's part of a row group is held as a whole


class ParquetImages:
    """Its images are a column image: {bytes, path}, as the hub's data sets have it, or a column of bytes."""

    def __init__(self, path: Path, caption: str | None):
        """`caption`: the column of the captions; None: text, else caption. Raises UserError where the file is damaged
        or lacks a column."""
        self.path = path
        with _parquet_errors(path):
            self._file = pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True)
        schema = self._file.schema_arrow
        self._image = _choose_image_column(path, schema)
        self._caption = _choose_caption_column(path, schema, caption)
        nested = pt.is_struct(schema.field(self._image).type)
        self._leaf = f"{self._image}.bytes" if nested else self._image

    @property
    def row_count(self) -> int:
        return int(self._file.metadata.num_rows)

    @property
    def group_count(self) -> int:
        return int(self._file.metadata.num_row_groups)

    def count_bytes(self, first: int) -> int:
        """Of the images in row group `first` and those after it, and a few for each row."""
        return sum(self._measure_group(number) for number in range(first, self.group_count))

    def read_images(self, number: int) -> Iterator[memoryview | None]:
        """The images of the row group `number`, row by row; None where there is none. Holds a few at a time."""
        rows = self._file.metadata.row_group(number).num_rows
        at_once = max(1, min(rows, rows * _AT_ONCE // max(1, self._measure_group(number))))
        with _parquet_errors(self.path):
            for batch in self._file.iter_batches(at_once, [number], [self._leaf]):
                column = batch.column(0)
                if pt.is_struct(column.type):
                    column = pc.struct_field(column, "bytes")
                for value in column:
                    yield memoryview(value.as_buffer()) if value.is_valid else None

    def read_captions(self) -> Iterator[Any]:
        """What each row has for a caption: a text, a list of texts, or None."""
        with _parquet_errors(self.path):
            for batch in self._file.iter_batches(columns=[self._caption]):
                yield from batch.column(0).to_pylist()

    def _measure_group(self, number: int) -> int:
        group = self._file.metadata.row_group(number)
        columns = (group.column(column) for column in range(group.num_columns))
        return sum(column.total_uncompressed_size for column in columns if column.path_in_schema == self._leaf)


@contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    """What pyarrow raises in here becomes a UserError."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(describe_unreadable(path, error)) from None
        why = str(error).split("\n")[0]
        raise UserError(
            f"{format_path(path)}: is no whole parquet file ({why}); it was damaged or cut off, fetch it again"
        ) from None


def _choose_image_column(path: Path, schema: pa.Schema) -> str:
    fitting = [field.name for field in schema if _holds_images(field.type)]
    if "image" in fitting:
        return "image"
    if len(fitting) == 1:
        return str(fitting[0])
    found = f"the bytes of images may be in {' or '.join(fitting)}" if fitting else "no column holds images' bytes"
    cure = "name one of them image" if fitting else "write them into a column image: {bytes, path}, as datasets does"
    raise UserError(f"{format_path(path)}: {found} (its columns: {_list_columns(schema)}); {cure}")


def _holds_images(kind: pa.DataType) -> bool:
    if pt.is_struct(kind):
        position = kind.get_field_index("bytes")
        return position >= 0 and _is_bytes(kind.field(position).type)
    return _is_bytes(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pt.is_binary(kind) or pt.is_large_binary(kind) or pt.is_binary_view(kind))


def _choose_caption_column(path: Path, schema: pa.Schema, caption: str | None) -> str:
    wanted = CAPTION_KEYS if caption is None else (caption,)
    found = [name for name in wanted if name in schema.names]
    texts = [field.name for field in schema if _is_text(field.type)]
    cure = f"name another with caption: {' or '.join(texts)}" if texts else "it has no column of text"
    if not found:
        columns = _list_columns(schema)
        raise UserError(f"{format_path(path)}: has no column {' or '.join(wanted)} (its columns: {columns}); {cure}")
    if schema.names.count(found[0]) > 1:
        raise UserError(f"{format_path(path)}: has two columns {found[0]}; rename one")
    kind = schema.field(found[0]).type
    if not _is_text(kind):
        raise UserError(f"{format_path(path)}: the captions' column {found[0]} holds {kind}, not text; {cure}")
    return found[0]


def _is_text(kind: pa.DataType) -> bool:
    """Whether its values are texts, or lists of texts."""
    if pt.is_list(kind) or pt.is_large_list(kind) or pt.is_dictionary(kind):
        kind = kind.value_type
    return bool(pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind))


def _list_columns(schema: pa.Schema) -> str:
    shown = [f"{field.name}: {field.type}" for field in schema][:20]
    return ", ".join(shown)[:500]

"""Columns of Arrow, made of Python's values. `pa.array` does that too, and imports pandas where it is installed."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def make_numbers(values: Sequence[int], kind: pa.DataType) -> pa.Array:
    """A column of `kind`, which is an integer's. Raises OverflowError for a number that it does not hold."""
    numbers = np.array(values, kind.to_pandas_dtype())  # a dtype of numpy's, whatever the call is named after
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(numbers)])


def make_texts(values: Sequence[str | None]) -> pa.Array:
    """A column of large_string."""
    content = [b"" if value is None else value.encode() for value in values]
    is_known = np.array([value is not None for value in values], bool)
    validity = None if is_known.all() else pa.py_buffer(np.packbits(is_known, bitorder="little"))
    buffers = [validity, pa.py_buffer(_make_offsets(content, np.int64)), pa.py_buffer(b"".join(content))]
    return pa.Array.from_buffers(pa.large_string(), len(values), buffers)


def make_bytes(values: Sequence[bytes]) -> pa.Array:
    """A column of binary. Raises OverflowError where they are 2 GiB or more."""
    buffers = [None, pa.py_buffer(_make_offsets(values, np.int32)), pa.py_buffer(b"".join(values))]
    return pa.Array.from_buffers(pa.binary(), len(values), buffers)


def make_text_lists(values: Sequence[Sequence[str]]) -> pa.Array:
    """A column of lists of large_string. Raises OverflowError where these hold 2**31 texts or more."""
    kind, buffers = pa.list_(pa.large_string()), [None, pa.py_buffer(_make_offsets(values, np.int32))]
    return pa.Array.from_buffers(kind, len(values), buffers, children=[make_texts([*chain.from_iterable(values)])])


def _make_offsets(values: Sequence[Sequence[Any]], dtype: type[np.integer[Any]]) -> NDArray[Any]:
    """Where each begins in all of them laid end to end, and where the last one ends."""
    offsets = np.zeros(len(values) + 1, np.int64)
    np.cumsum([len(value) for value in values], out=offsets[1:])
    if offsets[-1] > np.iinfo(dtype).max:
        raise OverflowError(f"{offsets[-1]:,} do not fit into one column")
    return offsets.astype(dtype)

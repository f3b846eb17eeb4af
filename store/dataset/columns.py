"""Columns of Arrow, made of Python's values. `pa.array` does that too, and imports pandas where it is installed."""

from collections.abc import Sequence
from itertools import chain

import numpy as np
import pyarrow as pa


def make_numbers(values: Sequence[int], kind: pa.DataType) -> pa.Array:
    """`kind`: an integer's."""
    numbers = np.array(values, kind.to_pandas_dtype())  # a dtype of numpy's, whatever the call is named after
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(numbers)])


def make_texts(values: Sequence[str | bytes | None], kind: pa.DataType) -> pa.Array:
    """`kind`: large_string or binary."""
    content = [value.encode() if isinstance(value, str) else value or b"" for value in values]
    offsets = _sum_up(content, np.int64 if kind == pa.large_string() else np.int32)
    is_known = np.array([value is not None for value in values], bool)
    validity = None if is_known.all() else pa.py_buffer(np.packbits(is_known, bitorder="little"))
    return pa.Array.from_buffers(kind, len(values), [validity, pa.py_buffer(offsets), pa.py_buffer(b"".join(content))])


def make_lists(values: Sequence[Sequence[str]]) -> pa.Array:
    """Lists of large_string."""
    kind, offsets = pa.list_(pa.large_string()), _sum_up(values, np.int32)
    texts = make_texts([*chain.from_iterable(values)], pa.large_string())
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(offsets)], children=[texts])


def _sum_up(values: Sequence[Sequence[object]], dtype: type[np.integer]) -> np.ndarray:
    """Where each begins in all of them laid end to end, and where the last one ends."""
    offsets = np.zeros(len(values) + 1, dtype)
    np.cumsum([len(value) for value in values], out=offsets[1:])
    return offsets

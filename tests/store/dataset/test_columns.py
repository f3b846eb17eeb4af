"""Columns are those that Arrow makes of the same values."""

import subprocess
import sys

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store.dataset.columns import make_bytes, make_numbers, make_text_lists, make_texts

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@pytest.mark.parametrize(("kind", "bits"), [(pa.int32(), 31), (pa.int64(), 63)])
@settings(deadline=None)  # the first one imports pandas, where that is installed
@given(data=st.data())
def test_numbers(data: st.DataObject, kind: pa.DataType, bits: int) -> None:
    values = data.draw(st.lists(st.integers(-(2**bits), 2**bits - 1), max_size=20))
    column = make_numbers(values, kind)
    column.validate(full=True)
    assert column.equals(pa.array(values, kind))


def test_a_number_that_is_too_large_is_none_of_it() -> None:
    with pytest.raises(OverflowError):
        make_numbers([2**31], pa.int32())


@settings(deadline=None)  # the first one imports pandas, where that is installed
@given(st.lists(st.none() | TEXTS, max_size=20))
def test_texts(values: list[str | None]) -> None:
    column = make_texts(values)
    column.validate(full=True)
    assert column.equals(pa.array(values, pa.large_string()))
    assert column.null_count == values.count(None)


@settings(deadline=None)  # the first one imports pandas, where that is installed
@given(st.lists(st.binary(max_size=20), max_size=20))
def test_bytes(values: list[bytes]) -> None:
    column = make_bytes(values)
    column.validate(full=True)
    assert column.equals(pa.array(values, pa.binary()))


@settings(deadline=None)  # the first one imports pandas, where that is installed
@given(st.lists(st.lists(TEXTS, max_size=3).map(tuple), max_size=20))
def test_lists(values: list[tuple[str, ...]]) -> None:
    kind = pa.list_(pa.large_string())
    column = make_text_lists(values)
    column.validate(full=True)
    assert column.equals(pa.array(values, kind))


class Long:
    """A text of two billion bytes, without them."""

    def __len__(self) -> int:
        return 2**31 - 1


def test_more_than_a_column_holds_is_refused() -> None:
    with pytest.raises(OverflowError, match=r"4,294,967,294 do not fit into one column"):
        make_bytes([Long(), Long()])  # type: ignore[list-item]


_BUILD = """
import sys
from pathlib import Path
from types import ModuleType

class Finder:
    def find_spec(self, name, path=None, target=None):
        assert name != "pandas", "it takes a quarter of a second"

sys.meta_path.insert(0, Finder())
from store.dataset.index import Index
from store.dataset.sample import Sample
index = Index.from_samples([Sample(0, "a.png", "a.png", 0, 1, 2, 3, ("a", "b"), b"0" * 16)], [Path(".")])
assert index[0].captions == ("a", "b")
assert index.widths.tolist() == [2]
"""


def test_an_index_is_built_without_pandas() -> None:
    """Which many environments have, and nothing here needs."""
    done = subprocess.run([sys.executable, "-c", _BUILD], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]

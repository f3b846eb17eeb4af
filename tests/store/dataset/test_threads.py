"""Threads where they help: the results and their order are the same."""

import threading
import time

import pytest

from store.dataset import threads
from store.dataset.threads import map_in_threads

ITEMS = range(500)


class Clock:
    """Of a look that takes `wall` seconds and computes for `cpu` of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, wall: float, cpu: float):
        self.wall, self.cpu, self.passed, self.computed = wall, cpu, 0.0, 0.0
        self.threads: set[int] = set()
        monkeypatch.setattr(time, "perf_counter", lambda: self.passed)
        monkeypatch.setattr(time, "thread_time", lambda: self.computed)

    def look(self, item: int) -> int:
        self.passed += self.wall
        self.computed += self.cpu
        self.threads.add(threading.get_ident())
        return item * item


@pytest.mark.parametrize("at_once", [1, 7, 64])
@pytest.mark.parametrize("count", [0, 1, 15, 500])
@pytest.mark.parametrize(("wall", "cpu"), [(1e-4, 1e-4), (1e-3, 1e-4), (1.0, 0.0)])
def test_each_item_once_and_in_order(
    monkeypatch: pytest.MonkeyPatch, wall: float, cpu: float, count: int, at_once: int
) -> None:
    clock = Clock(monkeypatch, wall, cpu)
    assert list(map_in_threads(clock.look, ITEMS[:count], at_once)) == [item * item for item in ITEMS[:count]]


def test_what_computes_is_called_here(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, wall=1e-4, cpu=0.9e-4)
    assert len(list(map_in_threads(clock.look, ITEMS))) == len(ITEMS)
    assert clock.threads == {threading.get_ident()}


def test_what_waits_is_called_by_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, wall=5e-3, cpu=1e-4)
    found = map_in_threads(clock.look, ITEMS)
    first = [next(found) for _ in range(4)]
    assert first == [0, 1, 4, 9]
    assert clock.threads == {threading.get_ident()}, "some are tried first"
    assert len(list(found)) == len(ITEMS) - 4
    assert len(clock.threads) > 1


def test_a_file_system_may_slow_down_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the files are in the page cache, and the others are not."""
    clock = Clock(monkeypatch, wall=1e-4, cpu=1e-4)
    found = map_in_threads(clock.look, ITEMS)
    half = [next(found) for _ in range(250)]
    clock.wall = 1.0
    assert half + list(found) == [item * item for item in ITEMS]
    assert len(clock.threads) > 1


def test_one_slow_look_is_no_slow_file_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """After some thousand items that threads took, it is tried again without."""
    clock = Clock(monkeypatch, wall=1e-4, cpu=1e-4)
    found = map_in_threads(clock.look, range(20_000))
    first = next(found)
    clock.wall = 0.03
    second = [next(found) for _ in range(1000)]
    clock.wall = 1e-4
    monkeypatch.setattr(threads, "_map_in_pool", lambda *_: pytest.fail("threads again"))
    rest = list(found)
    assert [first, *second, *rest] == [item * item for item in range(20_000)]
    assert len(clock.threads) > 1


@pytest.mark.parametrize("count", [1, 32])
def test_a_few_large_ones_are_looked_at_side_by_side(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """A tar shard or a parquet file is one item, and takes seconds."""
    clock = Clock(monkeypatch, wall=1e-4, cpu=1e-4)
    assert len(list(map_in_threads(clock.look, ITEMS[:count]))) == count
    assert threading.get_ident() not in clock.threads


def test_what_lets_go_of_the_interpreter_is_called_by_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, wall=1e-4, cpu=1e-4)
    assert len(list(map_in_threads(clock.look, ITEMS, releases_gil=True))) == len(ITEMS)
    assert threading.get_ident() not in clock.threads


@pytest.mark.parametrize("releases_gil", [True, False])
def test_what_it_raises_is_raised(releases_gil: bool) -> None:
    def look(item: int) -> int:
        if item == 300:
            raise OSError("gone")
        return item

    with pytest.raises(OSError, match="gone"):
        list(map_in_threads(look, ITEMS, releases_gil=releases_gil))


def test_no_more_is_read_than_a_little_ahead() -> None:
    """Of whoever takes the results: a million samples are not held."""
    read: list[int] = []
    found = map_in_threads(read.append, range(100_000), releases_gil=True)
    next(found)
    found.close()
    assert len(read) <= 2 * threads._AHEAD

"""Looks at many files, by threads where these are waited for."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_THREADS = 16
_AHEAD = 2 * _THREADS  # chunks that are read and not taken yet
_TRIAL = 0.02  # seconds of looks, after which it is asked what they were spent on
_STRETCH = 4096  # items that threads look at until it is asked anew


def map_in_threads(
    function: Callable[[T], R], items: Sequence[T], at_once: int = 1, *, releases_gil: bool = False
) -> Iterator[R]:
    """`function` of each item, in order, a little ahead of whoever takes them. Raises what it raises.

    Of many items a few are tried here. While these compute for longer than they wait, as in files that the page cache
    holds, no thread is used: threads would hand the interpreter's lock to each other, and take three times as long.

    at_once: items that a thread takes, where handing over each would cost more than the look.
    releases_gil: it computes without the interpreter's lock, as decoders and digests do, so threads help in any case.
    """
    if releases_gil or len(items) <= _AHEAD:
        yield from _map_in_pool(function, items, at_once)
        return
    done = 0
    while done < len(items):
        results, waits = _try_some(function, items, done)
        yield from results
        done += len(results)
        if waits:
            yield from _map_in_pool(function, items[done : done + _STRETCH], at_once)
            done += _STRETCH


def _try_some(function: Callable[[T], R], items: Sequence[T], start: int) -> tuple[list[R], bool]:
    """The results of some items, the first of which is `start`, and whether these waited for longer than they
    computed."""
    began, computed = time.perf_counter(), time.thread_time()
    results: list[R] = []
    while start + len(results) < len(items) and time.perf_counter() - began < _TRIAL:
        results.append(function(items[start + len(results)]))
    return results, time.perf_counter() - began > 2 * (time.thread_time() - computed)


def _map_in_pool(function: Callable[[T], R], items: Sequence[T], at_once: int) -> Iterator[R]:
    size = max(1, min(at_once, len(items) // _AHEAD))

    def read_chunk(start: int) -> list[R]:
        return [function(item) for item in items[start : start + size]]

    waiting: deque[Future[list[R]]] = deque()
    pool = ThreadPoolExecutor(_THREADS)
    try:
        for start in range(0, len(items), size):
            waiting.append(pool.submit(read_chunk, start))
            if len(waiting) >= _AHEAD:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)

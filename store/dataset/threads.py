"""Many small looks at files, which mostly wait for a file system."""

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


def map_in_threads(
    function: Callable[[T], R], items: Sequence[T], at_once: int = 1, *, releases_gil: bool = False
) -> Iterator[R]:
    """`function` of each item, in order, a little ahead of whoever takes them. Raises what it raises.

    While it computes for longer than it waits, as in files that the page cache holds, it is called here: threads take
    three times as long then, for they hand the interpreter's lock to each other.

    at_once: items that a thread takes, where handing over each would cost more than the look.
    releases_gil: it computes without the interpreter's lock, as decoders and digests do, so threads help in any case.
    """
    done, waits = 0, releases_gil
    while done < len(items) and not waits:
        began, computed = time.perf_counter(), time.thread_time()
        results: list[R] = []
        while done + len(results) < len(items) and time.perf_counter() - began < _TRIAL:
            results.append(function(items[done + len(results)]))
        waits = time.perf_counter() - began > 2 * (time.thread_time() - computed)
        done += len(results)
        yield from results
    yield from _map_in_pool(function, items[done:], at_once)


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

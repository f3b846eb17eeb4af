"""Many small looks at files, which mostly wait for a file system."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_THREADS = 16
_MOST_AT_ONCE = 64  # items that a thread takes: one at a time, handing them over would cost more than the look
_AHEAD = 4 * _THREADS  # chunks that are read and not taken yet


def map_in_threads(function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """`function` of each item, in order, a little ahead of whoever takes them. Raises what it raises."""
    size = max(1, min(_MOST_AT_ONCE, len(items) // _AHEAD))

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

"""Many small looks at files, which mostly wait for a file system."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_THREADS = 16
_AHEAD = 2 * _THREADS  # chunks that are read and not taken yet


def map_in_threads(function: Callable[[T], R], items: Sequence[T], at_once: int = 1) -> Iterator[R]:
    """`function` of each item, in order, a little ahead of whoever takes them. Raises what it raises.

    at_once: items that a thread takes, where handing over each would cost more than the look.
    """
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

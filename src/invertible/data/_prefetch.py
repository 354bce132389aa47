"""Compute the next items in the background while the current one is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")


def prefetch(fetch: Callable[[int], Item], steps: Iterable[int], depth: int) -> Iterator[tuple[int, Item]]:
    """Call ``fetch`` on each step, ``depth`` steps ahead, in one background thread.

    Args:
        fetch: What to compute; its error is raised where the item would have come.
        steps: The steps, in order.
        depth: How many results may wait.

    Yields:
        Each step with its result, in order.

    Example:
        >>> list(prefetch(lambda step: step * step, range(3), depth=2))
        [(0, 0), (1, 1), (2, 4)]
    """
    remaining = iter(steps)
    pool = ThreadPoolExecutor(max_workers=1)
    waiting: deque[tuple[int, Future[Item]]] = deque()
    try:
        waiting.extend((step, pool.submit(fetch, step)) for step in islice(remaining, depth))
        while waiting:
            step, future = waiting.popleft()
            item = future.result()
            waiting.extend((later, pool.submit(fetch, later)) for later in islice(remaining, 1))
            yield step, item
    finally:
        pool.shutdown(wait=True, cancel_futures=True)

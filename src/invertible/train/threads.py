"""How many CPU threads: on tiny tensors two can be many times slower than one, so they are timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


def fastest_threads(step: Callable[[], object], n_trials: int = 3) -> int:
    """Time a piece of work with one thread and with all, in turn.

    Args:
        step: The work; it must leave no trace.
        n_trials: How often each is timed, after one untimed call.

    Returns:
        1, or the number torch uses now if that is at least 5 % faster. Torch's setting is as it was.

    Example:
        >>> fastest_threads(lambda: torch.ones(2, 2) @ torch.ones(2, 2)) >= 1
        True
    """
    everything = torch.get_num_threads()
    if everything == 1:
        return 1
    seconds: dict[int, list[float]] = {1: [], everything: []}
    try:
        for trial in range(n_trials + 1):
            for threads, times in seconds.items():
                torch.set_num_threads(threads)
                start = time.perf_counter()
                step()
                times.extend([time.perf_counter() - start] if trial else [])
    finally:
        torch.set_num_threads(everything)
    return everything if statistics.median(seconds[everything]) < 0.95 * statistics.median(seconds[1]) else 1


@contextmanager
def use_threads(n: int) -> Iterator[None]:
    """Compute with so many CPU threads; afterwards torch's setting is as it was.

    Args:
        n: How many.

    Yields:
        Nothing.

    Example:
        >>> with use_threads(1):
        ...     torch.get_num_threads()
        1
    """
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""Random numbers that depend on a key alone, and leave the global state as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from invertible.data.steps import seeded_generator


@contextmanager
def seeded(device: torch.device, *key: int) -> Iterator[None]:
    """Inside, the global random state is decided by the key; afterwards it is what it was.

    Args:
        device: Where else than on the CPU numbers are drawn.
        *key: Whole numbers, e.g. a seed and a step.

    Yields:
        Nothing.

    Example:
        >>> with seeded(torch.device("cpu"), 1, 2):
        ...     a = torch.rand(1)
        >>> with seeded(torch.device("cpu"), 1, 2):
        ...     print(torch.equal(a, torch.rand(1)))
        True
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seeded_generator(*key).initial_seed())
        yield

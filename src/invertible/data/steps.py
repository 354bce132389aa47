"""Which images make a step, which of them are a rank's, and where a step's random numbers come from."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from torch import Generator


class Step(NamedTuple):
    """A global batch: ``n_used`` of the positions ``first`` to ``last - 1`` in the epoch's order."""

    first: int
    last: int
    n_used: int


def plan_steps(n: int, batch_size: int, world_size: int, train: bool, drop_last: bool) -> list[Step]:
    """Divide n images into global batches.

    Args:
        n: Number of images.
        batch_size: Images per step over all ranks.
        world_size: Number of ranks.
        train: A last, smaller batch gives each rank equally many images; else it leaves none out.
        drop_last: Leave out a last, smaller batch.

    Returns:
        The steps; no rank is ever empty.

    Example:
        >>> plan_steps(11, batch_size=4, world_size=2, train=True, drop_last=False)[-1]
        Step(first=8, last=11, n_used=2)
    """
    n_full, rest = divmod(n, batch_size)
    steps = [Step(k * batch_size, (k + 1) * batch_size, batch_size) for k in range(n_full)]
    if drop_last or not rest:
        return steps
    n_used = rest - rest % world_size if train else rest
    if n_used >= world_size:
        return [*steps, Step(n - rest, n, n_used)]
    if train or not steps:
        return steps
    return [*steps[:-1], Step(n - rest - batch_size, n, batch_size + rest)]


def share(step: Step, rank: int, world_size: int) -> slice:
    """Return a rank's part of a step.

    Args:
        step: The global batch.
        rank: This process.
        world_size: Number of ranks.

    Returns:
        Positions in the epoch's order; the ranks' parts follow each other and differ by at most one image.

    Example:
        >>> [share(Step(0, 5, 5), rank, 2) for rank in (0, 1)]
        [slice(0, 3, None), slice(3, 5, None)]
    """
    size, extra = divmod(step.n_used, world_size)
    begin = step.first + rank * size + min(rank, extra)
    return slice(begin, begin + size + (rank < extra))


def seeded_generator(*key: int) -> Generator:
    """Make a generator whose numbers depend on the key alone.

    Args:
        *key: Integers such as seed, epoch and step.

    Returns:
        A CPU generator; neighbouring keys give unrelated numbers.
    """
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=4).digest()
    # Four bytes, because torch's Mersenne twister is seeded by 32 bits only.
    return Generator().manual_seed(int.from_bytes(digest, "little"))

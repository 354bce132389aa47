"""Means over probes of which some go further than others (multilevel Monte Carlo with nested samples).

Level l has a value from each of its n_l probes, n_1 >= n_2 >= ..., the first ones of those of the level before. The
mean telescopes: that of level 1, plus the mean of what level 2 adds for its n_2 probes, and so on.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def combine(levels: list[Tensor]) -> Tensor:
    """The telescoped mean.

    Args:
        levels: Values of each level, shape (n_l, batch).

    Returns:
        Shape (batch,).

    Example:
        >>> combine([torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0]])])
        tensor([3.])
    """
    return torch.stack([added.mean(dim=0) for added in _added(levels)]).sum(dim=0)


def probe_weights(counts: tuple[int, ...], like: Tensor) -> list[Tensor]:
    """The weight of each probe's value at each level in the telescoped mean.

    Args:
        counts: n_1, n_2, ...
        like: Tells dtype and device.

    Returns:
        One tensor of shape (n_l,) for each level; they sum to 1 over all.

    Example:
        >>> probe_weights((2, 1), torch.empty(0))
        [tensor([-0.5000,  0.5000]), tensor([1.])]
    """
    weights = [like.new_full((n,), 1 / n) for n in counts]
    for weight, n in zip(weights, counts[1:], strict=False):
        weight[:n] -= 1 / n
    return weights


def standard_error(levels: list[Tensor], population: int | None = None) -> Tensor:
    """The standard error of the telescoped mean.

    With 1/n_0 = 1/population, its square is the sum over levels of (1/n_l - 1/n_(l-1)) times the variance of what level
    l and those after it add. Probes that stop early count with what they know; what a single probe adds has no
    variance, so that its square is taken, which is no less on average.

    Args:
        levels: Values of each level, shape (n_l, batch).
        population: Of how many probes these are drawn without replacement; None: independently.

    Returns:
        Shape (batch,); NaN with one probe.

    Example:
        >>> standard_error([torch.tensor([[1.0], [3.0]])])
        tensor([1.])
    """
    added, n_probes = _added(levels), len(levels[0])
    if n_probes < 2:
        return torch.full_like(levels[0][0], float("nan"))
    before = 1 / population if population and n_probes <= population else 0.0
    total = torch.zeros_like(levels[0][0])
    for start, n in enumerate(map(len, levels)):
        total = total + (1 / n - before) * _variance(added[start:])
        before = 1 / n
    return total.clamp_min(0).sqrt()


def _variance(added: list[Tensor]) -> Tensor:
    n = len(added[0])
    if n == 1:
        return torch.stack(added).sum(dim=0)[0].square()
    rest = torch.zeros_like(added[0])
    for part in added:
        rest[: len(part)] += part - part.mean(dim=0)
    return rest.square().sum(dim=0) / (n - 1)


def _added(levels: list[Tensor]) -> list[Tensor]:
    later = [high - low[: len(high)] for low, high in pairwise(levels)]
    return [levels[0], *later]

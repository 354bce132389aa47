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

    Its square is the sum over pairs of levels k <= l of the covariance of what they add, which the n_l probes that
    reach both tell, times 1/n_k - 1/population. What a single probe adds has no variance: its square is taken, which is
    no less on average. Few deep probes make covariances uncertain: they may at most halve the sum of the variances.

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
    drawn = 1 / population if population and n_probes <= population else 0.0
    variances = torch.zeros_like(levels[0][0])
    covariances = torch.zeros_like(levels[0][0])
    for level, part in enumerate(added):
        variances = variances + (1 / len(part) - drawn) * _covariance(part, part)
        for before in added[:level] if len(part) > 1 else []:
            covariances = covariances + 2 * (1 / len(before) - drawn) * _covariance(before[: len(part)], part)
    return (variances + covariances).clamp_min(variances / 2).sqrt()


def _covariance(a: Tensor, b: Tensor) -> Tensor:
    if len(a) == 1:
        return (a * b)[0]
    return ((a - a.mean(dim=0)) * (b - b.mean(dim=0))).sum(dim=0) / (len(a) - 1)


def _added(levels: list[Tensor]) -> list[Tensor]:
    later = [high - low[: len(high)] for low, high in pairwise(levels)]
    return [levels[0], *later]

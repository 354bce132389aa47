"""Information by kernels: activations with Gaussian noise added, bounded from both sides by pairwise distances."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from invertible.errors import ConfigError
from invertible.instruments._information_bins import BITS, Bits, check_activations, check_classes

_CHUNK = 2**22
"""Pairs that are in memory at a time."""
_LEAST_EXPONENT = -85.0
"""exp of it is 1e-37, next to the 1 of an example itself nothing; below it numbers are denormal, and slow."""


def kde_information(h: Tensor, labels: Tensor | None = None, *, sigma2: float = 1e-3) -> tuple[Bits, Bits]:
    """Bound what a layer with a little noise tells about input and label, from distances between examples.

    T = h(X) + N(0, sigma2), X uniform over the N examples. With the noise's own entropy taken off,

        I(X; T) <= -1/N sum_i log 1/N sum_j exp(-|h_i - h_j|^2 / (2 sigma2))     (upper)
        I(X; T) >= the same with 4 sigma2 in the place of sigma2                 (lower)

    I(T; Y) is, as Saxe et al. report it, the upper (lower) figure minus those of the classes weighted by their share: a
    difference of two bounds and therefore itself no bound.

    Args:
        h: Activations, shape (..., N, d).
        labels: Whole numbers from 0, shape (N,).
        sigma2: Variance of the noise, above 0. Activations of size 1 are meant.

    Returns:
        Upper and lower, bits, each of shape (...); at most log2(N).

    Raises:
        ShapeError: If shapes do not fit.
        DtypeError: If h holds no real numbers.
        NonFiniteError: If h holds NaN or infinity.
        RangeError: If a label is negative.
        ConfigError: If the variance is none.

    Source: Kolchinsky and Tracey 2017, "Estimating mixture entropy with pairwise distances"; Saxe et al. 2018, "On the
    information bottleneck theory of deep learning".

    Example:
        >>> upper, lower = kde_information(torch.tensor([[0.0], [5.0]]), torch.tensor([0, 1]))
        >>> float(upper.inputs), float(lower.labels)
        (1.0, 1.0)
    """
    check_activations(h)
    own = torch.zeros(h.shape[-2], dtype=torch.int64) if labels is None else check_classes(labels, h.shape[-2])
    upper, lower = kde_sweep(h, [own], (sigma2,))[0]
    if labels is None:
        unknown = torch.full_like(upper.inputs, math.nan)
        return Bits(upper.inputs, unknown), Bits(lower.inputs, unknown)
    return Bits(upper.inputs, upper.labels[0]), Bits(lower.inputs, lower.labels[0])


def kde_sweep(h: Tensor, labelings: Sequence[Tensor], sigma2s: Sequence[float]) -> list[tuple[Bits, Bits]]:
    """`kde_information` for several variances and labels; distances are computed once.

    Args:
        h: Shape (..., N, d), checked.
        labelings: Each of shape (N,): the labels, and shuffled ones.
        sigma2s: Variances of the noise.

    Returns:
        Per variance upper and lower; inputs of shape (...), labels of shape (len(labelings), ...).

    Raises:
        ConfigError: If a variance is none.
    """
    if not sigma2s or not all(0 < s < math.inf for s in sigma2s):
        raise ConfigError("bad noise", expected="variances above 0", got=tuple(sigma2s))
    scales = sorted({scale for s in sigma2s for scale in (s, 4 * s)}, reverse=True)
    n, device = h.shape[-2], h.device
    members = [torch.nn.functional.one_hot(labels.to(device)).to(torch.float32) for labels in labelings]
    sizes = [member.sum(0) for member in members]
    flat = h.detach().reshape(-1, *h.shape[-2:])
    found = torch.stack([_figures(one, members, sizes, scales) for one in flat], dim=-1)  # (scales, 1 + labels, ...)
    shaped = (found / (n * BITS)).view(*found.shape[:2], *h.shape[:-2])
    bits = {scale: Bits(shaped[i, 0], (shaped[i, 0] - shaped[i, 1:]).clamp_min(0)) for i, scale in enumerate(scales)}
    return [(bits[s], bits[4 * s]) for s in sigma2s]


def _figures(h: Tensor, members: Sequence[Tensor], sizes: Sequence[Tensor], scales: Sequence[float]) -> Tensor:
    # Row 0 of each scale: minus the sum over i of the log of the mean kernel; row k: the same within classes.
    x = h.double()
    x = x - x.mean(0)
    total = x.new_zeros(len(scales), 1 + len(members))
    weights = torch.cat([torch.ones_like(members[0][:, :1]), *members], dim=1)
    means = torch.cat([sizes[0].sum().view(1), *sizes])
    for rows in torch.arange(len(x), device=x.device).split(max(1, _CHUNK // len(x))):
        for i, kernel in enumerate(_kernels(_squared_distances(x, rows), scales)):
            logs = (kernel @ weights / means).double().log_()  # of its own class never 0: the example is in the sum
            total[i, 0] -= logs[:, 0].sum()
            column = 1
            for k, member in enumerate(members):
                own = logs[:, column : column + member.shape[1]]
                total[i, 1 + k] -= own[member[rows] > 0].sum()
                column += member.shape[1]
    return total


def _squared_distances(x: Tensor, rows: Tensor) -> Tensor:
    squares, part = x.square().sum(1), x[rows]
    distances = torch.addmm(squares[rows].unsqueeze(1) + squares, part, x.T, alpha=-2).clamp_min_(0)
    distances[torch.arange(len(rows), device=x.device), rows] = 0  # a difference of rounded numbers is not
    return distances.float()


def _kernels(distances: Tensor, scales: Sequence[float]) -> list[Tensor]:
    # Widest first. A quarter of the variance is the fourth power of the kernel: two products instead of an exponential.
    found: list[Tensor] = []
    for i, scale in enumerate(scales):
        if i and math.isclose(scales[i - 1], 4 * scale, rel_tol=1e-9):
            found.append(found[-1].square().square_())
        else:
            found.append((distances * (-0.5 / scale)).clamp_min_(_LEAST_EXPONENT).exp_())
    return found

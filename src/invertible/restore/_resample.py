"""Weights of the classical resampling filters, and sums along one axis."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Filter(NamedTuple):
    """A resampling filter: half its width, in samples, and its values at distances from the centre."""

    support: float
    values: Callable[[Tensor], Tensor]


def _lanczos(lobes: int) -> Filter:
    return Filter(lobes, lambda t: torch.where(t.abs() < lobes, torch.sinc(t) * torch.sinc(t / lobes), 0.0))


def _bicubic(t: Tensor, a: float = -0.5) -> Tensor:
    # Keys 1981, equation 15 with its a = -1/2: the one that reproduces parabolas.
    t = t.abs()
    inner = (a + 2) * t**3 - (a + 3) * t**2 + 1
    outer = a * (t**3 - 5 * t**2 + 8 * t - 4)
    return torch.where(t < 1, inner, torch.where(t < 2, outer, 0.0))


FILTERS = {
    "lanczos2": _lanczos(2),
    "lanczos3": _lanczos(3),
    "bicubic": Filter(2, _bicubic),
    "box": Filter(0.5, lambda t: (t.abs() < 0.5 + 1e-9).double()),
}


def reduction_weights(factor: int, kernel: str, phase: float) -> tuple[Tensor, int]:
    """Weights of one small pixel over the large pixels around it.

    Args:
        factor: Large pixels per small pixel.
        kernel: A name in `FILTERS`.
        phase: Where in its block of `factor` large pixels a small one is centred: 0 first, .5 middle, 1 last.

    Returns:
        float64 weights that sum to one, and how far from the block's first pixel the first weight lies.
    """
    support, values = FILTERS[kernel]
    centre, reach = phase * (factor - 1), support * factor
    at = torch.arange(math.ceil(centre - reach), math.floor(centre + reach) + 1, dtype=torch.float64)
    weights = values((at - centre) / factor)
    used = (weights.abs() > 1e-12).nonzero()  # sinc is only nearly zero at the ends of its support
    first, last = int(used[0]), int(used[-1])
    weights = weights[first : last + 1]
    return weights / weights.sum(), int(at[first])


def enlargement_matrix(n_small: int, factor: int, phase: float) -> Tensor:
    """Interpolation by Lanczos's filter with three lobes; at the borders what is left of it, normalised.

    Args:
        n_small: Pixels along this axis.
        factor: How many times more there shall be.
        phase: As in `reduction_weights`.

    Returns:
        float64 matrix of shape (factor * n_small, n_small); rows sum to one.
    """
    at = (torch.arange(factor * n_small, dtype=torch.float64) - phase * (factor - 1)) / factor
    weights = FILTERS["lanczos3"].values(at.unsqueeze(1) - torch.arange(n_small, dtype=torch.float64))
    return weights / weights.sum(1, keepdim=True)

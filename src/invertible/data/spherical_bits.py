"""Twelve bits on a sphere and a label that no rotation changes: the task of the information plane.

Source: Shwartz-Ziv and Tishby 2017, "Opening the black box of deep neural networks via information", section 3.1:
twelve binary inputs at evenly spread points of the sphere, and p(y = 1 | x) = 1 / (1 + exp(-gain (f(x) - threshold)))
with an f that is invariant under rotations. The paper does not print its f; ours is sqrt(c_0) + c_1 + c_2, with
c_l = sum_ij x_i x_j P_l(cos(angle between i and j)) the power of x at degree l and P_l Legendre's polynomials. The
powers tell apart the 64 classes of patterns that the paper counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from invertible.data.points import PointSet
from invertible.data.steps import seeded_generator
from invertible.errors import ConfigError

NAME = "spherical-bits"
N_BITS = 12
INFORMATION = 0.99
"""I(X; Y) of the paper, bits."""


@dataclass(frozen=True, eq=False)
class SphericalBits:
    """All 4096 patterns with their labels.

    Args:
        x: float32, shape (4096, 12): +1 for a bit that is set, -1 for one that is not.
        y: int64, shape (4096,): 0 or 1, drawn once.
        p: float64, shape (4096,): p(y = 1 | x).
        threshold: Of f.
        gain: Of the logistic function.

    Example:
        >>> task = spherical_bits()
        >>> task.x.shape, round(float(task.p.mean()), 2), round(task.information, 4)
        (torch.Size([4096, 12]), 0.5, 0.99)
    """

    x: Tensor
    y: Tensor
    p: Tensor
    threshold: float
    gain: float

    @property
    def information(self) -> float:
        """I(X; Y) in bits, all patterns being equally likely."""
        return _information(self.p)

    def split(self, fraction: float, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Part the patterns at random.

        Args:
            fraction: Share of the training part, above 0 and below 1.
            seed: Of the draw.

        Returns:
            Positions of the training part and of the rest, each sorted.

        Raises:
            ConfigError: If a part would be empty.

        Example:
            >>> [len(part) for part in spherical_bits().split(0.8)]
            [3277, 819]
        """
        n = len(self.x)
        n_train = round(fraction * n) if 0 < fraction < 1 else 0
        if not 0 < n_train < n:
            raise ConfigError("bad share of the training part", expected="above 0 and below 1", got=fraction)
        order = torch.randperm(n, generator=seeded_generator(seed, n))
        return order[:n_train].sort().values, order[n_train:].sort().values

    def point_set(self) -> PointSet:
        """As a set for loops and instruments.

        Returns:
            All patterns.
        """
        return PointSet(self.x, self.y, ("0", "1"), NAME)


def spherical_bits(seed: int | None = None, information: float = INFORMATION) -> SphericalBits:
    """Make the task: threshold and gain follow from p(y = 1) as near 1/2 as it gets, and from the information wanted.

    Args:
        seed: Of the labels' draw from p(y | x); None: each pattern gets its more probable label.
        information: I(X; Y) in bits, above 0 and below the entropy of the labels without noise (1 to four digits).

    Returns:
        All patterns. The global random state is left alone.

    Raises:
        ConfigError: If an argument is out of its range.

    Example:
        >>> int((spherical_bits(0).y != spherical_bits().y).sum()) < 20
        True
    """
    bits = _patterns()
    f = invariant(bits)
    threshold = _threshold(f)
    highest = _information((f > threshold).double())
    if not 0 < information < highest or (seed is not None and seed < 0):
        got = f"information {information}, seed {seed}"
        raise ConfigError("bad spherical bits", expected=f"information 0 to {highest:.6f}, seed >= 0", got=got)
    gain = _gain(f - threshold, information)
    p = torch.sigmoid(gain * (f - threshold))
    draw = 0.5 if seed is None else torch.rand(len(p), generator=seeded_generator(seed, N_BITS), dtype=torch.float64)
    return SphericalBits((2 * bits - 1).float(), (p > draw).long(), p, threshold, gain)


def powers(bits: Tensor) -> Tensor:
    """Power of patterns at degrees 0 to 3; those of higher degrees follow from these on twelve points.

    Args:
        bits: 0 or 1, shape (n, 12).

    Returns:
        float64, shape (n, 4); no rotation of the icosahedron changes them.

    Example:
        >>> powers(torch.ones(1, 12)).round(decimals=6).abs().tolist()
        [[144.0, 0.0, 0.0, 0.0]]
    """
    points = icosahedron()
    cosines = points @ points.T
    legendre: tuple[Callable[[Tensor], Tensor], ...] = (
        torch.ones_like,
        lambda c: c,
        lambda c: (3 * c**2 - 1) / 2,
        lambda c: (5 * c**3 - 3 * c) / 2,
    )
    x = bits.double()
    return torch.stack([((x @ polynomial(cosines)) * x).sum(1) for polynomial in legendre], dim=1)


def invariant(bits: Tensor) -> Tensor:
    """The function behind the label, sqrt(c_0) + c_1 + c_2.

    Args:
        bits: 0 or 1, shape (n, 12).

    Returns:
        float64, shape (n,), rounded to 1e-9 so that equal patterns have equal values to the bit.
    """
    c = powers(bits)
    return (c[:, 0].clamp_min(0).sqrt() + c[:, 1] + c[:, 2]).mul(1e9).round().div(1e9)


def icosahedron() -> Tensor:
    """Twelve evenly spread points of the sphere.

    Returns:
        float64, shape (12, 3), of length 1.
    """
    golden = (1 + math.sqrt(5)) / 2
    corners = [(0.0, s, t * golden) for s in (1.0, -1.0) for t in (1.0, -1.0)]
    points = [corner[k:] + corner[:k] for k in range(3) for corner in corners]
    return torch.tensor(points, dtype=torch.float64) / math.hypot(1, golden)


def _patterns() -> Tensor:
    numbers = torch.arange(2**N_BITS).unsqueeze(1)
    return (numbers >> torch.arange(N_BITS)) & 1


def _threshold(f: Tensor) -> float:
    levels, counts = f.unique(return_counts=True)
    below = counts.cumsum(0)[:-1].double() / len(f)
    i = int((below - 0.5).abs().argmin())
    return float(levels[i] + levels[i + 1]) / 2


def _gain(f: Tensor, information: float) -> float:
    low, high = 0.0, 1.0
    while _information(torch.sigmoid(high * f)) < information:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _information(torch.sigmoid(middle * f)) < information else (low, middle)
    return high


def _information(p: Tensor) -> float:
    mean = p.mean()
    return float(_entropy(mean) - _entropy(p).mean())


def _entropy(p: Tensor) -> Tensor:
    return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)) / math.log(2)

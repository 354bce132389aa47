"""The Marchenko-Pastur law, its edge for matrices of finite size, and the split of a spectrum into bulk and outliers.

W has p rows and n >= p columns of independent entries with variance s^2. The eigenvalues of W W^T / (n s^2) then
follow the law with aspect ratio q = p / n, between (1 - sqrt q)^2 and (1 + sqrt q)^2; for q = 1 the singular values
of W follow the quarter circle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

MARGIN = 3.0
"""Standard units of the largest eigenvalue above its centre: one Gaussian matrix in a thousand reaches that far."""


def mp_cdf(x: Values, q: float) -> Values:
    """Distribution function of the law, in closed form.

    Args:
        x: Eigenvalues.
        q: The aspect ratio, in (0, 1].

    Returns:
        The probability of an eigenvalue up to x.

    Source: Marchenko and Pastur 1967; the density sqrt((b - x) (x - a)) / (2 pi q x) integrated.

    Example:
        >>> mp_cdf(np.array([0.0, 1.0, 4.0]), 1.0).round(3).tolist()
        [0.0, 0.609, 1.0]
    """
    low, high = (1 - math.sqrt(q)) ** 2, (1 + math.sqrt(q)) ** 2
    inside = np.clip(x, max(low, 1e-300), high)
    root = np.sqrt(np.clip((high - inside) * (inside - low), 0, None))
    middle = np.arcsin(np.clip((2 * inside - low - high) / (high - low), -1, 1))
    skew = ((low + high) * inside - 2 * low * high) / (inside * (high - low))
    total = root + (1 + q) * middle - (1 - q) * np.arcsin(np.clip(skew, -1, 1)) + math.pi * q
    return np.where(x >= high, 1.0, np.clip(total / (2 * math.pi * q), 0, 1))


def singular_density(x: Values, q: float) -> Values:
    """Density of the singular values over s sqrt n: the quarter circle for q = 1.

    Args:
        x: Singular values.
        q: The aspect ratio, in (0, 1].

    Returns:
        The density; 0 outside the bulk.

    Example:
        >>> bool(np.isclose(singular_density(np.array([1.0]), 1.0)[0], math.sqrt(4 - 1) / math.pi))
        True
    """
    low, high = (1 - math.sqrt(q)) ** 2, (1 + math.sqrt(q)) ** 2
    square = np.square(x)
    return np.sqrt(np.clip((high - square) * (square - low), 0, None)) / (math.pi * q * np.maximum(x, 1e-12))


def kolmogorov_smirnov(sorted_cdf: Values) -> float:
    """Largest distance between an empirical distribution and a law.

    Args:
        sorted_cdf: The law's distribution function at the sample's values, in rising order.

    Returns:
        The distance, from 0 to 1.

    Example:
        >>> kolmogorov_smirnov(np.array([0.25, 0.75]))
        0.25
    """
    n = len(sorted_cdf)
    steps = np.arange(n + 1) / n
    return float(max(np.max(steps[1:] - sorted_cdf), np.max(sorted_cdf - steps[:-1])))


@dataclass(frozen=True)
class Bulk:
    """A spectrum without its outliers.

    Args:
        variance: Of the entries that would make the bulk.
        edge: The largest eigenvalue of W W^T that the bulk has in the limit of large matrices.
        n_outliers: Eigenvalues above it by more than chance.
        q: The bulk's aspect ratio.
        n: Its longer side.
    """

    variance: float
    edge: float
    n_outliers: int
    q: float
    n: float


def split_bulk(eigenvalues: Values, p: int, n: int, n_matrices: int = 1) -> Bulk:
    """Take outliers off, from above, until what is left fits under its own edge.

    A few large eigenvalues may hold much of the energy; by the variance of all entries the bulk would look too wide.
    Without r outliers W is like a matrix of (p - r) by (n - r).

    Args:
        eigenvalues: Of W W^T, in rising order; of all matrices together.
        p: The shorter side.
        n: The longer side.
        n_matrices: Matrices of that size.

    Returns:
        The bulk; at most half of the eigenvalues are taken for outliers.

    Source: the edge and its width: Johnstone 2001, with the centring of Ma 2012.

    Example:
        >>> values = np.linalg.svd(np.random.default_rng(0).normal(size=(50, 80)))[1] ** 2
        >>> split_bulk(np.sort(np.append(values[1:], 900.0)), 50, 80).n_outliers
        1
    """
    removed = 0
    while True:
        kept = eigenvalues[: len(eigenvalues) - removed]
        left_p, left_n = p - removed / n_matrices, n - removed / n_matrices
        variance = float(kept.sum()) / (left_p * left_n * n_matrices)
        found = int((eigenvalues > variance * _reach(left_p, left_n)).sum())
        if found <= removed or found > len(eigenvalues) // 2:
            edge = variance * (math.sqrt(left_p) + math.sqrt(left_n)) ** 2
            return Bulk(variance, edge, removed, left_p / left_n, left_n)
        removed = found


def _reach(p: float, n: float) -> float:
    a, b = math.sqrt(max(n - 0.5, 0.5)), math.sqrt(max(p - 0.5, 0.5))
    return (a + b) ** 2 + MARGIN * (a + b) * (1 / a + 1 / b) ** (1 / 3)

"""Rows of a curvature: eigenvalues and spectral densities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from invertible.instruments.result import Row

GAUSS = math.sqrt(2 * math.pi)


@dataclass(frozen=True)
class Eigenvalue:
    """One eigenvalue.

    Args:
        end: "largest" or "smallest".
        number: From that end, from 1.
        value: Of the matrix, as the network's precision has it.
        residual: |A v - value v| of its unit vector v: there is an eigenvalue no farther off than this.
        over_batches: Standard error of v^T A v over batches: what other data would change; None: one batch.
    """

    end: str
    number: int
    value: float
    residual: float
    over_batches: float | None


@dataclass(frozen=True)
class Spectrum:
    """A spectrum as one probe sees it: point masses whose sum is 1.

    Args:
        nodes: Ascending.
        weights: Likewise many.
    """

    nodes: tuple[float, ...]
    weights: tuple[float, ...]

    def density(self, at: Sequence[float], width: float) -> list[float]:
        """Smooth it.

        Args:
            at: Where.
            width: Standard deviation of the Gaussian that each mass becomes.

        Returns:
            Values of a density.
        """
        from numpy import array, exp, subtract

        nodes, weights = array(self.nodes), array(self.weights)
        bumps = exp(-0.5 * (subtract.outer(array(at), nodes) / width) ** 2) / (GAUSS * width)
        return [float(value) for value in bumps @ weights]


@dataclass(frozen=True)
class Estimate:
    """A figure and how far it may be off.

    Args:
        value: The figure.
        error: Standard error over probes; 0: it is exact; None: one probe, which cannot tell.
    """

    value: float
    error: float | None

    def __str__(self) -> str:
        return f"{self.value:.4g}" + (f" +- {self.error:.2g}" if self.error else "")


def mean_of(samples: Sequence[float]) -> Estimate:
    """Average independent samples.

    Args:
        samples: One or more.

    Returns:
        Mean and standard error.

    Example:
        >>> str(mean_of([1.0, 2.0, 3.0]))
        '2 +- 0.58'
    """
    n = len(samples)
    mean = math.fsum(samples) / n
    if n == 1:
        return Estimate(mean, None)
    return Estimate(mean, math.sqrt(math.fsum((s - mean) ** 2 for s in samples) / (n - 1) / n))


@dataclass(frozen=True)
class Share:
    """A share and its bounds.

    Args:
        value: 0 to 1.
        low: The least it can be: of quadrature, less two standard errors over probes.
        high: The most.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.value:.3%}"
        return f"{self.value:.2%} ({self.low:.2%} to {self.high:.2%})"


def share_of(bounds: Sequence[tuple[float, float, float]]) -> Share:
    """Average what several probes say.

    Args:
        bounds: Of each: a share, the least and the most it can be.

    Returns:
        Their mean, with twice the probes' standard error added to the bounds.
    """
    value, low, high = (mean_of([probe[i] for probe in bounds]) for i in range(3))
    return Share(value.value, max(low.value - 2 * (low.error or 0), 0.0), min(high.value + 2 * (high.error or 0), 1.0))


def row(quantity: str, value: float, **more: float | int | None) -> Row:
    """A row of the table.

    Args:
        quantity: What it is.
        value: Its value.
        **more: number, residual, standard_error.

    Returns:
        Plain values, always the same columns.
    """
    empty: Row = {"quantity": quantity, "number": None, "value": value, "residual": None, "standard_error": None}
    return {**empty, **more}

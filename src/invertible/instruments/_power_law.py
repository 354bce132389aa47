"""A power law's exponent from a tail, with its interval (Clauset, Shalizi and Newman 2009)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_TAIL = 10
"""Fewer values tell nothing of an exponent."""
MAX_STARTS = 200


@dataclass(frozen=True)
class PowerLaw:
    """A density proportional to x^-alpha from x_min on.

    Args:
        alpha: The exponent.
        low: Lower end of its 95 % interval, as if the tail's values were independent.
        high: Upper end.
        n_tail: Values in the tail.
        x_min: Where it starts.
        ks: Kolmogorov-Smirnov distance of the tail from the law.
    """

    alpha: float
    low: float
    high: float
    n_tail: int
    x_min: float
    ks: float


def fit_power_law(values: NDArray[np.float64], x_min: float | None = None) -> PowerLaw | None:
    """Fit the exponent by maximum likelihood, from the start at which the tail is closest to a power law.

    Args:
        values: A sample; what is not positive is left out.
        x_min: Where the tail starts; None: the value (of at most 200, evenly spread) with the smallest distance that
            leaves 10 values.

    Returns:
        The fit; None if there are too few values.

    Source: Clauset, Shalizi and Newman 2009, "Power-law distributions in empirical data", sections 3.1 and 3.3. The
    interval is exact for independent values: (alpha - 1) sum log(x / x_min) has a gamma distribution.

    Example:
        >>> sample = (1 - np.random.default_rng(0).random(2000)) ** (-1 / 1.5)  # alpha = 2.5
        >>> found = fit_power_law(sample)
        >>> found.low < 2.5 < found.high
        True
    """
    x = np.sort(values[values > 0])
    if x_min is not None:
        first = int(np.searchsorted(x, x_min))
        return None if len(x) - first < MIN_TAIL else _fit(x[first:], x_min)
    last = len(x) - MIN_TAIL
    if last < 0:
        return None
    starts = np.unique(np.linspace(0, last, min(last + 1, MAX_STARTS)).astype(int))
    fits = [_distance(np.log(x[start:] / x[start])) for start in starts]
    start = starts[int(np.argmin(fits))]
    return _fit(x[start:], float(x[start]))


def _distance(logs: NDArray[np.float64]) -> float:
    n, total = len(logs), float(logs.sum())
    if total <= 0:
        return np.inf
    law = -np.expm1(-n / total * logs)
    steps = np.arange(n + 1) / n
    return float(max(np.max(steps[1:] - law), np.max(law - steps[:-1])))


def _fit(tail: NDArray[np.float64], x_min: float) -> PowerLaw | None:
    from scipy.special import gammaincinv

    logs = np.log(tail / x_min)
    n, total = len(tail), float(logs.sum())
    if total <= 0:
        return None
    low, high = (1 + float(gammaincinv(n, share)) / total for share in (0.025, 0.975))
    return PowerLaw(1 + n / total, low, high, n, x_min, _distance(logs))

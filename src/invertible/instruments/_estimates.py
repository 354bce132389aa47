"""Means with intervals: over seeds, and of shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

CONFIDENCE = 0.95
_Z = 1.959963984540054


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval.

    Args:
        mean: The estimate.
        low: Lower end.
        high: Upper end.
        over: What the interval knows of: other "seeds" (Student's t), other "examples" (Wilson), or "nothing".
    """

    mean: float
    low: float
    high: float
    over: Literal["seeds", "examples", "nothing"]

    def __str__(self) -> str:
        return f"{self.mean:.3g} ({self.low:.3g} to {self.high:.3g})"


def over_seeds(values: Sequence[float]) -> Estimate:
    """The mean over seeds.

    Args:
        values: One per seed.

    Returns:
        It, with an interval from two values on.

    Example:
        >>> found = over_seeds([1.0, 2.0, 3.0])
        >>> found.mean, round(found.high - found.mean, 3)
        (2.0, 2.484)
    """
    n = len(values)
    if not n:
        return Estimate(math.nan, math.nan, math.nan, "nothing")
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, math.nan, math.nan, "nothing")
    from scipy.stats import t

    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * math.sqrt(variance / n)
    return Estimate(mean, mean - half, mean + half, "seeds")


def share_of(values: Sequence[float], n: int) -> Estimate:
    """The mean of accuracies.

    Args:
        values: One per seed, each over the same `n` examples.
        n: How many examples.

    Returns:
        From two seeds on the interval over seeds, cut at 0 and 1; of one seed that over examples.
    """
    if len(values) == 1:
        low, high = wilson(round(values[0] * n), n)
        return Estimate(values[0], low, high, "examples")
    found = over_seeds(values)
    if not values:
        return found
    return Estimate(found.mean, max(found.low, 0.0), min(found.high, 1.0), found.over)


def wilson(k: float, n: float, z: float = _Z) -> tuple[float, float]:
    """The score interval of a share.

    Args:
        k: Successes.
        n: Trials; 0: nothing is known.
        z: Quantile of the normal distribution.

    Returns:
        Both ends.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".

    Example:
        >>> [round(end, 4) for end in wilson(5, 10)]
        [0.2366, 0.7634]
    """
    if not n:
        return 0.0, 1.0
    p, shrink = k / n, 1 + z * z / n
    centre = (p + z * z / (2 * n)) / shrink
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / shrink
    # Rounding must not push an end off its exact place.
    return (0.0 if k == 0 else centre - half), (1.0 if k == n else centre + half)


def newcombe(k: float, n: float, k_other: float, n_other: float) -> tuple[float, float]:
    """The 95 % interval of a difference of two shares.

    Args:
        k: Successes.
        n: Trials.
        k_other: Successes of the share that is taken off.
        n_other: Its trials.

    Returns:
        Both ends.

    Source: Newcombe 1998, "Interval estimation for the difference between independent proportions", method 10.

    Example:
        >>> [round(end, 4) for end in newcombe(56, 70, 48, 80)]
        [0.0524, 0.3339]
    """
    p, q = k / max(n, 1), k_other / max(n_other, 1)
    (low, high), (low_other, high_other) = wilson(k, n), wilson(k_other, n_other)
    below, above = math.hypot(p - low, high_other - q), math.hypot(high - p, q - low_other)
    return max(p - q - below, -1.0), min(p - q + above, 1.0)

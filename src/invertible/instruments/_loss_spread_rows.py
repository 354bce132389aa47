"""Losses of many networks of one width: their spread, and how test follows train, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from invertible.instruments.result import Row

CONFIDENCE = 0.95
N_RESAMPLES = 2000
_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class Interval:
    """A figure and where it may lie.

    Args:
        value: From all networks.
        low: Lower end of the 95 % interval.
        high: Its upper end.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Index:
    """How many directions go down from where a network ended.

    Args:
        negative: Share of the Hessian's eigenvalues below minus the threshold.
        positive: Share above it; the rest count as zero.
        gradient_norm: Euclidean, of the training loss: far from 0, the point is no critical point.
        loss: The training loss.
    """

    negative: float
    positive: float
    gradient_norm: float
    loss: float


@dataclass(frozen=True)
class Width:
    """All networks of one width.

    Args:
        width: Units of the hidden layer.
        n_parameters: Of one network.
        train_losses: After the last epoch, one per network.
        test_losses: Likewise.
        test_errors: Share of test examples that are wrong, one per network.
        spread: Standard deviation of the test losses.
        rho: Correlation of train and test losses over networks (Pearson).
        indices: Of the first networks, where the Hessian was small enough to be built.
        seconds: How long training took, wall-clock.
    """

    width: int
    n_parameters: int
    train_losses: tuple[float, ...]
    test_losses: tuple[float, ...]
    test_errors: tuple[float, ...]
    spread: Interval
    rho: Interval
    indices: tuple[Index, ...]
    seconds: float = field(compare=False)

    def row(self) -> Row:
        """As a row of the table.

        Returns:
            Plain values.
        """
        low, median, high = np.quantile(self.test_losses, [0.05, 0.5, 0.95]).tolist()
        n = len(self.indices)
        return {
            "width": self.width,
            "n_parameters": self.n_parameters,
            "n_networks": len(self.test_losses),
            "train_loss": _mean(self.train_losses),
            "test_loss": _mean(self.test_losses),
            "test_loss_5_percent": low,
            "test_loss_median": median,
            "test_loss_95_percent": high,
            "test_error": _mean(self.test_errors),
            "std": self.spread.value,
            "std_low": self.spread.low,
            "std_high": self.spread.high,
            "rho": self.rho.value,
            "rho_low": self.rho.low,
            "rho_high": self.rho.high,
            "index": _mean([found.negative for found in self.indices]) if n else None,
            "gradient_norm": max(found.gradient_norm for found in self.indices) if n else None,
            "n_indices": n,
            "seconds": self.seconds,
        }


def width_of(
    width: int,
    n_parameters: int,
    losses: NDArray[np.float64],
    indices: Sequence[Index],
    seconds: float,
    seed: int,
) -> Width:
    """Sum up the networks of one width.

    Args:
        width: Units of the hidden layer.
        n_parameters: Of one network.
        losses: Train losses, test losses and test errors, shape (3, n).
        indices: As in `Width`.
        seconds: As in `Width`.
        seed: Of the resamples.

    Returns:
        The summary.
    """
    train, test, errors = (tuple(row) for row in losses.tolist())
    spread = bootstrap(losses[1:2], lambda x: x[0].std(-1, ddof=1), seed)
    rho = bootstrap(losses[:2], lambda x: _correlation(x[0], x[1]), seed)
    return Width(width, n_parameters, train, test, errors, spread, rho, tuple(indices), round(seconds, 3))


def bootstrap(
    samples: NDArray[np.float64], statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]], seed: int
) -> Interval:
    """A statistic and its percentile interval over resampled networks.

    Args:
        samples: Shape (k, n): k figures of each of n networks, which are drawn together.
        statistic: Of shape (k, ..., n) to shape (...).
        seed: Of the draws.

    Returns:
        The interval; NaN where fewer than three networks tell nothing.

    Source: Efron and Tibshirani 1993, "An introduction to the bootstrap", chapter 13.

    Example:
        >>> found = bootstrap(np.arange(100.0)[None], lambda x: x[0].mean(-1), seed=0)
        >>> found.value, round(found.low), round(found.high)
        (49.5, 44, 55)
    """
    n = samples.shape[1]
    if n < 3:
        return Interval(math.nan, math.nan, math.nan)
    found = [statistic(part) for part in _resampled(samples, np.random.default_rng(seed))]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(np.concatenate(found), [tail, 1 - tail]).tolist()
    return Interval(float(statistic(samples)), low, high)


def difference(one: Interval, other: Interval) -> Interval:
    """The difference of two figures of independent networks, as if both were normal.

    Args:
        one: A figure.
        other: What is taken away.

    Returns:
        Its interval, by adding both half-widths in squares.
    """
    value = one.value - other.value
    low = math.hypot(one.value - one.low, other.high - other.value)
    high = math.hypot(one.high - one.value, other.value - other.low)
    return Interval(value, value - low, value + high)


def _resampled(samples: NDArray[np.float64], random: np.random.Generator) -> list[NDArray[np.float64]]:
    n = samples.shape[1]
    at_once = max(1, _AT_ONCE // n)
    counts = [min(at_once, N_RESAMPLES - start) for start in range(0, N_RESAMPLES, at_once)]
    return [samples[:, random.integers(n, size=(count, n))] for count in counts]


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    scale = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return np.divide((a * b).sum(-1), scale, out=np.full_like(scale, np.nan), where=scale > 0)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)

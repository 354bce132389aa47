"""Accuracies over folds, with the interval that folds deserve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Score:
    """A quantity measured on each fold.

    Args:
        mean: Over the folds.
        low: Lower end of the 95 % interval of the mean.
        high: Its upper end.
        folds: The quantity on each fold.
    """

    mean: float
    low: float
    high: float
    folds: tuple[float, ...]

    def at(self, n_comparisons: int) -> Score:
        """The same with an interval for the extremest of several, which covers all of them at once (Bonferroni).

        Args:
            n_comparisons: How many there are.

        Returns:
            The score with a wider interval.
        """
        return score_of(self.folds, 1 - (1 - CONFIDENCE) / n_comparisons)

    def minus(self, other: Score) -> Score:
        """Difference to another score on the same folds, paired.

        Args:
            other: The other.

        Returns:
            The difference; its interval is above 0 where this one is better beyond the spread of folds.
        """
        return score_of([a - b for a, b in zip(self.folds, other.folds, strict=True)])


def score_of(folds: Sequence[float], confidence: float = CONFIDENCE) -> Score:
    """Mean over folds and its interval.

    Training sets of different folds overlap, so the plain standard error is too small. It is corrected with
    1/k + 1/(k-1) in place of 1/k, for k folds, and Student's t with k-1 degrees of freedom.

    Args:
        folds: One figure per fold, two or more.
        confidence: Of the interval.

    Returns:
        The score.

    Source: Nadeau and Bengio 2003, "Inference for the generalization error", equation 11.

    Example:
        >>> score = score_of([0.8, 0.9])
        >>> round(score.mean, 3), round(score.high - score.mean, 3)
        (0.85, 1.1)
    """
    from scipy.stats import t

    k = len(folds)
    mean = math.fsum(folds) / k
    variance = math.fsum((value - mean) ** 2 for value in folds) / (k - 1)
    half = float(t.ppf((1 + confidence) / 2, k - 1)) * math.sqrt((1 / k + 1 / (k - 1)) * variance)
    return Score(mean, mean - half, mean + half, tuple(map(float, folds)))

"""Critical points in sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from invertible.instruments._critical_rows import WHY, Point
from invertible.instruments._loss_spread_rows import Interval, bootstrap
from invertible.instruments.result import Finding

FEW = 8


def findings_of(points: Sequence[Point], stopped: str) -> tuple[Finding, ...]:
    """Say what the figures mean.

    Args:
        points: One per search.
        stopped: Why the measurement ended early.

    Returns:
        Findings; rows are those of the table.
    """
    found = [Finding("warning", f"The measurement stopped early: {stopped}.")] if stopped else []
    distinct = [point for point in points if point.is_critical and point.same_as is None]
    found += [*_counted(points, distinct), *_related(distinct), *_extremes(points, distinct)]
    return tuple(found)


def _counted(points: Sequence[Point], distinct: Sequence[Point]) -> Iterator[Finding]:
    n_critical = sum(point.is_critical for point in points)
    text = f"{n_critical} of {len(points)} searches ended at a critical point, {len(distinct)} of them different"
    if n_critical:
        yield Finding("note", f"{text}.")
    else:
        hint = "Try: weight_decay=0.01, other amplitudes, more n_iterations."
        yield Finding(
            "warning", f"No search of {len(points)} ended at a critical point: nothing is said of any. {hint}"
        )
    reasons = Counter(point.verdict for point in points if not point.is_critical)
    for verdict, count in reasons.most_common():
        first = next(i for i, point in enumerate(points) if point.verdict == verdict)
        yield Finding("note", f"{count} ended elsewhere, and are no critical points: {WHY[verdict]}.", first)


def related(critical: Sequence[Point]) -> Interval:
    """Rank correlation of index and loss.

    Args:
        critical: Different critical points.

    Returns:
        Spearman's, with a bootstrap interval; NaN for fewer than three.
    """
    pairs = np.array([[point.loss for point in critical], [point.index for point in critical]])
    return bootstrap(pairs, lambda x: _rank_correlation(x[0], x[1]), seed=0)


def _related(distinct: Sequence[Point]) -> Iterator[Finding]:
    if len(distinct) < FEW:
        if distinct:
            yield Finding("warning", f"{len(distinct)} different critical points tell no relation of index and loss.")
        return
    found = related(distinct)
    text = f"Rank correlation of index and loss: {found.value:.2f} ({found.low:.2f} to {found.high:.2f})"
    verdict = "the higher, the more directions go down" if found.low > 0 else "no rise with the loss can be told"
    yield Finding("note", f"{text} over {len(distinct)} critical points: {verdict}.")


def _extremes(points: Sequence[Point], distinct: Sequence[Point]) -> Iterator[Finding]:
    if not distinct:
        return
    for name, point in (("lowest", min(distinct, key=_loss)), ("highest", max(distinct, key=_loss))):
        text = (
            f"The {name} has loss {point.loss:.4g}, index {point.index:.3f} and {point.zero_share:.1%} zero eigenvalues"
        )
        yield Finding("note", f"{text}.", points.index(point))


def _loss(point: Point) -> float:
    return point.loss


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    ranks = [_ranks(values) for values in (a, b)]
    a, b = (rank - rank.mean(-1, keepdims=True) for rank in ranks)
    scale = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return np.divide((a * b).sum(-1), scale, out=np.full_like(scale, np.nan), where=scale > 0)


def _ranks(values: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    return rankdata(values, axis=-1)

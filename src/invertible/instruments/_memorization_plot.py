"""The battery as a picture: figure 1 of Zhang et al. 2017, and what becomes of mislabelled examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from invertible.instruments._estimates import Estimate
from invertible.instruments._memorization_rows import Trained

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_panels(found: Sequence[Trained], title: str) -> Axes:
    """Draw everything on a new figure.

    Args:
        found: The conditions.
        title: Of the figure.

    Returns:
        The first panel's axes.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    figure.suptitle(f"Memorisation: {title}")
    draw(axes[0, 0], found)
    by_corruption = [trained for trained in found if trained.condition.pixels == "as they are" and trained.finished]
    _draw_times(axes[0, 1], by_corruption)
    _draw_errors(axes[1, 0], by_corruption)
    _draw_mislabelled(axes[1, 1], by_corruption)
    return axes[0, 0]


def draw(ax: Axes, found: Sequence[Trained]) -> Axes:
    """Draw the training loss against steps, one line per training.

    Args:
        ax: Where.
        found: The conditions.

    Returns:
        The axes.
    """
    for i, trained in enumerate(found):
        for k, training in enumerate(trained.trainings):
            label = trained.condition.name if k == 0 else None
            style = "-" if trained.condition.pixels == "as they are" else "--"
            points = [(moment.steps, moment.loss) for moment in training.moments]
            ax.plot(
                *zip(*points, strict=True) if points else ([], []), style, color=f"C{i}", label=label, linewidth=1.3
            )
    ax.set(title="(a) how fast labels are fitted", xlabel="steps", ylabel="training loss, nats")
    return _finish(ax)


def _draw_times(ax: Axes, found: Sequence[Trained]) -> None:
    _with_intervals(ax, found, lambda trained: trained.epochs_to_fit, "C0", "fitted")
    late = [trained for trained in found if not trained.is_fitted]
    if late:
        epochs = [max(moment.epoch for moment in trained.ends) for trained in late]
        corruptions = [trained.condition.corruption for trained in late]
        ax.plot(corruptions, epochs, "^", color="C3", label="not fitted within")
    ax.set(title="(b) time to fit", xlabel="share of corrupted labels", ylabel="epochs")
    ax.set_ylim(bottom=0)
    _finish(ax)


def _draw_errors(ax: Axes, found: Sequence[Trained]) -> None:
    _with_intervals(ax, found, lambda trained: _error(trained.test), "C0", "test")
    _with_intervals(ax, found, lambda trained: _error(trained.train), "C1", "train, labels as given")
    chances = [
        (trained.condition.corruption, 1 - trained.chance) for trained in found if not math.isnan(trained.chance)
    ]
    if chances:
        ax.plot(*zip(*chances, strict=True), ":", color="grey", label="chance")
    ax.set(
        title="(c) what is left to generalise", xlabel="share of corrupted labels", ylabel="error", ylim=(-0.03, 1.03)
    )
    _finish(ax)


def _draw_mislabelled(ax: Axes, found: Sequence[Trained]) -> None:
    partly = [trained for trained in found if 0 < trained.condition.corruption < 1 or len(found) <= 2]
    for i, trained in enumerate(partly):
        moments = trained.finished[0].moments
        given = [(m.epoch, m.wrong_given) for m in moments if m.wrong_given is not None]
        true = [(m.epoch, m.wrong_true) for m in moments if m.wrong_true is not None]
        if given:
            ax.plot(*zip(*given, strict=True), "-", color=f"C{i}", label=f"{trained.condition.name}: as given")
            ax.plot(*zip(*true, strict=True), ":", color=f"C{i}", label="as truly labelled")
    ax.set(title="mislabelled training examples", xlabel="epoch", ylabel="share predicted", ylim=(-0.03, 1.03))
    _finish(ax)


def _with_intervals(
    ax: Axes, found: Sequence[Trained], what: Callable[[Trained], Estimate], color: str, label: str
) -> None:
    points = [(trained.condition.corruption, what(trained)) for trained in found]
    points = [(x, estimate) for x, estimate in points if not math.isnan(estimate.mean)]
    if not points:
        return
    x = [x for x, _ in points]
    y = [estimate.mean for _, estimate in points]
    below = [_length(estimate.mean - estimate.low) for _, estimate in points]
    above = [_length(estimate.high - estimate.mean) for _, estimate in points]
    ax.errorbar(x, y, (below, above), fmt="o-", color=color, label=label, markersize=4, capsize=2)


def _length(distance: float) -> float:
    return 0.0 if math.isnan(distance) else max(distance, 0.0)


def _error(accuracy: Estimate) -> Estimate:
    return Estimate(1 - accuracy.mean, 1 - accuracy.high, 1 - accuracy.low, accuracy.over)


def _finish(ax: Axes) -> Axes:
    ax.grid(alpha=0.25)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize=8)
    return ax

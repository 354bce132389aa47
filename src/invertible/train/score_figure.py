"""A picture of scores: where they lie among those of the test set, and what the most unlikely look like."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from invertible._files import write_atomically
from invertible.train.figures import new_figure
from invertible.train.flow_figures import draw_tiles
from invertible.train.run import Run
from invertible.train.score import Scored, Scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes

N_MARKED, N_SHOWN = 40, 8


def save_scores(run: Run, scores: Scores, scored: Scored, test: Scores | None, path: Path) -> None:
    """Draw a histogram of the test set's scores with the files' marked, and the most unlikely ones.

    Args:
        run: The run.
        scores: Of the files, the most unlikely first.
        scored: The files' contents.
        test: Scores of the test set, or of a part of it; None: it is not at hand.
        path: The picture.
    """
    figure = new_figure(7.2, 4.6)
    figure.suptitle(f"{run.recipe.title}: {scores.unit} of {scores.condition}", fontsize=9)
    above, below = figure.subplots(2, 1, height_ratios=[1.7, 1])
    _draw_histogram(above, scores, test)
    place = {name: i for i, name in enumerate(scored.names)}
    worst = [place[row.name] for row in scores.rows[:N_SHOWN]]
    captions = [f"{value:.3g}" for value in scores.values[:N_SHOWN]]
    if run.scaling is not None:
        pixels = run.normalize.inverse(run.prepare(scored.data[worst]).cpu())
        draw_tiles(below, pixels, len(worst), captions=captions)
        below.set_title("most unlikely first", fontsize=8)
    else:
        _draw_points(below, scored.data, scores, place)
    write_atomically(path, figure.savefig)


def _draw_histogram(axes: Axes, scores: Scores, test: Scores | None) -> None:
    values = scores.values
    if test is not None:
        axes.hist(test.values, bins=60, color="0.7", label=f"test set ({len(test.rows):,})")
        values = _within(axes, values, test.values)
    if test is not None and test.rows == scores.rows:  # the test set itself was scored
        values = []
    if len(values) <= N_MARKED:
        for i, value in enumerate(values):
            axes.axvline(value, color="tab:red", linewidth=1, alpha=0.8, label="scored" if i == 0 else None)
    else:
        axes.hist(values, bins=60, histtype="step", color="tab:red", label=f"scored ({len(values):,})")
    axes.set_xlabel(scores.unit, fontsize=8)
    axes.set_ylabel("how many", fontsize=8)
    axes.tick_params(labelsize=7)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, loc="upper center")


def _within(axes: Axes, values: list[float], test: list[float]) -> list[float]:
    # Outliers far away would press the test set into one bar: they are told in words instead.
    low, high = min(test), max(test)
    margin = max(high - low, 1e-6)
    shown = [value for value in values if low - margin <= value <= high + margin]
    below = [value for value in values if value < low - margin]
    above = [value for value in values if value > high + margin]
    for beyond, x, side, arrow in ((below, 0.01, "left", "<-"), (above, 0.99, "right", "->")):
        if beyond:
            text = f"{arrow} {len(beyond):,} beyond, {min(beyond):.3g} to {max(beyond):.3g}"
            axes.text(x, 0.9, text, ha=side, fontsize=7, color="tab:red", transform=axes.transAxes)
    return shown


def _draw_points(axes: Axes, points: Tensor, scores: Scores, place: dict[str, int]) -> None:
    order = [place[row.name] for row in reversed(scores.rows)]  # the most unlikely on top
    x = points[order, 0]
    y = points[order, 1] if points.shape[1] > 1 else x * 0
    dots = axes.scatter(x, y, s=4, c=list(reversed(scores.values)), cmap="viridis")
    bar = axes.figure.colorbar(dots, ax=axes, label=scores.unit)
    bar.ax.tick_params(labelsize=6)
    axes.tick_params(labelsize=7)

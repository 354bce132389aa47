"""The picture of a comparison: one panel per figure, ours and the paper's side by side, places written beside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from invertible._files import write_atomically
from invertible.train.compare_result import ComparedFigure, Comparison, figure_of, in_words, ranks
from invertible.train.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS, PAPERS, QUIET = "#0b6e8f", "#c7702c", "#8a8a8a"


def save_comparison(comparison: Comparison, path: Path) -> None:
    """Draw a comparison.

    Args:
        comparison: What was found.
        path: The PNG file.
    """
    columns, rows = comparison.columns, comparison.rows
    first, *others = comparison.figures
    n_panels = 1 + len(columns) + len(others)
    longest = max(len(row.name) for row in rows)
    figure = new_figure(1.2 + 0.08 * longest + 2.5 * n_panels, 1.5 + 0.42 * len(rows))
    panels = figure.subplots(1, n_panels, squeeze=False, sharey=True)[0]
    draw_ours(panels[0], comparison, first)
    for axes, column in zip(panels[1:], columns, strict=False):
        values = [row.paper.get(column) for row in rows]
        places = ranks(values, figure_of(column, comparison.figures).better)
        _draw(axes, values, [None] * len(rows), places, PAPERS)
        axes.set_title(f"the paper's\n{column}", fontsize=9, color=PAPERS)
    for axes, other in zip(panels[1 + len(columns) :], others, strict=True):
        draw_ours(axes, comparison, other, OURS if other.better else QUIET)
    panels[0].set_yticks(range(len(rows)), [row.name for row in rows])
    panels[0].set_ylim(len(rows) - 0.4, -0.6)
    figure.suptitle(comparison.title, fontsize=11)
    write_atomically(path, figure.savefig)


def draw_ours(axes: Axes, comparison: Comparison, figure: ComparedFigure, color: str = OURS) -> None:
    """Draw one of our figures: mean, standard deviation, and each seed as a faint dot.

    Args:
        axes: Where.
        comparison: What was found.
        figure: Which figure.
        color: Of the dots.
    """
    rows = comparison.rows
    means, deviations = [row.mean(figure.name) for row in rows], [row.deviation(figure.name) for row in rows]
    _draw(axes, means, deviations, ranks(means, figure.better), color)
    for y, row in enumerate(rows):
        values = [v for v in row.values(figure.name) if math.isfinite(v)]
        if len(values) > 1:
            axes.plot(values, [y] * len(values), ".", color=color, alpha=0.35, markersize=4, zorder=2)
    n_seeds = max((len(row.values(figure.name)) for row in rows), default=0)
    seeds = f", {n_seeds} seeds" if n_seeds > 1 else ""
    axes.set_title(f"ours{seeds}\n{figure.name}", fontsize=9, color=color)


def _draw(
    axes: Axes,
    values: Sequence[float | None],
    deviations: Sequence[float | None],
    places: Sequence[int | None],
    color: str,
) -> None:
    there = [(y, v) for y, v in enumerate(values) if v is not None and math.isfinite(v)]
    spreads = [d if d is not None and math.isfinite(d) else 0.0 for d in deviations]
    for y, value in enumerate(values):
        axes.axhline(y, color="0.92", linewidth=1, zorder=0)
        if value is None or not math.isfinite(value):
            text = "no figure" if value is None else str(value)
            axes.text(
                0.5, y, text, transform=axes.get_yaxis_transform(), ha="center", va="center", fontsize=7, color="0.6"
            )
            continue
        is_best = places[y] == 1
        axes.errorbar(
            value, y, xerr=spreads[y] or None, fmt="o", color=color, capsize=3, markersize=9 if is_best else 6
        )
        place = f"   {_ordinal(places[y])}" if places[y] is not None else ""
        style = {"fontsize": 8, "ha": "center", "va": "bottom", "fontweight": "bold" if is_best else "normal"}
        axes.annotate(in_words(value) + place, (value, y), (0, 5), textcoords="offset points", **style)
    if there:
        low, high = min(v - spreads[y] for y, v in there), max(v + spreads[y] for y, v in there)
        margin = 0.3 * (high - low) or 0.1 * abs(high) or 1.0
        axes.set_xlim(low - margin, high + margin)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=7)
    axes.locator_params(axis="x", nbins=4)
    axes.xaxis.set_major_formatter(lambda value, _: in_words(value))
    axes.spines[["top", "right", "left"]].set_visible(False)


def _ordinal(place: int | None) -> str:
    return {1: "1st", 2: "2nd", 3: "3rd"}.get(place or 0, f"{place}th")

"""Signal propagation as a picture: the three quantities against depth, theory dashed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from invertible.instruments._signal_rows import SignalBlock

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_NAMES = 24


def draw(ax: Axes | None, blocks: Sequence[SignalBlock], title: str) -> Axes:
    """Draw the three quantities against depth.

    Args:
        ax: Where; None: on a new figure.
        blocks: The stem first.
        title: Above it.

    Returns:
        The axes.
    """
    axes = new_axes() if ax is None else ax
    _line(axes, [block.squared_mean for block in blocks], "squared mean", "C0")
    _line(axes, [block.variance for block in blocks], "variance", "C1")
    _line(axes, [b.residual_variance for b in blocks], "residual variance", "C2")
    _line(axes, [block.expected_variance for block in blocks], "variance, expected", "C1", "--")
    expected = [b.branches[-1].expected_variance if b.branches else None for b in blocks]
    _line(axes, expected, "residual variance, expected", "C2", "--")
    axes.set(yscale="log", xlabel="block", ylabel="average over the channels", title=title)
    _limit(axes, blocks)
    _name_blocks(axes, blocks)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    return axes


def new_axes() -> Axes:
    """Make a figure with one axes.

    Returns:
        The axes.
    """
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(8, 4.4), layout="constrained")[1]


def _line(axes: Axes, values: Sequence[float | None], label: str, colour: str, style: str = "o-") -> None:
    shown = [value if value is not None and 0 < value < math.inf else math.nan for value in values]
    if not all(map(math.isnan, shown)):
        is_long = len(shown) > 2 * _MAX_NAMES
        axes.plot(shown, style.replace("o", "" if is_long else "o"), color=colour, markersize=4, label=label)


def _limit(axes: Axes, blocks: Sequence[SignalBlock]) -> None:
    # Means that are zero but for rounding would stretch the scale over thirty decades.
    values = [value for block in blocks for value in (block.variance, block.residual_variance) if value]
    finite = [value for value in values if 0 < value < math.inf]
    if finite:
        axes.set_ylim(bottom=max(axes.get_ylim()[0], min(finite) * 1e-4))


def _name_blocks(axes: Axes, blocks: Sequence[SignalBlock]) -> None:
    if len(blocks) <= _MAX_NAMES:
        axes.set_xticks(range(len(blocks)), [block.name for block in blocks], rotation=45, ha="right", fontsize=8)


def draw_history(ax: Axes | None, steps: Sequence[int], snapshots: Sequence[Sequence[SignalBlock]]) -> Axes:
    """Draw each block's variance against the step.

    Args:
        ax: Where; None: on a new figure.
        steps: Of the measurements.
        snapshots: The blocks at each.

    Returns:
        The axes.
    """
    import matplotlib

    axes = new_axes() if ax is None else ax
    names = [block.name for block in snapshots[-1]]
    colours = matplotlib.colormaps["viridis_r"]
    for i, name in enumerate(names):
        found = [{block.name: block.variance for block in blocks} for blocks in snapshots]
        values = [variances.get(name, math.nan) for variances in found]
        shown = [value if 0 < value < math.inf else math.nan for value in values]
        is_named = i in (0, len(names) - 1) or len(names) <= _MAX_NAMES // 2
        axes.plot(steps, shown, color=colours(i / max(len(names) - 1, 1)), label=name if is_named else None)
    axes.set(yscale="log", xlabel="step", ylabel="variance, average over the channels", title="Signal over training")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    return axes

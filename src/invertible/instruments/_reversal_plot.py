"""The reversibility report as a picture: error against depth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from invertible.instruments._blocks import Block
from invertible.instruments._reversal_findings import first_broken

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_NAMES = 24


def draw(ax: Axes | None, blocks: Sequence[Block], dtypes: Sequence[str], tolerance: float) -> Axes:
    """Measured and predicted error before each block, and what the inverses amplify.

    Args:
        ax: Where; None: on a new figure.
        blocks: The report.
        dtypes: Those measured.
        tolerance: Largest relative error allowed.

    Returns:
        The axes; those of the inverse Lipschitz constants share its horizontal one.
    """
    axes = _new_axes() if ax is None else ax
    _draw_gains(axes, blocks)
    for i, dtype in enumerate(dtypes):
        _draw_dtype(axes, blocks, dtype, f"C{i}", tolerance)
    axes.axhline(tolerance, color="0.4", linewidth=0.8, linestyle="-.", label="tolerance")
    axes.set(yscale="log", ylabel="relative error of the reconstruction", title="Reversibility: error against depth")
    axes.set_xlabel("before block (the inversion runs from right to left)")
    _set_range(axes, blocks, dtypes, tolerance)
    _name_blocks(axes, blocks)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.2), ncols=3, frameon=False)
    return axes


def _new_axes() -> Axes:
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(8, 5.2), layout="constrained")[1]


def _draw_dtype(axes: Axes, blocks: Sequence[Block], dtype: str, colour: str, tolerance: float) -> None:
    drifts = [block.drift[dtype] for block in blocks]
    if drifts and all(drift.error_rms == 0 for drift in drifts):
        on_the_floor = {"transform": axes.get_xaxis_transform(), "clip_on": False}
        axes.plot([0.0] * len(drifts), "o-", color=colour, label=f"{dtype}, measured: exactly 0", **on_the_floor)
    else:
        _draw_line(axes, [drift.error_rms for drift in drifts], f"{dtype}, measured", "o-", colour)
    _draw_line(axes, [drift.expected for drift in drifts], f"{dtype}, expected", "--", colour)
    _draw_line(axes, [drift.upper for drift in drifts], f"{dtype}, at most (first order)", ":", colour)
    broken = first_broken(blocks, dtype, tolerance)
    if broken is not None:
        _mark(axes, broken, f"{dtype} {_verb(blocks[broken], dtype)} at block {blocks[broken].name}", colour)


def _draw_line(axes: Axes, values: Sequence[float], label: str, style: str, colour: str) -> None:
    shown = _positive(values)
    if not all(math.isnan(value) for value in shown):
        axes.plot(shown, style, color=colour, markersize=4, linewidth=1 if style == ":" else 1.5, label=label)


def _mark(axes: Axes, block: int, label: str, colour: str) -> None:
    axes.axvline(block, color=colour, linewidth=1.2, alpha=0.7)
    axes.plot(block, 0.97, "v", color=colour, markersize=9, transform=axes.get_xaxis_transform(), label=label)


def _verb(block: Block, dtype: str) -> str:
    return "cannot run" if block.drift[dtype].failure.startswith("forward") else "breaks"


def _draw_gains(axes: Axes, blocks: Sequence[Block]) -> None:
    gains = axes.twinx()
    values = _positive([block.inverse_max for block in blocks])
    gains.bar(range(len(blocks)), values, width=0.6, color="0.88", zorder=0)
    gains.set(yscale="log", ylabel="Lipschitz constant of the inverse (bars)")
    gains.yaxis.label.set_color("0.45")
    gains.tick_params(axis="y", colors="0.45")
    finite = [value for value in values if math.isfinite(value)]
    gains.set_ylim(min([1.0, *finite]) * 0.9, max([10.0, *finite]) ** 2)  # bars keep to the lower half
    axes.set_zorder(gains.get_zorder() + 1)
    axes.patch.set_visible(False)


def _set_range(axes: Axes, blocks: Sequence[Block], dtypes: Sequence[str], tolerance: float) -> None:
    # Upper bounds may lie a hundred decades higher and would leave the rest a flat line.
    drifts = [block.drift[dtype] for block in blocks for dtype in dtypes]
    values = _positive([value for drift in drifts for value in (drift.error_rms, drift.expected)])
    finite = [value for value in values if math.isfinite(value)]
    axes.set_ylim(min([tolerance, *finite]) / 3, max([tolerance, *finite]) * 30)


def _name_blocks(axes: Axes, blocks: Sequence[Block]) -> None:
    if 0 < len(blocks) <= _MAX_NAMES:
        long = max(len(block.name) for block in blocks) > 3
        axes.set_xticks(range(len(blocks)), [block.name for block in blocks], rotation=45 * long)
    axes.set_xlim(-0.7, max(len(blocks), 1) - 0.3)


def _positive(values: Sequence[float]) -> list[float]:
    return [value if 0 < value < math.inf else math.nan for value in values]

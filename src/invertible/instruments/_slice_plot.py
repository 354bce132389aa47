"""Loss slices as pictures: lines, contours, surfaces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from invertible.instruments._slice_rows import Slice

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from invertible.instruments.loss_slice import LossSlice

WIDE = 30
"""Losses are drawn on a logarithmic scale if the largest is so many times the smallest."""
N_LEVELS = 18


def draw(ax: Axes | None, found: LossSlice) -> Axes:
    """Draw lines on one axes, or planes as contours side by side.

    Args:
        ax: Where: the first plane only; None: on a new figure.
        found: A result.

    Returns:
        The axes, the first of them.
    """
    import matplotlib.pyplot as plt

    planes = [one for one in found.slices if len(one.axes) == 2]
    if not planes:
        return _lines(plt.subplots(figsize=(7, 4.2), layout="constrained")[1] if ax is None else ax, found)
    if ax is not None:
        return contours(ax, planes[0], found.loss)
    size = {"figsize": (4.6 * len(planes), 4.2), "layout": "constrained", "squeeze": False}
    axes = plt.subplots(1, len(planes), **size)[1][0]
    for one, axis in zip(planes, axes, strict=True):
        contours(axis, one, found.loss)
    return axes[0]


def _lines(axes: Axes, found: LossSlice) -> Axes:
    for i, one in enumerate(found.slices):
        axes.plot(one.axes[0].at, one.losses, color=f"C{i}", linewidth=1.2, label=one.name)
        for mark in one.marks:
            axes.plot(mark.at[0], mark.loss, "o", color=f"C{i}", markersize=3 if len(one.marks) > 1 else 6)
    axes.plot(0, found.loss, "o", color="black", markersize=6, label=f"the network, {found.loss:.3g}")
    losses = [loss for one in found.slices for loss in one.losses]
    if _is_wide(losses):
        axes.set_yscale("log")
    alike = {one.axes[0].name for one in found.slices}
    label = alike.pop() if len(alike) == 1 else _coordinate(found)
    axes.set(xlabel=label, ylabel=found.loss_name, title=f"{found.model}, {found.n_parameters:,} parameters")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    return axes


def _coordinate(found: LossSlice) -> str:
    if found.along == "random":
        return f"coordinate ({found.normalise}-normalised)" if found.normalise != "none" else "share of |theta|"
    return "distance in parameter space"


def contours(axes: Axes, one: Slice, loss: float) -> Axes:
    """Draw a plane as contours.

    Args:
        axes: Where.
        one: The plane.
        loss: The network's.

    Returns:
        The axes.
    """
    x, y = (list(axis.at) for axis in one.axes)
    shown = [[value if math.isfinite(value) else math.nan for value in line] for line in one.grid]
    levels = _levels([value for line in shown for value in line])
    if len(levels) > 1:
        from matplotlib.colors import LogNorm, Normalize

        is_log = levels[0] > 0 and levels[-1] > WIDE * levels[0]
        norm = LogNorm(levels[0], levels[-1]) if is_log else Normalize(levels[0], levels[-1])
        filled = axes.contourf(x, y, shown, levels=levels, norm=norm, cmap="viridis", extend="both")
        axes.contour(x, y, shown, levels=levels, colors="white", linewidths=0.4)
        figure: Any = axes.figure
        figure.colorbar(filled, ax=axes, format="%.3g")
    if len(one.marks) > 2:
        axes.plot(
            [m.at[0] for m in one.marks], [m.at[1] for m in one.marks], ".-", color="C3", linewidth=1, markersize=4
        )
    else:
        for mark in one.marks:
            axes.plot(*mark.at, "o", color="C3", markersize=5)
            axes.annotate(f"{mark.name}, {mark.loss:.3g}", (mark.at[0], mark.at[1]), color="white", fontsize=7)
    axes.plot(0, 0, "*", color="white", markeredgecolor="black", markersize=10)
    axes.set(xlabel=one.axes[0].name, ylabel=one.axes[1].name, title=f"{one.name}: {loss:.3g} at the star")
    return axes


def surface(ax: Axes | None, one: Slice, loss_name: str) -> Axes:
    """Draw a plane as a surface.

    Args:
        ax: Three-dimensional axes; None: on a new figure.
        one: The plane.
        loss_name: Which loss.

    Returns:
        The axes.
    """
    import matplotlib.pyplot as plt
    from numpy import array, meshgrid

    axes: Any = plt.figure(figsize=(6, 5)).add_subplot(projection="3d") if ax is None else ax
    values = array(one.grid, dtype=float)
    is_wide = _is_wide(list(one.losses))
    if is_wide:
        from numpy import log10

        values = log10(values.clip(min=1e-300))
    x, y = meshgrid(*(axis.at for axis in one.axes))
    axes.plot_surface(x, y, values, cmap="viridis", linewidth=0, antialiased=True, rcount=100, ccount=100)
    label = f"log10 {loss_name}" if is_wide else loss_name
    axes.set(xlabel=one.axes[0].name, ylabel=one.axes[1].name, zlabel=label, title=one.name)
    return axes


def _is_wide(losses: Sequence[float]) -> bool:
    finite = [loss for loss in losses if math.isfinite(loss)]
    return bool(finite) and min(finite) > 0 and max(finite) > WIDE * min(finite)


def _levels(losses: Sequence[float]) -> list[float]:
    finite = [loss for loss in losses if math.isfinite(loss)]
    if not finite or not max(finite) > min(finite):
        return []
    low, high = min(finite), max(finite)
    if low > 0 and high > WIDE * low:
        return [low * (high / low) ** (i / N_LEVELS) for i in range(N_LEVELS + 1)]
    return [low + (high - low) * i / N_LEVELS for i in range(N_LEVELS + 1)]

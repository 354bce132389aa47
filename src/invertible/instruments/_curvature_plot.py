"""Curvature as a picture: the density of the spectrum, and what lies at its ends."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from invertible.instruments.curvature import Curvature

FLOOR = 0.1
"""The density is drawn down to this share of one eigenvalue."""


def draw(ax: Axes | None, found: Curvature) -> Axes:
    """Draw the density on a logarithmic scale, with the eigenvalues at both ends below it.

    Args:
        ax: Where; None: on a new figure.
        found: A result.

    Returns:
        The axes.
    """
    import matplotlib.pyplot as plt

    axes = plt.subplots(figsize=(7, 4.2), layout="constrained")[1] if ax is None else ax
    at, mean, low, high = found.density()
    floor = FLOOR / found.n_parameters / (math.sqrt(2 * math.pi) * found.width)
    axes.plot(at, [max(value, floor) for value in mean], color="C0", linewidth=1.2, label="density")
    if len(found.spectra) > 1:
        shown = [max(value, floor) for value in low], [max(value, floor) for value in high]
        axes.fill_between(at, *shown, color="C0", alpha=0.25, linewidth=0, label="from probe to probe")
    for end, colour, mark in (("largest", "C3", "^"), ("smallest", "C2", "v")):
        values = [pair.value for pair in found.eigenvalues if pair.end == end]
        if values:
            where = [floor * 1.6] * len(values)
            axes.plot(values, where, mark, color=colour, markersize=5, alpha=0.8, label=f"{end} eigenvalues")
    axes.axvline(0, color="0.6", linewidth=0.8, zorder=0)
    what = "Hessian" if found.matrix == "hessian" else "Gauss-Newton matrix"
    title = f"{what} of {found.loss_name}: {found.model}, {found.n_parameters:,} parameters, loss {found.loss:.3g}"
    axes.set(yscale="log", ylim=(floor, None), xlabel="eigenvalue", ylabel="density", title=title)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    return axes

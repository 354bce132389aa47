"""Index against loss, and spectra: figure 1 of Dauphin et al."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from invertible.instruments._critical_rows import Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

N_SPECTRA = 3


def draw(ax: Axes | None, points: Sequence[Point], critical: Sequence[Point]) -> Axes:
    """Draw index against loss; on a new figure also eigenvalues at a low, a middle and a high critical point.

    Args:
        ax: Where; None: on a new figure.
        points: All ends of searches: those that are no critical points are grey crosses.
        critical: The critical ones, lowest loss first.

    Returns:
        The axes of index against loss.
    """
    import matplotlib.pyplot as plt

    if ax is not None:
        return _indices(ax, points, critical)
    _, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    _spectra(right, critical)
    return _indices(left, points, critical)


def _indices(axes: Axes, points: Sequence[Point], critical: Sequence[Point]) -> Axes:
    others = [point for point in points if not point.is_critical]
    axes.plot([p.loss for p in others], [p.index for p in others], "x", color="0.75", label="not critical")
    for i, method in enumerate(dict.fromkeys(point.method for point in critical)):
        own = [point for point in critical if point.method == method]
        axes.plot([p.loss for p in own], [p.index for p in own], "o", color=f"C{i}", alpha=0.8, label=method)
    axes.set(xlabel="loss", ylabel="index: share of negative eigenvalues", title="Ends of searches")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return axes


def _spectra(axes: Axes, critical: Sequence[Point]) -> None:
    chosen = {round(i * (len(critical) - 1) / (N_SPECTRA - 1)) for i in range(N_SPECTRA)} if critical else set()
    for i, number in enumerate(sorted(chosen)):
        point = critical[number]
        values = np.array(point.eigenvalues)
        shares = np.arange(1, len(values) + 1) / len(values)
        axes.step(values, shares, where="post", color=f"C{i}", label=f"loss {point.loss:.3g}, index {point.index:.2f}")
    axes.axvline(0, color="0.6", linewidth=0.8)
    axes.set_xscale("symlog", linthresh=1e-3)
    axes.set(xlabel="eigenvalue of the Hessian", ylabel="share of eigenvalues below", title="Critical points")
    axes.grid(alpha=0.25)
    if chosen:
        axes.legend(frameon=False)

"""The transposed reconstruction as a picture: each layer beside random weights and theory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from invertible.instruments._transposed_rows import TransposedLayer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_NAMES = 24


def draw(ax: Axes | None, layers: Sequence[TransposedLayer], title: str) -> Axes:
    """Draw the error at the best scale of each layer; with dropout in paler colour.

    Args:
        ax: Where; None: on a new figure.
        layers: The layers.
        title: Above it.

    Returns:
        The axes.
    """
    import matplotlib.pyplot as plt

    axes = plt.subplots(figsize=(8, 4.4), layout="constrained")[1] if ax is None else ax
    keeps = sorted({found.keep for layer in layers for found in layer.reconstructions}, reverse=True)
    for i, keep in enumerate(keeps):
        _draw_share(axes, layers, keep, alpha=1.0 if i == 0 else 0.4)
    means = [float("nan") if layer.mean_error is None else layer.mean_error for layer in layers]
    axes.plot(means, ":", color="grey", label="each input's mean")
    axes.set(xlabel="layer", ylabel="relative squared error, best scale", title=title, ylim=(0, None))
    if len(layers) <= MAX_NAMES:
        axes.set_xticks(range(len(layers)), [layer.name for layer in layers], rotation=45, ha="right", fontsize=8)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    return axes


def _draw_share(ax: Axes, layers: Sequence[TransposedLayer], keep: float, alpha: float) -> None:
    found = [next(each for each in layer.reconstructions if each.keep == keep) for layer in layers]
    after = "" if keep == 1 else f", {1 - keep:.0%} dropped"
    x = range(len(found))
    ax.plot(x, [each.scaled for each in found], "o", color="C0", alpha=alpha, markersize=5, label=f"the layer{after}")
    low, high = [each.gaussian.scaled_low for each in found], [each.gaussian.scaled_high for each in found]
    ax.vlines(x, low, high, color="C1", alpha=alpha, lw=4, label=f"Gaussian weights{after}")
    ax.plot(x, [each.permuted.scaled for each in found], "x", color="C2", alpha=alpha, label=f"rows permuted{after}")
    ax.plot(x, [each.predicted_scaled for each in found], "_", color="black", alpha=alpha, markersize=12,
            label=f"theory, random weights{after}")  # fmt: skip

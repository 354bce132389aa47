"""Test losses of many networks per width, as distributions, and their correlation to the training loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from invertible.instruments._loss_spread_rows import Width

if TYPE_CHECKING:
    from matplotlib.axes import Axes

N_BINS = 60


def draw(ax: Axes | None, widths: Sequence[Width]) -> Axes:
    """Draw a histogram of the test loss per width; on a new figure also the correlation and both losses.

    Args:
        ax: Where; None: on a new figure.
        widths: Narrowest first.

    Returns:
        The axes of the histograms.
    """
    import matplotlib.pyplot as plt

    if ax is not None:
        return _histograms(ax, widths)
    _, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained", width_ratios=(1.5, 1, 1))
    _both_losses(middle, widths)
    _rho(right, widths)
    return _histograms(left, widths)


def _histograms(axes: Axes, widths: Sequence[Width]) -> Axes:
    everything = np.concatenate([found.test_losses for found in widths])
    low, high = np.quantile(everything, [0.0, 0.999]).tolist()
    edges = np.linspace(low, high if high > low else low + 1, N_BINS + 1)
    for i, found in enumerate(widths):
        axes.hist(np.clip(found.test_losses, low, high), edges, color=f"C{i}", alpha=0.55, label=f"{found.width}")
    n = max(len(found.test_losses) for found in widths)
    axes.set(xlabel="test loss, nats", ylabel="networks", title=f"Up to {n} networks per width")
    axes.legend(title="hidden units", frameon=False)
    return axes


def _both_losses(axes: Axes, widths: Sequence[Width]) -> None:
    for i, found in enumerate(widths):
        axes.plot(found.train_losses, found.test_losses, ".", color=f"C{i}", alpha=0.35, markersize=3)
    axes.set(xlabel="train loss, nats", ylabel="test loss, nats", title="One point per network", xscale="log")
    axes.grid(alpha=0.25)


def _rho(axes: Axes, widths: Sequence[Width]) -> None:
    x = [found.width for found in widths]
    rho = np.array([found.rho.value for found in widths])
    spans = [rho - [found.rho.low for found in widths], [found.rho.high for found in widths] - rho]
    axes.errorbar(x, rho, np.maximum(spans, 0), fmt="o-", color="0.2", capsize=3, markersize=4)
    axes.axhline(0, color="0.7", linewidth=0.8)
    axes.set(xscale="log", xlabel="hidden units", ylabel="correlation of train and test loss")
    axes.set_title("95 % bootstrap intervals")
    axes.set_xticks(x, [str(width) for width in x])
    axes.minorticks_off()
    axes.grid(alpha=0.25)

"""The weight spectrum as pictures: all layers at a glance, and small multiples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from invertible.instruments._marchenko_pastur import singular_density
from invertible.instruments._spectrum_rows import Histogram, Spectrum, Unfolding, WeightLayer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_PANELS, MAX_NAMES = 6, 24


def draw_overview(ax: Axes, layers: Sequence[WeightLayer], title: str) -> Axes:
    """Draw each layer's distance from Marchenko-Pastur beside its null.

    Args:
        ax: Where.
        layers: The weights.
        title: Above it.

    Returns:
        The axes, with a logarithmic scale.
    """
    unfoldings: tuple[tuple[Unfolding, str], ...] = (("filters", "C0"), ("frequencies", "C1"))
    for unfolding, colour in unfoldings:
        found = [next((s for s in layer.spectra if s.unfolding == unfolding), None) for layer in layers]
        if any(found):
            _dots(ax, found, unfolding, colour)
    ax.set(yscale="log", ylabel="KS distance from Marchenko-Pastur", title=title, xlabel="weight")
    if len(layers) <= MAX_NAMES:
        ax.set_xticks(range(len(layers)), [layer.name for layer in layers], rotation=45, ha="right", fontsize=8)
    ax.grid(alpha=0.25)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize=8)
    return ax


def _dots(ax: Axes, found: Sequence[Spectrum | None], name: str, colour: str) -> None:
    ax.plot([math.nan if s is None else s.ks for s in found], "o", color=colour, markersize=5, label=name)
    bulk = [math.nan if s is None or not s.n_outliers else s.ks_bulk for s in found]
    ax.plot(bulk, "x", color=colour, markersize=5, label=f"{name}, without outliers")
    null = [math.nan if s is None or s.permuted is None else s.permuted.ks for s in found]
    if not all(map(math.isnan, null)):
        ax.plot(null, "_", color=colour, markersize=12, label=f"{name}, entries in random order (95 %)")


def draw_layers(layers: Sequence[WeightLayer], title: str) -> Figure:
    """Draw small multiples: entries against a Gaussian, singular values against their law, of each layer.

    Args:
        layers: Those to draw.
        title: Above it.

    Returns:
        A new figure.
    """
    import matplotlib.pyplot as plt

    n_spectra = max([1, *(len(layer.spectra) for layer in layers)])
    size = (2.9 * (1 + n_spectra), 1.9 * len(layers) + 0.5)
    figure, axes = plt.subplots(len(layers), 1 + n_spectra, figsize=size, squeeze=False, layout="constrained")
    for row, layer in zip(axes, layers, strict=True):
        draw_row(row, layer)
    figure.suptitle(title, fontsize=10)
    return figure


def draw_with_panels(layers: Sequence[WeightLayer], title: str) -> Axes:
    """Draw the overview and below it small multiples of a few layers: the furthest from random.

    Args:
        layers: All.
        title: Above it.

    Returns:
        The overview's axes, on a new figure.
    """
    import matplotlib.pyplot as plt

    shown = furthest(layers, MAX_PANELS)
    n_columns = 1 + max([1, *(len(layer.spectra) for layer in shown)])
    figure = plt.figure(figsize=(9, 4.2 + 1.9 * len(shown)), layout="constrained")
    grid = figure.add_gridspec(1 + len(shown), n_columns, height_ratios=[4.2] + [1.9] * len(shown))
    axes = draw_overview(figure.add_subplot(grid[0, :]), layers, title)
    for i, layer in enumerate(shown, start=1):
        draw_row([figure.add_subplot(grid[i, j]) for j in range(n_columns)], layer)
    return axes


def furthest(layers: Sequence[WeightLayer], n: int) -> list[WeightLayer]:
    """The layers least like random ones, in the network's order.

    Args:
        layers: All.
        n: How many at most.

    Returns:
        Those that have a spectrum.
    """
    usable = [layer for layer in layers if layer.spectra]
    ranked = sorted(usable, key=lambda layer: -max(s.ks / (s.permuted.ks if s.permuted else 1) for s in layer.spectra))
    chosen = {layer.name for layer in ranked[:n]}
    return [layer for layer in usable if layer.name in chosen]


def draw_row(axes: Sequence[Axes], layer: WeightLayer) -> None:
    """Draw one layer: its entries, then each unfolding's singular values.

    Args:
        axes: One more than unfoldings, or more.
        layer: It.
    """
    x = np.linspace(-5, 5, 300)
    _bars(axes[0], layer.entries)
    axes[0].plot(x, np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi), color="black", lw=1)
    axes[0].set_xlabel("entry / standard deviation", fontsize=7)
    axes[0].set_title(f"{layer.name}: excess kurtosis {layer.kurtosis:.2f}", fontsize=8)
    for ax, spectrum in zip(axes[1:], layer.spectra, strict=False):
        _draw_spectrum(ax, spectrum)
    for ax in axes[1 + len(layer.spectra) :]:
        ax.set_axis_off()
    for ax in axes:
        ax.set_yticks([])
        ax.tick_params(labelsize=7)


def _draw_spectrum(ax: Axes, spectrum: Spectrum) -> None:
    _bars(ax, spectrum.histogram)
    edge = 1 + math.sqrt(spectrum.aspect)
    low = max(1 - math.sqrt(spectrum.aspect), 0.01)
    x = np.linspace(low, edge, 300)
    ax.plot(x, singular_density(x, spectrum.aspect) * (1 - spectrum.n_outliers / spectrum.n_values), "k-", lw=1)
    if spectrum.outliers:
        places = [ratio * edge for ratio in spectrum.outliers]
        ax.plot(places, [0.02 * ax.get_ylim()[1]] * len(places), "v", color="C3", markersize=4, clip_on=False)
    null = f" (null {spectrum.permuted.ks:.3f})" if spectrum.permuted else ""
    ax.set_title(f"{spectrum.unfolding}: KS {spectrum.ks:.3f}{null}, {spectrum.n_outliers} out", fontsize=8)
    ax.set_xlabel("singular value / (s √n)", fontsize=7)


def _bars(ax: Axes, histogram: Histogram) -> None:
    if not histogram.counts:
        return
    edges = np.linspace(histogram.low, histogram.high, len(histogram.counts) + 1)
    density = np.array(histogram.counts) / histogram.n / (edges[1] - edges[0])
    ax.stairs(density, edges, fill=True, alpha=0.5)

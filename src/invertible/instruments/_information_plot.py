"""Information planes as pictures: I(X; T) across, I(T; Y) up, a line per layer, a colour per epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from invertible.instruments._information_rows import About, LayerGradient, Phase, PlaceInformation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = "osD^v<>PX*hp"


def draw_trajectory(
    ax: Axes | None, about: About, epochs: Sequence[int], snapshots: Sequence[Sequence[PlaceInformation]], number: int
) -> Axes:
    """Draw the paper's plane.

    Args:
        ax: Where; None: on a new figure.
        about: What was measured.
        epochs: Of the snapshots.
        snapshots: The places then.
        number: Of the measurement.

    Returns:
        The axes, with a bar of colours for the epochs.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import SymLogNorm

    axes = _new_axes() if ax is None else ax
    norm = SymLogNorm(linthresh=1, vmin=0, vmax=max(epochs[-1], 1))
    for places in snapshots:
        # The paper's thin lines join the layers of one epoch.
        across, up = [p.inputs[number] for p in places], [p.labels[number] for p in places]
        axes.plot(across, up, color="0.6", linewidth=0.3, alpha=0.4, zorder=1)
    for i, place in enumerate(snapshots[-1]):
        points = [(places[i].inputs[number], places[i].labels[number]) for places in snapshots]
        across, up = zip(*points, strict=True)
        axes.plot(across, up, color="0.4", linewidth=0.6, alpha=0.7, zorder=2)
        shape = _MARKERS[i % len(_MARKERS)]
        axes.scatter(across, up, c=list(epochs), cmap="plasma", norm=norm, s=14, marker=shape, zorder=3)
        axes.scatter([], [], color="0.4", s=14, marker=shape, label=place.place)
    _finish(axes, about, number)
    figure = axes.figure
    figure.colorbar(ScalarMappable(norm, "plasma"), ax=axes, label="epoch", pad=0.02)
    return axes


def draw_sweep(
    ax: Axes | None, about: About, epochs: Sequence[int], snapshots: Sequence[Sequence[PlaceInformation]], number: int
) -> Axes:
    """Draw I(X; T) of one place against the epoch, a line per measurement.

    Args:
        ax: Where; None: on a new figure.
        about: What was measured.
        epochs: Of the snapshots.
        snapshots: The places then.
        number: Of the place.

    Returns:
        The axes.
    """
    axes = _new_axes() if ax is None else ax
    kinds = list(dict.fromkeys(measurement.kind for measurement in about.measurements))
    for i, measurement in enumerate(about.measurements):
        values = [places[number].inputs[i] for places in snapshots]
        is_main = about.number_of(measurement.kind) == i
        style = {"color": f"C{kinds.index(measurement.kind)}", "linewidth": 1.6 if is_main else 0.7}
        axes.plot([epoch + 1 for epoch in epochs], values, label=measurement.name if is_main else None, **style)
    axes.set(xscale="log", xlabel="epoch + 1", ylabel="I(X; T), bits", title=f"{snapshots[-1][number].place}")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    return axes


def draw_moment(ax: Axes | None, about: About, places: Sequence[PlaceInformation], number: int) -> Axes:
    """Draw one moment: the places, and what shuffled labels give there (hollow).

    Args:
        ax: Where; None: on a new figure.
        about: What was measured.
        places: In their order.
        number: Of the measurement.

    Returns:
        The axes.
    """
    axes = _new_axes() if ax is None else ax
    axes.plot([p.inputs[number] for p in places], [p.labels[number] for p in places], color="0.6", linewidth=0.8)
    for i, place in enumerate(places):
        shape, colour = _MARKERS[i % len(_MARKERS)], f"C{i % 10}"
        axes.scatter(
            place.inputs[number], place.labels[number], color=colour, marker=shape, label=place.place, zorder=3
        )
        axes.scatter(place.inputs[number], place.shuffled[number], facecolors="none", edgecolors=colour, marker=shape)
    axes.scatter([], [], facecolors="none", edgecolors="0.4", label="shuffled labels")
    return _finish(axes, about, number)


def draw_gradients(
    ax: Axes | None, epochs: Sequence[int], gradients: Sequence[Sequence[LayerGradient]], phases: Sequence[Phase]
) -> Axes:
    """Draw mean over deviation of each layer's gradient against the epoch, and the turn from drift to diffusion.

    Args:
        ax: Where; None: on a new figure.
        epochs: Of the gradients.
        gradients: Per epoch, one per layer.
        phases: Of the layers.

    Returns:
        The axes, both logarithmic.
    """
    axes = _new_axes() if ax is None else ax
    if not any(math.isfinite(layer.ratio) for one in gradients for layer in one):
        axes.text(0.5, 0.5, "no gradients over several batches", ha="center", transform=axes.transAxes)
        return axes
    turns = {phase.layer: phase.turn for phase in phases}
    for i, layer in enumerate(gradients[0]):
        ratios = [one[i].ratio if math.isfinite(one[i].ratio) else math.nan for one in gradients]
        axes.plot([epoch + 1 for epoch in epochs], ratios, color=f"C{i % 10}", linewidth=1, label=layer.layer)
        if turns.get(layer.layer, -1) >= 0:
            axes.axvline(turns[layer.layer] + 1, color=f"C{i % 10}", linewidth=0.7, linestyle=":")
    axes.axhline(1, color="0.3", linewidth=0.8)
    text = {"fontsize": 8, "color": "0.3", "transform": axes.get_yaxis_transform()}
    axes.text(0.01, 1.1, "drift", va="bottom", **text)
    axes.text(0.01, 0.9, "diffusion", va="top", **text)
    axes.set(xscale="log", yscale="log", xlabel="epoch + 1", ylabel="|mean| / |deviation| of the gradient over batches")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    return axes


def _finish(axes: Axes, about: About, number: int) -> Axes:
    measurement = about.measurements[number]
    axes.axvline(about.ceiling_of(measurement), color="0.3", linewidth=0.8, linestyle="--")
    axes.axhline(about.label_bits, color="0.3", linewidth=0.8, linestyle=":")
    across = "discretised entropy" if measurement.is_binned else "entropy over noise"
    axes.set(xlabel=f"I(X; T), bits: {across} under {measurement.name}", ylabel="I(T; Y), bits")
    axes.set_xlim(-0.02 * about.ceiling, 1.04 * about.ceiling)
    axes.set_ylim(-0.03 * about.label_bits, 1.06 * about.label_bits)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    return axes


def _new_axes() -> Axes:
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(6.4, 4.6), layout="constrained")[1]

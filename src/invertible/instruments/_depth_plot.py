"""Depth profiles as pictures: figures 6 and 7 of i-RevNet, contraction, CKA."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from invertible.instruments._cka import Similarity
from invertible.instruments._depth_rows import Depth
from invertible.instruments._probes import Separation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_NAMES = 24
_MAX_LINES = 7


def draw_panels(depths: Sequence[Depth], chance: float, model: str) -> Axes:
    """Draw everything on a new figure.

    Args:
        depths: The places, in order.
        chance: Share of the largest class.
        model: The network's class.

    Returns:
        The first panel's axes.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(14, 8), layout="constrained")
    figure.suptitle(f"Depth profile: {model}")
    draw_separation(axes[0, 0], depths, chance)
    draw_separation(axes[0, 1], depths, chance, is_projected=True)
    draw_dimensions(axes[0, 2], depths, chance)
    draw_contraction(axes[1, 0], depths)
    draw_similarity(axes[1, 1], depths)
    _draw_counts(axes[1, 2], depths)
    return axes[0, 0]


def draw_separation(axes: Axes, depths: Sequence[Depth], chance: float, is_projected: bool = False) -> Axes:
    """Draw accuracies against depth, with intervals and controls.

    Args:
        axes: Where.
        depths: The places, in order.
        chance: Share of the largest class.
        is_projected: Whether after the random projection.

    Returns:
        The axes.
    """
    found = [depth.projected if is_projected else depth.trained for depth in depths]
    before = [depth.untrained_projected if is_projected else depth.untrained for depth in depths]
    for name, colour in (("svm", "C0"), ("nearest", "C1")):
        label = "linear SVM" if name == "svm" else "nearest neighbour"
        _band(axes, found, name, colour, label)
        _line(axes, before, name, colour, f"{label}, untrained", "--")
        if not is_projected:
            _line(axes, [depth.shuffled for depth in depths], name, colour, f"{label}, shuffled labels", ":")
    axes.axhline(chance, color="grey", linewidth=0.8)
    title = "Separation after random projection" if is_projected else "Separation of classes (figure 6)"
    axes.set(ylabel="accuracy on held-out folds", title=title, ylim=(0, 1.03))
    return _finish(axes, depths)


def _band(axes: Axes, found: Sequence[Separation], name: str, colour: str, label: str) -> None:
    scores = [vars(separation)[name] for separation in found]
    axes.plot([score.mean for score in scores], "o-", color=colour, markersize=4, label=label)
    low, high = [max(score.low, 0) for score in scores], [min(score.high, 1) for score in scores]
    axes.fill_between(range(len(scores)), low, high, color=colour, alpha=0.2, linewidth=0)


def _line(axes: Axes, found: Sequence[Separation | None], name: str, colour: str, label: str, style: str) -> None:
    values = [math.nan if separation is None else vars(separation)[name].mean for separation in found]
    if not all(map(math.isnan, values)):
        axes.plot(values, style, color=colour, alpha=0.8, label=label)


def draw_dimensions(axes: Axes, depths: Sequence[Depth], chance: float) -> Axes:
    """Draw accuracies on the first principal components: solid SVM, dashed nearest neighbour.

    Args:
        axes: Where.
        depths: The places; with many, a few of them spread over the depth.
        chance: Share of the largest class.

    Returns:
        The axes.
    """
    import matplotlib

    colours = matplotlib.colormaps["viridis_r"]
    shown = _spread([depth for depth in depths if depth.components])
    for i, depth in enumerate(shown):
        colour = colours(i / max(len(shown) - 1, 1))
        counts = [found.n for found in depth.components]
        axes.plot(counts, [found.svm.mean for found in depth.components], "o-", color=colour, markersize=3,
                  label=depth.name)  # fmt: skip
        axes.plot(counts, [found.nearest.mean for found in depth.components], "--", color=colour, alpha=0.7)
    axes.axhline(chance, color="grey", linewidth=0.8)
    axes.set(xscale="log", xlabel="principal components", ylabel="accuracy on held-out folds", ylim=(0, 1.03))
    axes.set_title("On principal components (figure 7)\nSVM solid, nearest neighbour dashed", fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    return axes


def _spread(depths: Sequence[Depth]) -> list[Depth]:
    n = min(len(depths), _MAX_LINES)
    return [depths[round(i * (len(depths) - 1) / max(n - 1, 1))] for i in range(n)]


def draw_contraction(axes: Axes, depths: Sequence[Depth]) -> Axes:
    """Draw the squared distance within classes over that between them.

    Args:
        axes: Where.
        depths: The places, in order.

    Returns:
        The axes.
    """
    axes.plot([depth.ratio for depth in depths], "o-", color="C2", markersize=4, label="trained")
    before = [math.nan if depth.untrained_ratio is None else depth.untrained_ratio for depth in depths]
    if not all(map(math.isnan, before)):
        axes.plot(before, "--", color="C2", alpha=0.8, label="untrained")
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set(ylabel="squared distance, within / between classes", title="Contraction")
    return _finish(axes, depths)


def draw_similarity(axes: Axes, depths: Sequence[Depth]) -> Axes:
    """Draw CKA to input and output, with two standard errors where there are batches to tell.

    Args:
        axes: Where.
        depths: The places, in order.

    Returns:
        The axes.
    """
    _similarities(axes, [depth.cka_input for depth in depths], "C3", "to the input")
    _similarities(axes, [depth.cka_output for depth in depths], "C4", "to the output")
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set(ylabel="debiased linear CKA", title="Similarity of whole representations")
    return _finish(axes, depths)


def _similarities(axes: Axes, found: Sequence[Similarity | None], colour: str, label: str) -> None:
    values = [math.nan if similarity is None else similarity.value for similarity in found]
    errors = [0.0 if similarity is None else 2 * (similarity.error or 0.0) for similarity in found]
    if not all(map(math.isnan, values)):
        axes.errorbar(range(len(values)), values, errors, fmt="o-", color=colour, markersize=4, capsize=2, label=label)


def _draw_counts(axes: Axes, depths: Sequence[Depth]) -> None:
    axes.plot([depth.width for depth in depths], "k:", label="features")
    for i, share in enumerate((90, 95, 99)):
        axes.plot([depth.n_components[i] for depth in depths], "o-", markersize=3, label=f"{share} % of the variance")
    axes.set(yscale="log", ylabel="principal components", title="Dimensions")
    _finish(axes, depths)


def _finish(axes: Axes, depths: Sequence[Depth]) -> Axes:
    if len(depths) <= _MAX_NAMES:
        names = [depth.name for depth in depths]
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=7)
    else:
        axes.set_xlabel("depth (0: input)")
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
    return axes

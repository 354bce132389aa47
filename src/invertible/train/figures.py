"""Pictures of a run: its curves, and images beside their reconstructions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from invertible._files import write_atomically

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """An empty figure that needs no display.

    Args:
        width: Inches.
        height: Inches.

    Returns:
        The figure.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


CLASSIFICATION: Mapping[str, str] = MappingProxyType({"loss": "nats", "accuracy": "share"})


def save_curves(history: list[dict[str, float]], path: Path, metrics: Mapping[str, str] = CLASSIFICATION) -> None:
    """Metrics against epochs: loss and accuracy, if no others are named.

    Args:
        history: One row per epoch.
        path: The PNG file.
        metrics: Their names, and units.
    """
    figure = new_figure(4.5 * len(metrics), 3.6)
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axes, (metric, unit) in zip(panels, metrics.items(), strict=True):
        for split in ("train", "validation", "test"):
            points = [(row["epoch"], row[f"{split}_{metric}"]) for row in history if f"{split}_{metric}" in row]
            if points:
                axes.plot(*zip(*points, strict=True), label=split, marker="o" if len(points) == 1 else "")
        axes.set(xlabel="epoch", ylabel=f"{metric.replace('_', ' ')} ({unit})")
        axes.grid(alpha=0.3)
        axes.legend()
    write_atomically(path, figure.savefig)


def save_reconstructions(originals: Tensor, reconstructions: Tensor, path: Path, title: str) -> int:
    """Originals, reconstructions and their difference, magnified by the power of ten that makes it visible.

    Args:
        originals: Shape (n, channels, height, width), black 0, white 1.
        reconstructions: What came back.
        path: The PNG file.
        title: Above the picture.

    Returns:
        k of the magnification 10^k; 0 if there is no difference.
    """
    difference = (reconstructions - originals).double()
    largest = difference.abs().max().item()
    k = min(max(0, math.floor(-math.log10(2 * largest))), 300) if largest > 0 else 0
    rows = {
        "original": originals,
        "reconstruction": reconstructions,
        f"difference x 10^{k}" if largest > 0 else "no difference": 0.5 + difference * 10.0**k,
    }
    n = len(originals)
    figure = new_figure(max(5.0, 1.1 * n + 1.4), 4.2)
    figure.suptitle(title, fontsize=10)
    for i, (axes_row, (name, images)) in enumerate(
        zip(figure.subplots(3, n, squeeze=False), rows.items(), strict=True)
    ):
        for axes, image in zip(axes_row, images, strict=True):
            axes.imshow(_as_picture(image), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
        axes_row[0].set_ylabel(name, fontsize=9)
        figure.align_ylabels() if i == 2 else None
    write_atomically(path, figure.savefig)
    return k


def _as_picture(image: Tensor) -> np.ndarray:
    image = image.detach().cpu().double().clamp(0, 1).mul(255).round().div(255)  # imshow would cut 207.9999 to 207
    return (image[0] if image.shape[0] == 1 else image[:3].permute(1, 2, 0)).numpy()


def spread(n: int, n_shown: int) -> Tensor:
    """Positions spread evenly over a set.

    Args:
        n: Its size.
        n_shown: How many to take, at most.

    Returns:
        Indices, shape (min(n, n_shown),).

    Example:
        >>> spread(10, 3)
        tensor([0, 4, 9])
    """
    return torch.linspace(0, n - 1, min(n, n_shown)).long()

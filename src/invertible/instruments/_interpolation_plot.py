"""Interpolations as a picture: decoded lines above lines between pixels (figure 5 of i-RevNet)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from invertible.instruments._pictures import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

_GAP = 2


def draw(
    ax: Axes | None, rows: Sequence[tuple[Sequence[Picture], Sequence[Picture]]], positions: Sequence[float]
) -> Axes:
    """Draw for each pair the decoded line and, below it, the line between pixels.

    Args:
        ax: Where; None: on a new figure.
        rows: Decoded and mixed images of each pair.
        positions: Of the images on the line, 0 to 1.

    Returns:
        The axes.
    """
    import matplotlib.pyplot as plt

    pictures = [[_as_picture(picture) for picture in line] for pair in rows for line in pair]
    height, width = pictures[0][0].shape[:2]
    canvas = _canvas(pictures, height, width)
    if ax is None:
        size = 0.9 * len(positions) + 1.5, 0.9 * len(pictures) * height / width + 0.6
        ax = plt.subplots(figsize=(max(size[0], 4), max(size[1], 1.8)), layout="constrained")[1]
    ax.imshow(canvas, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set_xticks([i * (width + _GAP) + width / 2 for i in range(len(positions))], [f"{t:.2g}" for t in positions])
    tops = _tops(len(pictures), height)
    ax.set_yticks([top + height / 2 for top in tops], ["decoded", "pixels"] * len(rows))
    ax.tick_params(length=0)
    ax.set(title="Straight lines between two representations, decoded, against lines between pixels")
    ax.title.set_fontsize(10)
    ax.spines[:].set_visible(False)
    return ax


def _as_picture(picture: Picture) -> NDArray[Any]:
    image = picture.tensor.numpy()
    while image.ndim > 3:
        image = image[0]
    if image.ndim == 1:
        image = image[None]
    if image.ndim == 3:  # of other numbers of channels than three, the mean
        image = image.transpose(1, 2, 0) if len(image) == 3 else image.mean(0)
    return np.nan_to_num(image, nan=1.0, posinf=1.0, neginf=0.0)


def _canvas(pictures: list[list[NDArray[Any]]], height: int, width: int) -> NDArray[Any]:
    low, high = min(p.min() for line in pictures for p in line[:: len(line) - 1]), 0.0
    high = max(p.max() for line in pictures for p in line[:: len(line) - 1])
    tops = _tops(len(pictures), height)
    columns = len(pictures[0]) * (width + _GAP) - _GAP
    canvas = np.ones((tops[-1] + height, columns, *pictures[0][0].shape[2:]))
    for top, line in zip(tops, pictures, strict=True):
        for i, picture in enumerate(line):
            left = i * (width + _GAP)
            scaled = (picture - low) / (high - low) if high > low else np.zeros_like(picture)
            canvas[top : top + height, left : left + width] = scaled.clip(0, 1)
    return canvas


def _tops(n: int, height: int) -> list[int]:
    # Both lines of a pair close together, a wider gap to the next pair.
    return [i * (height + _GAP) + (i // 2) * 3 * _GAP for i in range(n)]

"""All labelled examples of a data set in memory, for experiments that train networks of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from invertible._checks import check_floating, check_labels, describe
from invertible.errors import ConfigError, ShapeError
from invertible.instruments.feeding import Feed


def labelled(name: str, data: Any, side: int | None = None) -> tuple[Tensor, Tensor]:
    """Read everything.

    Args:
        name: Who asks.
        data: (x, y), or whatever else `Feed` takes that has labels.
        side: Images are averaged down to so many pixels a side; None: taken as they are.

    Returns:
        Examples as rows, float32, shape (N, d), and labels, int64, shape (N).

    Raises:
        ConfigError: If there are no labels, or the side is none.
        ShapeError: If there are no images to reduce.

    Example:
        >>> x, y = labelled("an example", (torch.rand(4, 1, 28, 28), torch.tensor([0, 1, 1, 0])), side=10)
        >>> x.shape, y.tolist()
        (torch.Size([4, 100]), [0, 1, 1, 0])
    """
    examples, labels = [], []
    for batch in Feed(name, nn.Identity(), data, quiet=True):
        check_floating(batch.tensors[0], name)
        examples.append(batch.tensors[0] if side is None else reduced(batch.tensors[0], side))
        labels.append(batch.needed_labels(name).cpu())
    x, y = torch.cat(examples).flatten(1).float().cpu(), torch.cat(labels)
    if y.ndim != 1:
        raise ShapeError(f"{name} takes one label per example", expected="shape (N,)", got=describe(y))
    check_labels(y, 2**31, name)
    if len(y.unique()) < 2:
        raise ConfigError(f"{name} needs classes to tell apart", expected="two or more", got=f"{len(y.unique())}")
    return x, y.long()


def reduced(images: Tensor, side: int) -> Tensor:
    """Average images down to a smaller size, each pixel over the area that it covers.

    Args:
        images: Shape (N, channels, height, width) or (N, height, width).
        side: Pixels of the smaller ones.

    Returns:
        Shape (N, channels, side, side).

    Raises:
        ShapeError: If they are no images, or smaller than that.
        ConfigError: If the side is not positive.

    Example:
        >>> reduced(torch.arange(16.0).view(1, 1, 4, 4), 2).flatten().tolist()
        [2.5, 4.5, 10.5, 12.5]
    """
    if side < 1:
        raise ConfigError("images need a side", expected="1 or more", got=side)
    if images.ndim not in (3, 4) or min(images.shape[-2:]) < side:
        expected = f"shape (N, channels, height, width), {side} pixels or more a side"
        raise ShapeError(f"no images to reduce to {side} x {side}", expected=expected, got=describe(images))
    four = images if images.ndim == 4 else images.unsqueeze(1)
    down, right = (_averaging(n, side).to(images) for n in four.shape[2:])
    return down @ four @ right.mT


def _averaging(n: int, side: int) -> Tensor:
    # Row i: how much of each of n pixels lies in part i of `side` equal ones; rows sum to 1.
    edges = torch.arange(side + 1, dtype=torch.float64) * n / side
    pixels = torch.arange(n, dtype=torch.float64)
    low = torch.maximum(edges[:-1, None], pixels)
    high = torch.minimum(edges[1:, None], pixels + 1)
    return (high - low).clamp(min=0) * side / n

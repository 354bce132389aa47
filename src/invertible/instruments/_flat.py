"""Streams as rows of one matrix, an example in each: what norms, Jacobians and random signs work on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from invertible.streams import Streams


def flatten(streams: Streams) -> Tensor:
    """Lay each example's streams side by side.

    Args:
        streams: Any shapes with the same batch.

    Returns:
        Shape (batch, n), a copy.

    Example:
        >>> flatten((torch.zeros(2, 3), torch.zeros(2, 4, 5))).shape
        torch.Size([2, 23])
    """
    return torch.cat([stream.reshape(len(stream), -1) for stream in streams], dim=1)


def unflatten(x: Tensor, shapes: Sequence[torch.Size]) -> Streams:
    """Undo `flatten`.

    Args:
        x: Shape (batch, n).
        shapes: Those of the streams.

    Returns:
        The streams.
    """
    parts = x.split([shape.numel() // len(x) for shape in shapes], dim=1)
    return tuple(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))

"""The arithmetic of JPEG: planes of colour, blocks of 8x8, their cosine transform."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional

SIDE = 8


@functools.lru_cache(maxsize=8)
def _dct(dtype: torch.dtype, device: torch.device) -> Tensor:
    # ISO/IEC 10918-1, A.3.3: orthonormal, so distances between coefficients are distances between pixels.
    k, n = torch.arange(SIDE, dtype=torch.float64).unsqueeze(1), torch.arange(SIDE, dtype=torch.float64)
    matrix = torch.cos(math.pi / SIDE * (n + 0.5) * k) * math.sqrt(2 / SIDE)
    matrix[0] /= math.sqrt(2)
    return matrix.to(dtype=dtype, device=device)


def to_planes(image: Tensor, sampling: tuple[int, int]) -> list[Tensor]:
    """A picture as JPEG's planes: brightness, and two of colour with fewer pixels.

    Args:
        image: Shape (batch, 1 or 3, height, width), in [0, 1].
        sampling: Pixels of brightness per pixel of colour: (along rows' direction, down; along columns', across).

    Returns:
        One or three planes of shape (batch, height, width), around zero, in units of the pixel range.

    Source: JFIF 1.02 (ITU-R BT.601, full range).
    """
    if image.shape[1] == 1:
        return [image[:, 0] - 128 / 255]
    red, green, blue = image.unbind(1)
    y = 0.299 * red + 0.587 * green + 0.114 * blue
    colours = torch.stack([(blue - y) / 1.772, (red - y) / 1.402], 1)
    down, across = sampling
    padded = to_multiples(colours, down, across)
    blue_less, red_less = functional.avg_pool2d(padded, (down, across)).unbind(1)
    return [y - 128 / 255, blue_less, red_less]


def to_multiples(planes: Tensor, down: int, across: int) -> Tensor:
    """Continue a picture by its last pixels to a size that divides, as encoders do.

    Args:
        planes: Shape (batch, channels, height, width).
        down: The height becomes a multiple of this.
        across: The width becomes a multiple of this.

    Returns:
        The picture, larger below and to the right if need be.
    """
    height, width = planes.shape[2:]
    if height % down == 0 and width % across == 0:
        return planes
    return functional.pad(planes, (0, -width % across, 0, -height % down), mode="replicate")


def to_coefficients(plane: Tensor) -> Tensor:
    """The cosine transform of each block.

    Args:
        plane: Shape (batch, height, width); any size.

    Returns:
        Shape (batch, blocks down, blocks across, 8, 8), in units of the plane.
    """
    padded = to_multiples(plane.unsqueeze(1), SIDE, SIDE).squeeze(1)
    batch, height, width = padded.shape
    blocks = padded.reshape(batch, height // SIDE, SIDE, width // SIDE, SIDE).transpose(2, 3)
    dct = _dct(plane.dtype, plane.device)
    return dct @ blocks @ dct.T


def to_pixels(coefficients: Tensor) -> Tensor:
    """Undo `to_coefficients`.

    Args:
        coefficients: Shape (batch, blocks down, blocks across, 8, 8).

    Returns:
        Shape (batch, 8 blocks down, 8 blocks across).
    """
    dct = _dct(coefficients.dtype, coefficients.device)
    blocks = dct.T @ coefficients @ dct
    batch, down, across = blocks.shape[:3]
    return blocks.transpose(2, 3).reshape(batch, down * SIDE, across * SIDE)

"""The photographs of the restoration benchmarks, and what is done to them."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

PHOTOGRAPHS = ("astronaut", "camera", "chelsea", "coffee", "coins", "motorcycle", "rocket", "immunohistochemistry")
SIDE = 256
WORDS = "a network that has never seen a picture can still put back what is missing from this one "


def photograph(name: str, side: int = SIDE) -> Tensor:
    """The middle of a photograph that scikit-image ships.

    Args:
        name: Which.
        side: Pixels.

    Returns:
        Shape (1 or 3, side, side), in [0, 1].
    """
    import skimage

    if name == "motorcycle":  # skimage.data gives it as a pair that it downloads; the file is in the package
        pixels = np.asarray(Image.open(Path(skimage.__file__).parent / "data" / "motorcycle_left.png").convert("RGB"))
    else:
        pixels = getattr(skimage.data, name)()
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    top, left = ((n - side) // 2 for n in pixels.shape[:2])
    crop = pixels[top : top + side, left : left + side].astype(np.float32) / 255
    return torch.from_numpy(crop).permute(2, 0, 1).contiguous()


def noisy(picture: Tensor, sigma: float, seed: int = 0) -> Tensor:
    """Gaussian noise, cut off at black and white as the paper and every 8-bit file do.

    Args:
        picture: Shape (channels, height, width).
        sigma: In units of the pixel range.
        seed: Of the noise.

    Returns:
        The same shape, in [0, 1].
    """
    channels, height, width = picture.shape
    noise = np.random.default_rng(seed).standard_normal((height, width, channels)).astype(np.float32)
    return (picture + sigma * torch.from_numpy(noise).permute(2, 0, 1)).clamp(0, 1)


def half_known(height: int, width: int, seed: int = 0) -> Tensor:
    """Which pixels are known where half are missing.

    Args:
        height: Pixels.
        width: Pixels.
        seed: Of the choice.

    Returns:
        Booleans, shape (height, width).
    """
    return torch.from_numpy(np.random.default_rng(seed).random((height, width)) < 0.5)


def text_known(height: int, width: int) -> Tensor:
    """Which pixels are known where text was written over the picture.

    Args:
        height: Pixels.
        width: Pixels.

    Returns:
        Booleans, shape (height, width).
    """
    page = Image.new("L", (width, height), 0)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for line in range(math.ceil(height / 16)):
        start = 37 * line % len(WORDS)
        pen.text((2, 16 * line), (WORDS * 4)[start : start + 60], fill=255, font=font)
    return torch.from_numpy(np.asarray(page) < 128)


def as_jpeg(picture: Tensor, quality: int) -> bytes:
    """A picture as a JPEG file.

    Args:
        picture: Shape (1 or 3, height, width), in [0, 1].
        quality: 1 to 95.

    Returns:
        The file's bytes.
    """
    pixels = (picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()

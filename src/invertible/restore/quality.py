"""How close a picture is to the truth, by scikit-image."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from torch import Tensor

from invertible._checks import describe
from invertible.errors import ShapeError

WINDOW = 7


class Quality(NamedTuple):
    """How close.

    Args:
        psnr: Peak signal-to-noise ratio, dB; infinite where nothing differs.
        ssim: Mean structural similarity, at most 1; None: the picture is smaller than its window of 7x7.
    """

    psnr: float
    ssim: float | None

    def __str__(self) -> str:
        psnr = "identical" if math.isinf(self.psnr) else f"{self.psnr:.2f} dB"
        return psnr if self.ssim is None else f"{psnr}, SSIM {self.ssim:.3f}"


def quality(image: Tensor, truth: Tensor) -> Quality:
    """Compare a picture with the truth.

    Args:
        image: Shape (channels, height, width), in [0, 1].
        truth: The same shape.

    Returns:
        PSNR and SSIM, for values up to 1.

    Raises:
        ShapeError: If the shapes differ or are none of a picture.

    Example:
        >>> import torch
        >>> round(quality(torch.zeros(3, 8, 8), torch.full((3, 8, 8), 0.1)).psnr, 3)
        20.0
    """
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    if image.shape != truth.shape or image.ndim != 3:
        raise ShapeError("picture and truth differ", expected=describe(truth), got=describe(image))
    ours, theirs = (picture.detach().cpu().double().clamp(0, 1).numpy() for picture in (image, truth))
    is_same = bool((ours == theirs).all())  # scikit-image warns of a division by zero
    psnr = math.inf if is_same else float(peak_signal_noise_ratio(theirs, ours, data_range=1))
    if min(image.shape[1:]) < WINDOW:
        return Quality(psnr, None)
    return Quality(psnr, float(np.asarray(structural_similarity(theirs, ours, data_range=1, channel_axis=0))))

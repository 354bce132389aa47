"""How much noise a photograph has, from nothing but the photograph."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from invertible._checks import check_finite, check_floating, describe
from invertible.errors import ShapeError
from invertible.restore._jpeg_blocks import SIDE, to_coefficients
from invertible.restore.clipping import clipped_moments

LOW, HIGH = 7, 10
"""Cosine coefficients with row + column up to LOW choose the patches; those from HIGH on measure the noise."""
STRIDE, N_PATCHES, FEWEST = 2, 40_000, 300
MID_TONES, N_MID_TONES = 0.35, 1000
SHARE, SHARES, SHARE_AT = 0.05, (0.02, 0.2), 25 / 255
N_BISECTIONS = 40
DARKEST = 0.05
GRID = torch.linspace(-1, 2, 1501, dtype=torch.float64)
"""Brightness before the noise was clipped."""


def estimate_sigma(image: Tensor) -> float:
    """Estimate the standard deviation of white Gaussian noise, equal in all channels.

    The patches of 8x8 with the least energy in their low and middle cosine coefficients have the least texture; their
    high coefficients tell the noise. In white noise these are independent of those, so choosing patches biases
    nothing. Noise that was cut at black and white is larger than it looks: that is put right by the moments of a
    clipped normal distribution, from patches of middle brightness.

    Noise that is not white (from JPEG, resizing, a camera's own denoising) comes out too small; texture as fine as
    noise in every patch of a picture (grass) too large.

    Args:
        image: Shape (channels, height, width), in units where white is 1; at least 8x8 pixels.

    Returns:
        Sigma in those units, of the noise before it was clipped to [0, 1].

    Raises:
        NonFiniteError: If a value is NaN or infinite.
        ShapeError: If it is no picture or too small.

    Source: choice of blocks by other coefficients than those measured: Ponomarenko et al. 2007; clipped noise: Foi
        2009, "Clipped noisy images", equations 18 to 21.

    Example:
        >>> noise = 0.1 * torch.randn(1, 128, 128, generator=torch.Generator().manual_seed(0))
        >>> abs(estimate_sigma(0.5 + noise) - 0.1) < 0.005
        True
    """
    check_floating(image, "estimate_sigma")
    if image.ndim != 3 or min(image.shape[1:]) < SIDE or not image.shape[0]:
        expected = f"(channels, height, width) of at least {SIDE}x{SIDE} pixels"
        raise ShapeError("estimate_sigma got no such picture", expected=expected, got=describe(image))
    check_finite(image, "a picture")
    image = image.detach().to("cpu", torch.float64)
    with torch.no_grad():
        is_clipped = bool(image.min() >= 0 and image.max() <= 1)
        coefficients = _mid_tones(_patches(image)) if is_clipped else _patches(image)
        first = _measure(coefficients, SHARE, is_clipped)
        # Much noise: texture matters less, and more patches make the estimate steadier. Little noise: the reverse.
        share = min(max(SHARE * first / SHARE_AT, SHARES[0]), SHARES[1])
        return _measure(coefficients, share, is_clipped)


def _patches(image: Tensor) -> Tensor:
    # Cosine coefficients of overlapping patches, shape (patches, channels, 8, 8).
    windows = image.unfold(1, SIDE, STRIDE).unfold(2, SIDE, STRIDE)
    down, across = windows.shape[1:3]
    chosen = torch.arange(down * across)
    if len(chosen) > N_PATCHES:
        chosen = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))[:N_PATCHES]
    patches = windows[:, chosen // across, chosen % across].transpose(0, 1)
    return to_coefficients(patches.reshape(-1, SIDE, SIDE)).reshape(patches.shape)


def _mid_tones(coefficients: Tensor) -> Tensor:
    distance = (coefficients[..., 0, 0] / SIDE - 0.5).abs().amax(1)
    n_middle = int((distance < MID_TONES).sum())
    n_kept = min(max(n_middle, N_MID_TONES), len(distance))
    return coefficients[distance.topk(n_kept, largest=False).indices]


def _measure(coefficients: Tensor, share: float, is_clipped: bool) -> float:
    order = torch.arange(SIDE).unsqueeze(1) + torch.arange(SIDE)
    energy = (coefficients[..., (order >= 1) & (order <= LOW)] ** 2).sum((1, 2))
    n_kept = min(max(int(share * len(energy)), FEWEST), len(energy))
    calm = coefficients[energy.topk(n_kept, largest=False).indices]
    variance = float((calm[..., order >= HIGH] ** 2).mean())
    return _unclipped(variance, calm[..., 0, 0].flatten() / SIDE) if is_clipped else math.sqrt(variance)


def _unclipped(variance: float, means: Tensor) -> float:
    # The sigma whose noise, clipped, has this variance at pixels with these means.
    low, high = max(math.sqrt(variance), 1e-6), 1.0
    means = means.clamp(DARKEST, 1 - DARKEST)  # at white itself nothing is left to correct
    for _ in range(N_BISECTIONS):
        middle = (low + high) / 2
        mean, clipped = clipped_moments(GRID, middle)
        is_larger = np.interp(means.numpy(), mean.numpy(), clipped.numpy()).mean() < variance
        low, high = (middle, high) if is_larger else (low, middle)
    return math.sqrt(variance) if low <= 1e-6 else low

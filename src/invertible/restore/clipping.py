"""Noise that was cut off at black and white: its mean and variance, so that dark skies do not come out grey."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from invertible.errors import RangeError


def clipped_moments(picture: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Mean and variance of clip(picture + sigma n, 0, 1), n ~ N(0, 1), pixel by pixel.

    A camera and an 8-bit file cut off what lies outside [0, 1]: the mean of noisy black is 0.4 sigma, not 0.

    Args:
        picture: Any shape.
        sigma: Standard deviation of the noise before it was cut, in units of the pixel range; above 0.

    Returns:
        Mean and variance, each in the shape of `picture`; differentiable.

    Raises:
        RangeError: If sigma is not above 0.

    Example:
        >>> mean, variance = clipped_moments(torch.tensor([0.0, 0.5]), 0.1)
        >>> mean, variance
        (tensor([0.0399, 0.5000]), tensor([0.0034, 0.0100]))
    """
    if not sigma > 0:
        raise RangeError("no noise", expected="sigma > 0", got=sigma)
    low, high = -picture / sigma, (1 - picture) / sigma
    cdf_low, cdf_high = _cdf(low), _cdf(high)
    pdf_low, pdf_high = _pdf(low), _pdf(high)
    inside = cdf_high - cdf_low
    mean = picture * inside + sigma * (pdf_low - pdf_high) + 1 - cdf_high
    second = (picture**2 + sigma**2) * inside + 1 - cdf_high
    second = second + sigma * (picture * pdf_low - (picture + 1) * pdf_high)
    return mean, (second - mean**2).clamp(min=0)


def _cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def _pdf(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x**2) / math.sqrt(2 * math.pi)

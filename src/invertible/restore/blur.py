"""A picture out of focus or moved: deblurring with a known kernel."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from invertible._checks import check_finite, describe
from invertible.errors import ConfigError, ShapeError
from invertible.restore.operator import Operator, check_image


class Blur(Operator):
    """Convolution with a known kernel; beyond its border a picture goes on with its last pixels.

    Args:
        kernel: The picture of a point, shape (height, width), both odd; its centre is the point. It is divided by
            its sum, so that brightness is kept.

    Raises:
        ConfigError: If the kernel sums to nothing.
        ShapeError: If its shape is none of a kernel.

    Example:
        >>> blur = Blur(gaussian_kernel(1.0))
        >>> torch.allclose(blur(torch.full((1, 1, 9, 9), 0.3)), torch.tensor(0.3))
        True
    """

    kernel: Tensor

    def __init__(self, kernel: Tensor) -> None:
        super().__init__()
        if kernel.ndim != 2 or not all(n % 2 for n in kernel.shape):
            expected = "(height, width), both odd"
            raise ShapeError("Blur has no such kernel", expected=expected, got=describe(kernel))
        kernel = kernel.detach().double().clone()
        check_finite(kernel, "Blur's kernel")
        if kernel.sum().abs() <= 1e-6 * kernel.abs().sum():
            hint = "a kernel of non-negative values"
            raise ConfigError("Blur's kernel sums to zero", expected="a sum to divide by", got="0", hint=hint)
        self.register_buffer("kernel", kernel / kernel.sum(), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Return the blurred picture, of the same size."""
        batch, channels, height, width = check_image(image, "Blur").shape
        down, across = (n // 2 for n in self.kernel.shape)
        single = image.reshape(batch * channels, 1, height, width)
        padded = functional.pad(single, (across, across, down, down), mode="replicate")
        weights = self.kernel.to(image).flip(0, 1)[None, None]  # torch correlates, optics convolve
        return functional.conv2d(padded, weights).reshape(image.shape)


def gaussian_kernel(sigma: float) -> Tensor:
    """A Gaussian kernel for `Blur`.

    Args:
        sigma: Standard deviation, pixels.

    Returns:
        Square float64 kernel that reaches to four standard deviations and sums to one.

    Raises:
        ConfigError: If sigma is not above zero.

    Example:
        >>> gaussian_kernel(1.0).shape
        torch.Size([9, 9])
    """
    if not (math.isfinite(sigma) and sigma > 0):
        raise ConfigError("bad width of a kernel", expected="a number above 0", got=sigma)
    reach = math.ceil(4 * sigma)
    row = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / sigma) ** 2)
    return torch.outer(row, row) / row.sum() ** 2

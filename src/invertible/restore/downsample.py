"""Fewer pixels: super-resolution."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor
from torch.nn import functional

from invertible._checks import describe
from invertible.errors import ConfigError, ShapeError
from invertible.restore._resample import enlargement_matrix, reduction_weights
from invertible.restore.operator import Operator, check_image

Kernel = Literal["lanczos2", "lanczos3", "bicubic", "box"]
MAX_FACTOR = 64


class Downsample(Operator):
    """Low-pass, then every `factor`-th pixel; beyond its border a picture goes on with its last pixels.

    With the defaults and an even factor these are the numbers of the paper's down-sampler.

    Args:
        factor: Pixels of the wanted picture per pixel of the measured one, along each axis.
        kernel: The low-pass filter.
        phase: Where in its block a small pixel is centred: .5 the middle (what image tools do), 0 the first pixel.

    Raises:
        ConfigError: If an argument is out of its range.
        ShapeError: When called: if a size of the picture is no multiple of the factor.

    Source: Ulyanov, Vedaldi & Lempitsky 2018, section 3.2 (Lanczos with two lobes).

    Example:
        >>> import torch
        >>> down = Downsample(4)
        >>> down(torch.ones(1, 3, 8, 12)).shape, down.image_size((2, 3))
        (torch.Size([1, 3, 2, 3]), (8, 12))
    """

    weights: Tensor

    def __init__(self, factor: int, kernel: Kernel = "lanczos2", phase: float = 0.5) -> None:
        super().__init__()
        if not 1 <= factor <= MAX_FACTOR:
            expected = f"a whole number from 1 to {MAX_FACTOR}"
            raise ConfigError("Downsample has a bad factor", expected=expected, got=factor)
        if kernel not in get_args(Kernel):
            expected = ", ".join(get_args(Kernel))
            raise ConfigError("Downsample has an unknown kernel", expected=expected, got=repr(kernel))
        if not 0 <= phase <= 1:
            raise ConfigError("Downsample has a bad phase", expected="a number from 0 to 1", got=phase)
        self.factor, self.phase = factor, phase
        weights, self._first = reduction_weights(factor, kernel, phase)
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Return the small picture."""
        self._check(image)
        return self._along(self._along(image, 3), 2)

    def image_size(self, measured_size: tuple[int, int]) -> tuple[int, int]:
        """Return `factor` times the measured size."""
        return measured_size[0] * self.factor, measured_size[1] * self.factor

    def start(self, measured: Tensor) -> Tensor:
        """Return the small picture enlarged by Lanczos interpolation (three lobes)."""
        check_image(measured, "Downsample")
        vertical = enlargement_matrix(measured.shape[2], self.factor, self.phase).to(measured)
        horizontal = enlargement_matrix(measured.shape[3], self.factor, self.phase).to(measured)
        return (vertical @ measured @ horizontal.T).clamp(0, 1)

    def _check(self, image: Tensor) -> None:
        check_image(image, "Downsample")
        if image.shape[2] % self.factor or image.shape[3] % self.factor:
            hint = "down.image_size((height, width)) of the small picture tells the size"
            expected = f"height and width that are multiples of {self.factor}"
            raise ShapeError("Downsample cannot divide the picture", expected=expected, got=describe(image), hint=hint)

    def _along(self, image: Tensor, dim: int) -> Tensor:
        batch, channels, height, width = image.shape
        before, after = -self._first, self._first + len(self.weights) - self.factor
        pad = (before, after, 0, 0) if dim == 3 else (0, 0, before, after)
        # A negative padding cuts: with few lobes and a phase at the rim some pixels of a block have no weight.
        single = functional.pad(image.reshape(batch * channels, 1, height, width), pad, mode="replicate")
        shape, stride = ((1, -1), (1, self.factor)) if dim == 3 else ((-1, 1), (self.factor, 1))
        small = functional.conv2d(single, self.weights.to(image).view(1, 1, *shape), stride=stride)
        return small.reshape(batch, channels, *small.shape[2:])

"""Pixels that are missing: inpainting."""

from __future__ import annotations

import torch
from torch import Tensor

from invertible._checks import describe
from invertible.errors import ConfigError, ShapeError
from invertible.restore.operator import Operator, check_image


class Mask(Operator):
    """A picture with holes: only the known pixels count. What lies in the holes is never looked at, NaN included.

    Args:
        known: Which pixels are known: booleans (or zeros and ones) of shape (height, width), (1, height, width) or
            (channels, height, width).

    Raises:
        ConfigError: If no pixel is known, or the values are neither booleans nor zeros and ones.
        ShapeError: If its shape is no mask's; when called: if the picture has another size.

    Example:
        >>> known = torch.tensor([[True, False], [True, True]])
        >>> mask = Mask(known)
        >>> measured = torch.tensor([[[[0.0, 0.9], [0.5, 1.0]]]])
        >>> mask.start(measured)  # the hole gets the mean of what is known
        tensor([[[[0.0000, 0.5000], [0.5000, 1.0000]]]])
        >>> mask.n_measured(measured)
        3
    """

    known: Tensor

    def __init__(self, known: Tensor) -> None:
        super().__init__()
        if known.ndim not in (2, 3) or not known.numel():
            expected = "(height, width) or (channels, height, width)"
            raise ShapeError("no mask", expected=expected, got=describe(known))
        if known.dtype != torch.bool and not ((known == 0) | (known == 1)).all():
            hint = "known = mask > 0.5"
            raise ConfigError("a mask says yes or no", expected="booleans", got="other numbers", hint=hint)
        known = known.detach().bool().clone()
        if not known.any():
            hint = "True (in a file: as --mask-marks says) means known; is the mask the wrong way round?"
            raise ConfigError("the mask hides every pixel", expected="some known pixels", got="none", hint=hint)
        self.register_buffer("known", known if known.ndim == 3 else known.unsqueeze(0))

    def forward(self, image: Tensor) -> Tensor:
        """Return the picture with zeros in the holes."""
        return torch.where(self._on(image), image, 0.0)

    def misfit(self, predicted: Tensor, measured: Tensor) -> Tensor:
        """Return squared errors at the known pixels, zero in the holes."""
        known = self._on(measured)
        # The holes may hold NaN: they are replaced before anything is computed, or its gradient would be NaN.
        return torch.where(known, predicted - torch.where(known, measured, 0.0), 0.0) ** 2

    def n_measured(self, measured: Tensor) -> int:
        """Return how many numbers are known."""
        return int(self._on(measured).expand(measured.shape).sum())

    def start(self, measured: Tensor) -> Tensor:
        """Return the holes filled with the mean of what is known, channel by channel."""
        known = self._on(measured)
        weights = known.expand(measured.shape).to(measured.dtype)
        seen = torch.where(known, measured, 0.0).clamp(0, 1)
        mean = seen.sum((2, 3), keepdim=True) / weights.sum((2, 3), keepdim=True).clamp(min=1)
        return torch.where(known, seen, mean)

    def settle(self, image: Tensor, measured: Tensor) -> Tensor:
        """Return the picture with the known pixels as they are."""
        return torch.where(self._on(image), measured, image)

    def crop(self, rows: slice, columns: slice) -> Mask:
        """Return the mask of a piece of the picture, which must have a known pixel."""
        return Mask(self.known[:, rows, columns])

    def _on(self, image: Tensor) -> Tensor:
        check_image(image, "Mask")
        channels, height, width = self.known.shape
        if image.shape[2:] != (height, width) or channels not in (1, image.shape[1]):
            expected = f"a picture of {width}x{height} pixels (width x height)"
            raise ShapeError("mask and picture differ in size", expected=expected, got=describe(image))
        return self.known

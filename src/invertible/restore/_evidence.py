"""What is known of a picture: the measurement, how it came about, how noisy it is, and perhaps the truth."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from invertible.restore.clipping import clipped_moments
from invertible.restore.operator import Operator
from invertible.restore.settings import Precision


@dataclass
class Evidence:
    """The measurement and what is known about it.

    Args:
        operator: How it came about.
        measured: Shape (1, channels, height, width).
        sigma: Of its noise, in units of the pixel range; None: unknown.
        truth: The picture that is wanted, where someone has it, for figures only.
        precision: Of the network.
    """

    operator: Operator
    measured: Tensor
    sigma: float | None
    truth: Tensor | None
    precision: Precision

    def __post_init__(self) -> None:
        height, width = self.operator.image_size((self.measured.shape[2], self.measured.shape[3]))
        self.size = (height, width)
        self.n = self.operator.n_measured(self.measured)
        seen = torch.nan_to_num(self.measured)
        self.is_clipped = bool((seen >= 0).all() and (seen <= 1).all())
        self._dtype = reduced_dtype(self.measured.device) if self.precision == "auto" else None
        if self.precision == "bfloat16":
            self._dtype = torch.bfloat16

    def loss(self, picture: Tensor) -> Tensor:
        """Mean squared error of a picture, per number measured.

        Args:
            picture: At any scale, shape (1, channels, height, width).

        Returns:
            A scalar.
        """
        predicted = self.operator(self.full_size(picture))
        return self.operator.misfit(self._mean(predicted), self.measured).sum() / self.n

    @torch.no_grad()
    def discrepancy(self, picture: Tensor) -> float | None:
        """Mean squared error of a picture, divided by the variance of the noise.

        Args:
            picture: Shape (1, channels, height, width).

        Returns:
            About 1 for the true picture; None: the noise is unknown.
        """
        if not self.sigma:
            return None
        predicted = self.operator(self.full_size(picture))
        if not self.is_clipped:
            return float(self.operator.misfit(predicted, self.measured).sum() / self.n) / self.sigma**2
        mean, variance = clipped_moments(predicted, self.sigma)
        measured = torch.nan_to_num(self.measured)
        noise = self.operator.misfit(measured + variance.sqrt(), measured).sum()
        return float(self.operator.misfit(mean, self.measured).sum() / noise)

    def full_size(self, picture: Tensor) -> Tensor:
        """Enlarge a coarse picture.

        Args:
            picture: Shape (1, channels, height, width).

        Returns:
            At the wanted picture's size.
        """
        if tuple(picture.shape[2:]) == self.size:
            return picture
        return F.interpolate(picture, size=self.size, mode="bilinear", align_corners=False)

    @torch.no_grad()
    def psnr(self, picture: Tensor) -> float | None:
        """Peak signal-to-noise ratio against the truth, dB.

        Args:
            picture: Shape (1, channels, height, width).

        Returns:
            The ratio; None: the truth is unknown.
        """
        if self.truth is None:
            return None
        error = float((self.full_size(picture).clamp(0, 1) - self.truth).square().mean())
        return math.inf if error == 0 else -10 * math.log10(error)

    def autocast(self) -> AbstractContextManager[object]:
        """Compute in the chosen precision.

        Returns:
            A context.
        """
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self.measured.device.type, self._dtype)

    def _mean(self, predicted: Tensor) -> Tensor:
        if not self.sigma or not self.is_clipped:
            return predicted
        return clipped_moments(predicted, self.sigma)[0]


def reduced_dtype(device: torch.device) -> torch.dtype | None:
    """Choose bfloat16 where a processor multiplies it faster than float32.

    Args:
        device: Where.

    Returns:
        torch.bfloat16, or None.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    capability = torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else ""
    return torch.bfloat16 if "AVX512" in capability and torch.cpu._is_avx512_bf16_supported() else None

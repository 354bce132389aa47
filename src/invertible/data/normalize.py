"""Pixels to zero mean and unit variance, and exactly back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Self

import torch
from torch import Tensor

from invertible.data.histogram import count_values
from invertible.data.source import ImageSource
from invertible.errors import ConfigError, DtypeError, ShapeError


@dataclass(frozen=True)
class Normalize:
    """(x / max_value - mean) / std per channel, in float32.

    Args:
        mean: One mean per channel, in pixel range 0 to 1.
        std: One standard deviation per channel, in pixel range; positive.
        max_value: The pixel value that means white.

    Raises:
        ConfigError: If the lengths differ, a mean is outside 0 to 1 or a standard deviation is not positive.

    Example:
        >>> normalize = Normalize(mean=(0.5,), std=(0.5,))
        >>> normalize(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)).flatten().tolist()
        [-1.0, 1.0]
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    max_value: int = 255

    def __post_init__(self) -> None:
        for key in ("mean", "std"):  # a list would be neither hashable nor equal to what it was saved from
            object.__setattr__(self, key, tuple(float(value) for value in getattr(self, key)))
        if not self.mean or len(self.mean) != len(self.std):
            got = f"{len(self.mean)} and {len(self.std)}"
            raise ConfigError("bad mean and std", expected="one of each per channel", got=got, hint="Normalize.fit")
        if not all(0 <= mean <= 1 for mean in self.mean):
            raise ConfigError("bad mean", expected="0 to 1", got=self.mean, hint="divide by max_value")
        if not all(std > 0 and math.isfinite(std) for std in self.std):
            raise ConfigError("bad std", expected="positive numbers", got=self.std, hint="Normalize.fit")
        if not 1 <= self.max_value <= 255:
            raise ConfigError("bad max_value", expected="1 to 255", got=self.max_value, hint="255 for 8-bit images")

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalise.

        Args:
            pixels: uint8, or floating point in 0 to ``max_value``; shape (batch, channels, height, width).

        Returns:
            float32 of the same shape, on the same device.
        """
        self._check(pixels)
        scale, shift = _affine(self, pixels.device)
        # Two roundings, as a fused operation would differ in the last bit between devices. Converted first,
        # as promotion inside the product is 14 times slower.
        return pixels.to(torch.float32, copy=True).mul_(scale).add_(shift)

    def inverse(self, x: Tensor) -> Tensor:
        """Undo the normalisation.

        Args:
            x: Floating point, shape (batch, channels, height, width).

        Returns:
            Pixels where 0 is black and 1 is white, of the same shape and dtype; not clipped.

        Raises:
            DtypeError: If ``x`` is not floating point.
        """
        self._check(x)
        if not x.is_floating_point():
            raise DtypeError("bad normalised images", expected="floating point", got=x.dtype, hint="pass model output")
        mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return x * std + mean

    def to_uint8(self, x: Tensor) -> Tensor:
        """Undo the normalisation and round to pixels; the exact inverse of calling, on every 8-bit value.

        Args:
            x: Floating point, shape (batch, channels, height, width).

        Returns:
            uint8 of the same shape, values 0 to ``max_value``; what lies outside is clipped.
        """
        return self.inverse(x.float()).mul_(self.max_value).round_().clamp_(0, self.max_value).to(torch.uint8)

    @classmethod
    def fit(cls, data: ImageSource) -> Self:
        """Measure the mean and standard deviation of each channel, in float64.

        A standard deviation is never below one grey level (1 / max_value), so that a constant channel
        becomes 0 and nothing is blown up.

        Args:
            data: The training images.

        Returns:
            The normalisation that gives them zero mean and unit variance.

        Example:
            >>> from invertible.data import load
            >>> normalize = Normalize.fit(load("digits"))
            >>> round(normalize.mean[0], 3), round(normalize.std[0], 3)
            (0.305, 0.376)
        """
        counts = count_values(data)
        values = torch.arange(256, dtype=torch.float64) / data.max_value
        share = counts.double() / counts.sum(1, keepdim=True)
        mean = share @ values
        variance = (share * (values - mean[:, None]) ** 2).sum(1)
        std = variance.sqrt().clamp_min(1 / data.max_value)
        return cls(tuple(mean.clamp(0, 1).tolist()), tuple(std.tolist()), data.max_value)

    @classmethod
    def identity(cls, n_channels: int, max_value: int = 255) -> Self:
        """Only divide by ``max_value``.

        Args:
            n_channels: Number of channels.
            max_value: The pixel value that means white.

        Returns:
            The normalisation with mean 0 and standard deviation 1.
        """
        return cls((0.0,) * n_channels, (1.0,) * n_channels, max_value)

    def to_dict(self) -> dict[str, Any]:
        """Turn it into what JSON can hold.

        Returns:
            ``{"mean": [...], "std": [...], "max_value": ...}``.
        """
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Undo ``to_dict``.

        Args:
            content: What ``to_dict`` returned.

        Returns:
            An equal normalisation.

        Raises:
            ConfigError: If a key is missing or unknown.

        Example:
            >>> Normalize.from_dict({"mean": [0.5], "std": [0.25], "max_value": 16})
            Normalize(mean=(0.5,), std=(0.25,), max_value=16)
        """
        if set(content) != {"mean", "std", "max_value"}:
            hint = "what Normalize.to_dict returned"
            raise ConfigError("bad normalisation", expected="mean, std, max_value", got=sorted(content), hint=hint)
        return cls(tuple(content["mean"]), tuple(content["std"]), int(content["max_value"]))

    def _check(self, x: Tensor) -> None:
        if x.dim() != 4 or x.shape[1] != len(self.mean):
            expected = f"(batch, {len(self.mean)}, height, width)"
            raise ShapeError("bad images", expected=expected, got=tuple(x.shape), hint="fit it to these images")


@lru_cache(maxsize=64)
def _affine(normalize: Normalize, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the float32 factor and summand, shape (1, channels, 1, 1)."""
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (normalize.mean, normalize.std))
    pair = (1 / (normalize.max_value * std), -mean / std)
    scale, shift = (values.to(torch.float32).view(1, -1, 1, 1).to(device) for values in pair)
    return scale, shift

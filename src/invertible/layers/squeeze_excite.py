"""Squeeze-excite: each channel scaled by a number that the averages of all channels decide."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from invertible._checks import check_channels, check_floating, describe
from invertible.errors import ConfigError, ShapeError


class SqueezeExcite(nn.Module):
    """y = factor sigmoid(W2 relu(W1 mean(x) + b1) + b2) x, the mean being over space.

    Weights start as N(0, 1 / inputs), biases at 0. On input of mean 0 the gate is near one half at the start: with the
    factor 2 the variance stays.

    Args:
        n_channels: Of x.
        ratio: Hidden units for each channel; at least one unit is made.
        factor: 2 in normalizer-free networks, 1 in the original.

    Raises:
        ConfigError: If a number is out of range.
        ShapeError: When called: if x has other channels, or no space.

    Source: Hu, Shen and Sun 2018; the factor Brock, De and Smith 2021, section 4.3.

    Example:
        >>> x = torch.randn(4, 8, 32, 32, generator=torch.Generator().manual_seed(0))
        >>> round((SqueezeExcite(8)(x).var() / x.var()).item(), 1)
        1.0
    """

    def __init__(self, n_channels: int, ratio: float = 0.25, factor: float = 2.0) -> None:
        super().__init__()
        if n_channels < 1 or not ratio > 0 or not factor > 0:
            got = f"n_channels={n_channels}, ratio={ratio}, factor={factor}"
            raise ConfigError("SqueezeExcite got a number out of range", expected="numbers above 0", got=got)
        self.n_channels, self.factor = n_channels, factor
        hidden = max(1, int(n_channels * ratio))
        self.squeeze, self.excite = nn.Linear(n_channels, hidden), nn.Linear(hidden, n_channels)
        for layer in (self.squeeze, self.excite):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels.

        Args:
            x: Shape (batch, n_channels, ...).

        Returns:
            Shape of x.

        Raises:
            ShapeError: If x has other channels, or no space.
        """
        check_floating(x, "SqueezeExcite")
        check_channels(x, self.n_channels, "SqueezeExcite")
        if x.ndim < 3:
            raise ShapeError("SqueezeExcite averages over space", expected="(batch, channels, ...)", got=describe(x))
        hidden = torch.relu(self.squeeze(x.flatten(2).mean(2)))
        gate = self.factor * torch.sigmoid(self.excite(hidden))
        return x * gate.view(*gate.shape, *[1] * (x.ndim - 2))

    def extra_repr(self) -> str:
        """What `print(module)` shows.

        Returns:
            The factor.
        """
        return f"factor={self.factor:g}"

"""Activations with Lipschitz constant 1 that keep more of the gradient than ReLU."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from invertible._checks import check_floating, describe
from invertible.errors import ConfigError, ShapeError

SWISH_SLOPE = 1.0998393202
"""The largest slope of x sigmoid(x), rounded up; it does not depend on the scale of x."""


class LipSwish(nn.Module):
    """y = x sigmoid(softplus(beta) x) / 1.1, with one learned beta: smooth, and 1-Lipschitz for every beta.

    Its second derivative does not vanish where the slope is one, so that the gradient of a log-determinant does not
    either. Any shape.

    Args:
        beta: The first value; the papers' is 0.5.

    Raises:
        ConfigError: If it is not finite.

    Source: Chen et al. 2019 (Residual Flows), section 3.3.

    Example:
        >>> LipSwish()(torch.tensor([-1.0, 0.0, 1.0])).detach()
        tensor([-0.2492,  0.0000,  0.6599])
    """

    def __init__(self, beta: float = 0.5) -> None:
        super().__init__()
        if not math.isfinite(beta):
            raise ConfigError("LipSwish has a bad beta", expected="a finite number", got=beta)
        self.beta = nn.Parameter(torch.tensor(float(beta)))

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to each number.

        Args:
            x: Any shape.

        Returns:
            Shape of x.
        """
        check_floating(x, "LipSwish")
        return x * torch.sigmoid(x * functional.softplus(self.beta)) / 1.1


class MaxMin(nn.Module):
    """Channels in pairs, each pair sorted: (max(a, b), min(a, b)). Keeps the norm of gradients, whatever the input.

    Pairs are (0, n/2), (1, n/2 + 1), ...: maxima come first. An odd channel, the last, passes as it is.

    Args:
        dim: The channels' dimension.

    Raises:
        ShapeError: When called: if x has no such dimension.

    Source: Anil, Lucas and Grosse 2019 (GroupSort with groups of two); Chernodub and Nowicki 2016.

    Example:
        >>> MaxMin()(torch.tensor([[1.0, 5.0, 3.0, 2.0]]))
        tensor([[3., 5., 1., 2.]])
    """

    def __init__(self, dim: int = 1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Sort each pair.

        Args:
            x: Shape (batch, channels, ...).

        Returns:
            Shape of x.

        Raises:
            ShapeError: If x has no dimension `dim`.
        """
        check_floating(x, "MaxMin")
        if not -x.ndim <= self.dim < x.ndim:
            raise ShapeError("MaxMin sorts channels", expected=f"a tensor with a dimension {self.dim}", got=describe(x))
        half = x.shape[self.dim] // 2
        a, b, rest = x.split([half, half, x.shape[self.dim] - 2 * half], dim=self.dim)
        return torch.cat([torch.maximum(a, b), torch.minimum(a, b), rest], dim=self.dim)

    def extra_repr(self) -> str:
        """What `print(module)` shows.

        Returns:
            The dimension.
        """
        return f"dim={self.dim}"

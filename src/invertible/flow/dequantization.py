"""From whole numbers (pixels) to real ones, so that a density's value is a bound on a probability.

log P(x) >= E_u [log p(x + u) - log q(u | x)] with noise u in [0, 1): uniform noise has q = 1; learned noise
(variational dequantisation) makes the bound tighter. Values leave divided by the number of levels, in [0, 1).

Source: Theis et al. 2016, section 3.1; Ho et al. 2019 (Flow++), section 3.1.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from invertible._checks import can_look, describe
from invertible.bijection import Bijection
from invertible.errors import ConfigError, RangeError
from invertible.layers._sums import sum_events


class Dequantization(nn.Module, ABC):
    """Noise for whole numbers. Abstract: say where the noise comes from.

    Args:
        n_levels: How many values there are: 0 to n_levels - 1. 256 for 8-bit pixels.

    Raises:
        ConfigError: If there are fewer than two levels.
    """

    def __init__(self, n_levels: int = 256) -> None:
        super().__init__()
        if n_levels < 2:
            raise ConfigError("dequantisation needs levels", expected="at least 2", got=n_levels)
        self.n_levels = n_levels

    @abstractmethod
    def _noise(self, x: Tensor, context: Any) -> tuple[Tensor, Tensor | None]:
        """Noise in [0, 1) and its log-density (nats, shape (batch,); None: zero)."""

    def forward(self, x: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        """Add noise.

        Args:
            x: Whole numbers 0 to n_levels - 1 in a floating-point dtype, shape (batch, ...).
            context: What the noise may depend on.

        Returns:
            (x + u) / n_levels, and what to add to its log-density: minus log q(u | x), minus the log of the volume.
        """
        check_levels(x, self.n_levels)
        u, log_q = self._noise(x, context)
        margin = min(2 * self.n_levels * torch.finfo(x.dtype).eps, 0.25)  # rounding must not make it another level
        y = (x + u.clamp(margin, 1 - margin)) / self.n_levels
        volume = -math.log(self.n_levels) * math.prod(x.shape[1:])
        logdet = torch.full(x.shape[:1], volume, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        return y, logdet if log_q is None else logdet - log_q

    def quantise(self, y: Tensor) -> Tensor:
        """Undo it.

        Args:
            y: Real numbers, shape (batch, ...).

        Returns:
            Whole numbers 0 to n_levels - 1 in y's dtype; what lies outside is clipped.
        """
        return (y * self.n_levels).floor().clamp(0, self.n_levels - 1)

    def extra_repr(self) -> str:
        """What `print(module)` shows.

        Returns:
            The number of levels.
        """
        return f"{self.n_levels}"


def check_levels(x: Tensor, n_levels: int) -> None:
    """Refuse what is no whole number in range. Nothing is checked where values are unknown (compile, torch.func).

    Args:
        x: The values.
        n_levels: One more than the largest.

    Raises:
        RangeError: If a value is fractional, negative or too large; NaN is neither in range.
    """
    if not can_look(x):
        return
    bad = ~((x >= 0) & (x < n_levels) & (x == x.floor()))
    if not bool(bad.any()):
        return
    first = tuple(int(i) for i in bad.nonzero()[0])
    got = f"{x[first].item():g} at index {first} ({int(bad.sum())} such of {describe(x)})"
    hint = "pixels as they are in the file (uint8), not divided by 255; n_levels as many as there are grey levels"
    expected = f"whole numbers 0 to {n_levels - 1}"
    raise RangeError("values to dequantise are out of range", expected=expected, got=got, hint=hint)


class UniformDequantization(Dequantization):
    """Noise uniform in [0, 1).

    Args:
        n_levels: How many values there are: 0 to n_levels - 1. 256 for 8-bit pixels.

    Example:
        >>> dequantization = UniformDequantization(4)
        >>> y, logdet = dequantization(torch.tensor([[0.0, 3.0]]))
        >>> dequantization.quantise(y), round(logdet.item(), 4)
        (tensor([[0., 3.]]), -2.7726)
    """

    def _noise(self, x: Tensor, context: Any) -> tuple[Tensor, None]:
        return torch.rand_like(x), None


class VariationalDequantization(Dequantization):
    """Noise from a conditional flow: u = sigmoid(bijection(e; x)) with e normal.

    Args:
        bijection: Takes a context (`takes_context`): x scaled to [-1, 1], shape (batch, ...); it maps noise of x's
            shape to noise of x's shape.
        n_levels: How many values there are: 0 to n_levels - 1.

    Raises:
        ConfigError: If the bijection takes no context.

    Source: Ho et al. 2019 (Flow++), section 3.1.
    """

    def __init__(self, bijection: Bijection, n_levels: int = 256) -> None:
        super().__init__(n_levels)
        if not bijection.takes_context:
            hint = "couplings with takes_context=True, whose networks see the image"
            raise ConfigError("the noise must depend on the image", expected="a conditional bijection", hint=hint)
        self.bijection = bijection

    def _noise(self, x: Tensor, context: Any) -> tuple[Tensor, Tensor]:
        e = torch.randn_like(x)
        raw, logdet = self.bijection.forward_with_logdet(e, 2 * x / (self.n_levels - 1) - 1)
        log_e = -0.5 * sum_events(e * e + math.log(2 * math.pi))
        slope = sum_events(functional.softplus(raw) + functional.softplus(-raw))  # -log(sigmoid'(raw))
        return torch.sigmoid(raw), log_e - logdet + slope

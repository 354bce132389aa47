"""SkipInit: a residual branch that starts at zero."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from invertible._checks import check_floating
from invertible.errors import ConfigError


class SkipInit(nn.Module):
    """y = alpha s x with one learned number s. Any shape.

    Args:
        alpha: A fixed factor.
        initial: The first s; the papers' is 0, with which a residual block starts as its shortcut.

    Attributes:
        skip_gain: s, shape ().

    Raises:
        ConfigError: If alpha or the first s is not finite.

    Source: De and Smith 2020 (SkipInit); Brock, De and Smith 2021, section 3 (alpha).

    Example:
        >>> SkipInit()(torch.ones(2)).tolist(), SkipInit(0.2, initial=1.0)(torch.ones(1)).item()
        ([0.0, 0.0], 0.2...)
    """

    def __init__(self, alpha: float = 1.0, initial: float = 0.0) -> None:
        super().__init__()
        if not (math.isfinite(alpha) and math.isfinite(initial)):
            raise ConfigError("SkipInit takes finite numbers", got=f"alpha={alpha}, initial={initial}")
        self.alpha = alpha
        self.skip_gain = nn.Parameter(torch.tensor(float(initial)))

    def forward(self, x: Tensor) -> Tensor:
        """Scale.

        Args:
            x: Any shape.

        Returns:
            Shape of x.
        """
        check_floating(x, "SkipInit")
        return x * (self.alpha * self.skip_gain)

    def extra_repr(self) -> str:
        """What `print(module)` shows.

        Returns:
            alpha.
        """
        return f"alpha={self.alpha:g}"

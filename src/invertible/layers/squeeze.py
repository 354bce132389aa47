"""Space-to-depth, the down-sampling that loses nothing."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from invertible._checks import check_n_dims, describe
from invertible.bijection import VolumePreserving
from invertible.errors import ConfigError, ShapeError

Order = Literal["channel", "offset"]


class Squeeze(VolumePreserving):
    """Trade space for channels: (batch, C, H, W) -> (batch, C b b, H/b, W/b), and likewise in 1-D and 3-D.

    Args:
        factor: b, or one factor per spatial dimension (which then also tells how many there are).
        n_dims: Number of spatial dimensions if `factor` is one number.
        order: Which index is the slow one in the output channels. "channel": channel, then offset in the block, as
            `torch.pixel_unshuffle`; "offset": offset, then channel, as the released i-RevNet and RealNVP code.

    Raises:
        ConfigError: If a factor is below 1 or the order is unknown.
        ShapeError: When called: if a spatial size is no multiple of its factor.

    Source: Shi et al. 2016 (sub-pixel convolution); Dinh et al. 2017, section 3.6; Jacobsen et al. 2018, section 3.

    Example:
        >>> import torch
        >>> Squeeze(2)(torch.arange(4.0).reshape(1, 1, 2, 2)).flatten()
        tensor([0., 1., 2., 3.])
    """

    is_isometric = keeps_lattice = True

    def __init__(self, factor: int | tuple[int, ...] = 2, n_dims: int = 2, order: Order = "channel") -> None:
        super().__init__()
        self.factors = tuple(factor) if isinstance(factor, tuple | list) else (factor,) * n_dims
        if not self.factors or not all(isinstance(b, int) and b >= 1 for b in self.factors):
            raise ConfigError("Squeeze has a bad factor", expected="whole numbers >= 1", got=factor)
        if order not in ("channel", "offset"):
            raise ConfigError("Squeeze has a bad order", expected="'channel' or 'offset'", got=repr(order))
        self.order = order

    def _forward(self, x: Tensor, context: None) -> Tensor:
        batch, channels, *sizes = self._check(x, self.factors)
        blocks = [n // b for n, b in zip(sizes, self.factors, strict=True)]
        pairs = [n for pair in zip(blocks, self.factors, strict=True) for n in pair]
        x = x.reshape(batch, channels, *pairs)
        space, offsets = range(2, x.ndim, 2), range(3, x.ndim, 2)
        depth = (1, *offsets) if self.order == "channel" else (*offsets, 1)
        return x.permute(0, *depth, *space).reshape(batch, channels * math.prod(self.factors), *blocks)

    def _inverse(self, y: Tensor, context: None) -> Tensor:
        batch, channels, *blocks = self._check(y, None)
        depth, n = channels // math.prod(self.factors), len(self.factors)
        inner = (depth, *self.factors) if self.order == "channel" else (*self.factors, depth)
        first = 2 if self.order == "channel" else 1
        channel = 1 if self.order == "channel" else n + 1
        y = y.reshape(batch, *inner, *blocks)
        pairs = [i for k in range(n) for i in (n + 2 + k, first + k)]
        sizes = [n_blocks * b for n_blocks, b in zip(blocks, self.factors, strict=True)]
        return y.permute(0, channel, *pairs).reshape(batch, depth, *sizes)

    def _check(self, x: Tensor, factors: tuple[int, ...] | None) -> tuple[int, ...]:
        check_n_dims(x, len(self.factors) + 2, "Squeeze")
        shape = tuple(x.shape)
        if factors is None and shape[1] % math.prod(self.factors):
            expected = f"a multiple of {math.prod(self.factors)} channels"
            raise ShapeError("Squeeze cannot be undone on this", expected=expected, got=describe(x))
        if factors is not None and any(n % b for n, b in zip(shape[2:], factors, strict=True)):
            hint = "pad or resize the input to such a size, or use another factor"
            expected = f"spatial sizes that are multiples of {factors}"
            raise ShapeError("Squeeze cannot divide the space", expected=expected, got=describe(x), hint=hint)
        return shape

    def extra_repr(self) -> str:
        """What `print(module)` shows.

        Returns:
            Factors and order.
        """
        return f"{self.factors}, order={self.order!r}"

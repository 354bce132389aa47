"""The momentum residual network's step, a coupling whose state is a position and a velocity."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from invertible.errors import ConfigError
from invertible.layers.coupling import Coupling, Target


class MomentumCoupling(Coupling):
    """(x, v) -> (x, g v + (1 - g) network(x)): the velocity's half of a momentum residual block.

    The position's half, x + v, is `AdditiveCoupling(nn.Identity(), target="first")`. Each call shrinks the velocity's
    share by g, so that the inverse multiplies rounding errors by 1/g: keep g close to 1 in deep networks.

    Args:
        network: Any module that keeps the shape of the position.
        momentum: g, above 0 and below 1. Log-determinant: log g per element of the velocity.
        target: Which stream is the velocity.
        sizes: Sizes of the two streams; None parts the channels in halves.
        dim: The dimension that is parted.
        takes_context: Whether the network takes a context.

    Raises:
        ConfigError: If the momentum is out of range.

    Source: Sander, Ablin, Blondel and Peyré 2021, Momentum Residual Neural Networks, equations 4 and 5.

    Example:
        >>> from invertible import Chain
        >>> from invertible.layers import AdditiveCoupling
        >>> halves = [MomentumCoupling(nn.Linear(3, 3)), AdditiveCoupling(nn.Identity(), target="first")]
        >>> chain, state = Chain(*halves, memory="reconstruct"), torch.randn(5, 6)
        >>> torch.allclose(chain.inverse(chain(state)), state, atol=1e-6)
        True
    """

    def __init__(
        self,
        network: nn.Module,
        momentum: float = 0.9,
        target: Target = "second",
        sizes: tuple[int, int] | None = None,
        dim: int = 1,
        takes_context: bool = False,
    ) -> None:
        if not 0 < momentum < 1:
            raise ConfigError("MomentumCoupling has a bad momentum", expected="above 0 and below 1", got=momentum)
        super().__init__(network, target, sizes, dim, takes_context)
        self.momentum = momentum

    def _change(self, target: Tensor, h: Tensor) -> Tensor:
        return self.momentum * target + (1 - self.momentum) * h

    def _restore(self, target: Tensor, h: Tensor) -> Tensor:
        return (target - (1 - self.momentum) * h) / self.momentum

    def _log_derivative(self, target: Tensor, h: Tensor) -> Tensor:
        return torch.full_like(target, math.log(self.momentum), dtype=torch.promote_types(target.dtype, torch.float32))

    def extra_repr(self) -> str:
        """What `print(module)` shows.

        Returns:
            Roles, split and momentum.
        """
        return f"{self._roles.describe(self.takes_context)}, momentum={self.momentum}"

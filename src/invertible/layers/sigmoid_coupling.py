"""Glow's affine coupling: the scale is a sigmoid, so that it starts near one and never exceeds it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from invertible.errors import ConfigError
from invertible.layers._conditioning import shift_and_raw
from invertible.layers._roles import Target
from invertible.layers.coupling import Coupling
from invertible.layers.masks import Mask


class SigmoidCoupling(Coupling):
    """(x1, x2) -> (x1, (x2 + t) * s), s = m + (1 - m) sigmoid(raw + 2), where network(x1) gives t and raw.

    The paper's code has m = 0, which lets a scale vanish: its inverse then blows up ("input is not invertible"). With
    m > 0 no step of the inverse multiplies anything by more than 1 / m.

    Args:
        network: Any module that maps the source stream to twice the target stream's channels: shift first, then raw
            scale. With a context it is called as `network(source, context)`.
        target: Which stream is changed, "second" or "first".
        sizes: Sizes of the two streams; None parts the channels in halves.
        dim: The dimension that is parted.
        takes_context: Whether the network takes a context.
        mask: Instead of sizes and dim, as in `Coupling`.
        min_scale: m, from 0 to below 1.

    Raises:
        ConfigError: If an argument is out of range.

    Source: Kingma and Dhariwal 2018 (Glow), table 1, and its released code.

    Example:
        >>> coupling, x = SigmoidCoupling(nn.Linear(2, 4)), torch.randn(3, 4)
        >>> torch.allclose(coupling.inverse(coupling(x)), x, atol=1e-5)
        True
    """

    def __init__(
        self,
        network: nn.Module,
        target: Target = "second",
        sizes: tuple[int, int] | None = None,
        dim: int = 1,
        takes_context: bool = False,
        mask: Mask | None = None,
        min_scale: float = 0.1,
    ) -> None:
        if not 0 <= min_scale < 1:
            raise ConfigError("SigmoidCoupling has a bad min_scale", expected="0 to below 1", got=min_scale)
        super().__init__(network, target, sizes, dim, takes_context, mask)
        self.min_scale = min_scale

    def extra_repr(self) -> str:
        """What `print(module)` shows.

        Returns:
            Roles, split and bound.
        """
        return f"{self._roles.describe(self.takes_context)}, min_scale={self.min_scale}"

    def _outcome(self, target: Tensor, out: object) -> tuple[Tensor, Tensor]:
        shift, raw = shift_and_raw(target, out, self._roles.dim, "SigmoidCoupling")
        return shift, self.min_scale + (1 - self.min_scale) * torch.sigmoid(raw + 2)

    def _change(self, target: Tensor, h: tuple[Tensor, Tensor]) -> Tensor:
        shift, scale = h
        return (target + shift) * scale

    def _restore(self, target: Tensor, h: tuple[Tensor, Tensor]) -> Tensor:
        shift, scale = h
        return target / scale - shift

    def _log_derivative(self, target: Tensor, h: tuple[Tensor, Tensor]) -> Tensor:
        return h[1].log()

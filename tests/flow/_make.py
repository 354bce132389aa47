"""Small flows for the tests of `invertible.flow`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from invertible import Bijection, Chain, Flow
from invertible.layers import AffineCoupling


class Affine(Bijection):
    """z = (x - mean) / std with learned numbers: a normal density in closed form."""

    def __init__(self, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.mean, self.log_std = nn.Parameter(torch.tensor(mean)), nn.Parameter(torch.tensor(std).log())

    def _forward(self, x: Tensor, context: Any) -> Tensor:
        return (x - self.mean) * (-self.log_std).exp()

    def _inverse(self, y: Tensor, context: Any) -> Tensor:
        return y * self.log_std.exp() + self.mean

    def _forward_with_logdet(self, x: Tensor, context: Any) -> tuple[Tensor, Tensor]:
        return self._forward(x, context), -self.log_std.sum().expand(len(x))

    def _inverse_with_logdet(self, y: Tensor, context: Any) -> tuple[Tensor, Tensor]:
        return self._inverse(y, context), self.log_std.sum().expand(len(y))


class Two(nn.Module):
    """A network of a source and a context."""

    def __init__(self, n_in: int, n_context: int, n_out: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(n_in + n_context, 8), nn.Tanh(), nn.Linear(8, n_out))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.net(torch.cat([x, context], dim=1))


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 2))


def couplings(memory: Any = "store") -> Chain:
    """Two couplings in the plane, with the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Chain(AffineCoupling(net()), AffineCoupling(net(), target="first"), memory=memory)


def plane(base: Any = 2, memory: Any = "store", **options: Any) -> Flow:
    return Flow(couplings(memory), base, **options)


def conditional(n_context: int = 3, **options: Any) -> Flow:
    """A flow in the plane that depends on a vector."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = AffineCoupling(Two(1, n_context, 2), takes_context=True)
        second = AffineCoupling(Two(1, n_context, 2), target="first", takes_context=True)
    return Flow(Chain(first, second), 2, **options)


def normal(mean: float = 1.0, std: float = 2.0) -> Flow:
    """N(mean, std^2) in each of two columns."""
    return Flow(Affine([mean, -mean], [std, std / 4]), 2)

"""Networks of all kinds for instruments to be tried on: what they return, how they are built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from invertible.models import revnet


class Block(nn.Module):
    """x + f(x), with BatchNorm and dropout: both train-mode state and random draws."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.norm, self.act, self.drop = nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.Dropout(0.3)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.calls, self.cache = 0, []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.cache.append(self.calls)
        return x + self.drop(self.conv(self.act(self.norm(x))))


class Net(nn.Module):
    """A stem, three blocks, a head; returns whatever `wrap` makes of the logits."""

    def __init__(self, wrap: Callable[[Tensor, Tensor], object] = lambda logits, h: logits) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.Sequential(Block(), Block(), Block())
        self.head = nn.Linear(4, 2)
        self.wrap = wrap

    def forward(self, x: Tensor) -> object:
        h = self.blocks(self.stem(x))
        return self.wrap(self.head(h.mean((2, 3))), h)


@dataclass
class Output:
    loss: None
    logits: Tensor
    hidden: tuple[Tensor, ...]


class TupleBlock(nn.Module):
    """Returns (hidden, something else), like many transformers' layers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Block()

    def forward(self, x: Tensor) -> tuple[Tensor, None, dict[str, Tensor]]:
        y = self.inner(x)
        return y, None, {"norm": y.square().sum()}


class TupleNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TupleBlock() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)[0]
        return x


def with_gradients(model: nn.Module) -> nn.Module:
    """A network in the middle of its training: gradients, a frozen parameter, hooks, mixed modes."""
    parameters = list(model.parameters())
    for parameter in parameters[::2]:
        parameter.grad = torch.randn_like(parameter)
    parameters[-1].requires_grad_(False)
    model.register_forward_hook(lambda *_: None)
    parameters[0].register_hook(lambda gradient: gradient)
    return model


NETWORKS: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    "BatchNorm, train mode": lambda: (Net(), (3, 6, 6)),
    "BatchNorm, eval mode": lambda: (Net().eval(), (3, 6, 6)),
    "BatchNorm, mixed modes": lambda: (_mixed(), (3, 6, 6)),
    "returns a tuple": lambda: (Net(lambda logits, h: (logits, (h, None))), (3, 6, 6)),
    "returns a dict": lambda: (Net(lambda logits, h: {"logits": logits, "hidden": [h]}), (3, 6, 6)),
    "returns a dataclass": lambda: (Net(lambda logits, h: Output(None, logits, (h,))), (3, 6, 6)),
    "blocks return tuples": lambda: (TupleNet(), (4, 6, 6)),
    "RevNet": lambda: (revnet(n_blocks=(2, 2), channels=(4, 8), strides=(1, 2), in_shape=(3, 8, 8)), (3, 8, 8)),
    "spectral norm": lambda: (_spectral(), (5,)),
    "float64": lambda: (Net().double(), (3, 6, 6)),
}


def _mixed() -> nn.Module:
    net = Net()
    net.blocks[1].eval()
    return net


def _spectral() -> nn.Module:
    normed = nn.utils.parametrizations.spectral_norm
    return nn.Sequential(normed(nn.Linear(5, 6)), nn.ReLU(), normed(nn.Linear(6, 4)))

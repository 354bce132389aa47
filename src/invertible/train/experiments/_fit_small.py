"""Training a small classifier on images in memory: a few lines, the same for all experiments on loss surfaces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from invertible.errors import ConfigError
from invertible.train.randomness import seeded


@dataclass
class FitConfig:
    """How small networks are trained: SGD with momentum, the learning rate going to 0 as a cosine.

    Args:
        epochs: How many.
        batch_size: Images per step.
        lr: Learning rate at the start.
        momentum: Of SGD.
        weight_decay: On all parameters.
    """

    epochs: int = 20
    batch_size: int = 64
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.batch_size < 1 or not self.lr > 0:
            got = f"epochs {self.epochs}, batch_size {self.batch_size}, lr {self.lr:g}"
            raise ConfigError("a training has bad options", expected="0, 1 and above 0", got=got)


def made(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Make a network from a seed; the global random state stays.

    Args:
        make: Makes it.
        seed: Of its weights.

    Returns:
        The network.
    """
    with seeded(torch.device("cpu"), seed, 0):
        return make()


def fit(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    config: FitConfig,
    seed: int,
    after_epoch: Callable[[int], None] = lambda epoch: None,
) -> None:
    """Train a network.

    Args:
        network: It; afterwards in eval mode.
        x: Images.
        y: Labels.
        config: How.
        seed: Of the order.
        after_epoch: Called with 0 before the first, then after each, in eval mode.

    Example:
        >>> x, y = torch.eye(4), torch.arange(4)
        >>> network = made(lambda: nn.Linear(4, 4), 0)
        >>> fit(network, x, y, FitConfig(epochs=200, lr=1.0), 0)
        >>> network(x).argmax(1)
        tensor([0, 1, 2, 3])
    """
    decay = config.weight_decay
    optimizer = torch.optim.SGD(network.parameters(), config.lr, momentum=config.momentum, weight_decay=decay)
    order = torch.Generator().manual_seed(seed)
    per_epoch = -(-len(x) // config.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, config.epochs * per_epoch))
    after_epoch(0)
    for epoch in range(1, config.epochs + 1):
        network.train()
        for rows in torch.randperm(len(x), generator=order).split(config.batch_size):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
        network.eval()
        after_epoch(epoch)
    network.eval()


@torch.no_grad()
def accuracy(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of images that are classified right.

    Args:
        network: In eval mode.
        x: Images.
        y: Labels.

    Returns:
        0 to 1.
    """
    right = [
        int((network(images).argmax(1) == labels).sum())
        for images, labels in zip(x.split(500), y.split(500), strict=True)
    ]
    return sum(right) / len(x)


class Plain(nn.Module):
    """f(x): a block without a shortcut.

    Args:
        width: Channels.
        has_norm: Whether BatchNorm follows each convolution.
        has_shortcut: Whether the input is added: x + f(x).
    """

    def __init__(self, width: int, has_norm: bool = True, has_shortcut: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers.append(nn.Conv2d(width, width, 3, padding=1, bias=not has_norm))
            layers += [nn.BatchNorm2d(width)] if has_norm else []
            layers.append(nn.ReLU())
        self.body, self.has_shortcut = nn.Sequential(*layers[:-1]), has_shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: Shape (batch, channels, height, width).

        Returns:
            The same shape.
        """
        return torch.relu(x + self.body(x) if self.has_shortcut else self.body(x))


def small_network(shape: tuple[int, ...], width: int, depth: int, has_norm: bool, has_shortcut: bool) -> nn.Module:
    """A convolution, blocks of two, the mean over space, a linear layer; with and without shortcuts of equal size.

    Args:
        shape: Of an image.
        width: Channels.
        depth: Layers with weights: even, 4 or more.
        has_norm: Whether BatchNorm follows each convolution.
        has_shortcut: Whether blocks are residual.

    Returns:
        A network for ten classes.

    Raises:
        ConfigError: If there is no such depth.

    Example:
        >>> plain, residual = (small_network((1, 8, 8), 8, 6, True, has) for has in (False, True))
        >>> sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in residual.parameters())
        True
    """
    if depth < 4 or depth % 2:
        raise ConfigError("no network of this depth", expected="an even number from 4", got=depth)
    blocks = [Plain(width, has_norm, has_shortcut) for _ in range((depth - 2) // 2)]
    stem = nn.Sequential(nn.Conv2d(shape[0], width, 3, stride=1 if shape[-1] < 16 else 2, padding=1), nn.ReLU())
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 10))

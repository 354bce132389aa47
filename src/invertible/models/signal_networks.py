"""The networks of the signal propagation plots (Brock, De and Smith 2021, section 3), made without arguments.

600 layers: four stages of 50 bottlenecks, at the start of training, skip gains at one. `invertible measure
signal_propagation invertible.models.signal_networks:bn_relu_conv --data 8,3,32,32` measures one.

Smaller than the paper's, for a laptop: half as wide, and images of 32x32 behind a 3x3 stem instead of 224x224 behind a
7x7 one and max-pooling. Convolutions wrap around ("circular"), since zeros at the border have no variance. Nothing is
dropped at random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from invertible.errors import ConfigError
from invertible.models._nf_block import NFBlock, PaddingMode, Weights
from invertible.models._signal_theory import Expected, Layer, expected_signal
from invertible.models.nf_resnet import NormalizerFreeNet, nf_resnet
from invertible.models.resnet import Order, ResidualBlock, ResNet, resnet

ALPHA = 0.2


@dataclass(frozen=True)
class Size:
    """How large the networks are.

    Args:
        n_blocks: Bottlenecks in each stage; the first stage keeps the resolution, each other one halves it.
        channels: Of the 3x3 convolutions in each stage; blocks give out four times as many.
        in_shape: Channels, height, width of an image.
        padding_mode: Of convolutions, as in `nn.Conv2d`. The paper's is "zeros".
    """

    n_blocks: Sequence[int] = (50, 50, 50, 50)
    channels: Sequence[int] = (32, 64, 128, 256)
    in_shape: tuple[int, int, int] = (3, 32, 32)
    padding_mode: PaddingMode = "circular"

    @property
    def strides(self) -> tuple[int, ...]:
        """Stride of the first block in each stage."""
        return tuple(1 if i == 0 else 2 for i in range(len(self.n_blocks)))


DEFAULT = Size()


def bn_relu_conv(size: Size = DEFAULT) -> ResNet:
    """The usual order: mean and variance grow from block to block and fall back where a stage begins.

    Args:
        size: How large.

    Returns:
        The network; its blocks declare what theory expects.

    Example:
        >>> net = bn_relu_conv(Size((2, 1), (4, 4)))
        >>> [round(block.tap_points().expected_variance, 2) for stage in net.stages for block in stage]
        [1.36, 2.05, 1.36]
    """
    return _with_expectations(_resnet(size, "bn-relu"), theory("bn_relu_conv", size.n_blocks))


def relu_bn_conv(size: Size = DEFAULT) -> ResNet:
    """ReLU before BatchNorm: no mean, and branches of variance one.

    Args:
        size: How large.

    Returns:
        The network; its blocks declare what theory expects.
    """
    return _with_expectations(_resnet(size, "relu-bn"), theory("relu_bn_conv", size.n_blocks))


def bn_conv(size: Size = DEFAULT) -> ResNet:
    """`bn_relu_conv` without ReLU: the mean shift is gone.

    Args:
        size: How large.

    Returns:
        The network; its blocks declare what theory expects.
    """
    return _with_expectations(_resnet(size, "bn"), theory("bn_conv", size.n_blocks))


def relu_conv(size: Size = DEFAULT) -> ResNet:
    """No normalisation: the second moment doubles from block to block. What theory says is no design: not declared.

    Args:
        size: How large.

    Returns:
        The network.
    """
    return _resnet(size, "relu")


def nf_scaled_ws(size: Size = DEFAULT) -> NormalizerFreeNet:
    """An NF-ResNet: no mean shift, and the variance follows the recursion of beta.

    Args:
        size: How large.

    Returns:
        The network; its blocks declare what theory expects.
    """
    return _nf(size, "standardized", "relu")


def nf_he(size: Size = DEFAULT) -> NormalizerFreeNet:
    """The NF-ResNet without Scaled Weight Standardization: mean shift, and a variance that misses the recursion.

    Args:
        size: How large.

    Returns:
        The network.
    """
    return _nf(size, "he", "relu")


def nf_he_linear(size: Size = DEFAULT) -> NormalizerFreeNet:
    """`nf_he` without ReLU: the mean shift is gone, and the variance follows the recursion again.

    Args:
        size: How large.

    Returns:
        The network; its blocks declare what theory expects.
    """
    net = _nf(size, "he", "identity")
    return _with_expectations(net, theory("nf_he_linear", size.n_blocks))


def theory(name: str, n_blocks: Sequence[int] = DEFAULT.n_blocks) -> list[Expected]:
    """What an infinitely wide network does, also where that is no design: in `relu_conv` and `nf_he`.

    Args:
        name: Of a function above.
        n_blocks: In each stage.

    Returns:
        One entry per block: squared mean and variance of its output and of its residual branch's end.

    Raises:
        ConfigError: If there is no such network.

    Source: Brock, De and Smith 2021, section 3, for mean and variance with BatchNorm and the recursion of beta; Cho and
    Saul 2009, for what ReLU does to correlations.

    Example:
        >>> end = theory("bn_relu_conv")[49]
        >>> round(end.squared_mean, 1), round(end.variance, 1), round(end.residual_variance, 2)
        (16.2, 34.8, 0.68)
        >>> round(theory("nf_scaled_ws")[49].variance, 3)
        3.0
    """
    if name not in _THEORY:
        raise ConfigError("unknown signal network", expected=", ".join(_THEORY), got=repr(name))
    layer, alpha = _THEORY[name]
    return expected_signal(layer, n_blocks, alpha)


_THEORY: dict[str, tuple[Layer, float | None]] = {
    "bn_relu_conv": ("bn-relu", None),
    "relu_bn_conv": ("normalised", None),
    "bn_conv": ("normalised", None),
    "relu_conv": ("relu", None),
    "nf_scaled_ws": ("linear", ALPHA),
    "nf_he": ("relu", ALPHA),
    "nf_he_linear": ("linear", ALPHA),
}
NAMES = tuple(_THEORY)
"""Of the functions above."""


def _resnet(size: Size, order: Order) -> ResNet:
    net = resnet(
        size.in_shape, 10, size.n_blocks, size.channels, size.strides, "preact-bottleneck", "cifar", "projection",
        order, "fan_in",
    )  # fmt: skip
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = size.padding_mode
    return net


def _nf(size: Size, weights: Weights, activation: str) -> NormalizerFreeNet:
    return nf_resnet(
        size.in_shape, 10, size.n_blocks, size.channels, size.strides, activation=activation, alpha=ALPHA,
        skip_gain=1.0, stochastic_depth=0.0, weights=weights, padding_mode=size.padding_mode,
    )  # fmt: skip


Net = TypeVar("Net", ResNet, NormalizerFreeNet)


def _with_expectations(net: Net, expected: list[Expected]) -> Net:
    blocks = [module for module in net.modules() if isinstance(module, ResidualBlock | NFBlock)]
    for block, theirs in zip(blocks, expected, strict=True):
        block.expected_variance, block.expected_residual_variance = theirs.variance, theirs.residual_variance
    return net

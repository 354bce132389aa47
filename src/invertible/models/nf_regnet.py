"""NF-RegNet (Brock, De and Smith 2021): normalizer-free networks as efficient as EfficientNets.

Blocks as in `nf_resnet`, with wide inverted bottlenecks: 1x1 to 2.25 times the channels, a grouped 3x3, squeeze-excite,
1x1. Shortcuts that change the resolution average over 2x2 pixels before their 1x1 convolution. B1 to B5 are B0 made
wider and deeper by EfficientNet's factors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from torch import nn

from invertible.errors import ConfigError
from invertible.layers import SkipInit, SqueezeExcite, StochasticDepth
from invertible.models._nf_block import (
    NFBlock,
    PaddingMode,
    Parts,
    Scaling,
    Signal,
    check_numbers,
    nf_head,
)
from invertible.models.nf_resnet import NormalizerFreeNet
from invertible.models.resnet import Stem, check_choices, check_plan

Downsampling = Literal["pool", "stride"]
WIDTH = 0.75


def nf_regnet(
    in_shape: tuple[int, int, int] = (3, 32, 32),
    n_classes: int = 10,
    n_blocks: Sequence[int] = (1, 3, 6),
    channels: Sequence[int] = (36, 78, 156),
    strides: Sequence[int] = (1, 2, 2),
    stem: Stem = "cifar",
    activation: str | Callable = "silu",
    *,
    expansion: float = 2.25,
    group_size: int = 8,
    se_ratio: float = 0.5,
    alpha: float = 0.2,
    scaling: Scaling = "act(x)/beta",
    downsampling: Downsampling = "pool",
    skip_gain: float = 0.0,
    stochastic_depth: float = 0.1,
    dropout: float = 0.0,
    padding_mode: PaddingMode = "zeros",
) -> NormalizerFreeNet:
    """An NF-RegNet of any size.

    An average over pixels has a smaller variance than a pixel, how much smaller the image decides. So behind the first
    shortcut that averages, blocks declare no expected variance, until `downsampling="stride"`.

    Args:
        in_shape: Channels, height, width of an image.
        n_classes: Number of logits; the last layer starts at zero, as in the released code.
        n_blocks: Blocks in each stage.
        channels: What the blocks of each stage give out. The paper's are 0.75 times its "width".
        strides: Stride of the first block in each stage.
        stem: One 3x3 convolution: "imagenet" with stride 2, "cifar" with stride 1.
        activation: A name of `layers.gain.ACTIVATIONS`, a module (each place gets a copy) or a function.
        expansion: Channels inside a block for each one of its input, rounded down to whole groups; 1 in the first.
        group_size: Channels of each group of the 3x3 convolution.
        se_ratio: Hidden units of squeeze-excite for each channel inside a block; 0: none.
        alpha: How much of the residual branch is added.
        scaling: The released code's "act(x)/beta", or the paper's "act(x/beta)".
        downsampling: What shortcuts do where the resolution changes: "pool", or "stride" in their convolution.
        skip_gain: First value of the learned factor of each branch.
        stochastic_depth: As in `nf_resnet`.
        dropout: Rate before the last layer.
        padding_mode: Of convolutions, as in `nn.Conv2d`.

    Returns:
        The network.

    Raises:
        ConfigError: If an argument is out of range, or a block has fewer channels than one group.

    Source: Brock, De and Smith 2021, section 5.3 and appendix; the released code.

    Example:
        >>> import torch
        >>> net = nf_regnet((1, 28, 28), n_blocks=(1, 2), channels=(16, 24), strides=(1, 2))
        >>> net(torch.randn(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    check_plan("nf_regnet", in_shape, n_classes, n_blocks=n_blocks, channels=channels, strides=strides)
    choices = {"stem": (stem, Stem), "scaling": (scaling, Scaling), "downsampling": (downsampling, Downsampling)}
    check_choices("nf_regnet", **choices, padding_mode=(padding_mode, PaddingMode))
    check_numbers("nf_regnet", alpha, skip_gain, dropout, se_ratio)
    parts, stages, n_in, index = Parts(activation, "standardized", padding_mode), nn.Sequential(), channels[0], 0
    signal = Signal(parts, alpha, scaling)
    for n, n_out, first_stride in zip(n_blocks, channels, strides, strict=True):
        stage = nn.Sequential()
        for i in range(n):
            inner = _inner_width(n_in, expansion if index else 1.0, group_size)
            branch = _branch(parts, (n_in, inner, n_out), first_stride if i == 0 else 1, inner // group_size, se_ratio)
            shortcut = _shortcut(parts, n_in, n_out, first_stride if i == 0 else 1, downsampling)
            drop = StochasticDepth(stochastic_depth * index / sum(n_blocks))
            stage.append(_block(signal, branch, shortcut, SkipInit(alpha, skip_gain), drop))
            n_in, index = n_out, index + 1
        stages.append(stage)
    n_head = max(1, 1280 * channels[-1] // 440)
    first = parts.conv(in_shape[0], channels[0], 3, stride=2 if stem == "imagenet" else 1)
    head = nn.Sequential(parts.conv(n_in, n_head, 1), *nf_head(parts.act(), n_head, n_classes, dropout, std=0.0))
    return NormalizerFreeNet(nn.Sequential(first), stages, head, in_shape)


def nf_regnet_b0(n_classes: int = 1000) -> NormalizerFreeNet:
    """Return NF-RegNet-B0 for images of shape (3, 192, 192): 8,595,372 parameters."""
    return _variant((48, 104, 208, 440), (1, 3, 6, 6), 192, 0.2, n_classes)


def nf_regnet_b1(n_classes: int = 1000) -> NormalizerFreeNet:
    """Return NF-RegNet-B1 for images of shape (3, 224, 224): 10,019,208 parameters."""
    return _variant((48, 104, 208, 440), (2, 4, 7, 7), 224, 0.2, n_classes)


def nf_regnet_b2(n_classes: int = 1000) -> NormalizerFreeNet:
    """Return NF-RegNet-B2 for images of shape (3, 240, 240): 13,785,904 parameters."""
    return _variant((56, 112, 232, 488), (2, 4, 8, 8), 240, 0.3, n_classes)


def nf_regnet_b3(n_classes: int = 1000) -> NormalizerFreeNet:
    """Return NF-RegNet-B3 for images of shape (3, 288, 288): 18,136,667 parameters."""
    return _variant((56, 128, 248, 528), (2, 5, 9, 9), 288, 0.3, n_classes)


def nf_regnet_b4(n_classes: int = 1000) -> NormalizerFreeNet:
    """Return NF-RegNet-B4 for images of shape (3, 320, 320): 29,315,830 parameters."""
    return _variant((64, 144, 288, 616), (2, 6, 11, 11), 320, 0.4, n_classes)


def nf_regnet_b5(n_classes: int = 1000) -> NormalizerFreeNet:
    """Return NF-RegNet-B5 for images of shape (3, 384, 384): 48,707,138 parameters."""
    return _variant((80, 168, 336, 704), (3, 7, 14, 14), 384, 0.4, n_classes)


def _variant(
    widths: Sequence[int], n_blocks: Sequence[int], size: int, dropout: float, n_classes: int
) -> NormalizerFreeNet:
    channels, strides = [int(WIDTH * width) for width in widths], (2, 2, 2, 2)
    return nf_regnet((3, size, size), n_classes, n_blocks, channels, strides, "imagenet", dropout=dropout)


def _inner_width(n_in: int, expansion: float, group_size: int) -> int:
    if group_size < 1 or int(n_in * expansion) < group_size:
        expected = f"{group_size} channels or more inside each block"
        got, hint = int(n_in * expansion), "a smaller group_size, or more channels"
        raise ConfigError("a block of nf_regnet has not one group", expected=expected, got=got, hint=hint)
    return int(n_in * expansion) // group_size * group_size


def _branch(parts: Parts, widths: tuple[int, int, int], stride: int, n_groups: int, se_ratio: float) -> nn.Sequential:
    n_in, inner, n_out = widths
    gate = [SqueezeExcite(inner, se_ratio)] if se_ratio else []
    grouped = parts.conv(inner, inner, 3, stride, n_groups)
    return nn.Sequential(
        parts.conv(n_in, inner, 1), parts.act(), grouped, *gate, parts.act(), parts.conv(inner, n_out, 1)
    )


def _shortcut(parts: Parts, n_in: int, n_out: int, stride: int, downsampling: Downsampling) -> nn.Module | None:
    if stride == 1:
        return None if n_in == n_out else parts.conv(n_in, n_out, 1)
    if downsampling == "stride":
        return parts.conv(n_in, n_out, 1, stride)
    # At an odd border the average is over the pixels that there are.
    pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
    return nn.Sequential(pool, parts.conv(n_in, n_out, 1))


def _block(
    signal: Signal, branch: nn.Module, shortcut: nn.Module | None, skip: SkipInit, drop: StochasticDepth
) -> NFBlock:
    block = NFBlock(branch, shortcut, signal.parts.act(), skip, drop, signal)
    signal.advance(shortcut is not None, not isinstance(shortcut, nn.Sequential))
    block.expected_variance = signal.variance
    return block

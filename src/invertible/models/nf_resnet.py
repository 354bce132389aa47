"""NF-ResNet (Brock, De and Smith 2021): residual networks whose signal keeps its scale without any normalisation.

A pre-activation ResNet without BatchNorm. Convolutions are standardised (`ScaledStdConv2d`), activations scaled
(`gain`), so that every layer gives out variance one for variance one. A block adds alpha s F to its shortcut, which
lets the variance grow by alpha^2 from block to block; the next block divides by what it has grown to, beta. Where the
shape changes, the shortcut is a convolution of the scaled input, and the variance begins at one again. s, a learned
number, starts at zero (SkipInit).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from invertible.layers import SkipInit, SqueezeExcite, StochasticDepth
from invertible.models._nf_block import (
    NFBlock,
    PaddingMode,
    Parts,
    Scaling,
    Signal,
    Weights,
    check_numbers,
    nf_head,
)
from invertible.models.classifier import check_input
from invertible.models.resnet import Stem, check_choices, check_plan

Act = str | Callable
DEPTHS = {
    50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3), 288: (24, 24, 24, 24),
    600: (50, 50, 50, 50),
}  # fmt: skip
"""Blocks in each stage, by depth."""


class NormalizerFreeNet(nn.Module):
    """Stem, stages, head. Inputs are checked as in `Classifier`.

    Args:
        stem: From the image to the first feature map.
        stages: Blocks, one `nn.Sequential` per stage.
        head: From the last feature map to the logits.
        in_shape: Channels, height, width of an image.

    Raises:
        ShapeError: When called: if the shape does not fit.
        DtypeError: When called: if dtype or device do not fit.
        NonFiniteError: When called: if there are NaN or infinite values.

    Source: Brock, De and Smith 2021.
    """

    def __init__(self, stem: nn.Module, stages: nn.Module, head: nn.Module, in_shape: Sequence[int]) -> None:
        super().__init__()
        self.stem, self.stages, self.head = stem, stages, head
        self.in_shape = tuple(in_shape)

    def forward(self, x: Tensor) -> Tensor:
        """Logits.

        Args:
            x: The batch, then `in_shape`.

        Returns:
            Shape (batch, n_classes).
        """
        check_input(x, self, self.in_shape)
        return self.head(self.stages(self.stem(x)))


def nf_resnet(
    in_shape: tuple[int, int, int] = (3, 32, 32),
    n_classes: int = 10,
    n_blocks: Sequence[int] = (3, 3, 3),
    channels: Sequence[int] = (16, 32, 64),
    strides: Sequence[int] = (1, 2, 2),
    stem: Stem = "cifar",
    activation: Act = "relu",
    *,
    se_ratio: float = 0.0,
    alpha: float = 0.2,
    scaling: Scaling = "act(x)/beta",
    skip_gain: float = 0.0,
    stochastic_depth: float = 0.1,
    dropout: float = 0.0,
    weights: Weights = "standardized",
    padding_mode: PaddingMode = "zeros",
) -> NormalizerFreeNet:
    """An NF-ResNet of any size, made of bottlenecks: 1x1, 3x3, 1x1 to four times as many channels.

    Theory's variances hold for `skip_gain=1`, and up to what padding with zeros takes at the borders (`padding_mode=
    "circular"` takes nothing) and max-pooling in the "imagenet" stem.

    Args:
        in_shape: Channels, height, width of an image.
        n_classes: Number of logits.
        n_blocks: Blocks in each stage.
        channels: Channels of the 3x3 convolutions in each stage; blocks give out four times as many.
        strides: Stride of the first block in each stage.
        stem: "cifar" (one 3x3, for small images) or "imagenet" (7x7 with stride 2, then max-pooling with stride 2).
        activation: A name of `layers.gain.ACTIVATIONS`, a module (each place gets a copy) or a function.
        se_ratio: Hidden units of squeeze-excite for each channel of a block's output; 0: none. The paper's is 0.25.
        alpha: How much of the residual branch is added.
        scaling: The released code's "act(x)/beta", or the paper's "act(x/beta)". The same for ReLU and its like.
        skip_gain: First value of the learned factor of each branch. 1 to look at signals: with 0 there is no branch.
        stochastic_depth: Probability with which the last block would be left out; block i of n has i / n times it.
        dropout: Rate before the last layer.
        weights: "standardized", or "he" to see what happens without: plain convolutions with He's initial weights, and
            activations without gamma.
        padding_mode: Of convolutions, as in `nn.Conv2d`.

    Returns:
        The network.

    Raises:
        ConfigError: If an argument is out of range, or the activation is none.

    Source: Brock, De and Smith 2021, section 3, 4 and appendix; the released code.

    Example:
        >>> import torch
        >>> net = nf_resnet((1, 28, 28), n_blocks=(2, 2), channels=(8, 16), strides=(1, 2))
        >>> net(torch.randn(2, 1, 28, 28)).shape
        torch.Size([2, 10])
        >>> [round(block.beta, 3) for stage in net.stages for block in stage]
        [1.0, 1.02, 1.039, 1.02]
    """
    check_plan("nf_resnet", in_shape, n_classes, n_blocks=n_blocks, channels=channels, strides=strides)
    choices = {"stem": (stem, Stem), "scaling": (scaling, Scaling), "weights": (weights, Weights)}
    check_choices("nf_resnet", **choices, padding_mode=(padding_mode, PaddingMode))
    check_numbers("nf_resnet", alpha, skip_gain, dropout, se_ratio)
    parts = Parts(activation, weights, padding_mode)
    signal, stages, n_in, index = Signal(parts, alpha, scaling), nn.Sequential(), channels[0], 0
    for n, width, first_stride in zip(n_blocks, channels, strides, strict=True):
        stage = nn.Sequential()
        for i in range(n):
            skip = SkipInit(alpha, skip_gain)
            drop = StochasticDepth(stochastic_depth * index / sum(n_blocks))
            stage.append(_block(signal, n_in, width, first_stride if i == 0 else 1, se_ratio, skip, drop))
            n_in, index = 4 * width, index + 1
        stages.append(stage)
    head = nf_head(parts.act(), n_in, n_classes, dropout, std=0.01)
    return NormalizerFreeNet(_stem(parts, in_shape[0], channels[0], stem), stages, head, in_shape)


def nf_resnet50(n_classes: int = 1000, activation: Act = "relu", se_ratio: float = 0.0) -> NormalizerFreeNet:
    """Return NF-ResNet-50 for images of shape (3, 224, 224): 25,557,048 parameters without squeeze-excite."""
    return _imagenet(50, n_classes, activation, se_ratio)


def nf_resnet101(n_classes: int = 1000, activation: Act = "relu", se_ratio: float = 0.0) -> NormalizerFreeNet:
    """Return NF-ResNet-101 for images of shape (3, 224, 224): 44,549,193 parameters without squeeze-excite."""
    return _imagenet(101, n_classes, activation, se_ratio)


def nf_resnet152(n_classes: int = 1000, activation: Act = "relu", se_ratio: float = 0.0) -> NormalizerFreeNet:
    """Return NF-ResNet-152 for images of shape (3, 224, 224): 60,192,858 parameters without squeeze-excite."""
    return _imagenet(152, n_classes, activation, se_ratio)


def nf_resnet200(n_classes: int = 1000, activation: Act = "relu", se_ratio: float = 0.0) -> NormalizerFreeNet:
    """Return NF-ResNet-200 for images of shape (3, 224, 224): 64,673,898 parameters without squeeze-excite."""
    return _imagenet(200, n_classes, activation, se_ratio)


def nf_resnet288(n_classes: int = 1000, activation: Act = "relu", se_ratio: float = 0.0) -> NormalizerFreeNet:
    """Return NF-ResNet-288 for images of shape (3, 224, 224): 146,460,552 parameters without squeeze-excite."""
    return _imagenet(288, n_classes, activation, se_ratio)


def nf_resnet600(n_classes: int = 1000, activation: Act = "relu", se_ratio: float = 0.0) -> NormalizerFreeNet:
    """Return NF-ResNet-600 for images of shape (3, 224, 224): 300,646,896 parameters without squeeze-excite."""
    return _imagenet(600, n_classes, activation, se_ratio)


def _block(
    signal: Signal, n_in: int, width: int, stride: int, se_ratio: float, skip: SkipInit, drop: StochasticDepth
) -> NFBlock:
    parts, n_out = signal.parts, 4 * width
    resets = stride > 1 or n_in != n_out
    layers = [parts.conv(n_in, width, 1), parts.act(), parts.conv(width, width, 3, stride), parts.act()]
    layers += [parts.conv(width, n_out, 1), *([SqueezeExcite(n_out, se_ratio)] if se_ratio else [])]
    shortcut = parts.conv(n_in, n_out, 1, stride) if resets else None
    block = NFBlock(nn.Sequential(*layers), shortcut, parts.act(), skip, drop, signal)
    signal.advance(resets)
    block.expected_variance = signal.variance
    return block


def _stem(parts: Parts, n_in: int, n_out: int, stem: Stem) -> nn.Sequential:
    if stem == "cifar":
        return nn.Sequential(parts.conv(n_in, n_out, 3, is_first=True))
    return nn.Sequential(parts.conv(n_in, n_out, 7, stride=2, is_first=True), nn.MaxPool2d(3, stride=2, padding=1))


def _imagenet(depth: int, n_classes: int, activation: Act, se_ratio: float) -> NormalizerFreeNet:
    channels, strides = (64, 128, 256, 512), (1, 2, 2, 2)
    shape = (3, 224, 224)
    return nf_resnet(shape, n_classes, DEPTHS[depth], channels, strides, "imagenet", activation, se_ratio=se_ratio)

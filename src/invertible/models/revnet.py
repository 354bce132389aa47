"""RevNet (Gomez, Ren, Urtasun and Grosse 2017): a ResNet whose activations need not be stored.

A reversible block adds to each half of the channels what a small network makes of the other half:
y1 = x1 + F(x2), y2 = x2 + G(y1). It is undone by x2 = y2 - G(y1), x1 = y1 - F(x2).

Each stage is a `Chain` of such blocks, hence invertible. The stem and the down-sampling units between stages
(the same equations with pooled or projected shortcuts) lose information. So a RevNet has no `reconstruct`,
and training stores one activation per stage: within a stage they are reconstructed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from invertible.chain import Chain
from invertible.errors import ConfigError
from invertible.layers import AdditiveCoupling
from invertible.models.classifier import PoolingHead, check_input
from invertible.models.resnet import (
    Stem,
    check_choices,
    check_plan,
    check_widening,
    convolution,
    initialise,
    make_stem,
    n_features,
    preactivated,
)
from invertible.reversible import Memory
from invertible.streams import Split

Block = Literal["basic", "bottleneck"]
_HALVES = Split()


class RevNet(nn.Module):
    """Stem, then for each stage a transition that may lose information and a `Chain` that does not; head.

    Inputs are checked as in `Classifier`.

    Args:
        stem: From the image to the first feature map.
        transitions: One per stage; the identity where nothing changes shape.
        stages: As many chains of reversible blocks.
        head: From the last feature map to the logits.
        in_shape: Channels, height, width of an image.

    Raises:
        ShapeError: When called: if the shape does not fit.
        DtypeError: When called: if dtype or device do not fit.
        NonFiniteError: When called: if there are NaN or infinite values.

    Source: Gomez et al. 2017, section 3.2 and the released code.
    """

    def __init__(
        self,
        stem: nn.Module,
        transitions: Sequence[nn.Module],
        stages: Sequence[Chain],
        head: nn.Module,
        in_shape: Sequence[int],
    ) -> None:
        super().__init__()
        self.stem, self.head, self.in_shape = stem, head, tuple(in_shape)
        self.transitions, self.stages = nn.ModuleList(transitions), nn.ModuleList(stages)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits.

        Args:
            x: The batch, then `in_shape`.

        Returns:
            Shape (batch, n_classes).
        """
        check_input(x, self, self.in_shape)
        x = self.stem(x)
        for transition, stage in zip(self.transitions, self.stages, strict=True):
            x = stage(transition(x))
        return self.head(x)


class DownsamplingUnit(nn.Module):
    """(x1, x2) -> (y1, y2) with y1 = S1(x1) + F(x2) and y2 = S2(x2) + G(y1). Not invertible.

    Args:
        residuals: F, which carries the stride, and G.
        shortcuts: S1 and S2.

    Source: Gomez et al. 2017, section 3.2; the released `_residual`.
    """

    def __init__(self, residuals: Sequence[nn.Module], shortcuts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.residuals, self.shortcuts = nn.ModuleList(residuals), nn.ModuleList(shortcuts)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the unit.

        Args:
            x: Shape (batch, channels, height, width).

        Returns:
            Shape (batch, new channels, height / stride, width / stride), rounded up.
        """
        x1, x2 = _HALVES.part(x)
        y1 = self.shortcuts[0](x1) + self.residuals[0](x2)
        y2 = self.shortcuts[1](x2) + self.residuals[1](y1)
        return _HALVES.merge((y1, y2))


class PooledShortcut(nn.Module):
    """Average pooling, then channels of zeros on both sides. No parameters.

    Args:
        n_pad: Channels to add, half of them before the others.
        stride: Side of the pooled squares.

    Source: the released `_possible_downsample`.
    """

    def __init__(self, n_pad: int, stride: int) -> None:
        super().__init__()
        self.n_pad, self.stride = n_pad, stride

    def forward(self, x: Tensor) -> Tensor:
        """Pool and pad.

        Args:
            x: Shape (batch, channels, height, width).

        Returns:
            Shape (batch, channels + n_pad, height / stride, width / stride), rounded up.
        """
        x = nn.functional.avg_pool2d(x, self.stride, ceil_mode=True)
        return nn.functional.pad(x, (0, 0, 0, 0, self.n_pad // 2, self.n_pad - self.n_pad // 2))


def revnet(
    in_shape: tuple[int, int, int] = (3, 32, 32),
    n_classes: int = 10,
    n_blocks: Sequence[int] = (3, 3, 3),
    channels: Sequence[int] = (32, 64, 112),
    strides: Sequence[int] = (1, 2, 2),
    block: Block = "basic",
    stem: Stem = "cifar",
    *,
    memory: Memory = "reconstruct",
    exact: bool | int = False,
) -> RevNet:
    """A RevNet of any size; the default is RevNet-38 for CIFAR-10.

    As in the released code, except that strided convolutions pad both sides alike (TensorFlow: the far side)
    and that BatchNorm has PyTorch's momentum and epsilon.

    Args:
        in_shape: Channels, height, width of an image.
        n_classes: Number of logits.
        n_blocks: Blocks in each stage, each with F and G; the first one down-samples if the shape changes.
        channels: Of both streams together in each stage, even. Bottlenecks give out four times as many.
        strides: Stride of the first block in each stage.
        block: F and G are "basic" (3x3, 3x3) or "bottleneck" (1x1, 3x3, 1x1), all pre-activated.
        stem: "cifar" (one 3x3) or "imagenet" (7x7 with stride 2, then max-pooling with stride 2).
        memory: What a training step keeps of each stage, as in `Chain`; "reconstruct" as in the paper.
        exact: Whether each stage computes on a lattice, so that its activations are reconstructed to the bit.

    Returns:
        The network.

    Raises:
        ConfigError: If an argument is out of range.

    Example:
        >>> import torch
        >>> net = revnet((1, 8, 8), n_blocks=(2, 2), channels=(8, 16), strides=(1, 2)).eval()
        >>> stage, x = net.stages[0], torch.rand(2, 8, 8, 8)
        >>> net(torch.rand(2, 1, 8, 8)).shape, torch.allclose(stage.inverse(stage(x)), x, atol=1e-5)
        (torch.Size([2, 10]), True)
    """
    check_plan("revnet", in_shape, n_classes, n_blocks=n_blocks, channels=channels, strides=strides)
    check_choices("revnet", block=(block, Block), stem=(stem, Stem))
    if any(width % 2 for width in channels):
        raise ConfigError("a RevNet halves its channels", expected="even numbers", got=tuple(channels))
    n_in, transitions, stages = channels[0], [], []
    for n, width, stride in zip(n_blocks, channels, strides, strict=True):
        n_out = n_features(width, block)
        transition, blocks = _stage(n_in, n_out, n, stride, block, is_first=not stages)
        transitions.append(transition)
        stages.append(Chain(*blocks, memory=memory, exact=exact))
        n_in = n_out
    first, head = make_stem(in_shape[0], channels[0], stem), PoolingHead(n_in, n_classes)
    return RevNet(first, transitions, stages, head, in_shape)


def revnet38(n_classes: int = 10, *, memory: Memory = "reconstruct") -> RevNet:
    """Return RevNet-38 for images of shape (3, 32, 32), a peer of ResNet-32: 464,890 parameters."""
    return revnet(n_classes=n_classes, memory=memory)


def revnet110(n_classes: int = 10, *, memory: Memory = "reconstruct") -> RevNet:
    """Return RevNet-110 for images of shape (3, 32, 32), a peer of ResNet-110: 1,729,194 parameters."""
    return revnet(n_classes=n_classes, n_blocks=(9, 9, 9), channels=(32, 64, 128), memory=memory)


def revnet164(n_classes: int = 10, *, memory: Memory = "reconstruct") -> RevNet:
    """Return RevNet-164 for images of shape (3, 32, 32), a peer of ResNet-164: 1,748,778 parameters."""
    return revnet(n_classes=n_classes, n_blocks=(9, 9, 9), channels=(32, 64, 128), block="bottleneck", memory=memory)


def revnet56(n_classes: int = 1000, *, memory: Memory = "reconstruct") -> RevNet:
    """Return RevNet-56 for images of shape (3, 224, 224), a peer of ResNet-50: 27,553,128 parameters.

    The released code calls it RevNet-54.
    """
    return _imagenet(n_classes, (2, 2, 3, 2), memory)


def revnet104(n_classes: int = 1000, *, memory: Memory = "reconstruct") -> RevNet:
    """Return RevNet-104 for images of shape (3, 224, 224), a peer of ResNet-101: 45,428,072 parameters."""
    return _imagenet(n_classes, (2, 2, 11, 2), memory)


def _imagenet(n_classes: int, n_blocks: Sequence[int], memory: Memory) -> RevNet:
    channels, strides = (128, 256, 512, 832), (1, 2, 2, 2)
    return revnet((3, 224, 224), n_classes, n_blocks, channels, strides, "bottleneck", "imagenet", memory=memory)


def _stage(
    n_in: int, n_out: int, n_blocks: int, stride: int, block: Block, is_first: bool
) -> tuple[nn.Module, list[Chain]]:
    if stride == 1 and n_in == n_out:
        blocks = [_reversible(n_out, block, is_first and i == 0) for i in range(n_blocks)]
        return nn.Identity(), blocks
    residuals = _residual(n_in, n_out, stride, block, is_first), _residual(n_out, n_out, 1, block)
    shortcuts = _shortcut(n_in, n_out, stride, block), _shortcut(n_in, n_out, stride, block)
    blocks = [_reversible(n_out, block) for _ in range(n_blocks - 1)]
    return DownsamplingUnit(residuals, shortcuts), blocks


def _reversible(n_channels: int, block: Block, is_first: bool = False) -> Chain:
    f, g = _residual(n_channels, n_channels, 1, block, is_first), _residual(n_channels, n_channels, 1, block)
    return Chain(AdditiveCoupling(f, target="first"), AdditiveCoupling(g, target="second"))


def _residual(n_in: int, n_out: int, stride: int, block: Block, is_first: bool = False) -> nn.Sequential:
    a, b = n_in // 2, n_out // 2
    if block == "basic":
        convolutions = [convolution(a, b, 3, stride), convolution(b, b, 3)]
    else:
        hidden = b // 4
        middle, last = convolution(hidden, hidden, 3), convolution(hidden, b, 1)
        convolutions = [convolution(a, hidden, 1, stride), middle, last]
    # The network's first F finds the stem's activation done.
    return nn.Sequential(*preactivated(*convolutions)[2 if is_first else 0 :])


def _shortcut(n_in: int, n_out: int, stride: int, block: Block) -> nn.Module:
    if block == "bottleneck":
        return convolution(n_in // 2, n_out // 2, 1, stride)
    check_widening(n_in, n_out, "block='bottleneck'")
    return PooledShortcut((n_out - n_in) // 2, stride)

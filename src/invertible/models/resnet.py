"""ResNet (He, Zhang, Ren and Sun 2016): the baseline that reversible networks are measured against.

A block adds to a shortcut S of its input what a small network F makes of it: y = ReLU(S(x) + F(x)).
S is the identity, save where the shape changes: there it is a strided 1x1 convolution ("projection", the
paper's option B) or subsampling with channels of zeros appended ("padding", its option A). In the
pre-activation form (He et al. 2016b) BatchNorm and ReLU precede each convolution of F, and y = S(x) + F(x).

For looking at signals there are pre-activation networks with another order, or without BatchNorm or ReLU, and with
initial weights by fan-in (Brock, De and Smith 2021, section 3 and figures 1 and 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor, nn

from invertible._tap_points import TapPoints
from invertible.errors import ConfigError
from invertible.models.classifier import PoolingHead, check_input

Block = Literal["basic", "bottleneck", "preact-basic", "preact-bottleneck"]
Stem = Literal["cifar", "imagenet"]
Shortcut = Literal["projection", "padding"]
Order = Literal["bn-relu", "relu-bn", "relu", "bn"]
Initial = Literal["fan_out", "fan_in"]


class ResNet(nn.Module):
    """Stem, stages, head. Inputs are checked as in `Classifier`.

    Args:
        stem: From the image to the first feature map.
        stages: Residual blocks, one `nn.Sequential` per stage.
        head: From the last feature map to the logits.
        in_shape: Channels, height, width of an image.

    Raises:
        ShapeError: When called: if the shape does not fit.
        DtypeError: When called: if dtype or device do not fit.
        NonFiniteError: When called: if there are NaN or infinite values.

    Source: He et al. 2016, section 3.3 (ImageNet) and 4.2 (CIFAR).
    """

    def __init__(self, stem: nn.Module, stages: nn.Module, head: nn.Module, in_shape: Sequence[int]) -> None:
        super().__init__()
        self.stem, self.stages, self.head = stem, stages, head
        self.in_shape = tuple(in_shape)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits.

        Args:
            x: The batch, then `in_shape`.

        Returns:
            Shape (batch, n_classes).
        """
        check_input(x, self, self.in_shape)
        return self.head(self.stages(self.stem(x)))


class ResidualBlock(nn.Module):
    """x -> after(S(z) + F(z)) with z = before(x).

    Args:
        residual: F.
        shortcut: S.
        before: What F and S share: BatchNorm and ReLU in pre-activation blocks that change the shape.
        after: ReLU in the original form.

    Attributes:
        expected_variance: What theory expects of the output; None unless who builds the network knows.
        expected_residual_variance: The same of F's end.

    Source: He et al. 2016, equation 2; He et al. 2016b, figure 4 (e).
    """

    def __init__(self, residual: nn.Module, shortcut: nn.Module, before: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.before, self.residual, self.shortcut, self.after = before, residual, shortcut, after
        self.expected_variance: float | None = None
        self.expected_residual_variance: float | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: Shape (batch, channels, height, width).

        Returns:
            Shape (batch, new channels, height / stride, width / stride).
        """
        z = self.before(x)
        return self.after(self.shortcut(z) + self.residual(z))

    def tap_points(self) -> TapPoints:
        """Where instruments listen.

        Returns:
            The end of F, and expectations if there are any: none holds for every order and every first weight.
        """
        expected = self.expected_variance, self.expected_residual_variance
        return TapPoints("residual", (), *expected)


class PaddedShortcut(nn.Module):
    """Every stride-th pixel, with channels of zeros appended. No parameters.

    Args:
        n_pad: Channels to append.
        stride: Of the subsampling.

    Source: He et al. 2016, section 3.3, option A.
    """

    def __init__(self, n_pad: int, stride: int) -> None:
        super().__init__()
        self.n_pad, self.stride = n_pad, stride

    def forward(self, x: Tensor) -> Tensor:
        """Subsample and pad.

        Args:
            x: Shape (batch, channels, height, width).

        Returns:
            Shape (batch, channels + n_pad, height / stride, width / stride), rounded up.
        """
        x = x[:, :, :: self.stride, :: self.stride]
        return nn.functional.pad(x, (0, 0, 0, 0, 0, self.n_pad))


def resnet(
    in_shape: tuple[int, int, int] = (3, 32, 32),
    n_classes: int = 10,
    n_blocks: Sequence[int] = (3, 3, 3),
    channels: Sequence[int] = (16, 32, 64),
    strides: Sequence[int] = (1, 2, 2),
    block: Block = "basic",
    stem: Stem = "cifar",
    shortcut: Shortcut = "padding",
    order: Order = "bn-relu",
    initial: Initial = "fan_out",
) -> ResNet:
    """A ResNet of any size; the default is ResNet-20 for CIFAR-10.

    To match another model's number of parameters, scale `channels`. Bottlenecks carry their stride in the 3x3
    convolution, as in the common reimplementations; the paper has it in the first 1x1.

    Args:
        in_shape: Channels, height, width of an image.
        n_classes: Number of logits.
        n_blocks: Blocks in each stage.
        channels: Channels of the 3x3 convolutions in each stage. Bottlenecks give out four times as many.
        strides: Stride of the first block in each stage.
        block: "basic" (two 3x3) or "bottleneck" (1x1, 3x3, 1x1), each also with pre-activation.
        stem: "cifar" (one 3x3) or "imagenet" (7x7 with stride 2, then max-pooling with stride 2).
        shortcut: "projection" or "padding", where the shape changes.
        order: What precedes each convolution of a pre-activation block, and the head: "bn-relu", "relu-bn", "relu"
            alone (no normalisation), "bn" alone (a linear network but for its statistics).
        initial: Variance of the first weights: 2 / fan-out, as usual, or by fan-in: 2 / fan-in behind a ReLU,
            1 / fan-in behind BatchNorm, so that each convolution keeps the second moment.

    Returns:
        The network.

    Raises:
        ConfigError: If an argument is out of range, or padding would have to drop channels.

    Example:
        >>> import torch
        >>> net = resnet((1, 28, 28), n_classes=49, n_blocks=(1, 1), channels=(8, 16), strides=(1, 2))
        >>> net(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 49])
    """
    check_plan("resnet", in_shape, n_classes, n_blocks=n_blocks, channels=channels, strides=strides)
    check_choices("resnet", block=(block, Block), stem=(stem, Stem), shortcut=(shortcut, Shortcut))
    check_choices("resnet", order=(order, Order), initial=(initial, Initial))
    n_in, stages, is_preact = channels[0], nn.Sequential(), block.startswith("preact-")
    if not is_preact and order != "bn-relu":
        hint = "block='preact-basic' or 'preact-bottleneck'"
        raise ConfigError("only pre-activation blocks have an order", expected="bn-relu", got=order, hint=hint)
    for n, width, stride in zip(n_blocks, channels, strides, strict=True):
        stage = nn.Sequential()
        for i in range(n):
            is_first = len(stages) == 0 and i == 0
            stage.append(_block(n_in, width, stride if i == 0 else 1, block, shortcut, is_first, order))
            n_in = n_features(width, block)
        stages.append(stage)
    head = _head(n_in, n_classes, order) if is_preact else _plain_head(n_in, n_classes)
    net = ResNet(make_stem(in_shape[0], channels[0], stem, activate=not is_preact), stages, head, in_shape)
    if initial == "fan_in":
        initialise_by_fan_in(net, follows_relu=order.endswith("relu"))
    return net


def resnet18(n_classes: int = 1000) -> ResNet:
    """Return ResNet-18 for images of shape (3, 224, 224): 11,689,512 parameters."""
    return _imagenet(n_classes, (2, 2, 2, 2), "basic")


def resnet34(n_classes: int = 1000) -> ResNet:
    """Return ResNet-34 for images of shape (3, 224, 224): 21,797,672 parameters."""
    return _imagenet(n_classes, (3, 4, 6, 3), "basic")


def resnet50(n_classes: int = 1000) -> ResNet:
    """Return ResNet-50 for images of shape (3, 224, 224): 25,557,032 parameters."""
    return _imagenet(n_classes, (3, 4, 6, 3), "bottleneck")


def resnet101(n_classes: int = 1000) -> ResNet:
    """Return ResNet-101 for images of shape (3, 224, 224): 44,549,160 parameters."""
    return _imagenet(n_classes, (3, 4, 23, 3), "bottleneck")


def resnet152(n_classes: int = 1000) -> ResNet:
    """Return ResNet-152 for images of shape (3, 224, 224): 60,192,808 parameters."""
    return _imagenet(n_classes, (3, 8, 36, 3), "bottleneck")


def resnet20(n_classes: int = 10) -> ResNet:
    """Return ResNet-20 for images of shape (3, 32, 32): 269,722 parameters.

    ResNets 20 to 110 have option A, as in the paper, so that they have no more parameters than without shortcuts.
    """
    return resnet(n_classes=n_classes, n_blocks=(3, 3, 3))


def resnet32(n_classes: int = 10) -> ResNet:
    """Return ResNet-32 for images of shape (3, 32, 32): 464,154 parameters."""
    return resnet(n_classes=n_classes, n_blocks=(5, 5, 5))


def resnet44(n_classes: int = 10) -> ResNet:
    """Return ResNet-44 for images of shape (3, 32, 32): 658,586 parameters."""
    return resnet(n_classes=n_classes, n_blocks=(7, 7, 7))


def resnet56(n_classes: int = 10) -> ResNet:
    """Return ResNet-56 for images of shape (3, 32, 32): 853,018 parameters."""
    return resnet(n_classes=n_classes, n_blocks=(9, 9, 9))


def resnet110(n_classes: int = 10) -> ResNet:
    """Return ResNet-110 for images of shape (3, 32, 32): 1,727,962 parameters."""
    return resnet(n_classes=n_classes, n_blocks=(18, 18, 18))


def resnet164(n_classes: int = 10) -> ResNet:
    """Return the pre-activated ResNet-164 for images of shape (3, 32, 32): 1,703,258 parameters.

    It has option B, as in the code released with He et al. 2016b.
    """
    return resnet(n_classes=n_classes, n_blocks=(18, 18, 18), block="preact-bottleneck", shortcut="projection")


def preact_resnet600(n_classes: int = 1000, order: Order = "bn-relu") -> ResNet:
    """Return the twin of NF-ResNet-600 with BatchNorm, another order or neither, for images of shape (3, 224, 224).

    300,639,016 parameters with BatchNorm, weights by fan-in. Without it ("relu") the variance doubles in each
    block: activations still fit float32, their squares do not.
    """
    channels, strides = (64, 128, 256, 512), (1, 2, 2, 2)
    block, shape, depths = "preact-bottleneck", (3, 224, 224), (50, 50, 50, 50)
    return resnet(shape, n_classes, depths, channels, strides, block, "imagenet", "projection", order, "fan_in")


def _imagenet(n_classes: int, n_blocks: Sequence[int], block: Block) -> ResNet:
    channels, strides = (64, 128, 256, 512), (1, 2, 2, 2)
    return resnet((3, 224, 224), n_classes, n_blocks, channels, strides, block, "imagenet", "projection")


def check_plan(name: str, in_shape: Sequence[int], n_classes: int, **stages: Sequence[int]) -> None:
    """Refuse sizes that make no network.

    Raises:
        ConfigError: If a number is below 1, an image has not three sizes, or the stages disagree.
    """
    given = ", ".join(f"{key}={tuple(values)}" for key, values in stages.items())
    lengths = {len(values) for values in stages.values()}
    if len(lengths) != 1 or lengths == {0}:
        raise ConfigError(f"the stages of {name} disagree", expected="one entry per stage in each", got=given)
    if len(in_shape) != 3:
        expected = "in_shape of (channels, height, width)"
        raise ConfigError(f"{name} takes images", expected=expected, got=tuple(in_shape))
    if min(*in_shape, n_classes, *(n for values in stages.values() for n in values)) < 1:
        got = f"in_shape={tuple(in_shape)}, n_classes={n_classes}, {given}"
        raise ConfigError(f"{name} has an empty stage, image or output", expected="numbers >= 1", got=got)


def check_choices(name: str, **choices: tuple[str, object]) -> None:
    """Refuse an option that is not in its `Literal`.

    Raises:
        ConfigError: If one is not among its choices.
    """
    for option, (got, allowed) in choices.items():
        names = get_args(allowed)
        if got not in names:
            raise ConfigError(f"{name} has a bad {option}", expected=" or ".join(names), got=repr(got))


def check_widening(n_in: int, n_out: int, hint: str) -> None:
    """Refuse a padded shortcut to fewer channels.

    Raises:
        ConfigError: If channels would have to be dropped.
    """
    if n_out < n_in:
        hint, expected = f"{hint}, or channels that do not fall", f"{n_in} channels or more"
        raise ConfigError("a padded shortcut cannot drop channels", expected=expected, got=n_out, hint=hint)


def initialise(model: nn.Module) -> None:
    """Draw every convolution's weights with variance 2 / (kernel area x output channels) (He et al. 2015)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def initialise_by_fan_in(model: nn.Module, follows_relu: bool) -> None:
    """Draw every convolution's weights so that it keeps the second moment of its input.

    Args:
        model: The network.
        follows_relu: Whether ReLUs feed the convolutions: variance 2 / fan-in, else 1 / fan-in. The first convolution
            gets the image: 1 / fan-in.
    """
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    for i, conv in enumerate(convolutions):
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu" if follows_relu and i else "linear")


def convolution(n_in: int, n_out: int, size: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution without bias that keeps the spatial size, divided by the stride and rounded up."""
    return nn.Conv2d(n_in, n_out, size, stride=stride, padding=size // 2, bias=False)


def activation(n_channels: int, order: Order = "bn-relu") -> list[nn.Module]:
    """Return BatchNorm and ReLU, in another order, or one of them."""
    # A ReLU that comes first must not overwrite: its input is the shortcut too.
    relu = nn.ReLU(inplace=order == "bn-relu")
    return [nn.BatchNorm2d(n_channels) if part == "bn" else relu for part in order.split("-")]


def preactivated(*convolutions: nn.Conv2d, order: Order = "bn-relu") -> list[nn.Module]:
    """Return the convolutions, each behind BatchNorm and ReLU."""
    return [layer for conv in convolutions for layer in (*activation(conv.in_channels, order), conv)]


def make_stem(n_in: int, n_out: int, stem: Stem, activate: bool = True) -> nn.Sequential:
    """Return the first layers: a convolution, BatchNorm and ReLU if wanted, max-pooling for ImageNet."""
    conv = convolution(n_in, n_out, 3) if stem == "cifar" else convolution(n_in, n_out, 7, stride=2)
    pool = [] if stem == "cifar" else [nn.MaxPool2d(3, stride=2, padding=1)]
    return nn.Sequential(conv, *(activation(n_out) if activate else []), *pool)


def n_features(width: int, block: str) -> int:
    """Return how many channels come out of a block whose 3x3 convolutions have `width`."""
    return 4 * width if block.endswith("bottleneck") else width


def _head(n_channels: int, n_classes: int, order: Order) -> nn.Sequential:
    if order == "bn-relu":
        return PoolingHead(n_channels, n_classes)
    return nn.Sequential(*activation(n_channels, order), *_plain_head(n_channels, n_classes))


def _plain_head(n_channels: int, n_classes: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n_channels, n_classes))


def _block(
    n_in: int, width: int, stride: int, block: Block, shortcut: Shortcut, is_first: bool, order: Order
) -> ResidualBlock:
    convolutions = _convolutions(n_in, width, stride, block)
    path = _shortcut(n_in, n_features(width, block), stride, shortcut)
    if block.startswith("preact-"):
        # He et al. 2016b: the first activation of all, and one before a change of shape, feed S too.
        n_shared = len(order.split("-")) if is_first or not isinstance(path, nn.Identity) else 0
        layers = preactivated(*convolutions, order=order)
        before, residual = nn.Sequential(*layers[:n_shared]), nn.Sequential(*layers[n_shared:])
        return ResidualBlock(residual, path, before, nn.Identity())
    if isinstance(path, nn.Conv2d):
        path = nn.Sequential(path, nn.BatchNorm2d(path.out_channels))
    return ResidualBlock(_postactivated(*convolutions), path, nn.Identity(), nn.ReLU(inplace=True))


def _convolutions(n_in: int, width: int, stride: int, block: Block) -> list[nn.Conv2d]:
    if not block.endswith("bottleneck"):
        return [convolution(n_in, width, 3, stride), convolution(width, width, 3)]
    middle, last = convolution(width, width, 3, stride), convolution(width, 4 * width, 1)
    return [convolution(n_in, width, 1), middle, last]


def _postactivated(*convolutions: nn.Conv2d) -> nn.Sequential:
    layers = [layer for conv in convolutions for layer in (conv, *activation(conv.out_channels))]
    return nn.Sequential(*layers[:-1])


def _shortcut(n_in: int, n_out: int, stride: int, shortcut: Shortcut) -> nn.Module:
    if stride == 1 and n_in == n_out:
        return nn.Identity()
    if shortcut == "projection":
        return convolution(n_in, n_out, 1, stride)
    check_widening(n_in, n_out, "shortcut='projection'")
    return PaddedShortcut(n_out - n_in, stride)

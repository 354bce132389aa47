"""i-RevNet (Jacobsen, Smeulders and Oyallon 2018): a deep classifier that is invertible up to its last projection.

A block maps two streams (x1, x2) to (psi(x2), psi(x1) + F(x2)), where psi is space-to-depth where the stage begins with
a stride and the identity elsewhere, and F a small convolutional network that carries the same stride. Nothing is lost:
x2 = psi^-1(y1), then x1 = psi^-1(y2 - F(x2)). Networks without padding are bijective, the paper's (b); networks that
append channels of zeros first are injective, its (a).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from invertible._tap_points import TapPoints
from invertible.bijection import Bijection, Leaf, Method, VolumePreserving, zero_logdet
from invertible.chain import Chain
from invertible.errors import ConfigError
from invertible.layers import InjectivePad, Squeeze
from invertible.layers.coupling import known_sum
from invertible.models.classifier import Classifier, PoolingHead
from invertible.reversible import Memory
from invertible.streams import Split, State, Streams


@dataclass(frozen=True)
class _Stage:
    n_blocks: int
    stride: int
    channels: int  # of each stream
    hidden: int  # between the convolutions of F


# F from (channels in, stage, stride, whether it is the network's first block)
_MakeResidual = Callable[[int, _Stage, int, bool], nn.Module]


class IRevNetBlock(VolumePreserving):
    """(x1, x2) -> (psi(x2), psi(x1) + F(x2)).

    Args:
        residual: F; it maps a stream to a stream `stride` times smaller with stride^2 times the channels.
        stride: Of the space-to-depth psi; 1 makes it the identity.

    Source: Jacobsen et al. 2018, section 3.1, figure 2.
    """

    split_in = split_out = Split()
    keeps_lattice = True

    def __init__(self, residual: nn.Module, stride: int = 1) -> None:
        super().__init__()
        self.residual = residual
        self.psi: Bijection = Squeeze(stride, order="offset") if stride > 1 else Chain()

    def tap_points(self) -> TapPoints:
        """Where instruments listen: exact sums hide their addition from those that would find it themselves.

        Returns:
            The residual network: its output is added.
        """
        return TapPoints("residual")

    def _forward(self, x: Streams, context: None) -> Streams:
        x1, x2 = x
        shift = self._shift(x2)
        return self.psi(x2), self.psi(x1) + shift if self.lattice is None else self.lattice.add(self.psi(x1), shift)

    def _inverse(self, y: Streams, context: None) -> Streams:
        y1, y2 = y
        x2 = self.psi.inverse(y1)
        return self.psi.inverse(self._without(y2, self._shift(x2))), x2

    def _rerun(self, method: Method, out: Streams, context: None, leaf: Leaf) -> tuple[State, State, Tensor | None]:
        if method.startswith("_inverse"):
            return self._rerun_inverse(method, out, leaf)
        with torch.no_grad():
            x2 = leaf(self.psi.inverse(out[0]), 1)
        shift = self._shift(x2)
        with torch.no_grad():
            x1 = leaf(self.psi.inverse(self._without(out[1], shift)), 0)
        again = self.psi(x2), known_sum(out[1], self.psi(x1), shift)
        return (x1, x2), again, zero_logdet(out) if method.endswith("logdet") else None

    def _rerun_inverse(self, method: Method, out: Streams, leaf: Leaf) -> tuple[State, State, Tensor | None]:
        x1, x2 = out
        with torch.no_grad():
            y1 = leaf(self.psi(x2), 0)
        x2 = self.psi.inverse(y1)
        shift = self._shift(x2)
        with torch.no_grad():
            y2 = self.psi(x1)
            y2 = leaf(y2 + shift if self.lattice is None else self.lattice.add(y2, shift), 1)
        again = self.psi.inverse(self._without(y2, shift)), x2
        return (y1, y2), again, zero_logdet(out) if method.endswith("logdet") else None

    def _shift(self, x2: Tensor) -> Tensor:
        # The same bits both ways need the same layout both ways.
        return self.residual(x2 if self.lattice is None else x2.contiguous())

    def _without(self, y2: Tensor, shift: Tensor) -> Tensor:
        return y2 - shift if self.lattice is None else self.lattice.subtract(y2, shift)


def irevnet(
    in_shape: tuple[int, int, int] = (3, 32, 32),
    n_classes: int = 10,
    n_blocks: Sequence[int] = (18, 18, 18),
    strides: Sequence[int] = (1, 2, 2),
    channels: Sequence[int] | None = (16, 64, 256),
    hidden: Sequence[int] | None = None,
    init_squeeze: int = 1,
    dropout: float = 0.1,
    *,
    memory: Memory = "store",
    exact: bool | int = False,
) -> Classifier:
    """An i-RevNet as in the released code; the default is the paper's for CIFAR-10.

    Args:
        in_shape: Channels, height, width of an image.
        n_classes: Number of logits.
        n_blocks: Blocks in each stage.
        strides: Space-to-depth factor at the start of each stage.
        channels: Channels of each stream in each stage; None: as many as keep the network bijective.
        hidden: Channels between F's convolutions in each stage; None: a quarter of `channels`.
        init_squeeze: Factor of a space-to-depth before the first stage.
        dropout: Probability, after F's second convolution.
        memory: What a training step keeps: "store", "checkpoint" or "reconstruct", as in `Chain`.
        exact: Whether to compute on a lattice, so that `reconstruct` is exact to the bit, as in `Chain`.

    Returns:
        A classifier whose body is invertible: bijective if no stage needs padding, injective otherwise.

    Raises:
        ConfigError: If the stages do not fit each other or the image.

    Example:
        >>> import torch
        >>> net = irevnet((1, 8, 8), n_blocks=(1, 1), strides=(1, 2), channels=(8, 32), init_squeeze=2).eval()
        >>> x = torch.rand(4, 1, 8, 8)
        >>> z = net.representation(x)
        >>> z.shape, torch.allclose(net.reconstruct(z), x, atol=1e-5)
        (torch.Size([4, 64, 2, 2]), True)
    """

    def residual(n_in: int, stage: _Stage, stride: int, is_first: bool) -> nn.Module:
        return _residual_3x3(n_in, stage, stride, is_first, dropout)

    for name, values in {"n_blocks": n_blocks, "strides": strides, "channels": channels, "hidden": hidden}.items():
        _check_numbers(name, values)
    if not 0 <= dropout < 1:
        raise ConfigError("an i-RevNet has a bad dropout", expected="0 to below 1", got=dropout)
    if channels is None:
        first = in_shape[0] * init_squeeze**2 // 2
        channels = [first * math.prod(strides[: i + 1]) ** 2 for i in range(len(strides))]
    hidden = [n // 4 for n in channels] if hidden is None else hidden
    stages, options = _stages(n_blocks, strides, channels, hidden), {"memory": memory, "exact": exact}
    return _classifier(in_shape, n_classes, init_squeeze, stages, residual, options)


def irevnet_b(n_classes: int = 1000, *, memory: Memory = "store", exact: bool | int = False) -> Classifier:
    """The paper's bijective network for ImageNet: 6, 16, 72 and 6 blocks, 125,120,356 parameters as released.

    Args:
        n_classes: Number of logits.
        memory: What a training step keeps: "store", "checkpoint" or "reconstruct", as in `Chain`.
        exact: Whether to compute on a lattice, so that `reconstruct` is exact to the bit, as in `Chain`.

    Returns:
        The classifier, for images of shape (3, 224, 224).
    """
    blocks, strides, channels = (6, 16, 72, 6), (2, 2, 2, 2), (24, 96, 384, 1536)
    return irevnet((3, 224, 224), n_classes, blocks, strides, channels, init_squeeze=2, memory=memory, exact=exact)


def irevnet_a(n_classes: int = 1000, *, memory: Memory = "store", exact: bool | int = False) -> Classifier:
    """The paper's injective network for ImageNet: padded to 96 channels a stream, stages of 4, 4, 6 and 4 blocks.

    F is 1x1 - 3x3 - 1x1 with a quarter of the stream's channels in the middle, and BatchNorm and ReLU before each
    convolution: 180,999,208 parameters, the paper's 181 M. (The paper's text leaves room for other readings; this one
    gives its count.)

    Args:
        n_classes: Number of logits.
        memory: What a training step keeps: "store", "checkpoint" or "reconstruct", as in `Chain`.
        exact: Whether to compute on a lattice, so that `reconstruct` is exact to the bit, as in `Chain`.

    Returns:
        The classifier, for images of shape (3, 224, 224).
    """
    channels = (96, 384, 1536, 6144)
    stages = _stages((4, 4, 6, 4), (1, 2, 2, 2), channels, [n // 4 for n in channels])
    return _classifier((3, 224, 224), n_classes, 4, stages, _residual_1x1, {"memory": memory, "exact": exact})


def irevnet_digits(n_classes: int = 10, *, memory: Memory = "store", exact: bool | int = False) -> Classifier:
    """A small bijective network for the 8x8 digits: 8 blocks, 64 numbers all the way.

    Args:
        n_classes: Number of logits.
        memory: What a training step keeps: "store", "checkpoint" or "reconstruct", as in `Chain`.
        exact: Whether to compute on a lattice, so that `reconstruct` is exact to the bit, as in `Chain`.

    Returns:
        The classifier, for images of shape (1, 8, 8).
    """
    return irevnet((1, 8, 8), n_classes, (4, 4), (2, 2), None, (32, 64), 2, dropout=0.0, memory=memory, exact=exact)


def irevnet_fashion_mnist(n_classes: int = 10, *, memory: Memory = "store", exact: bool | int = False) -> Classifier:
    """A small bijective network for Fashion-MNIST padded to 32x32: no zeros are appended, 1024 numbers all the way.

    Args:
        n_classes: Number of logits.
        memory: What a training step keeps: "store", "checkpoint" or "reconstruct", as in `Chain`.
        exact: Whether to compute on a lattice, so that `reconstruct` is exact to the bit, as in `Chain`.

    Returns:
        The classifier, for images of shape (1, 32, 32).
    """
    blocks, strides, hidden = (2, 4, 3, 1), (1, 2, 2, 2), (24, 40, 64, 40)
    return irevnet((1, 32, 32), n_classes, blocks, strides, None, hidden, 2, dropout=0.0, memory=memory, exact=exact)


def _check_numbers(name: str, values: object) -> None:
    if values is None and name in ("channels", "hidden"):
        return
    if not isinstance(values, list | tuple) or not all(isinstance(value, int) for value in values):
        expected = "whole numbers, one per stage, as in (18, 18, 18)"
        raise ConfigError(f"an i-RevNet's {name} is no list", expected=expected, got=values)


def _stages(
    n_blocks: Sequence[int], strides: Sequence[int], channels: Sequence[int], hidden: Sequence[int]
) -> list[_Stage]:
    lengths = {len(n_blocks), len(strides), len(channels), len(hidden)}
    given = f"n_blocks={n_blocks}, strides={strides}, channels={channels}, hidden={hidden}"
    if len(lengths) != 1 or lengths == {0}:
        raise ConfigError("the stages of an i-RevNet disagree", expected="one entry per stage in each", got=given)
    if min(*n_blocks, *strides, *channels, *hidden) < 1:
        hint = "init_squeeze=2 for more channels; hidden=(...) where a quarter of the channels is less than one"
        raise ConfigError("an i-RevNet has an empty stage", expected="numbers >= 1", got=given, hint=hint)
    return [_Stage(*row) for row in zip(n_blocks, strides, channels, hidden, strict=True)]


def _classifier(
    in_shape: tuple[int, int, int],
    n_classes: int,
    init_squeeze: int,
    stages: list[_Stage],
    residual: _MakeResidual,
    options: Mapping[str, Any],
) -> Classifier:
    total = init_squeeze * math.prod(stage.stride for stage in stages)
    if min(n_classes, init_squeeze, *in_shape) < 1:
        got = f"n_classes={n_classes}, init_squeeze={init_squeeze}, in_shape={in_shape}"
        raise ConfigError("an i-RevNet has an empty part", expected="numbers >= 1", got=got)
    if len(in_shape) != 3 or in_shape[1] % total or in_shape[2] % total:
        hint = "pad or resize the images, or use fewer strides"
        expected = f"in_shape of (channels, height, width), the last two multiples of {total}"
        raise ConfigError("an i-RevNet cannot divide the image", expected=expected, got=in_shape, hint=hint)
    body = Chain(*_members(in_shape[0], init_squeeze, stages, residual), **options)
    n_out = 2 * stages[-1].channels
    head = PoolingHead(n_out, n_classes, momentum=0.9)
    return Classifier(body, head, in_shape, (n_out, in_shape[1] // total, in_shape[2] // total))


def _members(n_channels: int, init_squeeze: int, stages: list[_Stage], residual: _MakeResidual) -> list[Bijection]:
    members: list[Bijection] = [Squeeze(init_squeeze, order="offset")] if init_squeeze > 1 else []
    n_in = n_channels * init_squeeze**2
    for stage in stages:
        members += _padding(n_in, stage)
        n_in = max(n_in, 2 * stage.channels // stage.stride**2)
        for i in range(stage.n_blocks):
            stride = stage.stride if i == 0 else 1
            is_first = stage is stages[0] and i == 0
            members.append(IRevNetBlock(residual(n_in // 2, stage, stride, is_first), stride))
            n_in = 2 * stage.channels
    return members


def _padding(n_in: int, stage: _Stage) -> list[Bijection]:
    n_pad = 2 * stage.channels - n_in * stage.stride**2
    if n_pad == 0 and n_in % 2 == 0:
        return []
    if stage.stride > 1 or n_pad < 0:
        hint = "init_squeeze=2 and channels=None; only a stage of stride 1 can be padded, and only upwards"
        expected = f"2 x channels = {n_in} x stride^2 = {n_in * stage.stride**2}, {n_in} even"
        got = f"channels={stage.channels}, stride={stage.stride}"
        raise ConfigError("a stage of an i-RevNet does not fit the one before", expected=expected, got=got, hint=hint)
    return [InjectivePad(n_in, n_pad)]


def _activation(n_channels: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(n_channels), nn.ReLU(inplace=True)]


def _convolution(n_in: int, n_out: int, size: int, stride: int = 1) -> nn.Module:
    return nn.Conv2d(n_in, n_out, size, stride=stride, padding=size // 2, bias=False)


def _residual_3x3(n_in: int, stage: _Stage, stride: int, is_first: bool, dropout: float) -> nn.Module:
    # F of the released code; the network's first F starts without BatchNorm and ReLU.
    first = [] if is_first else _activation(n_in)
    return nn.Sequential(
        *first,
        _convolution(n_in, stage.hidden, 3, stride),
        *_activation(stage.hidden),
        _convolution(stage.hidden, stage.hidden, 3),
        nn.Dropout(dropout),
        *_activation(stage.hidden),
        _convolution(stage.hidden, stage.channels, 3),
    )


def _residual_1x1(n_in: int, stage: _Stage, stride: int, is_first: bool) -> nn.Module:
    # F of the network (a): 1x1, 3x3 with the stride, 1x1.
    return nn.Sequential(
        *_activation(n_in),
        _convolution(n_in, stage.hidden, 1),
        *_activation(stage.hidden),
        _convolution(stage.hidden, stage.hidden, 3, stride),
        *_activation(stage.hidden),
        _convolution(stage.hidden, stage.channels, 1),
    )

"""The small Inception of Zhang, Bengio, Hardt, Recht and Vinyals (2017), for crops of CIFAR images.

A module sends its input through a 1x1 and a 3x3 convolution and puts the results side by side; a downsampling module
takes a 3x3 convolution and 3x3 max-pooling, both with stride 2. BatchNorm, after each convolution, has a shift and no
scale: with that, and without biases, the parameters are as many as the authors count, with BatchNorm and without.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from invertible.models.classifier import check_input
from invertible.models.resnet import check_plan

MODULES = ((32, 32), (32, 48), (0, 80), (112, 48), (96, 64), (80, 80), (48, 96), (0, 96), (176, 160), (176, 160))
"""Channels of 1x1 and 3x3 convolutions in each module; no 1x1 ones: it downsamples."""


class ShiftedBatchNorm(nn.BatchNorm2d):
    """BatchNorm with a learned shift per channel and no scale, which a ReLU behind it leaves to the next layer.

    Args:
        n_channels: Of the input.

    Example:
        >>> [name for name, _ in ShiftedBatchNorm(4).named_parameters()]
        ['shift']
    """

    def __init__(self, n_channels: int) -> None:
        super().__init__(n_channels, affine=False)
        self.shift = nn.Parameter(torch.zeros(n_channels))

    def reset_parameters(self) -> None:
        """Begin anew."""
        super().reset_parameters()
        if "shift" in self._parameters:  # the base class calls this before there is one
            nn.init.zeros_(self.shift)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise and shift.

        Args:
            input: Shape (batch, n_channels, height, width).

        Returns:
            The same shape.
        """
        return super().forward(input) + self.shift[:, None, None]


class Side(nn.Module):
    """Branches side by side: their outputs are concatenated.

    Args:
        *branches: Each from the same input to a feature map of the same height and width.
    """

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Apply all.

        Args:
            x: Shape (batch, channels, height, width).

        Returns:
            Shape (batch, sum of their channels, new height, new width).
        """
        return torch.cat([branch(x) for branch in self.branches], 1)


class SmallInception(nn.Module):
    """Modules, average over space, linear. Inputs are checked as in `Classifier`.

    Args:
        features: From the image to the last feature map.
        head: From the feature map to the logits.
        in_shape: Channels, height, width of an image.

    Raises:
        ShapeError: When called: if the shape does not fit.
        DtypeError: When called: if dtype or device do not fit.
        NonFiniteError: When called: if there are NaN or infinite values.
    """

    def __init__(self, features: nn.Module, head: nn.Module, in_shape: Sequence[int]) -> None:
        super().__init__()
        self.features, self.head = features, head
        self.in_shape = tuple(in_shape)

    def forward(self, x: Tensor) -> Tensor:
        """Logits.

        Args:
            x: The batch, then `in_shape`.

        Returns:
            Shape (batch, n_classes).
        """
        check_input(x, self, self.in_shape)
        return self.head(self.features(x))


def small_inception(
    in_shape: tuple[int, int, int] = (3, 28, 28),
    n_classes: int = 10,
    width: float = 1.0,
    batch_norm: bool = True,
) -> SmallInception:
    """The small Inception: 1,649,402 parameters for images of three channels, with BatchNorm and without.

    Args:
        in_shape: Channels, height, width of an image.
        n_classes: Number of logits.
        width: Multiplies the channels; 1 is the paper's, 0.25 trains on a CPU.
        batch_norm: Whether there is BatchNorm; otherwise each convolution has a bias.

    Returns:
        The network.

    Raises:
        ConfigError: If a size is below 1.

    Source: Zhang et al. 2017, appendix A and figure 3.

    Example:
        >>> sum(p.numel() for p in small_inception().parameters())
        1649402
        >>> sum(p.numel() for p in small_inception(batch_norm=False).parameters())
        1649402
    """
    channels = [(_scaled(a, width), _scaled(b, width)) for a, b in MODULES]
    stem = _scaled(96, width)
    check_plan("small_inception", in_shape, n_classes, channels=[stem, *(b for _, b in channels)])
    features, n_in = nn.Sequential(_conv(in_shape[0], stem, 3, 1, batch_norm)), stem
    for narrow, wide in channels:
        if narrow:
            features.append(Side(_conv(n_in, narrow, 1, 1, batch_norm), _conv(n_in, wide, 3, 1, batch_norm)))
        else:
            features.append(Side(_conv(n_in, wide, 3, 2, batch_norm), nn.MaxPool2d(3, 2, padding=1)))
        n_in = (narrow or n_in) + wide
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n_in, n_classes))
    return SmallInception(features, head, in_shape)


def _scaled(n: int, width: float) -> int:
    return max(1, round(n * width)) if n and width > 0 else 0


def _conv(n_in: int, n_out: int, size: int, stride: int, batch_norm: bool) -> nn.Sequential:
    conv = nn.Conv2d(n_in, n_out, size, stride, padding=size // 2, bias=not batch_norm)
    # Without BatchNorm nothing mends a scale that PyTorch's default initialisation loses from layer to layer.
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    norm = ShiftedBatchNorm(n_out) if batch_norm else nn.Identity()
    return nn.Sequential(conv, norm, nn.ReLU())

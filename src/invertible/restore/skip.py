"""The Deep Image Prior's own networks: an hourglass, with or without skip connections, and a ResNet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invertible.errors import ConfigError

SLOPE = 0.2


class SkipNetwork(nn.Module):
    """Down to a few pixels and up again, with narrow connections across: the paper's network "skip".

    Args:
        in_channels: Of the noise.
        channels: Of the picture.
        widths: Channels on the way down and up, scale by scale, finest first.
        skips: Channels of the connections across; 0: none at that scale; all 0: an hourglass.
        upsample: "bilinear" or "nearest".

    Raises:
        ConfigError: If the lists differ in length or are empty.

    Source: Ulyanov, Vedaldi & Lempitsky 2018, figure 21 of the supplement and the settings of each task.

    Example:
        >>> SkipNetwork(8, 3, widths=(16, 16), skips=(4, 4))(torch.rand(1, 8, 13, 10)).shape
        torch.Size([1, 3, 13, 10])
    """

    def __init__(
        self,
        in_channels: int = 32,
        channels: int = 3,
        widths: Sequence[int] = (128,) * 5,
        skips: Sequence[int] = (4,) * 5,
        upsample: Literal["bilinear", "nearest"] = "bilinear",
    ) -> None:
        super().__init__()
        if len(widths) != len(skips) or not widths or min(widths) < 1 or min(skips) < 0:
            got = f"widths={tuple(widths)}, skips={tuple(skips)}"
            raise ConfigError("no network", expected="as many widths as skips, one or more", got=got)
        self.upsample = upsample
        above = [in_channels, *widths[:-1]]
        below = [*widths[1:], widths[-1]]
        self.down = nn.ModuleList(
            nn.Sequential(*_unit(i, o, stride=2), *_unit(o, o)) for i, o in zip(above, widths, strict=True)
        )
        self.across = nn.ModuleList(
            nn.Sequential(*_unit(i, s, kernel=1)) if s else nn.Identity() for i, s in zip(above, skips, strict=True)
        )
        self.up = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(b + s), *_unit(b + s, w), *_unit(w, w, kernel=1))
            for b, s, w in zip(below, skips, widths, strict=True)
        )
        self.has_skip = tuple(bool(s) for s in skips)
        self.head = nn.Conv2d(widths[0], channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Make a picture, without the last sigmoid.

        Args:
            x: Noise, shape (1, in_channels, height, width).

        Returns:
            Shape (1, channels, height, width).
        """
        across, sizes = [], []
        for down, skip in zip(self.down, self.across, strict=True):
            across.append(skip(x))
            sizes.append(x.shape[-2:])
            x = down(x)
        for k in reversed(range(len(self.up))):
            x = _to_size(x, sizes[k], self.upsample)
            x = self.up[k](torch.cat([across[k], x], 1) if self.has_skip[k] else x)
        return self.head(x)


class ResidualNetwork(nn.Module):
    """Residual blocks at the picture's own size: the weakest prior of the paper's comparison.

    Args:
        in_channels: Of the noise.
        channels: Of the picture.
        width: Channels of the blocks.
        n_blocks: How many.

    Source: Ulyanov, Vedaldi & Lempitsky 2018, section "architecture" of the supplement.

    Example:
        >>> ResidualNetwork(4, 3, width=8, n_blocks=2)(torch.rand(1, 4, 9, 10)).shape
        torch.Size([1, 3, 9, 10])
    """

    def __init__(self, in_channels: int = 32, channels: int = 3, width: int = 32, n_blocks: int = 8) -> None:
        super().__init__()
        if min(in_channels, channels, width, n_blocks) < 1:
            raise ConfigError("no network", expected="numbers from 1", got=f"width={width}, n_blocks={n_blocks}")
        self.stem = nn.Sequential(_conv(in_channels, width, 3), nn.LeakyReLU(SLOPE))
        self.blocks = nn.ModuleList(
            nn.Sequential(*_unit(width, width), _conv(width, width, 3, bias=False), nn.BatchNorm2d(width))
            for _ in range(n_blocks)
        )
        self.head = nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Make a picture, without the last sigmoid.

        Args:
            x: Noise, shape (1, in_channels, height, width).

        Returns:
            Shape (1, channels, height, width).
        """
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def _conv(i: int, o: int, kernel: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(i, o, kernel, stride, kernel // 2, bias=bias, padding_mode="zeros" if kernel == 1 else "reflect")


def _unit(i: int, o: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    return [_Reflected(_conv(i, o, kernel, stride)), nn.BatchNorm2d(o), nn.LeakyReLU(SLOPE)]


class _Reflected(nn.Module):
    # Reflection needs two pixels: at a scale of one pixel the border is repeated instead.
    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        if self.conv.padding_mode == "zeros" or min(x.shape[-2:]) > 1:
            return self.conv(x)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), "replicate"), self.conv.weight, self.conv.bias, self.conv.stride)


def _to_size(x: Tensor, size: torch.Size, mode: str) -> Tensor:
    return F.interpolate(x, size=size, mode=mode, align_corners=False if mode == "bilinear" else None)

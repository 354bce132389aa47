"""The network `restore` uses unless told otherwise: noise at every scale, no encoder, grown from coarse to fine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invertible.errors import ConfigError
from invertible.restore.prior import Prior

SMALLEST = 8
SLOPE = 0.2


class Pyramid(Prior):
    """A decoder that reads fresh noise at each scale and adds detail to the picture of the scale below.

    The encoder of the Deep Image Prior's network turns fixed noise into other fixed noise, at half of the cost; here
    each scale reads noise of its own instead. Every scale has a picture, the finer ones only correct it: so a run
    begins on a small picture, where a step costs a sixteenth, and goes on from there when a scale is added.

    Args:
        size: Of the picture, (height, width), pixels: the number of scales follows from it.
        channels: Of the picture.
        widths: Channels of the network, finest scale first; the last one is repeated.
        noise_channels: Of the noise, at every scale.

    Source: Ulyanov, Vedaldi & Lempitsky 2018 (the prior); Heckel & Hand 2019 (a decoder alone); Karras et al. 2018 and
    2020 (growing, pictures added up over scales).

    Example:
        >>> pyramid = Pyramid((50, 37), channels=3)
        >>> inputs = pyramid.draw((50, 37), torch.Generator().manual_seed(0))
        >>> pyramid.factors, pyramid(pyramid.coarser(inputs, 2)).shape, pyramid(inputs).shape
        ((4, 2, 1), torch.Size([1, 3, 25, 19]), torch.Size([1, 3, 50, 37]))
    """

    def __init__(
        self,
        size: tuple[int, int],
        channels: int = 3,
        widths: Sequence[int] = (16, 32, 64),
        noise_channels: int = 8,
    ) -> None:
        n_scales = _n_scales(size)
        super().__init__([1 << k for k in reversed(range(min(n_scales, 3)))])
        if not widths or min(widths) < 1 or noise_channels < 1 or channels < 1:
            got = f"widths={tuple(widths)}, noise_channels={noise_channels}, channels={channels}"
            raise ConfigError("no network", expected="numbers of channels from 1", got=got)
        wide = [widths[min(k, len(widths) - 1)] for k in reversed(range(n_scales))]
        below = [0, *wide[:-1]]
        self.noise_channels = noise_channels
        self.scales = nn.ModuleList(_Scale(i, o, noise_channels, channels) for i, o in zip(below, wide, strict=True))

    def draw(self, size: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return N(0, 1) noise for each scale, coarsest first."""
        device = generator.device
        sizes = [tuple(-(-n // (1 << k)) for n in size) for k in reversed(range(len(self.scales)))]
        noise = [torch.randn(1, self.noise_channels, *s, generator=generator, device=device) for s in sizes]
        return tuple(x.contiguous(memory_format=torch.channels_last) for x in noise)

    def coarser(self, inputs: tuple[Tensor, ...], factor: int) -> tuple[Tensor, ...]:
        """Leave out the finest scales.

        Args:
            inputs: As `draw` gave.
            factor: One of `factors`.

        Returns:
            The inputs of the other scales.

        Raises:
            ConfigError: If there is no such scale.
        """
        if factor not in self.factors:
            raise ConfigError("no such scale", expected=f"a factor of {self.factors}", got=factor)
        return inputs[: len(inputs) - factor.bit_length() + 1]

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Make the picture at the scale of the last input.

        Args:
            inputs: As `draw` or `coarser` gave.

        Returns:
            Shape (1, channels, height, width), float32, in [0, 1].

        Raises:
            ConfigError: If there are no inputs.
        """
        features = picture = None
        for scale, noise in zip(self.scales, inputs, strict=False):
            features, detail = scale(features, noise)
            picture = detail if picture is None else _resized(picture, detail) + detail
        if picture is None:
            raise ConfigError("a pyramid needs an input for its coarsest scale", got="no inputs")
        return picture.sigmoid()


class _Scale(nn.Module):
    # Features of the scale below, and noise -> features and the correction of the picture.
    def __init__(self, below: int, width: int, noise_channels: int, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(below, width, 3, padding=1, bias=False) if below else None
        self.noise = nn.Conv2d(noise_channels, width, 1, bias=False)
        self.normalize = nn.BatchNorm2d(width)
        self.refine = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.normalize_again = nn.BatchNorm2d(width)
        self.head = nn.Conv2d(width, channels, 1)
        if below:  # a new scale begins with the picture of the scale below
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, features: Tensor | None, noise: Tensor) -> tuple[Tensor, Tensor]:
        mixed = self.noise(noise)
        if self.mix is not None and features is not None:
            mixed = mixed + _resized(self.mix(features), mixed)
        mixed = F.leaky_relu(self.normalize(mixed), SLOPE)
        mixed = F.leaky_relu(self.normalize_again(self.refine(mixed)), SLOPE)
        return mixed, self.head(mixed).float()


def _resized(x: Tensor, like: Tensor) -> Tensor:
    size = like.shape[-2:]
    return x if x.shape[-2:] == size else F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def _n_scales(size: tuple[int, int]) -> int:
    # Down to a shorter side of 8 pixels: a coarser scale would be a constant.
    n = 1
    while min(-(-side // (1 << n)) for side in size) >= SMALLEST:
        n += 1
    return n

"""The deep decoder: so few weights that noise does not fit, and nobody has to stop."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invertible.errors import ConfigError
from invertible.restore.prior import Prior


class DeepDecoder(Prior):
    """Convolutions of one pixel and bilinear up-sampling, from a small block of noise.

    Args:
        channels: Of the picture.
        width: Channels of every layer.
        n_ups: How often the size doubles.

    Raises:
        ConfigError: If a number is below 1.

    Source: Heckel & Hand 2019, Deep Decoder, equation 1.

    Example:
        >>> decoder = DeepDecoder(channels=3, width=16)
        >>> decoder(decoder.draw((64, 50), torch.Generator().manual_seed(0))).shape
        torch.Size([1, 3, 64, 50])
    """

    def __init__(self, channels: int = 3, width: int = 64, n_ups: int = 5) -> None:
        super().__init__()
        if min(channels, width, n_ups) < 1:
            raise ConfigError("no network", expected="numbers from 1", got=f"width={width}, n_ups={n_ups}")
        self.width, self.n_ups = width, n_ups
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 1, bias=False) for _ in range(n_ups + 1))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(n_ups + 1))
        self.head = nn.Conv2d(width, channels, 1)

    def draw(self, size: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return uniform noise at each size up to the picture's; only the first, the smallest, is read."""
        sizes = [tuple(-(-n // (1 << k)) for n in size) for k in reversed(range(self.n_ups + 1))]
        noise = torch.rand(1, self.width, *sizes[0], generator=generator, device=generator.device)
        # The sizes travel as empty tensors: a network may be asked for pictures of any size.
        marks = [torch.empty(1, 0, *s, device=generator.device) for s in sizes[1:]]
        return (noise.contiguous(memory_format=torch.channels_last), *marks)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return the picture."""
        x = inputs[0]
        for k, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            x = layer(x)
            if k < self.n_ups:
                x = F.interpolate(x, size=inputs[k + 1].shape[-2:], mode="bilinear", align_corners=False)
            x = norm(x.relu())
        return self.head(x).float().sigmoid()

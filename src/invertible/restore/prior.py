"""A picture as the output of an untrained network: the contract that every architecture of `restore` fulfils."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from invertible._checks import check_finite, describe
from invertible.errors import ShapeError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Prior(nn.Module, ABC):
    """An untrained network whose output is a picture. Abstract: say what it reads, and what it makes of that.

    Args:
        factors: The scales it can be fitted at, coarsest first; the last is 1, the picture's own.

    Source: Ulyanov, Vedaldi & Lempitsky 2018, Deep Image Prior, equation 3.
    """

    def __init__(self, factors: Sequence[int] = (1,)) -> None:
        super().__init__()
        self.factors = tuple(factors)

    @abstractmethod
    def draw(self, size: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw what it reads: fixed for a whole run.

        Args:
            size: Of the picture, (height, width), pixels.
            generator: Of the random numbers.

        Returns:
            Tensors of batch size 1, on the generator's device, float32.
        """

    @abstractmethod
    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Make the picture.

        Args:
            inputs: As `draw` gave, or `coarser` made of it.

        Returns:
            Shape (1, channels, height, width), float32, in [0, 1].
        """

    def coarser(self, inputs: tuple[Tensor, ...], factor: int) -> tuple[Tensor, ...]:
        """The inputs of a smaller picture, of which the full one can go on.

        Args:
            inputs: As `draw` gave.
            factor: One of `factors`.

        Returns:
            What `forward` takes for a picture of 1 / factor of the size, rounded up.

        Raises:
            ShapeError: If there is no such scale.
        """
        if factor == 1:
            return inputs
        raise ShapeError("this network has one scale", expected=f"a factor of {self.factors}", got=factor)


class AsPrior(Prior):
    """Any network of images as a prior.

    Args:
        network: Takes (1, in_channels, height, width), returns (1, channels, height, width); a sigmoid is put after it.
        in_channels: Of the noise that it reads.
        scale: The noise is uniform on [0, scale).

    Example:
        >>> prior = AsPrior(nn.Conv2d(8, 3, 3, padding=1), in_channels=8)
        >>> prior(prior.draw((5, 6), torch.Generator().manual_seed(0))).shape
        torch.Size([1, 3, 5, 6])
    """

    def __init__(self, network: nn.Module, in_channels: int = 32, scale: float = 0.1) -> None:
        super().__init__()
        self.network, self.in_channels, self.scale = network, in_channels, scale

    def draw(self, size: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return uniform noise of the picture's size."""
        noise = torch.rand(1, self.in_channels, *size, generator=generator, device=generator.device)
        return (self.scale * noise.contiguous(memory_format=torch.channels_last),)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return the sigmoid of what the network makes of the noise."""
        return self.network(inputs[0]).float().sigmoid()


def check_prior(prior: Prior, inputs: tuple[Tensor, ...], shape: tuple[int, ...]) -> None:
    """Try a prior once, before hours of work.

    Args:
        prior: Any.
        inputs: As its `draw` gave.
        shape: That the picture must have.

    Raises:
        ShapeError: If the picture has another.
        NonFiniteError: If it holds NaN or infinity.
    """
    with torch.no_grad():
        picture = prior(inputs)
    if tuple(picture.shape) != tuple(shape):
        hint = "a network that keeps height and width, whatever they are, and has the picture's number of channels"
        raise ShapeError("the network makes another picture", expected=shape, got=describe(picture), hint=hint)
    check_finite(picture, "the untrained network's picture")

"""Masks: which elements a coupling keeps where channels are not to be parted, such as every second pixel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from invertible._checks import describe
from invertible.errors import ConfigError, ShapeError


class Mask(ABC):
    """A boolean pattern over one element of a batch. Abstract: say how it looks for a shape.

    True marks the first of the two parts. A coupling with target "second" keeps these and changes the others.
    """

    @abstractmethod
    def build(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """The pattern for elements of one shape.

        Args:
            shape: Of one element, without the batch: (channels, ...).
            device: Where to build it.

        Returns:
            Booleans that broadcast against the shape, dimension by dimension from the last.

        Raises:
            ShapeError: If the pattern does not part such elements in two.
        """


@dataclass(frozen=True)
class Checkerboard(Mask):
    """Every second position, in the pattern of a chess board over all dimensions after the channels.

    True where the sum of the coordinates, counted from 0, is odd. All channels of a position are treated alike.

    Source: Dinh et al. 2017 (RealNVP), section 3.4.

    Example:
        >>> Checkerboard().build((3, 2, 3), torch.device("cpu")).int()
        tensor([[0, 1, 0],
                [1, 0, 1]], dtype=torch.int32)
    """

    def build(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """The pattern for elements of one shape.

        Args:
            shape: (channels, height, width), or any other number of dimensions after the channels.
            device: Where to build it.

        Returns:
            Shape (height, width).

        Raises:
            ShapeError: If there are fewer than two positions.
        """
        positions = shape[1:]
        if not positions or max(positions) < 2:
            hint = "Alternating() for vectors, ChannelMask() for single positions"
            raise ShapeError(
                "Checkerboard needs positions", expected="2 or more after the channels", got=shape, hint=hint
            )
        total = torch.zeros((), dtype=torch.int64, device=device)
        for size in positions:
            total = total.unsqueeze(-1) + torch.arange(size, device=device)
        return total % 2 == 1


@dataclass(frozen=True)
class ChannelMask(Mask):
    """The first half of the channels; with an odd number the smaller half, as `Split` parts them.

    Source: Dinh et al. 2017 (RealNVP), section 3.4.

    Example:
        >>> ChannelMask().build((5,), torch.device("cpu"))
        tensor([ True,  True, False, False, False])
    """

    def build(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """The pattern for elements of one shape.

        Args:
            shape: (channels, ...).
            device: Where to build it.

        Returns:
            Shape (channels, 1, ...).
        """
        return _along_channels(torch.arange(_n_channels(shape, "ChannelMask"), device=device) < shape[0] // 2, shape)


@dataclass(frozen=True)
class Alternating(Mask):
    """Every second channel, or feature of a vector: True for those with an even index, counted from 0.

    Source: Dinh et al. 2015 (NICE), section 5.1: odd and even components, counted from 1.

    Example:
        >>> Alternating().build((3,), torch.device("cpu"))
        tensor([ True, False,  True])
    """

    def build(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """The pattern for elements of one shape.

        Args:
            shape: (channels, ...).
            device: Where to build it.

        Returns:
            Shape (channels, 1, ...).
        """
        return _along_channels(torch.arange(_n_channels(shape, "Alternating"), device=device) % 2 == 0, shape)


@dataclass(frozen=True)
class FixedMask(Mask):
    """A pattern of your own.

    Args:
        pattern: Booleans in the shape of one element: a tensor, or nested lists or tuples.

    Raises:
        ConfigError: If it is ragged, holds anything else, or is the same everywhere.

    Example:
        >>> FixedMask([True, False, False])
        FixedMask(pattern=(True, False, False))
    """

    pattern: Any

    def __post_init__(self) -> None:
        try:
            pattern = torch.as_tensor(self.pattern, device="cpu")
        except (TypeError, ValueError) as error:
            raise ConfigError("FixedMask has a bad pattern", expected="booleans", got=str(error)) from error
        if pattern.dtype != torch.bool or pattern.ndim < 1:
            raise ConfigError("FixedMask has a bad pattern", expected="booleans", got=describe(pattern))
        if bool(pattern.all()) or not bool(pattern.any()):
            raise ConfigError("FixedMask parts nothing", expected="True and False", got="one of them everywhere")
        object.__setattr__(self, "pattern", _as_tuples(pattern.tolist()))

    def build(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """The pattern, if the shape is its own.

        Args:
            shape: Of one element.
            device: Where to build it.

        Returns:
            That shape.

        Raises:
            ShapeError: If the pattern has another shape.
        """
        pattern = torch.tensor(self.pattern, device=device)
        if tuple(pattern.shape) != tuple(shape):
            raise ShapeError("FixedMask does not fit", expected=f"(batch, *{tuple(pattern.shape)})", got=tuple(shape))
        return pattern


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _n_channels(shape: tuple[int, ...], name: str) -> int:
    if not shape or shape[0] < 2:
        hint = "Checkerboard() for images of one channel"
        raise ShapeError(f"{name} needs channels to part", expected="2 or more", got=shape, hint=hint)
    return shape[0]


def _along_channels(pattern: Tensor, shape: tuple[int, ...]) -> Tensor:
    return pattern.view(-1, *[1] * (len(shape) - 1))

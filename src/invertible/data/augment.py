"""Random changes of whole batches, without a loop over the images.

Drawing and applying are separate, so that every process of a distributed run can draw for the global batch
and apply its own rows: the result does not depend on the number of processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor
from torch.nn import functional

from invertible.errors import ConfigError


class Augmentation(Protocol):
    """One random change; write your own with these two methods."""

    def draw(self, n: int, shape: tuple[int, int, int], generator: Generator) -> Tensor:
        """Draw what n images of ``shape`` need: int64 on the CPU, shape (n, k)."""
        ...

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """Change images of shape (n, channels, height, width) by their draws; dtype and shape are kept."""
        ...


@dataclass(frozen=True)
class RandomCrop:
    """Shift each image by up to ``padding`` pixels each way; what comes in at the border is 0.

    Args:
        padding: Largest shift, in pixels.

    Raises:
        ConfigError: If the padding is negative.

    Example:
        >>> images = torch.arange(9, dtype=torch.uint8).view(1, 1, 3, 3)
        >>> RandomCrop(padding=1).apply(images, torch.tensor([[0, 1]]))[0, 0].tolist()
        [[0, 0, 0], [0, 1, 2], [3, 4, 5]]
    """

    padding: int = 4

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise ConfigError("bad padding", expected="at least 0", got=self.padding, hint="4 for 32x32 images")

    def draw(self, n: int, shape: tuple[int, int, int], generator: Generator) -> Tensor:
        """Draw the window's corner in the padded image.

        Args:
            n: Number of images.
            shape: Shape of one image.
            generator: Where the numbers come from.

        Returns:
            int64 (row, column), each 0 to 2 * padding, shape (n, 2).
        """
        return torch.randint(0, 2 * self.padding + 1, (n, 2), generator=generator)

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """Cut the windows out.

        Args:
            images: Shape (n, channels, height, width), any dtype.
            draws: Shape (n, 2).

        Returns:
            The same shape and dtype.
        """
        height, width = images.shape[-2:]
        windows = functional.pad(images, (self.padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
        rows, columns = draws.to(images.device, non_blocking=True).unbind(1)
        return windows[torch.arange(len(images), device=images.device), :, rows, columns]


@dataclass(frozen=True)
class RandomFlip:
    """Mirror each image left to right with probability ``p``.

    Args:
        p: Probability, 0 to 1.

    Raises:
        ConfigError: If the probability is out of range.

    Example:
        >>> images = torch.tensor([1, 2, 3], dtype=torch.uint8).view(1, 1, 1, 3)
        >>> RandomFlip().apply(images, torch.tensor([[1]])).flatten().tolist()
        [3, 2, 1]
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ConfigError("bad probability", expected="0 to 1", got=self.p, hint="0.5")

    def draw(self, n: int, shape: tuple[int, int, int], generator: Generator) -> Tensor:
        """Draw who is mirrored.

        Args:
            n: Number of images.
            shape: Shape of one image.
            generator: Where the numbers come from.

        Returns:
            int64 zeros and ones, shape (n, 1).
        """
        return (torch.rand(n, 1, generator=generator) < self.p).to(torch.int64)

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """Mirror.

        Args:
            images: Shape (n, channels, height, width), any dtype.
            draws: Shape (n, 1).

        Returns:
            The same shape and dtype.
        """
        mirrored = draws.to(images.device, non_blocking=True).view(-1, 1, 1, 1).bool()
        return torch.where(mirrored, images.flip(-1), images)


@dataclass(frozen=True)
class Cutout:
    """Black out a square around a random pixel (DeVries and Taylor, 2017); it may stick out of the image.

    Args:
        size: Side of the square, in pixels.

    Raises:
        ConfigError: If the size is not positive.

    Example:
        >>> images = torch.ones(1, 1, 3, 3, dtype=torch.uint8)
        >>> Cutout(size=2).apply(images, torch.tensor([[1, 1]]))[0, 0].tolist()
        [[0, 0, 1], [0, 0, 1], [1, 1, 1]]
    """

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError("bad size", expected="at least 1", got=self.size, hint="8 for 32x32 images")

    def draw(self, n: int, shape: tuple[int, int, int], generator: Generator) -> Tensor:
        """Draw the square's centre.

        Args:
            n: Number of images.
            shape: Shape of one image.
            generator: Where the numbers come from.

        Returns:
            int64 (row, column) inside the image, shape (n, 2).
        """
        columns = [torch.randint(0, length, (n,), generator=generator) for length in shape[1:]]
        return torch.stack(columns, 1)

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """Black the squares out.

        Args:
            images: Shape (n, channels, height, width), any dtype.
            draws: Shape (n, 2).

        Returns:
            The same shape and dtype.
        """
        first = draws.to(images.device, non_blocking=True) - self.size // 2
        rows, columns = (self._inside(first[:, axis], images.shape[axis + 2]) for axis in (0, 1))
        return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)

    def _inside(self, first: Tensor, length: int) -> Tensor:
        """Return which pixels of one axis lie in the square, shape (n, length)."""
        offset = torch.arange(length, device=first.device) - first[:, None]
        return (offset >= 0) & (offset < self.size)

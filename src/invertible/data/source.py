"""What feeding and measuring need from a set of images, wherever its pixels are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from invertible.errors import ConfigError, DtypeError

Indices = Tensor | Sequence[int]


@runtime_checkable
class ImageSource(Protocol):
    """What ``Batches`` needs from a set of images; ``ImageSet`` and ``LazyImageSet`` have it."""

    @property
    def labels(self) -> Tensor:
        """int64 labels, shape (n,)."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """One name per class; label k means ``classes[k]``."""
        ...

    @property
    def name(self) -> str:
        """What the set is called in logs and errors."""
        ...

    @property
    def max_value(self) -> int:
        """The pixel value that means white, for example 255."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image: (channels, height, width)."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: Indices) -> Tensor:
        """Return the uint8 images at ``indices``, shape (len(indices), channels, height, width)."""
        ...

    def subset(self, indices: Indices) -> Self:
        """Return the set that holds only ``indices``, in that order."""
        ...

    def fingerprint(self) -> str:
        """Return a hexadecimal digest that changes when the data change."""
        ...


def as_indices(indices: Indices, n: int) -> Tensor:
    """Turn positions into a checked int64 tensor.

    Args:
        indices: Integers in 0 to n - 1; a tensor or a sequence, shape (m,).
        n: Length of the set they point into.

    Returns:
        int64 tensor, shape (m,).

    Raises:
        DtypeError: If the indices are not whole numbers.
        ConfigError: If one is out of range.
    """
    wanted = torch.as_tensor(indices) if len(indices) else torch.zeros(0, dtype=torch.int64)
    if wanted.is_floating_point() or wanted.dtype == torch.bool:
        raise DtypeError("bad indices", expected="whole numbers", got=wanted.dtype, hint="mask.nonzero()[:, 0]")
    low, high = (int(wanted.min()), int(wanted.max())) if len(wanted) else (0, n - 1)
    if low < 0 or high >= n:
        raise ConfigError(
            "index out of range",
            expected=f"0 to {n - 1}",
            got=f"{low} to {high}",
            hint="check the set's length",
        )
    return wanted.to(torch.int64)

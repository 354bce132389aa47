"""A labelled set of images in memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from invertible.data.source import Indices, as_indices
from invertible.errors import DataError, DtypeError, ShapeError


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images in memory, checked when they are made.

    Args:
        images: uint8, shape (n, channels, height, width), values 0 to ``max_value``.
        labels: int64, shape (n,), values 0 to ``len(classes) - 1``.
        classes: One name per class.
        name: What the set is called in logs and errors.
        max_value: The pixel value that means white.

    Raises:
        DtypeError: If ``images`` are not uint8 or ``labels`` not int64.
        ShapeError: If ``images`` are not 4-dimensional, or the counts differ, or there is no image.
        DataError: If a label or a pixel is out of range.

    Example:
        >>> images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
        >>> pair = ImageSet(images, torch.tensor([0, 1]), ("cat", "dog"), "pair")
        >>> len(pair), pair.shape
        (2, (1, 8, 8))
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    name: str
    max_value: int = 255

    def __post_init__(self) -> None:
        _check_dtypes(self)
        _check_shapes(self)
        _check_values(self)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image: (channels, height, width)."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def __len__(self) -> int:
        return self.images.shape[0]

    def batch(self, indices: Indices) -> Tensor:
        """Gather images.

        Args:
            indices: Positions in the set, shape (batch,).

        Returns:
            uint8 images, shape (batch, channels, height, width), on the set's device.
        """
        return self.images.index_select(0, as_indices(indices, len(self)).to(self.images.device))

    def subset(self, indices: Indices) -> Self:
        """Keep some images.

        Args:
            indices: Positions in the set, shape (m,); order and repetition are kept.

        Returns:
            A new set of m images.
        """
        wanted = as_indices(indices, len(self)).to(self.images.device)
        return replace(self, images=self.images.index_select(0, wanted), labels=self.labels[wanted])

    def to(self, device: str | torch.device) -> Self:
        """Move images and labels.

        Args:
            device: For example ``"cuda"``.

        Returns:
            The same set on ``device`` (without a copy where it is there already).
        """
        if torch.device(device) == self.images.device:
            return self
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def fingerprint(self) -> str:
        """Identify the data by their content.

        Returns:
            SHA-256 over pixels, shape and labels, 64 hexadecimal digits.

        Example:
            >>> images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
            >>> len(ImageSet(images, torch.tensor([0, 1]), ("cat", "dog"), "pair").fingerprint())
            64
        """
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        for tensor in (self.images, self.labels):
            digest.update(tensor.cpu().contiguous().numpy().data.cast("B"))
        return digest.hexdigest()


def _check_dtypes(data: ImageSet) -> None:
    for what, tensor, dtype in (("images", data.images, torch.uint8), ("labels", data.labels, torch.int64)):
        if not isinstance(tensor, Tensor) or tensor.dtype != dtype:
            got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            hint = f"torch.as_tensor({what}).to({dtype})"
            raise DtypeError(f"{data.name}: bad {what}", expected=f"a tensor of {dtype}", got=got, hint=hint)


def _check_shapes(data: ImageSet) -> None:
    expected, got = "(n, channels, height, width)", tuple(data.images.shape)
    if len(got) != 4:
        hint = "grey images need a channel axis: images.unsqueeze(1)"
        raise ShapeError(f"{data.name}: bad images", expected=expected, got=got, hint=hint)
    if 0 in got:
        raise ShapeError(f"{data.name}: no images", expected="no axis of length 0", got=got, hint="at least one image")
    if tuple(data.labels.shape) != got[:1]:
        hint = "one label per image"
        found = tuple(data.labels.shape)
        raise ShapeError(f"{data.name}: image and label counts differ", expected=got[:1], got=found, hint=hint)


def _check_values(data: ImageSet) -> None:
    low, high = int(data.labels.min()), int(data.labels.max())
    if low < 0 or high >= len(data.classes):
        expected, got = f"0 to {len(data.classes) - 1}", f"{low} to {high}"
        hint = "labels count from 0; pass every class name in `classes`"
        raise DataError(f"{data.name}: label out of range", expected=expected, got=got, hint=hint)
    brightest = int(data.images.max())
    if brightest > data.max_value:
        expected = f"0 to {data.max_value}"
        raise DataError(f"{data.name}: pixel out of range", expected=expected, got=brightest, hint="pass max_value")

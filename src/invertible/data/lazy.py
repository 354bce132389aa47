"""Folders too big for memory: pictures are decoded when they are asked for, by a few threads."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from invertible import _console
from invertible.data.dataset import ImageSet
from invertible.data.pictures import fit, read_picture
from invertible.data.source import Indices, as_indices

CHUNK = 256


@dataclass(frozen=True, eq=False)
class LazyImageSet:
    """Labelled pictures on disk, with the interface of ``ImageSet``.

    Args:
        root: The folder that the file names start from.
        files: n file names, relative to ``root``.
        labels: int64, shape (n,).
        classes: One name per class.
        name: What the set is called in logs and errors.
        shape: (channels, height, width) that every picture is brought to.
        n_threads: How many pictures are decoded at once.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (64, 48)).save(f"{folder}/a.png")
        ...     LazyImageSet(
        ...         Path(folder), ("a.png",), torch.tensor([0]), ("black",), "one", shape=(3, 32, 32)
        ...     ).batch([0]).shape
        torch.Size([1, 3, 32, 32])
    """

    root: Path
    files: tuple[str, ...]
    labels: Tensor
    classes: tuple[str, ...]
    name: str
    shape: tuple[int, int, int]
    n_threads: int = min(8, os.cpu_count() or 1)
    max_value: int = 255

    def __len__(self) -> int:
        return len(self.files)

    def batch(self, indices: Indices) -> Tensor:
        """Decode pictures.

        Args:
            indices: Positions in the set, shape (batch,).

        Returns:
            uint8 images, shape (batch, channels, height, width), on the CPU.
        """
        wanted = as_indices(indices, len(self)).tolist()
        if not wanted:
            return torch.empty(0, *self.shape, dtype=torch.uint8)
        with ThreadPoolExecutor(max_workers=self.n_threads) as pool:
            return torch.stack(list(pool.map(self._decode, wanted)))

    def subset(self, indices: Indices) -> Self:
        """Keep some pictures.

        Args:
            indices: Positions in the set, shape (m,); order and repetition are kept.

        Returns:
            A new set of m pictures.
        """
        wanted = as_indices(indices, len(self))
        return replace(self, files=tuple(self.files[k] for k in wanted.tolist()), labels=self.labels[wanted])

    def fingerprint(self) -> str:
        """Identify the data by file names and sizes, shape and labels: reading every picture may take hours.

        Returns:
            A SHA-256, 64 hexadecimal digits.
        """
        digest = hashlib.sha256(repr((self.shape, self.labels.tolist())).encode())
        for file in self.files:
            digest.update(f"{file}\0{(self.root / file).stat().st_size}\0".encode())
        return digest.hexdigest()

    def in_memory(self) -> ImageSet:
        """Decode every picture.

        Returns:
            The same set as uint8 in memory.
        """
        images = torch.empty(len(self), *self.shape, dtype=torch.uint8)
        with _console.progress() as display:
            task = display.add_task(f"reading {self.name}", total=len(self))
            for start in range(0, len(self), CHUNK):
                stop = min(start + CHUNK, len(self))
                images[start:stop] = self.batch(range(start, stop))
                display.update(task, completed=stop)
        return ImageSet(images, self.labels, self.classes, self.name)

    def _decode(self, index: int) -> Tensor:
        picture, _ = read_picture(self.root / self.files[index])
        return fit(picture, self.shape[0], self.shape[1:])[0]

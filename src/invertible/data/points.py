"""Points (rows of numbers) in memory, and batches of them: as `ImageSet` and `Batches` are for images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from invertible.data.source import Indices, as_indices
from invertible.data.steps import plan_steps, seeded_generator, share
from invertible.errors import ConfigError, DataError, DtypeError, ShapeError


@dataclass(frozen=True, eq=False)
class PointSet:
    """Points in memory, checked when they are made.

    Args:
        points: float32, shape (n, d), finite.
        labels: int64, shape (n,), values 0 to ``len(classes) - 1``; all 0 where there are no classes.
        classes: One name per class.
        name: What the set is called in logs and errors.

    Raises:
        DtypeError: If ``points`` are not float32 or ``labels`` not int64.
        ShapeError: If ``points`` are no rows, there is none, or the counts differ.
        DataError: If a label is out of range, or a number NaN or infinite.

    Example:
        >>> pair = PointSet(torch.zeros(2, 3), torch.tensor([0, 0]), ("all",), "pair")
        >>> len(pair), pair.shape
        (2, (3,))
    """

    points: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    name: str

    def __post_init__(self) -> None:
        if self.points.dtype != torch.float32 or self.labels.dtype != torch.int64:
            got = f"{self.points.dtype} and {self.labels.dtype}"
            raise DtypeError(f"{self.name}: bad points", expected="float32 points, int64 labels", got=got)
        if self.points.ndim != 2 or not self.points.numel() or self.labels.shape != self.points.shape[:1]:
            got = f"{tuple(self.points.shape)} and {tuple(self.labels.shape)}"
            raise ShapeError(f"{self.name}: bad points", expected="(n, d) points, (n,) labels, no axis of 0", got=got)
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.classes):
            expected, got = f"0 to {len(self.classes) - 1}", f"{low} to {high}"
            raise DataError(f"{self.name}: label out of range", expected=expected, got=got)
        bad = (~torch.isfinite(self.points)).nonzero()
        if len(bad):
            got = f"{len(bad)} that are not, the first in row {int(bad[0, 0])}, column {int(bad[0, 1])}"
            raise DataError(f"{self.name}: bad numbers", expected="finite numbers", got=got, hint="leave such rows out")

    @property
    def shape(self) -> tuple[int]:
        """Shape of one point: (d,)."""
        return (self.points.shape[1],)

    def __len__(self) -> int:
        return len(self.points)

    def batch(self, indices: Indices) -> Tensor:
        """Gather points.

        Args:
            indices: Positions in the set, shape (batch,).

        Returns:
            float32, shape (batch, d), on the set's device.
        """
        return self.points.index_select(0, as_indices(indices, len(self)).to(self.points.device))

    def subset(self, indices: Indices) -> Self:
        """Keep some points.

        Args:
            indices: Positions in the set, shape (m,); order and repetition are kept.

        Returns:
            A new set of m points.
        """
        wanted = as_indices(indices, len(self)).to(self.points.device)
        return replace(self, points=self.points.index_select(0, wanted), labels=self.labels[wanted])

    def to(self, device: str | torch.device) -> Self:
        """Move points and labels.

        Args:
            device: For example ``"cuda"``.

        Returns:
            The same set on ``device``.
        """
        return replace(self, points=self.points.to(device), labels=self.labels.to(device))

    def fingerprint(self) -> str:
        """Identify the data by their content.

        Returns:
            SHA-256 over numbers, shape and labels, 64 hexadecimal digits.
        """
        digest = hashlib.sha256(repr(tuple(self.points.shape)).encode())
        for tensor in (self.points, self.labels):
            digest.update(tensor.cpu().contiguous().numpy().data.cast("B"))
        return digest.hexdigest()


class PointBatches:
    """Feed a loop with points; order, ranks and last batches are as with ``Batches``.

    Args:
        data: The points.
        batch_size: Points per step over all ranks together.
        seed: At least 0. With the epoch it decides the order.
        shuffle: A new order in every epoch; else the set's own order.
        device: Where the batches live.
        rank: This process, 0 to ``world_size - 1``.
        world_size: Number of processes.
        drop_last: Leave out a last batch that is smaller than ``batch_size``.

    Raises:
        ConfigError: If the arguments do not fit together.

    Example:
        >>> data = PointSet(torch.arange(10.0).view(5, 2), torch.zeros(5, dtype=torch.int64), ("all",), "five")
        >>> [x.shape[0] for x, _ in PointBatches(data, 2, seed=1).epoch(0)]
        [2, 2, 1]
    """

    def __init__(
        self,
        data: PointSet,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        device: str | torch.device = "cpu",
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
    ) -> None:
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.rank, self.world_size, self.device = rank, world_size, torch.device(device)
        self._check()
        self.data = data.to(self.device)
        self._steps = plan_steps(len(data), batch_size, world_size, shuffle, drop_last)
        if not self._steps:
            hint = "a smaller batch_size or drop_last=False"
            raise ConfigError("no batch", expected=f"at least {batch_size} points", got=len(data), hint=hint)

    def __len__(self) -> int:
        """Return the number of steps in an epoch, the same on every rank."""
        return len(self._steps)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over one epoch.

        Args:
            epoch: Its number, from 0; decides the order.
            start: The first step to yield; a run that stopped after k steps goes on with ``start=k``.

        Returns:
            An iterator over this rank's (points, labels): float32 of shape (local batch, d) and int64 of shape
            (local batch,), on the device.

        Raises:
            ConfigError: If the epoch is negative or there is no such step.
        """
        if epoch < 0 or not 0 <= start <= len(self):
            expected, got = f"epoch >= 0 and start 0 to {len(self)}", f"epoch {epoch}, start {start}"
            raise ConfigError("no such step", expected=expected, got=got, hint="was the batch size changed?")
        return self._epoch(epoch, start)

    def _epoch(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        n = len(self.data)
        order = torch.randperm(n, generator=seeded_generator(self.seed, epoch)) if self.shuffle else torch.arange(n)
        order = order.to(self.device)
        for step in self._steps[start:]:
            wanted = order[share(step, self.rank, self.world_size)]
            yield self.data.points.index_select(0, wanted), self.data.labels.index_select(0, wanted)

    def _check(self) -> None:
        if not 0 <= self.rank < self.world_size or self.seed < 0:
            got = f"rank {self.rank}, world_size {self.world_size}, seed {self.seed}"
            raise ConfigError("bad rank or seed", expected="0 <= rank < world_size and seed >= 0", got=got)
        even = self.batch_size % self.world_size == 0 if self.shuffle else self.batch_size >= self.world_size
        if self.batch_size < 1 or not even:
            hint = f"{max(1, round(self.batch_size / self.world_size)) * self.world_size}"
            expected = f"a multiple of the {self.world_size} processes" if self.shuffle else "one point per process"
            raise ConfigError("bad batch_size", expected=expected, got=self.batch_size, hint=hint)

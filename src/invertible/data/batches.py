"""Batches that depend on (seed, epoch, step) alone: resumable, and the same on any number of processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from invertible.data._prefetch import prefetch
from invertible.data.augment import Augmentation
from invertible.data.dataset import ImageSet
from invertible.data.normalize import Normalize
from invertible.data.source import ImageSource
from invertible.data.steps import plan_steps, seeded_generator, share
from invertible.errors import ConfigError

N_PREFETCHED = 2


class Batches:
    """Feed a training or an evaluation loop.

    Every process draws for the global batch and keeps its own rows, so the batches of all ranks put together
    are, bit for bit, those of a single process. Images in memory move to the device once, as uint8.

    A last, smaller batch: in training (``shuffle=True``) each rank gets the same number of images and at most
    ``world_size - 1`` are left out of the epoch. In evaluation none is ever left out: ranks may differ by one
    image, and a remainder smaller than ``world_size`` joins the step before it, so that no rank is empty.

    Args:
        data: The images.
        batch_size: Images per step over all ranks together.
        seed: At least 0. With epoch and step it decides every random number; no global generator is used.
        shuffle: A new order in every epoch; else the set's own order.
        augment: Random changes, applied in turn to the uint8 images.
        normalize: Applied last; by default pixels are divided by ``data.max_value``.
        device: Where the batches live.
        rank: This process, 0 to ``world_size - 1``.
        world_size: Number of processes.
        drop_last: Leave out a last batch that is smaller than ``batch_size``.

    Raises:
        ConfigError: If the arguments do not fit together.

    Example:
        >>> from invertible.data import Batches, RandomCrop, load
        >>> batches = Batches(load("digits"), batch_size=100, seed=1, augment=(RandomCrop(padding=1),))
        >>> len(batches)
        14
        >>> x, y = next(batches.epoch(0))
        >>> x.shape, x.dtype, y.shape
        (torch.Size([100, 1, 8, 8]), torch.float32, torch.Size([100]))
    """

    def __init__(
        self,
        data: ImageSource,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        augment: Sequence[Augmentation] | None = None,
        normalize: Normalize | None = None,
        device: str | torch.device = "cpu",
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
    ) -> None:
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.rank, self.world_size, self.device = rank, world_size, torch.device(device)
        self.augment = tuple(augment or ())
        self.normalize = normalize or Normalize.identity(data.shape[0], data.max_value)
        self._check(data)
        self.data = data.to(self.device) if isinstance(data, ImageSet) else data
        self._steps = plan_steps(len(data), batch_size, world_size, shuffle, drop_last)
        if not self._steps:
            hint = "a smaller batch_size or drop_last=False"
            raise ConfigError("no batch", expected=f"at least {batch_size} images", got=len(data), hint=hint)

    def __len__(self) -> int:
        """Return the number of steps in an epoch, the same on every rank."""
        return len(self._steps)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over one epoch.

        Args:
            epoch: Its number, from 0; decides the order and the augmentation.
            start: The first step to yield; a run that stopped after k steps goes on with ``start=k``.

        Returns:
            An iterator over this rank's (images, labels): float32 of shape (local batch, channels, height,
            width) and int64 of shape (local batch,), on the device.

        Raises:
            ConfigError: If the epoch is negative or there is no such step.
        """
        if epoch < 0 or not 0 <= start <= len(self):
            expected, got = f"epoch >= 0 and start 0 to {len(self)}", f"epoch {epoch}, start {start}"
            raise ConfigError("no such step", expected=expected, got=got, hint="was the batch size changed?")
        if isinstance(self.data, ImageSet):
            return self._resident_epoch(self.data, epoch, start)
        return self._lazy_epoch(epoch, start)

    def _resident_epoch(self, data: ImageSet, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = self._order(epoch).to(self.device, non_blocking=True)
        for step in range(start, len(self)):
            wanted = order[self._rows(step)]
            yield (
                self._finish(data.images.index_select(0, wanted), epoch, step),
                data.labels.index_select(0, wanted),
            )

    def _lazy_epoch(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = self._order(epoch)
        fetch = partial(self._fetch, order)
        for step, (images, labels) in prefetch(fetch, range(start, len(self)), N_PREFETCHED):
            yield self._finish(self._send(images), epoch, step), self._send(labels)

    def _fetch(self, order: Tensor, step: int) -> tuple[Tensor, Tensor]:
        wanted = order[self._rows(step)]
        return self.data.batch(wanted), self.data.labels[wanted]

    def _send(self, tensor: Tensor) -> Tensor:
        pinned = tensor.pin_memory() if self.device.type == "cuda" else tensor
        return pinned.to(self.device, non_blocking=True)

    def _finish(self, images: Tensor, epoch: int, step: int) -> Tensor:
        plan, rows, generator = self._steps[step], self._rows(step), seeded_generator(self.seed, epoch, step)
        own = slice(rows.start - plan.first, rows.stop - plan.first)
        for change in self.augment:
            # Drawn for the global batch, so that the numbers do not depend on the rank.
            draws = change.draw(plan.last - plan.first, self.data.shape, generator)
            images = change.apply(images, draws[own])
        return self.normalize(images)

    def _order(self, epoch: int) -> Tensor:
        n = len(self.data)
        return torch.randperm(n, generator=seeded_generator(self.seed, epoch)) if self.shuffle else torch.arange(n)

    def _rows(self, step: int) -> slice:
        return share(self._steps[step], self.rank, self.world_size)

    def _check(self, data: ImageSource) -> None:
        if not 0 <= self.rank < self.world_size:
            got = f"rank {self.rank}, world_size {self.world_size}"
            raise ConfigError("bad rank", expected="0 <= rank < world_size", got=got, hint="rank=0, world_size=1")
        if self.seed < 0:
            raise ConfigError("bad seed", expected="at least 0", got=self.seed, hint="0")
        even = self.batch_size % self.world_size == 0 if self.shuffle else self.batch_size >= self.world_size
        if self.batch_size < 1 or not even:
            hint = f"{max(1, round(self.batch_size / self.world_size)) * self.world_size}"
            expected = f"a multiple of the {self.world_size} processes" if self.shuffle else "one image per process"
            raise ConfigError("bad batch_size", expected=expected, got=self.batch_size, hint=hint)
        if (len(self.normalize.mean), self.normalize.max_value) != (data.shape[0], data.max_value):
            got = f"{len(self.normalize.mean)} channels up to {self.normalize.max_value}"
            expected = f"{data.shape[0]} channels up to {data.max_value}"
            raise ConfigError("the normalisation does not fit", expected=expected, got=got, hint="Normalize.fit(data)")

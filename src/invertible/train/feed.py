"""Batches of whatever a run is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from invertible.data import Augmentation, Batches, Normalize, PointBatches, PointSet
from invertible.train.prepare import Data

Feed = Batches | PointBatches


def feed(
    data: Data,
    batch_size: int,
    *,
    normalize: Normalize | None,
    augment: Sequence[Augmentation] | None = None,
    **options: Any,
) -> Feed:
    """Make batches of images or of points.

    Args:
        data: The images or points.
        batch_size: Per step over all processes.
        normalize: For images.
        augment: Random changes of images.
        **options: That `Batches` and `PointBatches` share: seed, shuffle, device, rank, world_size, drop_last.

    Returns:
        The batches.
    """
    if isinstance(data, PointSet):
        return PointBatches(data, batch_size, **options)
    return Batches(data, batch_size, augment=augment, normalize=normalize, **options)

"""Stratified hold-outs: every class keeps its share."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from invertible.data.points import PointSet
from invertible.data.source import ImageSource
from invertible.errors import ConfigError

Source = TypeVar("Source", bound=ImageSource | PointSet)

TEST_FRACTION, TEST_SEED = 0.25, 0


def stratified_indices(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split positions so that each class keeps its share, with its own random numbers.

    Args:
        labels: int64, shape (n,).
        fraction: Share of the second part, between 0 and 1 (exclusive).
        seed: Decides which images go where; at least 0.

    Returns:
        Two int64 tensors: the positions that stay and those held out.

    Raises:
        ConfigError: If the fraction is out of range or a class is too small to be split.

    Example:
        >>> kept, held = stratified_indices(torch.arange(100) % 2, 0.1, seed=0)
        >>> len(kept), len(held)
        (90, 10)
    """
    from sklearn.model_selection import train_test_split

    if not 0 < fraction < 1:
        raise ConfigError("bad fraction", expected="between 0 and 1", got=fraction, hint="0.1 holds out a tenth")
    try:
        parts = train_test_split(
            range(len(labels)), test_size=fraction, random_state=seed, stratify=labels.cpu().numpy()
        )
    except ValueError as error:
        hint = "more images per class, another fraction or a seed of at least 0"
        raise ConfigError(
            "cannot split by class", expected="images of each class in both parts", got=error, hint=hint
        ) from error
    return torch.tensor(parts[0]), torch.tensor(parts[1])


def train_validation(data: Source, fraction: float = 0.1, seed: int = 0) -> tuple[Source, Source]:
    """Hold out a stratified share of a set for validation.

    Args:
        data: An ``ImageSet``, ``LazyImageSet`` or ``PointSet`` of n images or points.
        fraction: Share held out, between 0 and 1 (exclusive).
        seed: Decides which images go where; at least 0.

    Returns:
        The training part and the validation part, disjoint, together the whole; both in the original order.

    Example:
        >>> from invertible.data import load
        >>> train, validation = train_validation(load("digits"), fraction=0.2, seed=0)
        >>> len(train), len(validation)
        (1077, 270)
    """
    kept, held = stratified_indices(data.labels, fraction, seed)
    return data.subset(kept.sort().values), data.subset(held.sort().values)

"""The 8x8 digits inside scikit-learn: the default set, no download."""

from __future__ import annotations

from typing import Any

import torch

from invertible.data.class_names import DIGITS
from invertible.data.dataset import ImageSet
from invertible.data.splits import TEST_FRACTION, TEST_SEED, stratified_indices


def read_digits(split: str) -> ImageSet:
    """Read one part of the digits, split by class with a fixed seed.

    Args:
        split: ``"train"`` (1,347 images) or ``"test"`` (450, a quarter).

    Returns:
        Images of shape (1, 8, 8) with values 0 to 16.

    Example:
        >>> read_digits("test").images.max()
        tensor(16, dtype=torch.uint8)
    """
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    images = torch.from_numpy(bunch.images).to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    train, test = stratified_indices(labels, TEST_FRACTION, TEST_SEED)
    wanted = train if split == "train" else test
    return ImageSet(images[wanted], labels[wanted], DIGITS, "digits", max_value=16)

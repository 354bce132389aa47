"""Images with labels as plain tensors, for experiments on small networks."""

from __future__ import annotations

from torch import Tensor

from invertible.data import ImageSet
from invertible.errors import ConfigError
from invertible.train.prepare import prepare_data
from invertible.train.recipe import DataConfig

Labelled = tuple[Tensor, Tensor]


def train_and_test(config: DataConfig, n_test: int | None = None) -> tuple[Labelled, Labelled]:
    """Load images in memory.

    Args:
        config: Which; its `n_train` says how many of the training images.
        n_test: Only the first so many test images; None: all.

    Returns:
        Training and test images, pixels from 0 to 1, shape (N, channels, height, width), each with its labels.

    Raises:
        ConfigError: If the data are no images in memory.

    Example:
        >>> (x, y), (test_x, _) = train_and_test(DataConfig("digits", n_train=50), n_test=20)
        >>> x.shape, y.shape, len(test_x)
        (torch.Size([50, 1, 8, 8]), torch.Size([50]), 20)
    """
    splits = prepare_data(config, is_measured=False)
    if not isinstance(splits.train, ImageSet) or not isinstance(splits.test, ImageSet):
        raise ConfigError("images in memory are needed", expected="data.name: digits", got=config.name)
    train, test = splits.train, splits.test
    return (
        (train.images.float() / train.max_value, train.labels),
        (test.images[:n_test].float() / test.max_value, test.labels[:n_test]),
    )

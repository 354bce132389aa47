"""From a recipe's data section to the images a run trains, chooses and tests on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch.nn import functional

from invertible.data import (
    Augmentation,
    ImageSet,
    LazyImageSet,
    Normalize,
    RandomCrop,
    RandomFlip,
    load,
    train_validation,
)
from invertible.errors import ConfigError
from invertible.train.recipe import DataConfig

Images = ImageSet | LazyImageSet
SPLIT_SEED = 0  # of the validation split: the same images are held out whatever the training's seed


@dataclass(frozen=True)
class Splits:
    """The images of a run.

    Args:
        train: To fit.
        validation: To choose the best epoch by; None: none was held out.
        test: To report on.
        normalize: Measured on `train`.
    """

    train: Images
    validation: Images | None
    test: Images
    normalize: Normalize


def prepare_data(config: DataConfig) -> Splits:
    """Load, pad and split.

    Args:
        config: The recipe's data section.

    Returns:
        The images and their normalisation.

    Example:
        >>> splits = prepare_data(DataConfig("digits", validation_fraction=0.1))
        >>> len(splits.train), len(splits.validation), len(splits.test)
        (1212, 135, 450)
    """
    train, test = load_padded(config, "train"), load_padded(config, "test")
    validation = None
    if config.validation_fraction > 0:
        train, validation = train_validation(train, config.validation_fraction, SPLIT_SEED)
    if config.n_train is not None:
        train = _some(train, config.n_train)
    return Splits(train, validation, test, Normalize.fit(train))


def load_padded(config: DataConfig, split: str) -> Images:
    """Load one part, with the recipe's padding.

    Args:
        config: The recipe's data section.
        split: "train" or "test".

    Returns:
        The images.

    Raises:
        ConfigError: If images that do not fit the memory are to be padded.
    """
    images = load(config.name, split, data_dir=config.data_dir, size=config.size)
    if not config.pad:
        return images
    if not isinstance(images, ImageSet):
        hint = "data.size=... instead"
        raise ConfigError("data.pad needs images in memory", expected="a set below 2 GiB", got=len(images), hint=hint)
    return replace(images, images=functional.pad(images.images, [config.pad] * 4))


def augmentations(config: DataConfig) -> tuple[Augmentation, ...]:
    """The recipe's random changes.

    Args:
        config: The recipe's data section.

    Returns:
        Crop and flip, as asked for.
    """
    crop = (RandomCrop(padding=config.crop),) if config.crop else ()
    return (*crop, RandomFlip()) if config.flip else crop


def _some(images: Images, n: int) -> Images:
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED))
    if n > len(images):
        raise ConfigError("data.n_train is too large", expected=f"at most {len(images)}", got=n)
    return images.subset(order[:n].sort().values)

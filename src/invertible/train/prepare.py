"""From a recipe's data section to the images or points a run trains, chooses and tests on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch.nn import functional

from invertible.data import (
    Augmentation,
    ImageSet,
    LazyImageSet,
    Normalize,
    PointSet,
    RandomCrop,
    RandomFlip,
    load,
    read_table,
    toy_set,
    train_validation,
)
from invertible.data.table import TABLE
from invertible.data.toys import PREFIX
from invertible.errors import ConfigError
from invertible.train.recipe import DataConfig

Images = ImageSet | LazyImageSet
Data = ImageSet | LazyImageSet | PointSet
SPLIT_SEED = 0  # of the validation split: the same images are held out whatever the training's seed


@dataclass(frozen=True)
class Splits:
    """The images or points of a run.

    Args:
        train: To fit.
        validation: To choose the best epoch by; None: none was held out.
        test: To report on.
        normalize: Measured on `train`; None for points.
    """

    train: Data
    validation: Data | None
    test: Data
    normalize: Normalize | None

    @property
    def parts(self) -> dict[str, Data]:
        """Those that there are, by name."""
        parts = {"training": self.train, "validation": self.validation, "test": self.test}
        return {name: data for name, data in parts.items() if data is not None}


def prepare_data(config: DataConfig, is_measured: bool = True) -> Splits:
    """Load, pad and split.

    Args:
        config: The recipe's data section.
        is_measured: Whether to measure the images' mean and deviation, for which all of them are read once.

    Returns:
        The data, and the images' normalisation; not measured it only divides by the largest pixel value.

    Example:
        >>> splits = prepare_data(DataConfig("digits", validation_fraction=0.1))
        >>> len(splits.train), len(splits.validation), len(splits.test)
        (1212, 135, 450)
    """
    train, test = load_data(config, "train"), load_data(config, "test")
    validation = None
    if config.validation_fraction > 0:
        train, validation = train_validation(train, config.validation_fraction, SPLIT_SEED)
    if config.n_train is not None:
        train = _some(train, config.n_train)
    return Splits(train, validation, test, _normalization(train, is_measured))


def _normalization(data: Data, is_measured: bool) -> Normalize | None:
    if isinstance(data, PointSet):
        return None
    return Normalize.fit(data) if is_measured else Normalize.identity(data.shape[0], data.max_value)


def load_data(config: DataConfig, split: str) -> Data:
    """Load one part: images, a toy (`toy/NAME`) or a table of one's own (`table`).

    Args:
        config: The recipe's data section.
        split: "train" or "test".

    Returns:
        The images or points.

    Raises:
        ConfigError: If points are to be changed like pictures.
    """
    if config.name != TABLE and not config.name.startswith(PREFIX):
        return load_padded(config, split)
    asked = [key for key in ("size", "pad", "crop", "flip") if getattr(config, key)]
    if asked:
        expected, got = "images", f"data.{asked[0]} for {config.name}"
        raise ConfigError("points have no pixels", expected=expected, got=got, hint=f"leave data.{asked[0]} out")
    if config.name == TABLE:
        return read_table(config.data_dir, split)
    return toy_set(config.name.removeprefix(PREFIX), split)


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


def _some(data: Data, n: int) -> Data:
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(SPLIT_SEED))
    if n > len(data):
        raise ConfigError("data.n_train is too large", expected=f"at most {len(data)}", got=n)
    return data.subset(order[:n].sort().values)

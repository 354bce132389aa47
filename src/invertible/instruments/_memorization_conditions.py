"""The conditions of Zhang et al. 2017: what happens to labels and pixels, drawn once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from invertible.errors import ConfigError
from invertible.instruments._memorization_sets import inputs_of, labels_of

Pixels = Literal["as they are", "shuffled", "random", "gaussian"]
Normalisation = Literal["global", "pixel", "image", "none"]


@dataclass(frozen=True)
class Condition:
    """One way to spoil a training set.

    Args:
        name: What it is called.
        corruption: Probability that a label is replaced by a class drawn uniformly; a share
            corruption (C - 1) / C of the labels really changes, for C classes.
        pixels: "shuffled": one permutation for all images, of training and test; "random": one for each image;
            "gaussian": noise with the mean and variance of the training images' channels.
    """

    name: str
    corruption: float = 0.0
    pixels: Pixels = "as they are"


TRUE, RANDOM = "true labels", "random labels"
NAMED = {
    TRUE: Condition(TRUE),
    RANDOM: Condition(RANDOM, 1.0),
    "shuffled pixels": Condition("shuffled pixels", pixels="shuffled"),
    "random pixels": Condition("random pixels", pixels="random"),
    "gaussian pixels": Condition("gaussian pixels", pixels="gaussian"),
}


def corrupted(p: float) -> Condition:
    """Corrupted labels.

    Args:
        p: Probability that a label is drawn anew, 0 to 1.

    Returns:
        The condition; at 0 and 1 those that have names of their own.

    Raises:
        ConfigError: If it is no probability.

    Example:
        >>> corrupted(0.25).name, corrupted(1.0).name
        ('corrupt(0.25)', 'random labels')
    """
    if not 0 <= p <= 1:
        raise ConfigError("no such share of corrupted labels", expected="probabilities, 0 to 1", got=p)
    return NAMED[TRUE] if p == 0 else NAMED[RANDOM] if p == 1 else Condition(f"corrupt({p:g})", float(p))


class Draws:
    """Everything that is random in the data of one seed, drawn once: conditions are comparable, epochs see the same.

    A label that corrupt(0.25) replaces is replaced in corrupt(0.5) too, by the same class.

    Args:
        train: The true training set.
        test: The true test set.
        n_classes: How many classes there are.
        seed: Of the draws; the global random state is not touched.
    """

    def __init__(self, train: TensorDataset, test: TensorDataset, n_classes: int, seed: int) -> None:
        self.train, self.test, self._seed = train, test, seed
        labels = _generator(seed, 0)
        self._chance = torch.rand(len(train), generator=labels, dtype=torch.float64)
        self._replacement = torch.randint(n_classes, (len(train),), generator=labels)

    def labels(self, corruption: float) -> Tensor:
        """The labels that training gets.

        Args:
            corruption: Probability of a replacement.

        Returns:
            int64, shape (n,).
        """
        true = labels_of(self.train)
        replaced = (self._chance < corruption).to(true.device)
        return torch.where(replaced, self._replacement.to(true.device), true)

    def spoilt(self, condition: Condition, normalise: Normalisation) -> tuple[TensorDataset, TensorDataset]:
        """Training and test set of a condition, normalised after they were spoilt; test labels stay true.

        Args:
            condition: Which.
            normalise: How; statistics are those of the spoilt training images.

        Returns:
            Both sets.
        """
        x, x_test = (self._pixels(condition.pixels, which) for which in (0, 1))
        x, x_test = normalised(x, x_test, normalise)
        return TensorDataset(x, self.labels(condition.corruption)), TensorDataset(x_test, labels_of(self.test))

    def _pixels(self, pixels: Pixels, which: int) -> Tensor:
        x = inputs_of((self.train, self.test)[which])
        if pixels == "as they are":
            return x
        if pixels == "gaussian":
            noise = torch.randn(x.shape, generator=_generator(self._seed, 3 + which), dtype=x.dtype)
            mean, std = _channel_statistics(inputs_of(self.train))
            return noise.to(x.device) * std + mean
        flat = x.flatten(2) if x.ndim > 2 else x[:, None]
        n_pixels = flat.shape[2]
        if pixels == "shuffled":
            order = torch.randperm(n_pixels, generator=_generator(self._seed, 1)).to(x.device)
            return flat[:, :, order].reshape(x.shape)
        keys = torch.rand(len(x), 1, n_pixels, generator=_generator(self._seed, 5 + which))
        order = keys.argsort(2).to(x.device).expand_as(flat)
        return flat.gather(2, order).reshape(x.shape)


def normalised(x: Tensor, x_test: Tensor, how: Normalisation) -> tuple[Tensor, Tensor]:
    """Mean zero and variance one.

    Args:
        x: Training inputs, as the network will see them: after pixels were spoilt.
        x_test: Test inputs.
        how: "global": over all numbers of all training inputs; "pixel": each number of an input over the training
            inputs; "image": over the numbers of each input, as the paper has it; "none".

    Returns:
        Both, normalised.

    Raises:
        ConfigError: If there is no such way.

    Example:
        >>> normalised(torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 3.0]]), "global")[1]
        tensor([[0., 2.]])
    """
    if how not in get_args(Normalisation):
        expected = " or ".join(map(repr, get_args(Normalisation)))
        raise ConfigError("unknown normalisation", expected=expected, got=repr(how))
    if how == "none":
        return x, x_test
    if how == "image":
        return _each(x), _each(x_test)
    dims = None if how == "global" else 0
    mean, std = x.mean(dims), x.std(dims, correction=0)
    std = torch.where(std > 1e-6 * std.max(), std, torch.ones_like(std))  # a pixel that never changes
    return (x - mean) / std, (x_test - mean) / std


def _each(x: Tensor) -> Tensor:
    flat = x.flatten(1)
    floor = flat.shape[1] ** -0.5  # an image of one colour
    std = flat.std(1, correction=0, keepdim=True).clamp(min=floor)
    return ((flat - flat.mean(1, keepdim=True)) / std).reshape(x.shape)


def _channel_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    dims = (0, *range(2, x.ndim)) if x.ndim > 2 else (0, 1)
    return x.mean(dims, keepdim=True), x.std(dims, correction=0, keepdim=True)


def _generator(seed: int, stream: int) -> torch.Generator:
    return torch.Generator().manual_seed(16 * seed + stream)

"""A run's folder: recipe, weights, history and figures, and how to read a trained network back."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from invertible._files import read_json, read_tensors, write_json, write_tensors, write_text
from invertible.data import Normalize, PointSet
from invertible.errors import CheckpointError, ConfigError, DataError
from invertible.flow import Flow
from invertible.models import Classifier, Hybrid, build
from invertible.train.checkpoint import load_weights
from invertible.train.feed import Feed, feed
from invertible.train.prepare import Data, Images, load_data
from invertible.train.read_recipe import read_recipe, write_recipe
from invertible.train.recipe import Recipe

RECIPE, WEIGHTS, RECORD, METRICS = "recipe.yaml", "model.safetensors", "model.json", "metrics.json"
ORIGIN = "origin.json"
EVALUATION_BATCH = 256
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Run:
    """A trained network and what it was trained with.

    Args:
        folder: Where it lies.
        recipe: How it was trained.
        model: The network, in eval mode, with the best weights.
        scaling: What images go through before the model sees them; None for points.
        record: What was known when the weights were saved: epoch, metrics, classes, shape of an image or point.
    """

    folder: Path
    recipe: Recipe
    model: nn.Module
    scaling: Normalize | None
    record: dict[str, Any]

    @property
    def normalize(self) -> Normalize:
        """What images go through.

        Raises:
            ConfigError: If the run's data are points.
        """
        if self.scaling is None:
            raise ConfigError("this run has no images", expected="a run on images", got=self.recipe.data.name)
        return self.scaling

    @property
    def n_classes(self) -> int:
        """How many classes the training data had."""
        return len(self.record["classes"])

    @property
    def classifier(self) -> Classifier:
        """The model, if it can reconstruct.

        Raises:
            ConfigError: If it is no invertible classifier.
        """
        if isinstance(self.model, Classifier):
            return self.model
        hint = "train an i-RevNet, e.g. `invertible train irevnet/digits`"
        is_flow = isinstance(self.model, Flow | Hybrid)
        got = f"{self.recipe.model.name}, " + ("a flow" if is_flow else "which drops information on its way")
        raise ConfigError("this network cannot reconstruct", expected="a Classifier", got=got, hint=hint)

    @property
    def flow(self) -> Flow:
        """The model, if it is a density.

        Raises:
            ConfigError: If it is not.
        """
        if isinstance(self.model, Flow):
            return self.model
        if isinstance(self.model, Hybrid):
            return self.model.flow
        hint = "train a flow, e.g. `invertible train spline_flow/toys`"
        got = f"{self.recipe.model.name}, a classifier"
        raise ConfigError("this network is no density", expected="a Flow", got=got, hint=hint)

    def test_data(self, data_dir: str | None = None) -> Data:
        """The recipe's test images or points.

        Args:
            data_dir: Where the files lie, if not where they lay at training.

        Returns:
            The data; images are padded as in training.

        Raises:
            DataError: If their classes are not those of the training.
        """
        config = replace(self.recipe.data, data_dir=data_dir or self.recipe.data.data_dir)
        data = load_data(config, "test")
        if list(data.classes) != self.record["classes"]:
            hint = "the same class folders as in training"
            got = f"{list(data.classes)}"
            expected = f"{self.record['classes']}"
            raise DataError("these are other classes than the run's", expected=expected, got=got, hint=hint)
        return data

    def test_images(self, data_dir: str | None = None) -> Images:
        """The recipe's test images.

        Args:
            data_dir: Where the files lie, if not where they lay at training.

        Returns:
            The images, padded as in training.

        Raises:
            ConfigError: If the run's data are points.
        """
        images = self.test_data(data_dir)
        if isinstance(images, PointSet):
            raise ConfigError("this run has no images", expected="a run on images", got=images.name)
        return images

    def prepare(self, data: Tensor) -> Tensor:
        """What the model wants to see.

        Args:
            data: uint8 images, shape (batch, channels, height, width), or points, shape (batch, d).

        Returns:
            The same, images normalised, with the model's dtype and device.
        """
        weight = next(self.model.parameters())
        return (data if self.scaling is None else self.scaling(data)).to(weight.device, weight.dtype)

    def batches(self, data: Data, batch_size: int = EVALUATION_BATCH) -> Feed:
        """Images or points in evaluation order, normalised, where the model is.

        Args:
            data: As `test_data` returns them.
            batch_size: Per step.

        Returns:
            The batches.
        """
        device = next(self.model.parameters()).device
        return feed(data, batch_size, shuffle=False, normalize=self.scaling, device=device)


def save_model(folder: Path, model: nn.Module, record: dict[str, Any]) -> None:
    """Write the weights to keep and what is known about them.

    Args:
        folder: Of the run.
        model: Whose weights.
        record: What a reader needs, as JSON.
    """
    write_tensors(folder / WEIGHTS, dict(model.state_dict()), {"record": json.dumps(record)})
    write_json(folder / RECORD, record)


def save_recipe(folder: Path, recipe: Recipe) -> None:
    """Write the recipe with every override resolved.

    Args:
        folder: Of the run.
        recipe: The recipe.
    """
    write_text(folder / RECIPE, write_recipe(recipe))


def build_model(recipe: Recipe, seed: int | None = None) -> nn.Module:
    """The recipe's network, untrained.

    Args:
        recipe: The recipe.
        seed: Of its weights; None: the recipe's. The global random state is as it was afterwards.

    Returns:
        The network.

    Raises:
        ConfigError: If name and arguments do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.training.seed if seed is None else seed)
        try:
            return build(recipe.model.name, **recipe.model.all_arguments())
        except ConfigError as error:
            # Keys that a shipped recipe may have set, for a network that the user has put in its place.
            remedy = {"'exact'": "--model.exact false", "'memory'": "--model.memory null"}.get(str(error.got))
            error.hint = remedy or error.hint
            raise


def check_is_run(folder: Path) -> None:
    """Refuse a folder that no run was written to.

    Args:
        folder: The folder.

    Raises:
        CheckpointError: If it has no recipe.
    """
    if not (folder / RECIPE).is_file():
        got = "no such folder" if not folder.is_dir() else f"a folder without {RECIPE}"
        hint = "`invertible train RECIPE --out FOLDER` makes one"
        raise CheckpointError(f"{folder} is no run", expected="the folder of a run", got=got, hint=hint)


def load_run(folder: str | Path, dtype: str = "float32", device: str | None = None) -> Run:
    """Read a run back.

    Args:
        folder: What `invertible train --out` wrote to.
        dtype: Of the weights: "float32" or "float64".
        device: Where the model goes; None takes a GPU if there is one.

    Returns:
        Recipe, model in eval mode, normalisation.

    Raises:
        CheckpointError: If a file is missing, corrupt or does not fit the model.
    """
    folder = Path(folder)
    check_is_run(folder)
    recipe = read_recipe(folder / RECIPE)
    tensors, header = read_tensors(folder / WEIGHTS)
    try:
        record = json.loads(header["record"])
        normalize = None if record["normalize"] is None else Normalize.from_dict(record["normalize"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{folder / WEIGHTS} was not written by a run", got=f"no {error}") from error
    model = build_model(recipe)
    load_weights(model, tensors, folder / WEIGHTS)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Run(folder, recipe, model.eval().to(device, DTYPES[dtype]), normalize, record)


def read_metrics(folder: str | Path) -> dict[str, Any]:
    """The figures of a finished run.

    Args:
        folder: Of the run.

    Returns:
        The contents of metrics.json.
    """
    return read_json(Path(folder) / METRICS)

"""A run's folder: recipe, weights, history and figures, and how to read a trained network back."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from invertible._files import read_json, read_tensors, write_json, write_tensors, write_text
from invertible.data import Batches, Normalize
from invertible.errors import CheckpointError, ConfigError, DataError
from invertible.models import Classifier, build
from invertible.train.checkpoint import load_weights
from invertible.train.prepare import Images, load_padded
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
        normalize: What its inputs go through.
        record: What was known when the weights were saved: epoch, metrics, classes, shape of an image.
    """

    folder: Path
    recipe: Recipe
    model: nn.Module
    normalize: Normalize
    record: dict[str, Any]

    @property
    def classifier(self) -> Classifier:
        """The model, if it can reconstruct.

        Raises:
            ConfigError: If it is no invertible classifier.
        """
        if isinstance(self.model, Classifier):
            return self.model
        hint = "train an i-RevNet, e.g. `invertible train irevnet/digits`"
        got = f"{self.recipe.model.name}, which drops information on its way"
        raise ConfigError("this network cannot reconstruct", expected="a Classifier", got=got, hint=hint)

    def test_images(self, data_dir: str | None = None) -> Images:
        """The recipe's test images.

        Args:
            data_dir: Where the files lie, if not where they lay at training.

        Returns:
            The images, padded as in training.

        Raises:
            DataError: If their classes are not those of the training.
        """
        config = replace(self.recipe.data, data_dir=data_dir or self.recipe.data.data_dir)
        images = load_padded(config, "test")
        if list(images.classes) != self.record["classes"]:
            hint = "the same class folders as in training"
            got = f"{list(images.classes)}"
            expected = f"{self.record['classes']}"
            raise DataError("these are other classes than the run's", expected=expected, got=got, hint=hint)
        return images

    def prepare(self, pixels: Tensor) -> Tensor:
        """What the model wants to see.

        Args:
            pixels: uint8 images, shape (batch, channels, height, width).

        Returns:
            The same, normalised, with the model's dtype and device.
        """
        weight = next(self.model.parameters())
        return self.normalize(pixels).to(weight.device, weight.dtype)

    def batches(self, images: Images) -> Batches:
        """Images in evaluation order, normalised, where the model is.

        Args:
            images: As `test_images` returns them.

        Returns:
            The batches.
        """
        device = next(self.model.parameters()).device
        return Batches(images, EVALUATION_BATCH, shuffle=False, normalize=self.normalize, device=device)


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
        normalize = Normalize.from_dict(record["normalize"])
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

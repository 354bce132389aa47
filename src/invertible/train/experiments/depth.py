"""What networks keep with depth (Jacobsen, Smeulders and Oyallon 2018): several, trained alike, side by side."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from invertible.errors import ConfigError
from invertible.instruments import Batch, DepthProfile, depth_profile
from invertible.instruments.result import Finding, Result, Row
from invertible.train.compare_table import folder_name
from invertible.train.figures import new_figure
from invertible.train.prepare import Data
from invertible.train.read_recipe import read_recipe
from invertible.train.recipe import Recipe
from invertible.train.run import METRICS, RECIPE, Run, load_run, read_metrics
from invertible.train.train import resume, train

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BATCH_SIZE = 64


@dataclass
class DepthOptions:
    """Options of `depth_profiles`.

    Args:
        recipes: What is trained, by the name of the network.
        overrides: Of all recipes, as on the command line.
        data_dir: Where data files already on disk lie; None: the usual places, then a download.
        n_examples: Test images that are looked at.
        n_folds: Of the cross-validation.
        seed: Of training, folds and controls.
    """

    recipes: dict[str, str] = field(default_factory=lambda: {"i-RevNet": "irevnet/digits"})
    overrides: list[str] = field(default_factory=list)
    data_dir: str | None = None
    n_examples: int = 1000
    n_folds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.recipes or len({folder_name(name) for name in self.recipes}) < len(self.recipes):
            raise ConfigError("recipes of depth profiles", expected="one or more, with names", got=self.recipes)


@dataclass(frozen=True)
class DepthProfiles(Result):
    """What `depth_profiles` found.

    Args:
        findings: Worst first, each with its network's name.
        names: Of the networks.
        accuracies: Of each on all test images (0 to 1).
        profiles: Of each.
    """

    names: tuple[str, ...]
    accuracies: tuple[float, ...]
    profiles: tuple[DepthProfile, ...]

    @property
    def table(self) -> list[Row]:
        """One row per network and place: "network", "test_accuracy", "depth" ("input", "first", "last" or a number)."""
        found = zip(self.names, self.accuracies, self.profiles, strict=True)
        return [
            {"network": name, "test_accuracy": accuracy, "depth": _depth(i, len(profile.depths)), **row}
            for name, accuracy, profile in found
            for i, row in enumerate(profile.table)
        ]

    @property
    def pictures(self) -> Mapping[str, Callable[[], Figure]]:
        """Each network's own profile with its controls."""
        return {
            folder_name(name): partial(_figure, profile)
            for name, profile in zip(self.names, self.profiles, strict=True)
        }

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the linear SVM's accuracy against depth, a line per network.

        Args:
            ax: Where; None: on a new figure, with the nearest neighbour and the principal components beside it.

        Returns:
            The axes.
        """
        if ax is not None:
            return self._draw("SVM", ax)
        panels = new_figure(11, 3.4).subplots(1, 3)
        for panel, curve in zip(panels, ("SVM", "nearest neighbour", "SVM on components"), strict=True):
            self._draw(curve, panel)
        return panels[0]

    def _draw(self, curve: str, ax: Axes) -> Axes:
        first, *others = self.profiles
        return first.compare(*others, labels=self.names, curve=curve, ax=ax)


def depth_profiles(options: DepthOptions, *, out: Path | None = None, quiet: bool = False) -> DepthProfiles:
    """Train networks, and measure where classes come apart along their depth.

    Args:
        options: Which recipes, and how many examples.
        out: Runs go there; those that are finished are kept, one that was stopped is resumed.
        quiet: Show no progress.

    Returns:
        A profile per network, and their test accuracies.

    Source: Jacobsen, Smeulders and Oyallon 2018, "i-RevNet: deep invertible networks", section 5, figures 6 and 7.

    Example:
        >>> tiny = '--model.arguments={"in_shape": [1, 8, 8], "n_blocks": [2], "channels": [2], "strides": [2]}'
        >>> few = ["--model.name=resnet", "--model.exact=false", tiny, "--training.epochs=1", "--data.n_train=64"]
        >>> options = DepthOptions({"ResNet": "irevnet/digits"}, few, n_examples=40, n_folds=2)
        >>> found = depth_profiles(options, quiet=True)
        >>> [(row["network"], row["depth"], row["place"]) for row in found.table][1:]
        [('ResNet', 'first', 'stages.0.0'), ('ResNet', 'last', 'stages.0.1')]
    """
    accuracies, profiles = [], []
    with ExitStack() as stack:
        folder = out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name, recipe_name in options.recipes.items():
            recipe = read_recipe(recipe_name, [*options.overrides, f"--training.seed={options.seed}"])
            recipe.data.data_dir = options.data_dir or recipe.data.data_dir
            run = _trained(recipe, folder / folder_name(name), quiet)
            accuracies.append(float(read_metrics(run.folder)["test_accuracy"]))
            profiles.append(_profile(run, recipe, options, quiet))
    names = tuple(options.recipes)
    findings = tuple(finding for name, found in zip(names, profiles, strict=True) for finding in _named(name, found))
    return DepthProfiles(findings, names, tuple(accuracies), tuple(profiles), provenance=profiles[-1].provenance)


def _trained(recipe: Recipe, folder: Path, quiet: bool) -> Run:
    if (folder / RECIPE).is_file() and not (folder / METRICS).is_file():
        resume(folder, quiet=quiet)
    elif not (folder / METRICS).is_file():
        train(recipe, folder, quiet=quiet)
    return load_run(folder)


def _profile(run: Run, recipe: Recipe, options: DepthOptions, quiet: bool) -> DepthProfile:
    batches = _Batches(run, run.test_data(recipe.data.data_dir))
    n, seed = options.n_examples, options.seed
    return depth_profile(run.model, batches, n_examples=n, n_folds=options.n_folds, seed=seed, quiet=quiet)


@dataclass(frozen=True)
class _Batches:
    """Test images with labels, shuffled the same way each time."""

    run: Run
    data: Data

    def __len__(self) -> int:
        return -(-len(self.data) // BATCH_SIZE)

    def __iter__(self) -> Iterator[Batch]:
        order = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(0))
        for indices in order.split(BATCH_SIZE):
            x = self.run.prepare(self.data.batch(indices))
            yield Batch((x,), labels=self.data.labels[indices.to(self.data.labels.device)])


def _named(name: str, profile: DepthProfile) -> list[Finding]:
    return [replace(found, sentence=f"{name}: {found.sentence}", row=None) for found in profile.findings]


def _figure(profile: DepthProfile) -> Figure:
    return cast("Figure", profile.plot().figure)


def _depth(i: int, n: int) -> str:
    return {0: "input", 1: "first", n - 1: "last"}.get(i, str(i))

"""The experiments by name, and what their functions take. One line for a new one."""

from __future__ import annotations

import importlib
import inspect
import typing
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, Protocol

from invertible.errors import ConfigError
from invertible.instruments.result import Result
from invertible.train.read_recipe import nearest

HERE = "invertible.train.experiments"


class Run(Protocol):
    """What an experiment is: a function of its options."""

    def __call__(self, options: Any, /, *, out: Path | None = None, quiet: bool = False) -> Result:
        """Carry it out.

        Args:
            options: A dataclass of the experiment's own, with types and defaults.
            out: A folder that exists, for what lets it go on after it was stopped; None: nowhere.
            quiet: Show no progress.
        """
        ...


@dataclass(frozen=True)
class Experiment:
    """An experiment.

    Args:
        name: What recipes call it.
        where: Its module below `invertible.train.experiments` and, after a colon, the function in it: see `Run`.
        about: What it finds out, in one line.
    """

    name: str
    where: str
    about: str

    @property
    def function(self) -> Run:
        """The function, imported when it is asked for.

        Raises:
            ConfigError: If its signature is not that of `Run`.
        """
        module, _, name = self.where.partition(":")
        function = getattr(importlib.import_module(f"{HERE}.{module}"), name)
        names = list(inspect.signature(function).parameters)
        if names != ["options", "out", "quiet"] or not is_dataclass(typing.get_type_hints(function)["options"]):
            expected = "(options: a dataclass, *, out: Path | None = None, quiet: bool = False)"
            raise ConfigError(f"experiment {self.name} has another signature", expected=expected, got=", ".join(names))
        return function

    @property
    def options(self) -> type[Any]:
        """The dataclass of its options."""
        return typing.get_type_hints(self.function)["options"]


_ALL = (
    Experiment(
        "curvature_over_training", "curvature:curvature_over_training", "the Hessian's spectrum through a training"
    ),
    Experiment("slices_by_shortcut", "loss_slice:slices_by_shortcut", "loss surfaces without and with shortcuts"),
    Experiment(
        "information_plane_of_bits",
        "information_plane:information_plane_of_bits",
        "the information plane of many small networks on twelve bits",
    ),
    Experiment(
        "information_plane_of_images",
        "information_images:information_plane_of_images",
        "the information plane of one network on images, an i-RevNet among them",
    ),
    Experiment("index_by_loss", "critical_points:index_by_loss", "critical points: how many directions go down"),
    Experiment("losses_by_width", "loss_spread:losses_by_width", "where many networks of each width end"),
    Experiment(
        "memorization_battery",
        "memorization:memorization_battery",
        "true labels, random labels and spoilt pixels: what networks can fit, and how fast",
    ),
    Experiment(
        "kernels_beside_a_network",
        "kernels:kernels_beside_a_network",
        "kernel and random-convolution interpolation beside a network of equal time",
    ),
    Experiment(
        "memorized_examples", "memorized_examples:memorized_examples", "which training examples are known by heart"
    ),
    Experiment("products", "cheap_learning:products", "what a product of n variables costs without depth"),
    Experiment("saddle_escape", "saddle_free:saddle_escape", "saddle-free Newton and SGD next to a saddle"),
    Experiment("depth_profiles", "depth:depth_profiles", "where classes come apart along the depth of networks"),
    Experiment("random_reversal", "reversal:random_reversal", "random layers run backwards, beside the theorem"),
    Experiment(
        "signal_plots", "signals:signal_plots", "mean and variance of the signal in untrained networks, by depth"
    ),
    Experiment("spectra_over_training", "spectra:spectra_over_training", "how training leaves the random matrices"),
)
EXPERIMENTS: dict[str, Experiment] = {known.name: known for known in _ALL}
"""By name."""


def experiment(name: str) -> Experiment:
    """Find an experiment.

    Args:
        name: Its name.

    Returns:
        It.

    Raises:
        ConfigError: If there is none of that name.

    Example:
        >>> experiment("spectra_over_training").about
        'how training leaves the random matrices'
    """
    if name not in EXPERIMENTS:
        near = nearest(name, list(EXPERIMENTS))
        expected = ", ".join(EXPERIMENTS)
        raise ConfigError("no such experiment", expected=expected, got=repr(name), hint=repr(near) if near else "")
    return EXPERIMENTS[name]

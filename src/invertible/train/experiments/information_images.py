"""The information plane of one network on images: a small full network as Saxe et al. had it, or an i-RevNet."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from invertible.data import PointSet
from invertible.errors import ConfigError
from invertible.instruments import InformationPlaneRecorder, InformationTrajectory
from invertible.instruments.result import Finding, Result, Row
from invertible.instruments.taps import Layers
from invertible.models import build
from invertible.train.evaluate import evaluate_classifier
from invertible.train.feed import feed
from invertible.train.loop import FitOptions, Trainer
from invertible.train.objective import Classification
from invertible.train.prepare import Splits, prepare_data
from invertible.train.randomness import seeded
from invertible.train.recipe import DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig, TrainingConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass
class ImagesOptions:
    """Options of `information_plane_of_images`.

    Args:
        data: Images with labels.
        widths: Of the hidden layers of a full network.
        activation: Of its hidden layers: "tanh" or "relu".
        model: Another network instead, by its name in `invertible.models`; null: the full one.
        layers: Where to listen, as in `find_taps`.
        optimizer: How weights move; the learning rate is constant.
        epochs: Passes over the training images.
        measured: After which epochs to measure, ascending; 0 is before training.
        batch_size: Images per step.
        n_examples: Test images that are measured.
        n_bins: Numbers of bins of the sweep, the main one first.
        sigma2: Variances of the kernels' noise, the main one first.
        seed: Of weights and order.
    """

    data: DataConfig = field(default_factory=DataConfig)
    widths: list[int] = field(default_factory=lambda: [256, 20, 20, 20])
    activation: Literal["tanh", "relu"] = "tanh"
    model: ModelConfig | None = None
    layers: str = "auto"
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=0.05, weight_decay=0.0))
    epochs: int = 20
    measured: list[int] | None = None
    batch_size: int = 128
    n_examples: int = 1000
    n_bins: list[int] = field(default_factory=lambda: [30, 15, 60])
    sigma2: list[float] = field(default_factory=lambda: [1e-3, 1e-4, 1e-2])
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ConfigError("bad training", expected="epochs and batch_size >= 1", got=(self.epochs, self.batch_size))
        if self.measured is not None and (not self.measured or self.measured != sorted(set(self.measured))):
            raise ConfigError("bad epochs to measure after", expected="ascending, from 0", got=self.measured)

    @property
    def epochs_measured(self) -> list[int]:
        """After which: as asked for, or every one up to 20 and then every 5th."""
        every = [epoch for epoch in range(self.epochs + 1) if epoch <= 20 or epoch % 5 == 0]
        return every if self.measured is None else [epoch for epoch in self.measured if epoch <= self.epochs]


@dataclass(frozen=True)
class PlaneOfImages(Result):
    """What `information_plane_of_images` found.

    Args:
        findings: Those of the trajectory.
        trajectory: The plane over training.
        accuracies: On the test images, at the epochs of the trajectory (0 to 1).
    """

    trajectory: InformationTrajectory
    accuracies: tuple[float, ...]

    @property
    def table(self) -> list[Row]:
        """One row per epoch, place and measurement: "test_accuracy", and those of the trajectory."""
        accuracies = dict(zip(self.trajectory.epochs, self.accuracies, strict=True))
        return [{"test_accuracy": accuracies[int(row["epoch"] or 0)], **row} for row in self.trajectory.table]

    @property
    def accuracy(self) -> float:
        """At the end."""
        return self.accuracies[-1]

    @property
    def input_bits(self) -> float:
        """H(X) of the images that were measured."""
        return self.trajectory.about.input_bits

    @property
    def least_unmeasured_bits(self) -> float:
        """The least entropy of activations to the bit, unmeasured: over epochs and invertible places, or all."""
        known = self.trajectory.about.invertible
        return min(
            place.unmeasured
            for snapshot in self.trajectory.snapshots
            for place in snapshot.places
            if not known or place.place in known
        )

    @property
    def widest_change(self) -> float:
        """The largest change of I(X; T) under any measurement, over the same places: bits."""
        known = self.trajectory.about.invertible
        snapshots = self.trajectory.snapshots
        changes: list[float] = []
        for i, place in enumerate(snapshots[0].places):
            if not known or place.place in known:
                for m in range(len(place.inputs)):
                    values = [snapshot.places[i].inputs[m] for snapshot in snapshots]
                    changes.append(max(values) - min(values))
        return max(changes)

    @property
    def falling(self) -> str:
        """Places at which I(X; T) falls under every measurement."""
        falls = self.trajectory.falls
        places = dict.fromkeys(fall.place for fall in falls)
        whole = [place for place in places if all(fall.is_clear for fall in falls if fall.place == place)]
        return ", ".join(whole) or "none"

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the plane under the main bins.

        Args:
            ax: Where; None: on a new figure.

        Returns:
            The axes.
        """
        return self.trajectory.plot(ax)

    @property
    def pictures(self) -> Mapping[str, Callable[[], Figure]]:
        """Those of the trajectory."""
        return self.trajectory.pictures


def information_plane_of_images(
    options: ImagesOptions, *, out: Path | None = None, quiet: bool = False
) -> PlaneOfImages:
    """Train a network on images and measure the information plane of test images over the training.

    Args:
        options: What to train and when to measure.
        out: Not needed: it takes a few minutes.
        quiet: Show no progress.

    Returns:
        The plane.

    Raises:
        ConfigError: If the data are no images.

    Source: Saxe et al. 2018, "On the information bottleneck theory of deep learning", the figure on MNIST
    (784-1024-20-20-20-10 with tanh and with ReLU).

    Example:
        >>> few = ImagesOptions(DataConfig("digits", n_train=64), widths=[8, 4], epochs=1, n_examples=100)
        >>> found = information_plane_of_images(few, quiet=True)
        >>> [place.place for place in found.trajectory.snapshots[0].places], found.trajectory.epochs
        (['2', '4', '5'], (0, 1))
    """
    splits = prepare_data(options.data)
    if isinstance(splits.train, PointSet):
        raise ConfigError("images with labels are needed", expected="data.name: digits", got=options.data.name)
    size = min(options.batch_size, len(splits.train))
    # A last batch of three images is noise for BatchNorm, and for the deviation over batches.
    batches = feed(
        splits.train, size, normalize=splits.normalize, seed=options.seed, shuffle=True, drop_last=True
    )  # fmt: skip
    network = _network(splits, options).eval()
    measured = options.epochs_measured
    layers: Layers = options.layers
    recorder = InformationPlaneRecorder(
        network, _test_batches(splits, options), schedule=measured.__contains__, layers=layers,
        n_examples=options.n_examples, n_bins=tuple(options.n_bins), sigma2=tuple(options.sigma2), n_shuffles=3,
        seed=options.seed, quiet=True,
    )  # fmt: skip
    accuracies: list[float] = []

    def measure(model: nn.Module) -> dict[str, float]:
        epoch = len(trainer.progress.history) + (trainer.progress.step > 0)
        recorder(epoch)
        if epoch not in measured:
            return {}
        accuracy = evaluate_classifier(model, feed(splits.test, 500, normalize=splits.normalize))["accuracy"]
        accuracies.append(accuracy)
        return {"test_accuracy": accuracy}

    training = TrainingConfig(epochs=options.epochs, batch_size=options.batch_size, seed=options.seed)
    fit = FitOptions(options.optimizer, ScheduleConfig("constant"), training, quiet=quiet)
    trainer = Trainer(Classification(network), batches, fit)
    measure(network)
    with recorder.following(trainer.raw_optimizer):
        trainer.fit(measure)
    found = recorder.result
    findings = [*found.findings, Finding("note", f"Accuracy on test images at the end: {accuracies[-1]:.1%}.")]
    return PlaneOfImages(tuple(findings), found, tuple(accuracies), provenance=found.provenance)


def _network(splits: Splits, options: ImagesOptions) -> nn.Module:
    if isinstance(splits.train, PointSet):
        raise ConfigError("images with labels are needed", got=options.data.name)
    with seeded(torch.device("cpu"), options.seed, 0):
        if options.model is not None:
            return build(options.model.name, **options.model.all_arguments())
        widths = [math.prod(splits.train.shape), *options.widths]
        act = nn.Tanh if options.activation == "tanh" else nn.ReLU
        pairs = [(nn.Linear(n, m), act()) for n, m in itertools.pairwise(widths)]
        last = nn.Linear(widths[-1], len(splits.train.classes))
    return nn.Sequential(nn.Flatten(), *itertools.chain(*pairs), last)


def _test_batches(splits: Splits, options: ImagesOptions) -> list[tuple[Tensor, Tensor]]:
    batches = feed(splits.test, min(500, options.n_examples), normalize=splits.normalize, seed=0, shuffle=True)
    found: list[tuple[Tensor, Tensor]] = []
    n = 0
    for x, y in batches.epoch(0):
        found.append((x, y))
        n += len(x)
        if n >= options.n_examples:
            break
    return found

"""Random-like weights (Arora, Liang and Ma 2015): a network's spectra before, during and after training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from invertible.data import PointSet
from invertible.errors import ConfigError
from invertible.instruments import WeightSpectrum, weight_spectrum
from invertible.instruments.result import Finding, Result, Row
from invertible.train.evaluate import evaluate_classifier
from invertible.train.feed import feed
from invertible.train.figures import new_figure
from invertible.train.loop import FitOptions, Trainer
from invertible.train.objective import Classification
from invertible.train.prepare import Splits, prepare_data
from invertible.train.randomness import seeded
from invertible.train.recipe import DataConfig, OptimizerConfig, ScheduleConfig, TrainingConfig
from invertible.train.threads import use_threads

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass
class SpectraOptions:
    """Options of `spectra_over_training`.

    Args:
        data: Images with labels.
        widths: Of the hidden layers.
        epochs: After which the weights are measured, ascending; 0 is before training.
        optimizer: How weights move; the learning rate is constant.
        batch_size: Images per step.
        n_permutations: Random orders of each weight's entries, the null.
        seed: Of weights and order.
        threads: Of the CPU; two are slower than one on matrices as small as these.
    """

    data: DataConfig = field(default_factory=DataConfig)
    widths: list[int] = field(default_factory=lambda: [256, 256, 256])
    epochs: list[int] = field(default_factory=lambda: [0, 3, 30])
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig("adam", lr=1e-3, weight_decay=0.0))
    batch_size: int = 64
    n_permutations: int = 19
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        if not self.epochs or self.epochs != sorted(set(self.epochs)) or self.epochs[0] < 0:
            raise ConfigError("epochs to measure after", expected="ascending, from 0", got=self.epochs)


@dataclass(frozen=True)
class SpectraOverTraining(Result):
    """What `spectra_over_training` found.

    Args:
        findings: Worst first.
        epochs: When was measured.
        accuracies: On the test images, then (0 to 1).
        spectra: Of all weights, then.
    """

    epochs: tuple[int, ...]
    accuracies: tuple[float, ...]
    spectra: tuple[WeightSpectrum, ...]

    @property
    def table(self) -> list[Row]:
        """One row per epoch and weight: "epoch", "test_accuracy", "layer" (from 1), and those of `weight_spectrum`."""
        measured = zip(self.epochs, self.accuracies, self.spectra, strict=True)
        return [
            {"epoch": epoch, "test_accuracy": accuracy, "layer": i + 1, **row}
            for epoch, accuracy, spectrum in measured
            for i, row in enumerate(spectrum.table)
        ]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the largest singular value over the edge of the bulk, weight by weight, an epoch a line.

        Args:
            ax: Where; None: on a new figure.

        Returns:
            The axes.
        """
        axes = new_figure(6, 4).subplots() if ax is None else ax
        first, *others = self.spectra
        labels = [f"epoch {epoch}" for epoch in self.epochs]
        return first.compare(*others, labels=labels, curve="largest", ax=axes)


def spectra_over_training(
    options: SpectraOptions, *, out: Path | None = None, quiet: bool = False
) -> SpectraOverTraining:
    """Train a ReLU network of full layers, and measure its weights' spectra on the way.

    Args:
        options: What to train and when to measure.
        out: Not needed: it takes seconds.
        quiet: Show no progress.

    Returns:
        Spectra and accuracies.

    Source: Arora, Liang and Ma 2015, "Why are deep nets reversible", the figure on the random-like nature of trained
    weights (entries against a Gaussian, singular values against the quarter circle).

    Example:
        >>> few = SpectraOptions(DataConfig("digits", n_train=64), widths=[16], epochs=[0, 1], n_permutations=0)
        >>> found = spectra_over_training(few, quiet=True)
        >>> [(row["epoch"], row["layer"], row["shape"]) for row in found.table]
        [(0, 1, '16x64'), (0, 2, '10x16'), (1, 1, '16x64'), (1, 2, '10x16')]
    """
    splits = prepare_data(options.data)
    batches = feed(splits.train, options.batch_size, normalize=splits.normalize, seed=options.seed, shuffle=True)
    network = _network(splits, options)
    measured: dict[int, tuple[float, WeightSpectrum]] = {}

    def measure(model: nn.Module) -> dict[str, float]:
        if (epoch := len(trainer.progress.history) + (trainer.progress.step > 0)) not in options.epochs:
            return {}
        accuracy = evaluate_classifier(model, feed(splits.test, 500, normalize=splits.normalize))["accuracy"]
        n, seed = options.n_permutations, options.seed
        measured[epoch] = accuracy, weight_spectrum(model, n_permutations=n, seed=seed, quiet=True)
        return {"test_accuracy": accuracy}

    training = TrainingConfig(epochs=max(1, options.epochs[-1]), batch_size=options.batch_size, seed=options.seed)
    fit = FitOptions(options.optimizer, ScheduleConfig("constant"), training, quiet=quiet)
    trainer = Trainer(Classification(network), batches, fit)
    with use_threads(options.threads):
        measure(network.eval())
        if options.epochs[-1]:
            trainer.fit(measure)
    return _result(measured)


def _network(splits: Splits, options: SpectraOptions) -> nn.Module:
    if isinstance(splits.train, PointSet):
        raise ConfigError("images with labels are needed", expected="data.name: digits", got=options.data.name)
    widths = [math.prod(splits.train.shape), *options.widths]
    with seeded(torch.device("cpu"), options.seed, 0):
        pairs = [(nn.Linear(n, m), nn.ReLU()) for n, m in itertools.pairwise(widths)]
        last = nn.Linear(widths[-1], len(splits.train.classes))
    return nn.Sequential(nn.Flatten(), *itertools.chain(*pairs), last)


def _result(measured: dict[int, tuple[float, WeightSpectrum]]) -> SpectraOverTraining:
    accuracies, spectra = zip(*measured.values(), strict=True)
    findings = _findings(list(measured), spectra)
    return SpectraOverTraining(findings, tuple(measured), accuracies, spectra, provenance=spectra[-1].provenance)


def _findings(epochs: Sequence[int], spectra: Sequence[WeightSpectrum]) -> tuple[Finding, ...]:
    # The last measurement's own, with a sentence on how the outliers grew.
    counts = [sum(layer.main.n_outliers for layer in found.layers if layer.main is not None) for found in spectra]
    steps = ", ".join(f"{count} after epoch {epoch}" for epoch, count in zip(epochs, counts, strict=True))
    grown = Finding("note", f"Singular values above the edge of the bulk, over all weights: {steps}.")
    now = f"After epoch {epochs[-1]}: "
    last = (replace(finding, sentence=now + finding.sentence, row=None) for finding in spectra[-1].findings)
    return (grown, *last)

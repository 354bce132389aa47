"""The Hessian's spectrum before, during and after training, without and with BatchNorm."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torch import nn

from invertible.errors import ConfigError
from invertible.instruments import Curvature, curvature
from invertible.instruments.result import Finding, Result, Row
from invertible.train.experiments._fit_small import FitConfig, accuracy, fit, made, small_network
from invertible.train.experiments._images import Labelled, train_and_test
from invertible.train.figures import new_figure
from invertible.train.recipe import DataConfig
from invertible.train.threads import use_threads

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

N_CLASSES = 10
KINDS = {False: "plain", True: "BatchNorm"}


@dataclass
class CurvatureOptions:
    """Options of `curvature_over_training`.

    Args:
        data: Images with ten classes.
        width: Channels of the network.
        depth: Its layers with weights.
        epochs: After which the curvature is measured, ascending; 0 is before training.
        n_examples: Training images it is measured on.
        n_steps: Of Lanczos.
        fit: How the networks are trained; its `epochs` is not used.
        seed: Of weights, order and probes.
        threads: Of the CPU.
    """

    data: DataConfig = field(default_factory=DataConfig)
    width: int = 16
    depth: int = 6
    epochs: list[int] = field(default_factory=lambda: [0, 2, 20])
    n_examples: int = 500
    n_steps: int = 80
    fit: FitConfig = field(default_factory=FitConfig)
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        if not self.epochs or self.epochs != sorted(set(self.epochs)) or self.epochs[0] < 0:
            raise ConfigError("epochs to measure after", expected="ascending, from 0", got=self.epochs)


@dataclass(frozen=True)
class CurvatureOverTraining(Result):
    """What `curvature_over_training` found.

    Args:
        findings: Worst first.
        networks: Of each measurement: "plain" or "BatchNorm".
        epochs: Of each, when.
        accuracies: Of each, on the test images (0 to 1).
        measured: Of each, the Hessian.
    """

    networks: tuple[str, ...]
    epochs: tuple[int, ...]
    accuracies: tuple[float, ...]
    measured: tuple[Curvature, ...]

    @property
    def table(self) -> list[Row]:
        """One row per network and epoch."""
        rows = zip(self.networks, self.epochs, self.accuracies, self.measured, strict=True)
        return [
            {"network": network, "epoch": epoch, "test_accuracy": score, **_figures(found)}
            for network, epoch, score, found in rows
        ]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the densities of the plain network, an epoch a line.

        Args:
            ax: Where; None: on a new figure.

        Returns:
            The axes.
        """
        return self._densities("plain", new_figure(6, 4).subplots() if ax is None else ax)

    @property
    def pictures(self) -> dict[str, Callable[[], Figure]]:
        """The densities of both networks."""
        return {"densities": self._both}

    def _both(self) -> Figure:
        figure = new_figure(11, 4)
        for axes, network in zip(figure.subplots(1, 2), dict.fromkeys(self.networks), strict=False):
            self._densities(network, cast("Axes", axes))
        return figure

    def _densities(self, network: str, axes: Axes) -> Axes:
        chosen = [i for i, name in enumerate(self.networks) if name == network]
        first, *others = (self.measured[i] for i in chosen)
        labels = [f"epoch {self.epochs[i]}, loss {self.measured[i].loss:.2g}" for i in chosen]
        first.compare(*others, labels=labels, curve="density", ax=axes)
        for line in axes.lines:
            line.set_marker("")
        peak = max(max(found.density()[1]) for found in self.measured)
        axes.set(title=f"Hessian, {network}: {first.n_parameters:,} parameters", ylim=(peak * 1e-7, peak * 3))
        return axes


def _figures(found: Curvature) -> dict[str, float | None]:
    values = [pair.value for pair in found.eigenvalues if pair.end == "largest"]
    return {
        "loss": found.loss,
        "largest": values[0],
        "largest_over_11th": values[0] / abs(values[N_CLASSES]),
        "10th_over_11th": values[N_CLASSES - 1] / abs(values[N_CLASSES]),
        "smallest_over_largest": next(p.value for p in found.eigenvalues if p.end == "smallest") / values[0],
        "trace": found.trace.value,
        "trace_error": found.trace.error,
        "negative_share": found.index.value,
        "negative_share_low": found.index.low,
        "negative_share_high": found.index.high,
        "gradient_norm": found.gradient_norm,
        "gradient_in_top": found.gradient_in_largest,
    }


def curvature_over_training(
    options: CurvatureOptions, *, out: Path | None = None, quiet: bool = False
) -> CurvatureOverTraining:
    """Train a convolutional network without and one with BatchNorm, and measure the loss's Hessian on the way.

    Args:
        options: What to train and when to measure.
        out: Not needed: it takes a minute or two.
        quiet: Show no progress.

    Returns:
        Spectra and accuracies.

    Source: Sagun, Bottou and LeCun 2016, "Eigenvalues of the Hessian in deep learning: singularity and beyond" (a bulk
    at zero and about as many outliers as classes); Ghorbani, Krishnan and Xiao 2019 (densities, BatchNorm); Gur-Ari,
    Roberts and Dyer 2018, "Gradient descent happens in a tiny subspace".

    Example:
        >>> few = CurvatureOptions(DataConfig("digits", n_train=32), 4, 4, [0], n_examples=16, n_steps=5)
        >>> found = curvature_over_training(few, quiet=True)
        >>> [(row["network"], row["epoch"]) for row in found.table]
        [('plain', 0), ('BatchNorm', 0)]
    """
    (x, y), (test_x, test_y) = train_and_test(options.data)
    rows: list[tuple[str, int, float, Curvature]] = []
    settings = FitConfig(**{**vars(options.fit), "epochs": options.epochs[-1]})
    few = x[: options.n_examples], y[: options.n_examples]
    batches = list(zip(few[0].split(250), few[1].split(250), strict=True))
    with use_threads(options.threads):
        for has_norm, name in KINDS.items():
            shape = tuple(x.shape[1:])
            make = lambda has_norm=has_norm, shape=shape: small_network(  # noqa: E731
                shape, options.width, options.depth, has_norm, False
            )
            network = made(make, options.seed)

            def measure(epoch: int, name: str = name, network: nn.Module = network) -> None:
                if epoch in options.epochs:
                    score = accuracy(network.eval(), test_x, test_y)
                    rows.append((name, epoch, score, _hessian(network, batches, options, quiet)))

            fit(network, x, y, settings, options.seed, measure)
    networks, epochs, scores, found = zip(*rows, strict=True)
    result = CurvatureOverTraining((), networks, epochs, scores, found, provenance=found[-1].provenance)
    return replace(result, findings=_findings(result))


def _hessian(network: nn.Module, batches: list[Labelled], options: CurvatureOptions, quiet: bool) -> Curvature:
    n, steps, seed = N_CLASSES + 2, options.n_steps, options.seed
    return curvature(network, batches, n_largest=n, n_steps=steps, dense_up_to=0, seed=seed, quiet=quiet)


def _findings(result: CurvatureOverTraining) -> tuple[Finding, ...]:
    found = []
    for name, group in itertools.groupby(range(len(result.networks)), lambda i: result.networks[i]):
        rows = list(group)
        first, last = (_figures(result.measured[i]) for i in (rows[0], rows[-1]))
        text = f"{name}: the largest eigenvalue goes from {first['largest']:.3g} to {last['largest']:.3g}"
        text += f", {last['largest_over_11th']:.2g} times the eleventh after epoch {result.epochs[rows[-1]]}"
        text += f"; {last['gradient_in_top']:.0%} of the gradient lies in the top {N_CLASSES + 2}"
        found.append(Finding("note", f"{text}.", rows[-1]))
    return tuple(found)

"""Linear methods that fit every label (Zhang et al. 2017, section 5), beside a network that gets as much time."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn
from torch.utils.data import TensorDataset

from invertible.errors import ConfigError
from invertible.instruments import KernelInterpolation, SGDFit, interpolate, memorization
from invertible.instruments.fitting import Report
from invertible.instruments.provenance import Stopwatch
from invertible.instruments.result import Finding, Result, Row
from invertible.train.experiments._images import Labelled, train_and_test
from invertible.train.experiments.memorization import NetConfig, count_classes, factory
from invertible.train.figures import new_figure
from invertible.train.recipe import DataConfig

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def _small_network() -> NetConfig:
    return NetConfig("CNN", "small_alexnet", {"channels": [32, 32]}, lr=0.01)


@dataclass
class KernelOptions:
    """Options of `kernels_beside_a_network`.

    Args:
        data: Images with labels.
        n_test: Only the first so many test images; null: all.
        kernels: "rbf", "random-conv" or both.
        gamma: Of "rbf"; null: 2 over the median squared distance. The paper has 0.02 for MNIST.
        ridges: Over the mean of the kernel's diagonal; 0 is interpolation.
        n_filters: Of "random-conv", 32 features each.
        dtype: Of the factor.
        network: What is trained beside.
        batch_size: Images per step of it.
        seconds: How long it is trained; null: as long as the slowest kernel took for its first ridge.
        seed: Of filters, weights and order.
    """

    data: DataConfig = field(default_factory=DataConfig)
    n_test: int | None = None
    kernels: list[Literal["rbf", "random-conv"]] = field(default_factory=lambda: ["rbf", "random-conv"])
    gamma: float | None = None
    ridges: list[float] = field(default_factory=lambda: [0.0, 1e-3, 1e-2, 1e-1])
    n_filters: int = 500
    dtype: Literal["float64", "float32"] = "float64"
    network: NetConfig = field(default_factory=_small_network)
    batch_size: int = 64
    seconds: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.kernels or len(set(self.kernels)) < len(self.kernels):
            raise ConfigError("no kernel", expected="rbf, random-conv or both", got=self.kernels)
        if self.seconds is not None and not self.seconds > 0:
            raise ConfigError("the network gets no time", expected="seconds above 0, or null", got=self.seconds)


@dataclass(frozen=True)
class Trained:
    """The network.

    Args:
        label: What it is called.
        train: Accuracy on the training images.
        test: Accuracy on the test images.
        test_low: Lower end of its 95 % interval, over examples.
        test_high: Upper end.
        epochs: How many it was trained.
        seconds: How long.
    """

    label: str
    train: float
    test: float
    test_low: float
    test_high: float
    epochs: int
    seconds: float


@dataclass(frozen=True)
class KernelsBesideANetwork(Result):
    """What `kernels_beside_a_network` found.

    Args:
        findings: Worst first.
        kernels: What each kernel gave.
        network: What the network gave.
    """

    kernels: tuple[KernelInterpolation, ...]
    network: Trained

    @property
    def table(self) -> list[Row]:
        """One row per method and ridge; of the network, ridge and norm are None."""
        rows = [_row(kernel, row) for kernel in self.kernels for row in kernel.table]
        network = self.network
        last: Row = {"method": "network", "ridge": None, "train": network.train, "test": network.test}
        last |= {"test_low": network.test_low, "test_high": network.test_high, "norm": None}
        return [*rows, last | {"residual": None, "seconds": network.seconds}]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw test errors against the ridge, and the network's as a line.

        Args:
            ax: Where; None: on a new figure.

        Returns:
            The axes.
        """
        axes = new_figure(7, 4).subplots() if ax is None else ax
        positive = [fit.ridge for kernel in self.kernels for fit in kernel.solved if fit.ridge > 0]
        zero = min(positive) / 10 if positive else 1e-3
        for kernel in self.kernels:
            points = [(fit.ridge or zero, 1 - fit.test.mean) for fit in kernel.solved if fit.test is not None]
            axes.plot(*zip(*points, strict=True), "o-", label=kernel.kernel)
        axes.axhline(1 - self.network.test, color="C3", linestyle="--", label=f"{self.network.label}, equal time")
        axes.axvline(zero, color="grey", linestyle=":", linewidth=0.7, label="interpolation")
        axes.set(xscale="log", xlabel="ridge over the mean diagonal", ylabel="test error")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=8)
        return axes


def kernels_beside_a_network(
    options: KernelOptions, *, out: Path | None = None, quiet: bool = False
) -> KernelsBesideANetwork:
    """Interpolate with kernels in closed form, then train a network for as long as the slowest of them took.

    The network's figures depend on how fast the machine is, as equal time must; `seconds` fixes the time only.

    Args:
        options: Which data, kernels and network.
        out: Where finished kernels are kept.
        quiet: Show no progress.

    Returns:
        Errors of all.

    Source: Zhang et al. 2017, section 5.

    Example:
        >>> few = KernelOptions(DataConfig("digits", n_train=60), 60, ["rbf"], ridges=[0.0], seconds=0.1)
        >>> [row["method"] for row in kernels_beside_a_network(few, quiet=True).table]
        ['rbf', 'network']
    """
    train, test = train_and_test(options.data, options.n_test)
    kernels = tuple(_kernel(kind, options, (train, test), out, quiet) for kind in options.kernels)
    seconds = max(map(_seconds, kernels)) if options.seconds is None else options.seconds
    network = _train(options, (train, test), seconds)
    named = zip(options.kernels, kernels, strict=True)
    findings = [replace(f, sentence=f"{name}: {f.sentence}", row=None) for name, found in named for f in found.findings]
    beside = (
        f"{network.label}, trained for {network.seconds:.3g} s ({network.epochs} epochs): {1 - network.test:.2%} error "
        f"on the test images ({1 - network.test_high:.2%} to {1 - network.test_low:.2%})."
    )
    return KernelsBesideANetwork(
        (*findings, Finding("note", beside)), kernels, network, provenance=kernels[0].provenance
    )  # fmt: skip


def _row(kernel: KernelInterpolation, row: Row) -> Row:
    method = "random-conv" if kernel.n_features is not None else "rbf"
    names = ("ridge", "train", "test", "test_low", "test_high", "norm", "residual", "seconds")
    return {"method": method, **{name: row[name] for name in names}}


def _kernel(
    kind: Literal["rbf", "random-conv"],
    options: KernelOptions,
    data: tuple[Labelled, Labelled],
    out: Path | None,
    quiet: bool,
) -> KernelInterpolation:
    file = None if out is None else out / f"{kind}.json"
    if file is not None and file.exists():
        return KernelInterpolation.load(file)
    found = interpolate(
        data, kind, ridges=options.ridges, gamma=options.gamma, n_filters=options.n_filters,
        dtype=torch.float64 if options.dtype == "float64" else torch.float32, seed=options.seed, quiet=quiet,
    )  # fmt: skip
    if file is not None:
        found.save(file)
    return found


def _seconds(found: KernelInterpolation) -> float:
    return found.seconds_features + found.fits[0].seconds


def _train(options: KernelOptions, data: tuple[Labelled, Labelled], seconds: float) -> Trained:
    n_classes, network = count_classes(*data), options.network
    timed = _Timed(SGDFit(10_000, options.batch_size, network.lr, decay=1.0), seconds)
    found = memorization(
        factory(network.name, network.arguments, data[0], n_classes), timed, data, corruptions=(),
        conditions=("true labels",), seeds=(options.seed,), n_classes=n_classes, quiet=True,
    ).conditions[0]  # fmt: skip
    test = found.test
    return Trained(network.label, found.train.mean, test.mean, test.low, test.high, timed.epochs, timed.seconds)


class _Timed:
    """A fit that ends after a time, whether it has fitted or not; only training counts, not what is measured."""

    def __init__(self, fit: SGDFit, limit: float) -> None:
        self._fit, self._limit, self.epochs, self.seconds = fit, limit, 0, 0.0

    def __call__(self, model: nn.Module, train: TensorDataset, report: Report) -> None:
        watch = Stopwatch()

        def stop(*, steps: int | None = None) -> bool:
            self.epochs, self.seconds = self.epochs + 1, watch.seconds
            return self.seconds >= self._limit

        self._fit(model, train, stop)
        report()

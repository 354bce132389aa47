"""The information plane's own task: twelve bits, seven layers, many networks at once (Shwartz-Ziv and Tishby 2017)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from invertible._console import progress
from invertible.data.spherical_bits import SphericalBits, spherical_bits
from invertible.errors import ConfigError
from invertible.instruments import InformationLog, InformationTrajectory, Sweep, log_schedule
from invertible.instruments._information_gradients import GradientMoments
from invertible.instruments._many_mlps import Activation, ManyMlps
from invertible.instruments._many_mlps_train import Training, train
from invertible.instruments.provenance import Stopwatch, provenance
from invertible.instruments.result import Finding, Result, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTHS = (12, 10, 7, 5, 4, 3, 2)


@dataclass
class Condition:
    """One way of training.

    Args:
        name: What it is called in tables.
        activation: Of the hidden layers: "tanh" or "relu"; the last layer is a softmax.
        fraction: Share of the 4096 patterns that is trained on.
        batch_size: Patterns per step; null: all of the training part.
        lr: Learning rate of SGD without momentum.
        epochs: How long; null: as the options say.
    """

    name: str = "tanh"
    activation: Activation = "tanh"
    fraction: float = 0.8
    batch_size: int | None = 256
    lr: float = 0.05
    epochs: int | None = None


@dataclass
class BitsOptions:
    """Options of `information_plane_of_bits`.

    Args:
        conditions: What is trained; each by itself.
        n_networks: Seeds per condition, trained as one computation.
        epochs: Passes over the training part.
        n_bins: Numbers of bins of the sweep, the main one first; on [-1, 1], and on the activations' range.
        sigma2: Variances of the kernels' noise, the main one first.
        n_kernel: Patterns that kernels see.
        widths: Of the layers; the first is 12, the last 2.
        has_gradients: Whether gradients over batches are measured.
        seed: Of weights and orders; the part that is trained on is the same for all.
    """

    conditions: list[Condition] = field(default_factory=lambda: [Condition()])
    n_networks: int = 20
    epochs: int = 3000
    n_bins: list[int] = field(default_factory=lambda: [30, 15, 60])
    sigma2: list[float] = field(default_factory=lambda: [1e-3, 1e-4, 1e-2])
    n_kernel: int = 512
    widths: list[int] = field(default_factory=lambda: list(WIDTHS))
    has_gradients: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        names = [condition.name for condition in self.conditions]
        if not names or len(set(names)) < len(names):
            raise ConfigError("bad conditions", expected="one or more, with different names", got=names)
        if self.n_networks < 1 or self.epochs < 1 or min((c.epochs or 1) for c in self.conditions) < 1:
            got = f"n_networks {self.n_networks}, epochs {self.epochs}"
            raise ConfigError("bad size of the experiment", expected="1 or more", got=got)
        if self.widths[:1] != [12] or self.widths[-1:] != [2]:
            raise ConfigError("bad widths", expected="12, ..., 2", got=self.widths)


@dataclass(frozen=True)
class Fit:
    """How well networks fit at an epoch: means over them.

    Args:
        epoch: How many had been done.
        train_loss: Cross-entropy of the training part, nats.
        test_loss: Of the rest.
        train_accuracy: Of the training part, 0 to 1.
        test_accuracy: Of the rest.
    """

    epoch: int
    train_loss: float
    test_loss: float
    train_accuracy: float
    test_accuracy: float


@dataclass(frozen=True)
class Part(Result):
    """One condition.

    Args:
        findings: Those of the trajectory.
        condition: Its name.
        trajectory: The plane over training.
        fits: At the epochs of the trajectory.
    """

    condition: str
    trajectory: InformationTrajectory
    fits: tuple[Fit, ...]

    @property
    def table(self) -> list[Row]:
        """One row per place and measurement."""
        last, measurements = self.trajectory.snapshots[-1], self.trajectory.about.measurements
        rows: list[Row] = []
        for place in last.places:
            falls = [fall for fall in self.trajectory.falls if fall.place == place.place]
            everywhere = bool(falls) and all(fall.is_clear for fall in falls)
            rows += [
                {
                    "condition": self.condition,
                    "place": place.place,
                    "measurement": measurement.name,
                    "is_main": self.trajectory.about.number_of(measurement.kind) == i,
                    "kind": measurement.kind,
                    "peak_epoch": fall.peak_epoch,
                    "peak": fall.peak,
                    "last": fall.last,
                    "fall": fall.fall,
                    "interval": fall.interval,
                    "falls": fall.is_clear,
                    "falls_everywhere": everywhere,
                    "label_bits": place.labels[i],
                    "shuffled_label_bits": place.shuffled[i],
                    **self._fit_row(),
                }
                for i, (measurement, fall) in enumerate(zip(measurements, falls, strict=False))
            ]
        return rows

    def _fit_row(self) -> Row:
        last = self.fits[-1]
        return {
            "train_accuracy": last.train_accuracy,
            "test_accuracy": last.test_accuracy,
            "test_loss": last.test_loss,
            "least_test_loss": min(fit.test_loss for fit in self.fits),
        }

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the plane under the main bins.

        Args:
            ax: Where; None: on a new figure.

        Returns:
            The axes.
        """
        return self.trajectory.plot(ax)

    def plot_losses(self, ax: Axes | None = None) -> Axes:
        """Draw the losses against the epoch.

        Args:
            ax: Where; None: on a new figure.

        Returns:
            The axes.
        """
        axes = _panels(1)[0] if ax is None else ax
        for name, colour in (("train_loss", "C0"), ("test_loss", "C1")):
            at = [fit.epoch + 1 for fit in self.fits]
            axes.plot(at, [getattr(fit, name) for fit in self.fits], color=colour, label=name.replace("_", " "))
        axes.set(xscale="log", xlabel="epoch + 1", ylabel="cross-entropy, nats")
        axes.legend(frameon=False)
        axes.grid(alpha=0.25)
        return axes


@dataclass(frozen=True)
class InformationPlanes(Result):
    """What `information_plane_of_bits` found.

    Args:
        findings: Of all conditions, each with its name.
        parts: The conditions.
    """

    parts: tuple[Part, ...]

    @property
    def table(self) -> list[Row]:
        """One row per condition, place ("layer 1", ..., "softmax") and measurement; `parts` have the epochs.

        "fall": bits of I(X; T) from its peak to the end; "falls": whether clearly; "falls_everywhere": under all
        measurements of the sweep.
        """
        return [row for part in self.parts for row in part.table]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the planes side by side, under the main bins.

        Args:
            ax: Where the first goes, alone; None: all on a new figure.

        Returns:
            The axes of the first.
        """
        return self.parts[0].plot(ax) if ax is not None else self._drawn("bins")

    @property
    def pictures(self) -> Mapping[str, Callable[[], Figure]]:
        """The planes under other kinds of measurement, losses, gradients, and the sweep at the last hidden layer."""
        names = ["adaptive", "kde_upper", "losses", "gradients", "sweep"]
        return {name: partial(self._figure, name) for name in names}

    def _figure(self, name: str) -> Figure:
        figure = self._drawn(name).figure
        return figure.get_figure(root=True) or figure  # pyright: ignore[reportReturnType]

    def _drawn(self, name: str) -> Axes:
        panels = _panels(len(self.parts))
        for part, axes in zip(self.parts, panels, strict=True):
            draw = {
                "losses": part.plot_losses,
                "gradients": part.trajectory.plot_gradients,
                "sweep": part.trajectory.plot_sweep,
            }.get(name, partial(part.trajectory.plot_plane, measurement=name))
            draw(axes)
            axes.set_title(part.condition)
        return panels[0]


def information_plane_of_bits(
    options: BitsOptions, *, out: Path | None = None, quiet: bool = False
) -> InformationPlanes:
    """Train many networks on the paper's task and measure their information plane over the training.

    All 4096 patterns are measured, as in the paper, whatever part is trained on. Labels are the more probable ones.

    Args:
        options: What to train, how long.
        out: A finished condition is kept there.
        quiet: Show no progress.

    Returns:
        The planes.

    Source: Shwartz-Ziv and Tishby 2017, "Opening the black box of deep neural networks via information", section 3 (the
    network and the task); Saxe et al. 2018, "On the information bottleneck theory of deep learning" (ReLU, full batch,
    30 % of the data, kernels).

    Example:
        >>> few = BitsOptions(n_networks=2, epochs=1, n_bins=[30], sigma2=[1e-3], n_kernel=64)
        >>> found = information_plane_of_bits(few, quiet=True)
        >>> [(row["place"], row["measurement"]) for row in found.table][:2]
        [('layer 1', '30 bins, fixed'), ('layer 1', '30 bins, adaptive')]
    """
    task, parts = spherical_bits(), []
    with progress() as display:
        for i, condition in enumerate(options.conditions):
            kept = None if out is None else out / f"condition-{i}.json"
            if kept is not None and kept.exists():
                parts.append(Part.load(kept))
                continue
            bar = display.add_task(condition.name, total=condition.epochs or options.epochs, visible=not quiet)
            part = _train(task, condition, options, lambda done, bar=bar: display.update(bar, completed=done))
            if kept is not None:
                part.save(kept)
            parts.append(part)
    findings = [Finding(f.severity, f"{part.condition}: {f.sentence}") for part in parts for f in part.findings]
    return InformationPlanes(tuple(findings), tuple(parts), provenance=parts[0].provenance)


class _Watch:
    """Measures networks when the schedule says so.

    Args:
        nets: The networks.
        task: What they learn.
        rows: Positions of the training part and of the rest.
        condition: How they are trained.
        options: Of the experiment.
    """

    def __init__(
        self,
        nets: ManyMlps,
        task: SphericalBits,
        rows: tuple[Tensor, Tensor],
        condition: Condition,
        options: BitsOptions,
    ) -> None:
        self._nets, self._task, self._rows, self._condition = nets, task, rows, condition
        self._has_gradients = options.has_gradients and condition.batch_size is not None
        sweep = Sweep(
            tuple(options.n_bins), sigma2=tuple(options.sigma2), n_kernel=options.n_kernel, n_shuffles=1,
            seed=options.seed,
        )  # fmt: skip
        self.log = InformationLog(task.y, task.x, sweep=sweep, n_networks=options.n_networks)
        self.fits: list[Fit] = []

    def __call__(self, epoch: int) -> None:
        with torch.no_grad():
            *hidden, outputs = self._nets.activations(self._task.x)
        places = {f"layer {i + 1}": h for i, h in enumerate(hidden)} | {"softmax": outputs.softmax(2)}
        self.log.record(epoch, places)
        self.fits.append(self._fit(epoch, outputs))
        if self._has_gradients:
            self.log.add_gradients(self._gradients(epoch).layers(self._weights()))

    def _fit(self, epoch: int, outputs: Tensor) -> Fit:
        figures: list[float] = []
        for rows in self._rows:
            y = self._task.y[rows].expand(len(outputs), -1)
            part = outputs[:, rows]
            figures += [float(cross_entropy(part.flatten(0, 1), y.flatten()))]
            figures += [float((part.argmax(2) == y).double().mean())]
        return Fit(epoch, figures[0], figures[2], figures[1], figures[3])

    def _gradients(self, epoch: int) -> GradientMoments:
        rows = self._rows[0]
        order = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(epoch))]
        moments, weights = GradientMoments(self._nets.n), list(self._nets.weights)
        size = self._condition.batch_size or len(rows)
        for batch in (part for part in order.split(size) if len(part) == size):
            with torch.enable_grad():
                outputs = self._nets(self._task.x[batch])
                y = self._task.y[batch].expand(self._nets.n, -1).flatten()
                loss = cross_entropy(outputs.flatten(0, 1), y, reduction="sum") / size
            gradients = torch.autograd.grad(loss, weights)
            moments.add({f"layer {i + 1}": [gradient] for i, gradient in enumerate(gradients)})
        return moments

    def _weights(self) -> dict[str, float]:
        return {
            f"layer {i + 1}": float(w.detach().flatten(1).norm(dim=1).mean()) for i, w in enumerate(self._nets.weights)
        }


def _train(task: SphericalBits, condition: Condition, options: BitsOptions, tell: Callable[[int], None]) -> Part:
    clock = Stopwatch()
    rows = task.split(condition.fraction, seed=options.seed)
    nets = ManyMlps(
        options.widths, options.n_networks, activation=condition.activation, init="normal", seed=options.seed
    )
    watch, n_epochs = _Watch(nets, task, rows, condition, options), condition.epochs or options.epochs
    watch(0)

    def after(epoch: int) -> None:
        tell(epoch + 1)
        if log_schedule(epoch + 1) or epoch + 1 == n_epochs:
            watch(epoch + 1)

    training = Training(n_epochs, condition.lr, batch_size=condition.batch_size, momentum=0.0)
    train(nets, task.x[rows[0]], task.y[rows[0]], training, after)
    origin = provenance(nets, clock, seed=options.seed, data="spherical-bits", n_examples=len(task.x))
    trajectory = watch.log.result("ManyMlps", origin)
    return Part(trajectory.findings, condition.name, trajectory, tuple(watch.fits), provenance=origin)


def _panels(n: int) -> Sequence[Axes]:
    import matplotlib.pyplot as plt

    columns = min(n, 2)
    shape = math.ceil(n / columns), columns
    axes = plt.subplots(*shape, figsize=(6.2 * columns, 4.4 * shape[0]), layout="constrained", squeeze=False)[1]
    for unused in axes.flat[n:]:
        unused.set_axis_off()
    return list(axes.flat[:n])

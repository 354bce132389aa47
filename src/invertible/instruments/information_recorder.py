"""The information plane over a training: any network, any loop, without changing a step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from invertible.errors import ConfigError
from invertible.instruments._compare_plot import Curve
from invertible.instruments._information_findings import falls_of, trajectory_findings
from invertible.instruments._information_gradients import GradientMoments, layers_with_weights, phases_of
from invertible.instruments._information_measure import Labels, Sweep, about, measure_places
from invertible.instruments._information_places import Places
from invertible.instruments._information_plot import draw_gradients, draw_sweep, draw_trajectory
from invertible.instruments._information_rows import About, Fall, Kind, LayerGradient, Phase, PlaceInformation
from invertible.instruments.feeding import Feed
from invertible.instruments.information_plane import (
    NAME,
    collect,
    describe_network,
    information_plane,
    inputs_of,
    labels_of,
)
from invertible.instruments.provenance import Provenance
from invertible.instruments.result import Result, Row
from invertible.instruments.untouched import Mode, measuring

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_KINDS: dict[str, Kind] = {
    "bins": "binned fixed", "adaptive": "binned adaptive", "kde_upper": "KDE upper", "kde_lower": "KDE lower",
}  # fmt: skip


def log_schedule(epoch: int) -> bool:
    """The paper's schedule: every epoch below 20, every 5th below 100, every 20th below 2000, then every 100th.

    Args:
        epoch: How many epochs have been done.

    Returns:
        Whether to measure.

    Example:
        >>> sum(log_schedule(epoch) for epoch in range(10_001))
        212
    """
    return epoch % (1 if epoch < 20 else 5 if epoch < 100 else 20 if epoch < 2000 else 100) == 0


@dataclass(frozen=True)
class Snapshot:
    """One epoch of a trajectory.

    Args:
        epoch: How many epochs had been done.
        places: What each place told then.
        gradients: Of each layer, over the batches of the epoch that followed; empty if they were not heard.
    """

    epoch: int
    places: tuple[PlaceInformation, ...]
    gradients: tuple[LayerGradient, ...] = ()


@dataclass(frozen=True)
class InformationTrajectory(Result):
    """An information plane over a training.

    Args:
        findings: Worst first.
        about: What was measured, with what, and the ceilings.
        snapshots: By epoch.
        falls: How far I(X; T) fell from its peak to the end, per place and measurement.
        phases: When each layer's gradient turned from drift to diffusion.
        model: The network's class.
    """

    about: About
    snapshots: tuple[Snapshot, ...]
    falls: tuple[Fall, ...]
    phases: tuple[Phase, ...]
    model: str

    @property
    def epochs(self) -> tuple[int, ...]:
        """Of the snapshots."""
        return tuple(snapshot.epoch for snapshot in self.snapshots)

    @property
    def table(self) -> list[Row]:
        """One row per epoch, place and measurement; bits."""
        measurements = self.about.measurements
        return [
            {"epoch": snapshot.epoch, **row}
            for snapshot in self.snapshots
            for place in snapshot.places
            for row in place.rows(measurements)
        ]

    @property
    def curves(self) -> dict[str, Curve]:
        """Against the epoch "I(X;T) PLACE" and "I(T;Y) PLACE" of the main bins, last place first; then kernels'."""
        kinds: tuple[tuple[Kind, str], ...] = (
            ("binned fixed", ""), ("KDE upper", ", KDE upper"), ("KDE lower", ", KDE lower"),
        )  # fmt: skip
        found: dict[str, Curve] = {}
        for kind, end in kinds:
            for i in reversed(range(len(self.snapshots[-1].places))):
                found |= self._curves_of(i, self.about.number_of(kind), end)
        return found

    def _curves_of(self, i: int, m: int, end: str) -> dict[str, Curve]:
        places, epochs = [snapshot.places[i] for snapshot in self.snapshots], tuple(map(float, self.epochs))
        inputs, labels = tuple(place.inputs[m] for place in places), tuple(place.labels[m] for place in places)
        name = places[-1].place
        return {
            f"I(X;T) {name}{end}": Curve(epochs, inputs, "epoch", f"I(X; T) at {name}, bits{end}"),
            f"I(T;Y) {name}{end}": Curve(epochs, labels, "epoch", f"I(T; Y) at {name}, bits{end}"),
        }

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the plane under the main bins: a line and a marker per place, a colour per epoch.

        Args:
            ax: Where; None: on a new figure.

        Returns:
            The axes.
        """
        return self.plot_plane(ax)

    def plot_plane(self, ax: Axes | None = None, measurement: str = "bins") -> Axes:
        """Draw the plane under the main measurement of a kind.

        Args:
            ax: Where; None: on a new figure.
            measurement: "bins", "adaptive", "kde_upper" or "kde_lower".

        Returns:
            The axes.

        Raises:
            ConfigError: If there is no such kind.
        """
        if measurement not in _KINDS:
            raise ConfigError("no such measurement", expected=" or ".join(_KINDS), got=repr(measurement))
        number = self.about.number_of(_KINDS[measurement])
        return draw_trajectory(ax, self.about, self.epochs, [s.places for s in self.snapshots], number)

    def plot_sweep(self, ax: Axes | None = None, place: str | None = None) -> Axes:
        """Draw I(X; T) of a place against the epoch under all measurements.

        Args:
            ax: Where; None: on a new figure.
            place: Its name; None: the last but one (the last before the output).

        Returns:
            The axes.

        Raises:
            ConfigError: If there is no such place.
        """
        names = [found.place for found in self.snapshots[-1].places]
        wanted = names[max(len(names) - 2, 0)] if place is None else place
        if wanted not in names:
            raise ConfigError("no such place", expected=" or ".join(names), got=repr(wanted))
        return draw_sweep(
            ax, self.about, self.epochs, [snapshot.places for snapshot in self.snapshots], names.index(wanted)
        )

    def plot_gradients(self, ax: Axes | None = None) -> Axes:
        """Draw mean over deviation of each layer's gradient: above 1 it drifts, below it diffuses; dotted: the turn.

        Args:
            ax: Where; None: on a new figure.

        Returns:
            The axes.
        """
        heard = [snapshot for snapshot in self.snapshots if snapshot.gradients]
        return draw_gradients(ax, [s.epoch for s in heard], [s.gradients for s in heard], self.phases)

    @property
    def pictures(self) -> Mapping[str, Callable[[], Figure]]:
        """The plane under kernels, the sweep at one place, and gradients, if they were heard."""
        draw: dict[str, Callable[[], Axes]] = {
            "kde_upper": partial(self.plot_plane, measurement="kde_upper"),
            "sweep": self.plot_sweep,
        }
        if any(snapshot.gradients for snapshot in self.snapshots):
            draw["gradients"] = self.plot_gradients
        return {name: partial(_figure_of, function) for name, function in draw.items()}


class InformationLog:
    """Makes a trajectory of activations that somebody else computes: of many networks at once, or of no module at all.

    Args:
        labels: Of the N examples, shape (N,).
        inputs: What enters the network, shape (N, ...): tells how many different ones there are; None: all differ.
        sweep: How to measure.
        n_networks: How many.

    Raises:
        ConfigError: If there is one class only.
        ShapeError: If labels are not of shape (N,).
        RangeError: If labels are no classes.

    Example:
        >>> h = torch.linspace(-1, 1, 8).tanh().unsqueeze(1)
        >>> log = InformationLog(torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]))
        >>> log.record(0, {"layer": h}), log.record(1, {"layer": h.sign()})
        (None, None)
        >>> [snapshot.places[0].inputs[0] for snapshot in log.result().snapshots]
        [3.0, 1.0]
    """

    def __init__(
        self, labels: Tensor, inputs: Tensor | None = None, *, sweep: Sweep | None = None, n_networks: int = 1
    ) -> None:
        self.sweep = Sweep() if sweep is None else sweep
        self.labels = Labels(labels, self.sweep)
        self.about = about(inputs, self.labels, self.sweep, n_networks)
        self._snapshots: list[Snapshot] = []
        self._raw: dict[int, list[Tensor]] = {}

    def record(self, epoch: int, places: Mapping[str, Tensor]) -> None:
        """Measure.

        Args:
            epoch: How many have been done; more than at the last time.
            places: Activations by place, shape (N, d) or (n_networks, N, d); the same places every time.

        Raises:
            ConfigError: If epochs do not ascend, or places change.
            ShapeError: If shapes do not fit.
            NonFiniteError: If activations hold NaN or infinity; place and epoch are named.
        """
        last = self._snapshots[-1] if self._snapshots else None
        if last is not None and epoch <= last.epoch:
            raise ConfigError("epochs have to ascend", expected=f"above {last.epoch}", got=epoch)
        if last is not None and [p.place for p in last.places] != list(places):
            raise ConfigError("places changed", expected=", ".join(p.place for p in last.places), got=", ".join(places))
        try:
            found = measure_places(places, self.labels, self.sweep)
        except Exception as error:
            error.add_note(f"This was epoch {epoch}.")
            raise
        self._raw[epoch] = [raw for _, raw in found]
        self._snapshots.append(Snapshot(epoch, tuple(figures for figures, _ in found)))

    def add_gradients(self, gradients: Sequence[LayerGradient]) -> None:
        """Add the gradients of the epoch that followed the last snapshot.

        Args:
            gradients: One per layer.
        """
        if self._snapshots and gradients:
            self._snapshots[-1] = replace(self._snapshots[-1], gradients=tuple(gradients))

    def result(self, model: str = "", provenance: Provenance | None = None) -> InformationTrajectory:
        """What was recorded so far.

        Args:
            model: The network's class.
            provenance: What it was measured with.

        Returns:
            The trajectory.

        Raises:
            ConfigError: If nothing was recorded.
        """
        if not self._snapshots:
            hint = "recorder(epoch) in the loop, from epoch 0 on"
            raise ConfigError("nothing was recorded", got="no measurement", hint=hint)
        last = self._snapshots[-1]
        epochs = [snapshot.epoch for snapshot in self._snapshots]
        falls = falls_of(epochs, [p.place for p in last.places], self.about, self._raw) if len(epochs) > 1 else ()
        heard = [snapshot for snapshot in self._snapshots if snapshot.gradients]
        phases = phases_of([s.epoch for s in heard], [s.gradients for s in heard])
        first_row = (len(epochs) - 1) * len(last.places) * len(self.about.measurements)
        findings = trajectory_findings(self.about, last.places, falls, phases, first_row)
        return InformationTrajectory(
            findings, self.about, tuple(self._snapshots), falls, phases, model, provenance=provenance
        )


class InformationPlaneRecorder:
    """Measures a network's information plane over its training, which goes on as if nobody had looked, to the bit.

    Call it with the number of epochs done, before the first and after each. With `following` it hears the gradients
    of the epochs that follow a snapshot as well: their mean and deviation over batches.

    Args:
        model: The network.
        data: As in `information_plane`; the first `n_examples` are kept, and are the same at each epoch.
        schedule: Whether to measure after so many epochs; the paper's.
        **options: Of `information_plane`.

    Raises:
        ConfigError: If an option is unknown or wrong, or labels do not fit.
        DataError: If there are no data.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
        >>> x = torch.randn(64, 2)
        >>> y = (x[:, 0] > 0).long()
        >>> optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        >>> recorder = InformationPlaneRecorder(network, (x, y), n_bins=(4,), sigma2=(0.01,))
        >>> with recorder.following(optimizer):
        ...     recorder(0)
        ...     for epoch in range(3):
        ...         for rows in torch.arange(64).split(16):
        ...             optimizer.zero_grad()
        ...             nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
        ...             optimizer.step()
        ...         recorder(epoch + 1)
        >>> found = recorder.result
        >>> found.epochs, [place.place for place in found.snapshots[0].places], len(found.snapshots[0].gradients)
        ((0, 1, 2, 3), ['1', '2'], 2)
    """

    def __init__(
        self, model: nn.Module, data: Any, *, schedule: Callable[[int], bool] = log_schedule, **options: Any
    ) -> None:
        known = _options(options)
        self.model, self.schedule = model, schedule
        self._mode: Mode = known["mode"]
        sweep = Sweep(
            tuple(known["n_bins"]), known["span"], tuple(known["sigma2"]), known["n_kernel"], known["n_shuffles"],
            known["seed"],
        )  # fmt: skip
        feeding = {name: known[name] for name in ("batch_fn", "batches", "seconds", "seed", "quiet")}
        with measuring(model, self._mode) as network:
            feed = Feed(NAME, network, data, **feeding)
            places = self._places = Places(network, known["layers"], feed.first)
            self._batches = collect(feed, known["n_examples"])
            labels = labels_of(self._batches, NAME, known["n_classes"])
            self._log = InformationLog(labels, inputs_of(self._batches), sweep=sweep)
            self._log.about = describe_network(self._log.about, network, places, self._batches[0])
            self._origin, self._kind = feed.provenance(network), type(network).__name__
        self._moments: GradientMoments | None = None
        self._weights = layers_with_weights(model)

    def __call__(self, epoch: int) -> None:
        """Measure, if it is time.

        Args:
            epoch: How many epochs have been done.

        Raises:
            NonFiniteError: If activations hold NaN or infinity.
        """
        self._close()
        if not self.schedule(epoch):
            return
        with measuring(self.model, self._mode) as network:
            batches = [replace(b.placed(network), labels=b.labels) for b in self._batches]
            self._log.record(epoch, self._places.hear(batches))
        self._moments = GradientMoments()

    @contextmanager
    def following(self, optimizer: torch.optim.Optimizer) -> Iterator[InformationPlaneRecorder]:
        """Hear gradients before each step of an optimizer, in the epochs that follow a snapshot.

        Args:
            optimizer: The one that trains the network.

        Yields:
            The recorder; at the end the optimizer is left alone again.
        """
        handle = optimizer.register_step_pre_hook(lambda *_: self._hear_gradients())
        try:
            yield self
        finally:
            handle.remove()

    @property
    def result(self) -> InformationTrajectory:
        """What was recorded so far.

        Raises:
            ConfigError: If nothing was.
        """
        self._close()
        return self._log.result(self._kind, self._origin)

    def _hear_gradients(self) -> None:
        if self._moments is None:
            return
        found: dict[str, list[Tensor]] = {}
        for name, weights in self._weights.items():
            gradients = [weight.grad for weight in weights if weight.grad is not None]
            if len(gradients) == len(weights):
                found[name] = gradients
        self._moments.add(found)

    def _close(self) -> None:
        if self._moments is not None and self._moments.n_batches:
            norms = {
                name: float(sum(float(w.detach().double().square().sum()) for w in weights) ** 0.5)
                for name, weights in self._weights.items()
            }
            self._log.add_gradients(self._moments.layers(norms))
        self._moments = None


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(information_plane).parameters
    known = {name: p.default for name, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ConfigError(
            "a recorder has no such option", expected="options of information_plane", got=", ".join(unknown)
        )
    return known | dict(given)


def _figure_of(draw: Callable[[], Axes]) -> Figure:
    return cast("Figure", draw().figure)

"""Critical points of a small network's loss: how many directions go down, and at which loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from invertible._checks import describe
from invertible.errors import ConfigError
from invertible.instruments._compare_plot import Curve
from invertible.instruments._critical_findings import findings_of, related
from invertible.instruments._critical_path import iterates
from invertible.instruments._critical_plot import draw
from invertible.instruments._critical_rows import Point
from invertible.instruments._critical_run import Budget, Start, marked, search_all
from invertible.instruments._critical_search import METHODS, NetworkLandscape
from invertible.instruments._loss_functions import Loss
from invertible.instruments._loss_on_data import LossOnData, viewing
from invertible.instruments.feeding import Bar
from invertible.instruments.provenance import Stopwatch
from invertible.instruments.result import Result, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = "critical_points"


@dataclass(frozen=True)
class CriticalPoints(Result):
    """What `critical_points` found.

    Args:
        findings: Worst first.
        points: One per search, in the order of the searches.
        n_parameters: Of the network.
        tolerance: Norm of the gradient that counted as small.
    """

    points: tuple[Point, ...]
    n_parameters: int
    tolerance: float

    @property
    def table(self) -> list[Row]:
        """One row per search; `points` has the eigenvalues."""
        return [point.row() for point in self.points]

    @property
    def critical(self) -> tuple[Point, ...]:
        """The critical points, each once, lowest loss first."""
        found = [point for point in self.points if point.is_critical and point.same_as is None]
        return tuple(sorted(found, key=lambda point: point.loss))

    @property
    def rank_correlation(self) -> float:
        """Spearman's, of index and loss over the critical points; NaN for fewer than three."""
        return related(self.critical).value

    @property
    def lowest_index(self) -> float:
        """Index of the critical point with the lowest loss; NaN if there is none."""
        return self.critical[0].index if self.critical else math.nan

    @property
    def highest_index(self) -> float:
        """Index of the one with the highest loss; NaN if there is none."""
        return self.critical[-1].index if self.critical else math.nan

    @property
    def n_critical(self) -> int:
        """How many different critical points there are."""
        return len(self.critical)

    @property
    def critical_share(self) -> float:
        """Share of the searches that ended at one."""
        return sum(point.is_critical for point in self.points) / len(self.points)

    def joined(self, *others: CriticalPoints) -> CriticalPoints:
        """Put results of several networks of one shape on the same data together.

        Args:
            *others: The others.

        Returns:
            One result, with findings over all.

        Raises:
            ConfigError: If sizes or tolerances differ.
        """
        about = {(result.n_parameters, result.tolerance) for result in (self, *others)}
        if len(about) > 1:
            raise ConfigError("results cannot be joined", expected="one shape and tolerance", got=f"{len(about)} kinds")
        found = marked([point for result in (self, *others) for point in result.points])
        return replace(self, findings=findings_of(found, ""), points=found)

    @property
    def curves(self) -> dict[str, Curve]:
        """Of the critical points "index" against the loss."""
        x = tuple(point.loss for point in self.critical)
        return {"index": Curve(x, tuple(point.index for point in self.critical), "loss", "index")}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw index against loss and, on a new figure, spectra at three losses: figure 1.

        Args:
            ax: Where, for the first alone; None: on a new figure with both.

        Returns:
            The axes of index against loss.
        """
        return draw(ax, self.points, self.critical)


def critical_points(
    model: nn.Module,
    data: Any,
    *,
    loss: Loss | None = None,
    methods: Sequence[str] = ("gradient-norm", "saddle-free"),
    amplitudes: Sequence[float] = (0.0, 0.1, 0.3),
    n_iterates: int = 6,
    n_steps: int = 1000,
    lr: float = 0.1,
    weight_decay: float = 0.0,
    tolerance: float = 1e-8,
    n_iterations: int = 150,
    n_most: int = 2000,
    batch_fn: Callable[[Any], Any] | None = None,
    batches: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> CriticalPoints:
    """Search for points at which the gradient of a small network's loss is zero, and count the directions that go down.

    From the network's weights gradient descent with momentum runs on all data. Some of its iterates, perturbed by
    noise, are where searches begin: those of the gradient's norm find saddles and minima, saddle-free Newton goes to
    minima. A search's end is called critical only if the gradient is small *and* it is no place that merely looks so
    (see `Point.verdict`); every other end is labelled with the reason. Everything is dense and in float64.

    Args:
        model: A network of some hundred parameters, smooth (no ReLU). It is left as it is, to the bit.
        data: Whatever `feeding.Feed` takes; all of it is used at every step.
        loss: (output, labels) -> a scalar, the mean over examples, or its name; None: cross-entropy.
        methods: "gradient-norm", "saddle-free" or both.
        amplitudes: Standard deviations of the noise.
        n_iterates: How many iterates; each is combined with each amplitude and method.
        n_steps: Of descent; 0: the network's weights as they are.
        lr: Of descent.
        weight_decay: Adds weight_decay / 2 |theta|^2 to the loss. Without it, losses of classifiers have few critical
            points at finite places, and most searches end nowhere.
        tolerance: Norm of the gradient that counts as small.
        n_iterations: Hessians that a search may take.
        n_most: Refuse networks with more parameters: a step takes time as their number cubed.
        batch_fn: Makes of each batch what the network takes.
        batches: At most so many.
        seconds: Stop after the step during which so much time ran out.
        seed: Of the noise and of shuffled data.
        quiet: Show no progress.

    Returns:
        A point per search with verdict, index and spectrum, and findings; see `CriticalPoints.critical`.

    Raises:
        ConfigError: If an option is wrong or the network too large.
        ShapeError: If the loss is no scalar, or a batch is empty.
        NonFiniteError: If data or derivatives hold NaN or infinity, or the path diverges.
        DataError: If there are no data.

    Source: Dauphin et al. 2014, "Identifying and attacking the saddle point problem in high-dimensional non-convex
    optimization", section 4 and figure 1; Frye et al. 2021, for what is no critical point.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
        >>> _ = [nn.init.constant_(parameter, 0.1) for parameter in net.parameters()]
        >>> def loss(output, y):  # (2 - a b)^2 / 2: a saddle at 0, minima where a b = 2
        ...     return (output - y).square().mean() / 2
        >>> data = torch.ones(1, 1), torch.full((1, 1), 2.0)
        >>> found = critical_points(net, data, loss=loss, amplitudes=(0.0,), n_iterates=1, n_steps=0)
        >>> [(point.method, round(point.loss, 6), point.index) for point in found.critical]
        [('saddle-free', 0.0, 0.0), ('gradient-norm', 2.0, 0.5)]
    """
    _check(methods, amplitudes, n_iterates, n_steps, n_iterations, lr, weight_decay, tolerance)
    watch = Stopwatch()
    feeding = {"batch_fn": batch_fn, "batches": batches, "seconds": seconds, "seed": seed, "quiet": quiet}
    with viewing(NAME, model, data, loss=loss, dtype="float64", **feeding) as (view, feed):
        _check_size(view, n_most)
        land = NetworkLandscape(view, weight_decay)
        starts = [
            Start(step, theta, float(amplitude), method)
            for step, theta in iterates(land, view.theta, n_steps, lr, n_iterates)
            for amplitude in amplitudes
            for method in methods
        ]
        budget = Budget(tolerance, n_iterations, seconds, watch)
        with ExitStack() as stack:
            found = search_all(view, land, starts, budget, seed, Bar(NAME, stack, quiet))
        if len(found) < len(starts):
            feed.stopped = f"seconds={seconds:g}, after {len(found)} of {len(starts)} searches"
        origin = feed.provenance(view.network)
    return CriticalPoints(findings_of(found, feed.stopped), found, view.n, tolerance, provenance=origin)


def _check_size(view: LossOnData, n_most: int) -> None:
    if view.n > n_most:
        hint = f"a smaller network, or n_most={view.n} and patience"
        expected = f"at most {n_most} parameters"
        raise ConfigError(f"the network is too large for {NAME}", expected=expected, got=view.n, hint=hint)


def _check(
    methods: Sequence[str], amplitudes: Sequence[float], n_iterates: int, n_steps: int, n_iterations: int,
    lr: float, weight_decay: float, tolerance: float,
) -> None:  # fmt: skip
    if isinstance(methods, str) or not methods or not set(methods) <= set(METHODS):
        got = repr(methods) if isinstance(methods, str) else f"{describe(methods)}: {', '.join(map(str, methods))}"
        raise ConfigError(f"{NAME} has no such methods", expected=f"some of {', '.join(METHODS)}", got=got)
    bounds = {
        "amplitudes": (bool(amplitudes) and min(amplitudes) >= 0, tuple(amplitudes)),
        "n_iterates": (n_iterates >= 1, n_iterates),
        "n_steps": (n_steps >= 0, n_steps),
        "n_iterations": (n_iterations >= 0, n_iterations),
        "lr": (lr > 0, lr),
        "weight_decay": (weight_decay >= 0, weight_decay),
        "tolerance": (tolerance > 0, tolerance),
    }
    for name, (is_good, got) in bounds.items():
        if not is_good:
            raise ConfigError(f"{NAME} has a bad {name}", got=got)

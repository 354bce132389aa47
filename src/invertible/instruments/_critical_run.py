"""All searches of a measurement, one after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from invertible.instruments._critical_path import perturbed
from invertible.instruments._critical_rows import ZERO, Point, judge, same
from invertible.instruments._critical_search import METHODS, End, NetworkLandscape
from invertible.instruments._loss_on_data import LossOnData
from invertible.instruments.feeding import Bar
from invertible.instruments.provenance import Stopwatch


@dataclass(frozen=True)
class Start:
    """Where a search begins.

    Args:
        step: Of the path.
        theta: The iterate.
        amplitude: Of the noise that is added.
        method: Of the search.
    """

    step: int
    theta: Tensor
    amplitude: float
    method: str


@dataclass(frozen=True)
class Budget:
    """When a search ends.

    Args:
        tolerance: Norm of the gradient.
        n_iterations: At most so many Hessians.
        seconds: So long for everything; None: no limit.
        watch: Started when the measurement began.
    """

    tolerance: float
    n_iterations: int
    seconds: float | None
    watch: Stopwatch


def search_all(
    view: LossOnData, land: NetworkLandscape, starts: Sequence[Start], budget: Budget, seed: int, bar: Bar
) -> tuple[Point, ...]:
    """Search from everywhere.

    Args:
        view: The loss.
        land: The loss with decay.
        starts: Where to begin.
        budget: When to end.
        seed: Of the noise.
        bar: Shows how far it is.

    Returns:
        One point per start; fewer where the time ran out.
    """
    points: list[Point] = []
    generator, watch = torch.Generator().manual_seed(seed), budget.watch

    def keep_on() -> bool:
        bar(watch.seconds, len(points) / len(starts))
        return budget.seconds is None or watch.seconds < budget.seconds

    for start in starts:
        noisy = perturbed(start.theta, start.amplitude, generator)
        end = METHODS[start.method](land, noisy, budget.tolerance, budget.n_iterations, keep_on)
        points.append(_point(view, land, start, end, budget.tolerance))
        if not keep_on():
            break
    return marked(points)


def _point(view: LossOnData, land: NetworkLandscape, start: Start, end: End, tolerance: float) -> Point:
    judged, (negative, flat) = judge(end, tolerance), _shares(end.values)
    return Point(
        start=start.step, amplitude=start.amplitude, method=start.method, verdict=judged.verdict,
        loss=land.value(end.theta), error=_error(view, end.theta), gradient_norm=end.gradient.norm().item(),
        flatness=end.flatness, kernel_share=judged.kernel_share, newton_step=judged.newton_step, index=negative,
        zero_share=flat, same_as=None, n_iterations=end.n_iterations, eigenvalues=tuple(end.values.tolist()),
    )  # fmt: skip


def _shares(values: Tensor) -> tuple[float, float]:
    zero = ZERO * values.abs().max()
    negative, flat = (values < -zero).double().mean(), (values.abs() <= zero).double().mean()
    return negative.item(), flat.item()


def marked(points: Sequence[Point]) -> tuple[Point, ...]:
    """Tell which critical points are the same.

    Args:
        points: In order.

    Returns:
        The same, each with the number of the first one like it.
    """
    found = []
    for i, point in enumerate(points):
        twins = (j for j in range(i) if points[j].is_critical and same(points[j].eigenvalues, point.eigenvalues))
        twin = next((j for j in twins if math.isclose(points[j].loss, point.loss, rel_tol=1e-6)), None)
        found.append(replace(point, same_as=twin if point.is_critical else None))
    return tuple(found)


def _error(view: LossOnData, theta: Tensor) -> float:
    n_wrong = 0
    for batch in view.batches:
        with torch.no_grad():
            output = view.output(theta, batch)
        is_class = batch.labels is not None and batch.labels.ndim == 1 and not batch.labels.is_floating_point()
        if not is_class or not isinstance(output, Tensor) or output.ndim != 2 or output.shape[1] < 2:
            return math.nan
        n_wrong += int((output.argmax(1) != batch.labels).sum())
    return n_wrong / view.n_examples

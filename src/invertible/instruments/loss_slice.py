"""The loss along lines and on planes through a network's weights (Li et al. 2018)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from invertible.errors import ConfigError
from invertible.instruments._compare_plot import Curve
from invertible.instruments._loss_functions import Loss, classes_in, name_of
from invertible.instruments._loss_on_data import LossOnData, finite_value, viewing
from invertible.instruments._slice_directions import (
    Cut,
    between_cut,
    eigenvector_cuts,
    own_cuts,
    path_cut,
    random_cuts,
)  # fmt: skip
from invertible.instruments._slice_findings import barrier, findings_of
from invertible.instruments._slice_measure import Evaluator
from invertible.instruments._slice_plot import draw, surface
from invertible.instruments._slice_rows import Slice
from invertible.instruments.feeding import Bar, Feed
from invertible.instruments.result import Result, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = "loss_slice"
Along = Literal["random", "eigenvectors"]
SPAN = {"random": 1.0, "models": 0.25, "path": 0.2, "directions": 1.0}
POINTS = {1: 51, 2: 25}
SLICES = {1: 5, 2: 2}


@dataclass(frozen=True)
class LossSlice(Result):
    """What `loss_slice` found.

    Args:
        findings: Worst first.
        model: The network's class.
        loss_name: Which loss.
        n_parameters: That vary.
        along: "random", "eigenvectors", "models", "path" or "directions".
        normalise: How random directions were scaled.
        loss: At the network: its own, to the bit.
        slices: Lines or planes.
        at_once: How many points went through the network together.
    """

    model: str
    loss_name: str
    n_parameters: int
    along: str
    normalise: str
    loss: float
    slices: tuple[Slice, ...]
    at_once: int

    @property
    def table(self) -> list[Row]:
        """One row per point."""
        return [row for one in self.slices for row in one.rows()]

    @property
    def rises(self) -> list[float]:
        """Of each line: the loss at its ends, mean of both, over the network's."""
        ends = [(one.losses[0] + one.losses[-1]) / 2 - self.loss for one in self.slices if len(one.axes) == 1]
        return [rise for rise in ends if math.isfinite(rise)]

    @property
    def barrier(self) -> float:
        """Between two networks: how far the loss rises above the straight line between theirs; else NaN."""
        is_line = self.along == "models" and len(self.slices[0].axes) == 1
        return barrier(self.slices[0], self.loss)[0] if is_line else math.nan

    @property
    def curves(self) -> dict[str, Curve]:
        """The "loss" along lines, mean over them."""
        lines = [one for one in self.slices if len(one.axes) == 1 and one.axes[0].at == self.slices[0].axes[0].at]
        if not lines:
            return {}
        mean = tuple(math.fsum(column) / len(column) for column in zip(*(one.losses for one in lines), strict=True))
        return {"loss": Curve(lines[0].axes[0].at, mean, "coordinate", self.loss_name)}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw lines on one axes, or planes as contours side by side.

        Args:
            ax: Where (of planes the first only); None: on a new figure.

        Returns:
            The axes, the first of them.
        """
        return draw(ax, self)

    def plot_surface(self, ax: Axes | None = None, number: int = 0) -> Axes:
        """Draw a plane as a surface.

        Args:
            ax: Axes of three dimensions; None: on a new figure.
            number: Which slice.

        Returns:
            The axes.

        Raises:
            ConfigError: If that is no plane.
        """
        if not 0 <= number < len(self.slices) or len(self.slices[number].axes) != 2:
            raise ConfigError("a surface needs a plane", expected="the number of one", got=number, hint="n_dims=2")
        return surface(ax, self.slices[number], self.loss_name)


def loss_slice(
    model: nn.Module,
    data: Any,
    *,
    loss: Loss | None = None,
    along: Along = "random",
    to: nn.Module | Sequence[nn.Module] | None = None,
    path: Iterable[Mapping[str, Tensor]] | None = None,
    directions: Sequence[Mapping[str, Tensor]] | None = None,
    n_dims: int | None = None,
    n_slices: int | None = None,
    n_points: int | None = None,
    span: float | None = None,
    normalise: str = "filter",
    at_once: int | None = None,
    dtype: str = "own",
    batch_fn: Callable[[Any], Any] | None = None,
    batches: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> LossSlice:
    """Compute the loss along lines, or on planes, through a network's weights.

    At the network, and at others it is compared with, the loss is computed as the network itself does, to the bit;
    elsewhere many points go through the network together (`torch.func.vmap`) where that pays. BatchNorm uses its
    running statistics and dropout is off.

    Args:
        model: Any module. It is left as it is, to the bit. Parameters that require no gradients are held fixed.
        data: Whatever `feeding.Feed` takes; all batches are kept in memory.
        loss: As in `curvature`: (output, labels) -> a scalar; "mse"; None: cross-entropy. No gradient is needed.
        along: "random": Gaussian directions, normalised; "eigenvectors": of the Hessian, largest first, smallest last.
        to: Another network with the same parameters: the line to it; two: the plane through all three. Buffers move.
        path: Weights along a training, such as a `WeightPath` or a list of state dicts: its principal components.
        directions: Directions of one's own, tensors by parameter's name: a line each, or a plane each two.
        n_dims: 1: lines; 2: planes; None: 2 for paths and two networks, else 1.
        n_slices: How many, of random ones and eigenvectors; None: 5 lines or 2 planes.
        n_points: Per axis; None: 51 on lines, 25 on planes.
        span: How far it goes: coordinates -span to span (1 where a random direction is as long as the weights; distance
            in parameter space for eigenvectors), or the share beyond networks and paths. None: 1; for eigenvectors so
            far that the largest eigenvalue adds 4 to the loss; 0.25 and 0.2 beyond networks and paths.
        normalise: Of random directions: "filter", "layer" or "none".
        at_once: How many points go through the network together; None: as many as pay.
        dtype: What to compute in: "float32", "float64", or "own".
        batch_fn: Makes of each batch what the network takes.
        batches: At most so many.
        seconds: Stop after about so long; points that are missing are NaN.
        seed: Of directions and shuffling.
        quiet: Show no progress.

    Returns:
        Lines or planes, with findings.

    Raises:
        ConfigError: If an option is wrong, networks, paths or directions do not fit, or as in `curvature`.
        ShapeError: If the loss is not a scalar, labels do not fit, or a batch is empty.
        RangeError: If labels are no classes.
        DtypeError: If model, data or loss are of an unknown kind.
        NonFiniteError: If data hold NaN or infinity, or the network's own loss is.
        DataError: If there are no data.

    Source: Li, Xu, Taylor, Studer and Goldstein 2018, "Visualizing the loss landscape of neural nets"; Goodfellow,
        Vinyals and Saxe 2015, "Qualitatively characterizing neural network optimization problems", for lines between
        networks.

    Example:
        >>> import torch
        >>> network = nn.Linear(2, 1, bias=False)
        >>> with torch.no_grad():
        ...     _ = network.weight.copy_(torch.tensor([[3.0, 4.0]]))
        >>> found = loss_slice(network, torch.eye(2), loss=lambda z, y: z.square().sum(), n_slices=1, n_points=3)
        >>> found.loss, found.slices[0].axes[0].at, round(found.slices[0].axes[0].length, 4)
        (25.0, (-1.0, 0.0, 1.0), 5.0)
    """
    kind = _kind(along, to, path, directions)
    others = [to] if isinstance(to, nn.Module) else list(to or ())
    dims = n_dims or (2 if kind == "path" or len(others) == 2 else 1)
    points, cuts_wanted = n_points or POINTS.get(dims, 0), n_slices or SLICES.get(dims, 0)
    _check(dims, points, cuts_wanted, span, at_once, len(others) if kind == "models" else None)
    settings = {"batch_fn": batch_fn, "batches": batches, "seconds": seconds, "seed": seed, "quiet": quiet}
    with viewing(NAME, model, data, loss=loss, dtype=dtype, **settings) as (view, feed):
        value = finite_value(view)
        reach = SPAN.get(kind) if span is None else span
        if kind == "models":
            cuts = [between_cut(view, others, reach or 0.0)]
        elif kind == "path":
            cuts = [path_cut(view, path or (), dims, reach or 0.0)]
        elif kind == "directions":
            cuts = own_cuts(view, directions or (), dims, reach or 1.0)
        elif kind == "eigenvectors":
            cuts = eigenvector_cuts(view, dims, cuts_wanted, reach, seed)
        else:
            cuts = random_cuts(view, dims, cuts_wanted, normalise, reach or 1.0, seed)
        slices, evaluator = _evaluate(view, feed, cuts, points, at_once, seconds, quiet)
        origin = feed.provenance(view.network)
        name, n_classes = type(view.network).__name__, classes_in(view.batches)
    used = 1 if evaluator.why_single else evaluator.at_once or 1
    result = LossSlice((), name, name_of(loss), view.n, kind, normalise, value, slices, used, provenance=origin)
    return replace(result, findings=findings_of(result, evaluator.why_single, n_classes, feed.stopped))


def _kind(along: str, to: object, path: object, directions: object) -> str:
    given = {"models": to, "path": path, "directions": directions}
    kinds = [name for name, value in given.items() if value is not None]
    if len(kinds) > 1 or along not in ("random", "eigenvectors"):
        expected = 'along="random" or "eigenvectors", or one of to, path, directions'
        raise ConfigError("a slice goes along one thing", expected=expected, got=" and ".join(kinds) or repr(along))
    return kinds[0] if kinds else along


def _check(
    n_dims: int, n_points: int, n_slices: int, span: float | None, at_once: int | None, n_others: int | None
) -> None:
    if n_dims not in (1, 2):
        raise ConfigError("a slice has one or two dimensions", expected="n_dims=1 or 2", got=n_dims)
    if n_others is not None and n_others != n_dims:
        expected = "one other network for a line, two for a plane"
        raise ConfigError("the networks do not fit the slice", expected=expected, got=f"{n_others}, n_dims={n_dims}")
    if n_points < 3 or n_slices < 1 or (at_once is not None and at_once < 1):
        got = f"n_points={n_points}, n_slices={n_slices}, at_once={at_once}"
        raise ConfigError("loss_slice has bad options", expected="3, 1 and 1 or more", got=got)
    if span is not None and not 0 < span < math.inf:
        raise ConfigError("loss_slice has a bad span", expected="above 0, finite", got=span)


def _evaluate(
    view: LossOnData,
    feed: Feed,
    cuts: Sequence[Cut],
    n_points: int,
    at_once: int | None,
    seconds: float | None,
    quiet: bool,
) -> tuple[tuple[Slice, ...], Evaluator]:
    total = sum(n_points ** len(cut.axes) for cut in cuts)
    with ExitStack() as stack:
        bar = Bar(NAME, stack, quiet)
        evaluator = Evaluator(
            view,
            at_once,
            lambda: seconds is not None and feed.watch.seconds >= seconds,
            lambda n: bar(feed.watch.seconds, min(n / total, 1.0)),
        )
        slices = tuple(evaluator.slice(cut, n_points) for cut in cuts)
    if evaluator.stopped:
        stopped = f"seconds={seconds:g}, after {evaluator.n_done} of {total} points"
        feed.stopped = "; ".join(filter(None, (feed.stopped, stopped)))
    return slices, evaluator

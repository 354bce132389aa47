"""How the loss is computed at the points of a slice: many at once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from invertible.instruments._eigenpairs import never
from invertible.instruments._loss_on_data import LossOnData, footprint
from invertible.instruments._slice_directions import Constants, Cut
from invertible.instruments._slice_rows import Axis, Mark, Slice

AT_ONCE_BYTES = {"cpu": 2**21, "cuda": 2**31}
"""Points go through the network together while what they keep is no more than this: beyond it no longer pays."""
MOST_AT_ONCE = 64


@dataclass
class Evaluator:
    """Computes losses at many points.

    Args:
        view: The loss.
        at_once: How many points go through the network together; None: as many as pay.
        is_over: Whether time has run out.
        moved: Told how many points have been computed.

    Attributes:
        why_single: Why points go one by one although more were wanted; "": they do not.
        stopped: Whether time ran out.
    """

    view: LossOnData
    at_once: int | None = None
    is_over: Callable[[], bool] = never
    moved: Callable[[int], None] = lambda n: None
    why_single: str = ""
    stopped: bool = False
    n_done: int = field(default=0)

    def __post_init__(self) -> None:
        if self.at_once is not None:
            return
        leaf, batch = self.view.theta.clone().requires_grad_(), max(self.view.batches, key=lambda b: b.n_examples)
        with torch.enable_grad():
            _, size = footprint(lambda: self.view.loss_at(leaf, batch))
        room = AT_ONCE_BYTES.get(self.view.device.type, 2**24) // max(size, 1)
        self.at_once = int(max(1, min(MOST_AT_ONCE, room)))

    def slice(self, cut: Cut, n_points: int) -> Slice:
        """Compute a slice.

        Args:
            cut: Where.
            n_points: Per axis.

        Returns:
            The slice; exact at the networks that lie in it.
        """
        exact = [mark for mark in cut.known if mark.is_exact]
        grids = [grid(*span, n_points, [0.0, *(mark.at[i] for mark in exact)]) for i, span in enumerate(cut.ranges)]
        points = [tuple(reversed(at)) for at in itertools.product(*reversed(grids))]
        known = {mark.at: mark for mark in exact}
        losses: dict[tuple[float, ...], float] = {(0.0,) * len(grids): self.view.value()}
        losses |= {at: self.view.value(mark.theta, mark.constants) for at, mark in known.items()}
        self._fill(cut, [at for at in points if at not in losses], losses)
        near = [mark for mark in cut.known if not mark.is_exact]
        marks = tuple(
            [Mark(mark.name, mark.at, losses[mark.at]) for mark in exact]
            + [Mark(mark.name, mark.at, self.view.value(mark.theta, mark.constants)) for mark in near]
        )
        axes = tuple(
            Axis(label, tuple(at), axis.norm().item())
            for label, at, axis in zip(cut.labels, grids, cut.axes, strict=True)
        )
        return Slice(cut.name, axes, tuple(losses.get(at, math.nan) for at in points), marks, cut.shares)

    def _fill(self, cut: Cut, points: Sequence[tuple[float, ...]], losses: dict[tuple[float, ...], float]) -> None:
        start = 0
        while start < len(points) and not self.stopped:
            chunk = points[start : start + (1 if self.why_single else self.at_once or 1)]
            losses |= dict(zip(chunk, self._values(cut, chunk), strict=True))
            start += len(chunk)
            self.n_done += len(chunk)
            self.moved(self.n_done)
            self.stopped = self.is_over() and start < len(points)

    def _values(self, cut: Cut, points: Sequence[tuple[float, ...]]) -> list[float]:
        thetas, constants = placed(self.view, cut, points)
        if len(points) > 1 and not self.why_single:
            try:
                return self._together(thetas, constants)
            except RuntimeError as error:  # an operation that vmap does not know, or a loss that looks at values
                self.why_single = str(error).splitlines()[0]
        own = [{name: tensor[i] for name, tensor in constants.items()} for i in range(len(points))]
        return [self.view.value(theta, mine) for theta, mine in zip(thetas, own, strict=True)]

    def _together(self, thetas: Tensor, constants: Constants) -> list[float]:
        parts = []
        with torch.no_grad():
            for batch in self.view.batches:
                act = torch.func.vmap(lambda theta, own, batch=batch: self.view.loss_at(theta, batch, own))
                parts.append(act(thetas, constants).double())
        weights = torch.tensor(self.view.weights, dtype=torch.float64, device=thetas.device)
        return (weights @ torch.stack(parts)).tolist()


def placed(view: LossOnData, cut: Cut, points: Sequence[tuple[float, ...]]) -> tuple[Tensor, Constants]:
    """Parameters and buffers at points.

    Args:
        view: The loss.
        cut: Where.
        points: Coordinates.

    Returns:
        Parameters, shape (len(points), n); buffers likewise by name.
    """
    at = torch.tensor(points, dtype=torch.float64).to(view.theta)
    thetas = view.theta + at @ torch.stack(cut.axes)
    own, moving = view.constants, cut.constants[0] if cut.constants else {}
    changed = {
        name: own[name] + torch.tensordot(at.to(own[name]), torch.stack([axis[name] for axis in cut.constants]), 1)
        for name in moving
    }
    return thetas, changed


def grid(low: float, high: float, n: int, through: Sequence[float]) -> list[float]:
    """Evenly spaced coordinates, of which the nearest ones are moved to where networks are.

    Args:
        low: The first.
        high: The last.
        n: How many.
        through: Coordinates that must be among them.

    Returns:
        Ascending.

    Example:
        >>> grid(-1, 2, 4, [0.0, 1.9])
        [-1.0, 0.0, 1.0, 1.9]
    """
    found = [low + (high - low) * i / (n - 1) for i in range(n)]
    taken: set[int] = set()
    for value in dict.fromkeys(through):
        i = min((i for i in range(n) if i not in taken), key=lambda i: abs(found[i] - value))
        found[i] = value
        taken.add(i)
    return sorted(found)

"""Rows of a loss slice: lines and planes with the loss on them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from invertible.instruments.result import Row


@dataclass(frozen=True)
class Axis:
    """One direction.

    Args:
        name: What it is.
        at: Coordinates, ascending; 0 is the network.
        length: Distance in parameter space that a coordinate of 1 means.
    """

    name: str
    at: tuple[float, ...]
    length: float


@dataclass(frozen=True)
class Mark:
    """A network that lies in, or near, the slice.

    Args:
        name: Which.
        at: Its coordinates, one per axis (projected, for a path).
        loss: Its own loss.
    """

    name: str
    at: tuple[float, ...]
    loss: float


@dataclass(frozen=True)
class Slice:
    """The loss along a line, or on a plane.

    Args:
        name: What it goes along.
        axes: One or two.
        losses: One per point, the first axis varying fastest; NaN where time had run out.
        marks: Networks in it.
        shares: Of a path: how much of its variance each axis has; else empty.
    """

    name: str
    axes: tuple[Axis, ...]
    losses: tuple[float, ...]
    marks: tuple[Mark, ...]
    shares: tuple[float, ...]

    @property
    def points(self) -> Iterator[tuple[float, ...]]:
        """Coordinates in the order of `losses`."""
        if len(self.axes) == 1:
            return ((x,) for x in self.axes[0].at)
        return ((x, y) for y in self.axes[1].at for x in self.axes[0].at)

    @property
    def grid(self) -> list[list[float]]:
        """Losses row by row: one row per coordinate of the second axis."""
        n = len(self.axes[0].at)
        return [list(self.losses[i : i + n]) for i in range(0, len(self.losses), n)]

    @property
    def lowest(self) -> tuple[tuple[float, ...], float]:
        """Where the loss is lowest, and the loss there; NaN if there is no finite one."""
        finite = [(loss, at) for at, loss in zip(self.points, self.losses, strict=True) if math.isfinite(loss)]
        loss, at = min(finite, default=(math.nan, (math.nan,) * len(self.axes)))
        return at, loss

    @property
    def n_minima(self) -> int:
        """Points of a line that are lower than both neighbours; 0 for planes."""
        if len(self.axes) > 1:
            return 0
        inside = zip(self.losses, self.losses[1:], self.losses[2:], strict=False)
        return sum(b < a and b < c for a, b, c in inside)

    def rows(self) -> list[Row]:
        """As rows of the table.

        Returns:
            One per point.
        """
        both = [(*at, None)[:2] for at in self.points]
        return [
            {"slice": self.name, "x": x, "y": y, "loss": loss} for (x, y), loss in zip(both, self.losses, strict=True)
        ]

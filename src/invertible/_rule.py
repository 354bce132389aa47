"""What is known of a point: its error, how much of that is rounding, and whether it may stop there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

_GRAIN = 3.0
"""Rounding inside g, in units of half an ulp of |g(x)| + L |x|. Measured: linear maps, convolutions and nets of three
layers stay below 1.5 with sizes up to 4096."""
_VISIBLE = 1e-3
"""A difference of g-values this much (relative) above the Lipschitz constant may be the rounding of norms."""
_FLOOR = 0.7
"""The residual is as small as it need be once it is this part of the rounding."""
_ROUGH = 1024.0
"""Rounding up to so many times what is expected is believed to be rounding."""


def norm(x: Tensor) -> Tensor:
    """Euclidean norms.

    Args:
        x: Shape (batch, size).

    Returns:
        Shape (batch,).
    """
    return (x * x).sum(dim=1).sqrt()  # twice as fast as vector_norm


class Point(NamedTuple):
    """Where g was evaluated.

    Args:
        x: The point, shape (batch, size).
        z: y - g(x).
        r: The residual, z - x.
        size: |r|, shape (batch,).
        z_size: |z|.
        g_size: |g(x)|.
    """

    x: Tensor
    z: Tensor
    r: Tensor
    size: Tensor
    z_size: Tensor
    g_size: Tensor

    @classmethod
    def at(cls, x: Tensor, y: Tensor, gx: Tensor) -> Point:
        """Collect what a point is judged by.

        Args:
            x: The point.
            y: The right side.
            gx: g there.

        Returns:
            The point.
        """
        z = y - gx
        r = z - x
        return cls(x, z, r, norm(r), norm(z), norm(gx))

    def keep(self, rows: Tensor) -> Point:
        """Some rows.

        Args:
            rows: Their indices.

        Returns:
            The point for these.
        """
        return Point(*(part.index_select(0, rows) for part in self))

    def where(self, mask: Tensor, other: Point) -> Point:
        """Replace some rows.

        Args:
            mask: Which keep this point's.
            other: What the rest gets.

        Returns:
            The mixture.
        """
        column = mask.unsqueeze(1)
        return Point(*(torch.where(column if a.ndim == 2 else mask, a, b) for a, b in zip(self, other, strict=True)))


class Past(NamedTuple):
    """How a point was reached. All of shape (batch,).

    Args:
        seen: Rounding errors of z that were seen.
        goal: Half of what |r| was when it was last halved.
        age: Evaluations since then.
        dx_size: |dx| of the step.
        dg_size: |dg| of the step.
    """

    seen: Tensor
    goal: Tensor
    age: Tensor
    dx_size: Tensor
    dg_size: Tensor


class Verdict(NamedTuple):
    """What is known of each row of a point. All of shape (batch,).

    Args:
        seen: As in `Past`, up to here.
        goal: Likewise.
        age: Likewise.
        error: Bound of |z - solution|.
        scale: The larger of |y| and |z|.
        is_done: Whether the tolerance is met.
        is_stuck: Whether rounding keeps the tolerance from being met.
        is_steep: Whether g was seen to be steeper than its Lipschitz constant.
    """

    seen: Tensor
    goal: Tensor
    age: Tensor
    error: Tensor
    scale: Tensor
    is_done: Tensor
    is_stuck: Tensor
    is_steep: Tensor


@dataclass(frozen=True)
class Rule:
    """When a sample is done.

    With r = F(x) - x for the contraction F(x) = y - g(x), |F(x) - x*| <= L / (1 - L) |r|. What is computed is F(x) up
    to rounding e, and so the bound is (L |r| + e) / (1 - L).

    Args:
        lipschitz: L; None: unknown.
        tolerance: Relative; None: until the rounding is the larger part of the bound.
        is_lenient: Whether a tolerance below the rounding means the rounding.
        output_unit: Relative precision of what the result is rounded to in the end; 0 where it is not.

    Source: Banach's fixed-point theorem; Behrmann et al. 2019, section 2.
    """

    lipschitz: float | None
    tolerance: float | None
    is_lenient: bool = False
    output_unit: float = 0.0

    def judge(self, point: Point, y_size: Tensor, unit: float, past: Past | None = None) -> Verdict:
        """Judge a point.

        Args:
            point: The point.
            y_size: |y|, shape (batch,).
            unit: The relative precision of g.
            past: How it was reached; None: it is the first.

        Returns:
            What is known.
        """
        slope = 1.0 if self.lipschitz is None else self.lipschitz
        expected = point.z_size * (1 + _GRAIN * slope) + _GRAIN * point.g_size
        expected = unit / 2 * expected + torch.finfo(y_size.dtype).tiny
        goal, age = self._watch(point.size, past)
        seen, is_steep = self._learn(point.size, expected, slope, past, age)
        noise, scale = torch.maximum(seen, expected), torch.maximum(y_size, point.z_size)
        rounding = noise / (1.0 if self.lipschitz is None else 1 - self.lipschitz)
        rounding = rounding + self.output_unit / 2 * point.z_size
        error = rounding + point.size * slope / (1.0 if self.lipschitz is None else 1 - self.lipschitz)
        done, stuck = self._decide(point.size * slope / noise, error, rounding, scale)
        return Verdict(seen, goal, age, error, scale, done, stuck, is_steep)

    def _watch(self, size: Tensor, past: Past | None) -> tuple[Tensor, Tensor]:
        if past is None:
            return size / 2, torch.zeros_like(size)
        is_halved = size <= past.goal
        return torch.where(is_halved, size / 2, past.goal), torch.where(is_halved, 0.0, past.age + 1)

    def _learn(
        self, size: Tensor, expected: Tensor, slope: float, past: Past | None, age: Tensor
    ) -> tuple[Tensor, Tensor]:
        if past is None:
            return torch.zeros_like(size), torch.zeros_like(size, dtype=torch.bool)
        is_stalled = (age > 2 * self.half_life + 4) & (size < _ROUGH * expected)
        seen = torch.maximum(past.seen, torch.where(is_stalled, 2 * size, 0.0))
        if self.lipschitz is None:
            return seen, torch.zeros_like(is_stalled)
        allowed = slope * past.dx_size  # a change of g beyond it is rounding, or the constant is wrong
        seen = torch.maximum(seen, 2 * ((1 - _VISIBLE) * past.dg_size - allowed))
        return seen, (1 - 10 * _VISIBLE) * past.dg_size > allowed + _ROUGH * expected

    @property
    def half_life(self) -> int:
        """After so many plain steps the residual is half of what it was, at the latest; 10 where that is not known."""
        if self.lipschitz is None:
            return 10
        return 1 if self.lipschitz < 0.5 else math.ceil(math.log(0.5) / math.log(self.lipschitz))

    def _decide(self, ratio: Tensor, error: Tensor, rounding: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        if self.tolerance is None:
            return ratio <= _FLOOR, torch.zeros_like(ratio, dtype=torch.bool)
        goal = self.tolerance * scale
        measure = error if self.lipschitz is not None else error - rounding
        done = measure <= goal
        if self.is_lenient:
            return done | (ratio <= _FLOOR), torch.zeros_like(done)
        return done, (ratio <= 1) & (1.25 * rounding > goal) & ~done


class Outcome(NamedTuple):
    """What a solve gives, for all rows.

    Args:
        x: The solution, shape (batch, size).
        evaluations: Until a row was done, shape (batch,).
        residual: |r|.
        error: Its bound.
        scale: What errors are compared with.
    """

    x: Tensor
    evaluations: Tensor
    residual: Tensor
    error: Tensor
    scale: Tensor

    @classmethod
    def like(cls, y: Tensor) -> Outcome:
        """Room for an outcome.

        Args:
            y: The right side, shape (batch, size).

        Returns:
            The outcome of no solve.
        """
        zeros = y.new_zeros(len(y))
        evaluations = torch.zeros(len(y), dtype=torch.int64, device=y.device)
        return cls(y.clone(), evaluations, zeros, zeros.clone(), zeros.clone())

    def write(self, rows: Tensor, of: Tensor, point: Point, verdict: Verdict, n: int, units: Tensor | None) -> None:
        """Note the result of finished rows.

        Args:
            rows: Their indices in the whole batch.
            of: Their indices in the point.
            point: Where they stopped.
            verdict: What is known of it.
            n: Evaluations so far.
            units: What the point's rows are measured in, shape (batch, 1); None: 1.
        """
        unit = 1.0 if units is None else units[of]
        flat = 1.0 if units is None else units[of, 0]
        self.x[rows] = point.z[of] * unit
        self.evaluations[rows] = n
        for target, value in zip(self[2:], (point.size, verdict.error, verdict.scale), strict=True):
            target[rows] = value[of] * flat

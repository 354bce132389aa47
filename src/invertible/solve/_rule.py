"""What is known of a point: its error, how much of that is rounding, and whether it may stop there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from invertible.solve._point import Bools, Floats, Ints

_GRAIN = 3.0
"""Rounding inside g, in units of half an ulp of |g(x)| + L |x|. Measured: linear maps, convolutions and nets of three
layers stay below 1.5 with sizes up to 4096."""
_VISIBLE = 1e-3
"""A difference of g-values this much (relative) above the Lipschitz constant may be the rounding of norms."""
_TINY = 1e-38
"""Below what float32 can hold in full precision, nothing is known."""
_FLOOR = 0.7
"""The residual is as small as it need be once it is this part of the rounding."""
_ROUGH = 1024.0
"""Rounding up to so many times what is expected is believed to be rounding."""


class Past(NamedTuple):
    """How a point was reached. All of shape (batch,).

    Args:
        seen: Rounding errors of z that were seen.
        goal: Half of what |r| was when it was last halved.
        age: Evaluations since then.
        dx_size: |dx| of the step.
        dg_size: |dg| of the step.
    """

    seen: Floats
    goal: Floats
    age: Floats
    dx_size: Floats
    dg_size: Floats


class Sizes(NamedTuple):
    """Norms at a point, shape (batch,).

    Args:
        r: |r|.
        z: |z|.
        g: |g(x)|.
        y: |y|.
    """

    r: Floats
    z: Floats
    g: Floats
    y: Floats


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

    seen: Floats
    goal: Floats
    age: Floats
    error: Floats
    scale: Floats
    is_done: Bools
    is_stuck: Bools
    is_steep: Bools

    def keep(self, kept: Ints) -> Verdict:
        """Go on with some rows.

        Args:
            kept: Their indices.

        Returns:
            What is known of these.
        """
        return Verdict._make(part[kept] for part in self)


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

    def judge(self, sizes: Sizes, unit: float, past: Past | None = None) -> Verdict:
        """Judge a point.

        Args:
            sizes: Of the point.
            unit: The relative precision of g.
            past: How it was reached; None: it is the first.

        Returns:
            What is known.
        """
        slope, gap = (1.0, 1.0) if self.lipschitz is None else (self.lipschitz, 1 - self.lipschitz)
        expected = unit / 2 * (sizes.z * (1 + _GRAIN * slope) + _GRAIN * sizes.g) + _TINY
        goal, age = self._watch(sizes.r, past)
        seen, is_steep = self._learn(sizes.r, expected, slope, past, age)
        noise, scale = np.maximum(seen, expected), np.maximum(sizes.y, sizes.z)
        rounding = noise / gap + self.output_unit / 2 * sizes.z
        error = rounding + sizes.r * (slope / gap)
        done, stuck = self._decide(sizes.r * slope / noise, error, rounding, scale)
        return Verdict(seen, goal, age, error, scale, done, stuck, is_steep)

    def _watch(self, size: Floats, past: Past | None) -> tuple[Floats, Floats]:
        if past is None:
            return size / 2, np.zeros_like(size)
        is_halved = size <= past.goal
        return np.where(is_halved, size / 2, past.goal), np.where(is_halved, 0.0, past.age + 1)

    def _learn(
        self, size: Floats, expected: Floats, slope: float, past: Past | None, age: Floats
    ) -> tuple[Floats, Bools]:
        if past is None:
            return np.zeros_like(size), np.zeros_like(size, dtype=np.bool_)
        is_stalled = (age > 2 * self.half_life + 4) & (size < _ROUGH * expected)
        seen = np.maximum(past.seen, np.where(is_stalled, 2 * size, 0.0))
        if self.lipschitz is None:
            return seen, np.zeros_like(is_stalled)
        allowed = slope * past.dx_size  # a change of g beyond it is rounding, or the constant is wrong
        seen = np.maximum(seen, 2 * ((1 - _VISIBLE) * past.dg_size - allowed))
        return seen, (1 - 10 * _VISIBLE) * past.dg_size > allowed + _ROUGH * expected

    @property
    def half_life(self) -> int:
        """After so many plain steps the residual is half of what it was, at the latest; 10 where that is not known."""
        if self.lipschitz is None:
            return 10
        return 1 if self.lipschitz < 0.5 else math.ceil(math.log(0.5) / math.log(self.lipschitz))

    def _decide(self, ratio: Floats, error: Floats, rounding: Floats, scale: Floats) -> tuple[Bools, Bools]:
        at_floor = ratio <= _FLOOR
        if self.tolerance is None:
            return at_floor, np.zeros_like(at_floor)
        goal = self.tolerance * scale
        done = (error if self.lipschitz is not None else error - rounding) <= goal
        if self.is_lenient:
            return done | at_floor, np.zeros_like(done)
        return done, (ratio <= 1) & (1.25 * rounding > goal) & ~done

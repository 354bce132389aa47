"""The iteration itself: evaluate g, judge each sample, take the finished ones out, choose the next point."""

from __future__ import annotations

from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from invertible.solve._anderson import Anderson
from invertible.solve._broyden import Broyden
from invertible.solve._errors import Failure, State, failure
from invertible.solve._point import Bools, Floats, Ints, Outcome, Point, norms
from invertible.solve._rows import Rows
from invertible.solve._rule import Past, Rule, Sizes, Verdict
from invertible.solve.solver import FixedPointSolver

_ACCELERATIONS = {"anderson": Anderson, "broyden": Broyden}
_MAX_STRIKES = 2
_WORTH_COMPACTING = 0.8
_SAFE = 1e12
"""Samples of a size within this factor of 1 are solved as they are: their squares are far from overflow."""


class FixedPoint:
    """One solve of x + g(x) = y.

    A step that an acceleration chose and that makes a sample's residual grow is taken back: the plain iteration goes on
    from the point before, and after two such steps it is not left again.

    Args:
        g: The map.
        y: Shape (batch, size); batch and size are not 0.
        rule: When to stop.
        solver: How to go on.
    """

    def __init__(self, g: Rows, y: Tensor, rule: Rule, solver: FixedPointSolver) -> None:
        n = len(y)
        self._g, self._rule, self._solver, self._device = g, rule, solver, y.device
        self._rows, self._is_done = np.arange(n, dtype=np.int64), np.zeros(n, np.bool_)
        self._n, self._n_left = 1, n
        self._strikes = np.zeros(n, np.int64)
        self._has_settled = np.zeros(n, np.bool_)  # whose steps are plain ones from now on
        self._is_plain = np.full(n, solver.method == "plain")  # whose next step is
        self._acceleration = None if solver.method == "plain" else _ACCELERATIONS[solver.method](y, solver.memory)
        self._outcome = Outcome.like(y)
        self._y, self._units = y, None

    def run(self) -> Outcome:
        """Iterate.

        Returns:
            The solution and what is known of it, for each row.
        """
        with np.errstate(all="ignore"):  # what is not finite is looked for
            self._start()
            while self._n_left:
                if self._n == self._solver.max_evaluations:
                    self._fail("slow", ~self._is_done, self._point.size)
                self._compact()
                self._advance()
        return self._outcome

    def _start(self) -> None:
        y, gx = self._y, self._g(self._y)
        z = y - gx
        r = z - y
        sizes = Sizes(*norms(r, z, gx, y))
        most = np.maximum(sizes.g, sizes.y)
        if not ((most < _SAFE) & (most > 1 / _SAFE)).all():
            y, z, r, sizes = self._rescale(y, gx)
        self._y, self._y_size, self._point = y, sizes.y, Point(y, z, r, sizes.r)
        self._conclude(self._rule.judge(sizes, self._g.unit), self._point, self._is_done)

    def _rescale(self, y: Tensor, gx: Tensor) -> tuple[Tensor, Tensor, Tensor, Sizes]:
        most = torch.maximum(y.abs().amax(dim=1), gx.abs().amax(dim=1))
        exponents = torch.frexp(most)[1].clamp(-120, 120)  # that of 0 is 0
        self._units = torch.ldexp(torch.ones_like(most), exponents).unsqueeze(1)
        self._g.rescale(self._units)
        y, gx = y / self._units, gx / self._units
        z = y - gx
        return y, z, z - y, Sizes(*norms(z - y, z, gx, y))

    def _advance(self) -> None:
        old, x = self._point, self._next()
        gx = self._g(x)
        self._n += 1
        z = self._y - gx
        r, dz = z - x, z - old.z
        dx = x - old.x
        size, z_size, g_size, dx_size, dg_size = norms(r, z, gx, dx, dz)
        past = Past(self._verdict.seen, self._verdict.goal, self._verdict.age, dx_size, dg_size)
        verdict = self._rule.judge(Sizes(size, z_size, g_size, self._y_size), self._g.unit, past)
        growth = np.inf if self._acceleration is None else self._acceleration.growth
        has_grown = (size > growth * old.size) & ~self._is_plain & ~(verdict.is_done | self._is_done)
        self._point = Point(x, z, r, size)
        self._conclude(verdict, self._point, has_grown)
        if self._acceleration is not None and self._n_left:
            self._acceleration.learn(dx, dz)
            self._take_back(has_grown, old)

    def _next(self) -> Tensor:
        z = self._point.z
        if self._acceleration is None:
            return z
        x = self._acceleration.propose(z, self._point.r)
        return torch.where(self._column(self._has_settled), z, x) if self._has_settled.any() else x

    def _column(self, mask: Bools) -> Tensor:
        return torch.from_numpy(mask).to(self._device).unsqueeze(1)

    def _take_back(self, rows: Bools, old: Point) -> None:
        if rows.any() and self._acceleration is not None:
            self._acceleration.forget(self._column(rows).squeeze(1))  # so that the next step is plain
            self._point = old.where(rows, self._point)
            self._strikes = self._strikes + rows
            if self._rule.lipschitz is not None:  # else the plain iteration may be the worse
                self._has_settled = self._strikes >= _MAX_STRIKES
        self._is_plain = rows | self._has_settled

    def _conclude(self, verdict: Verdict, point: Point, has_grown: Bools) -> None:
        """Raise what is to be raised, and write down the rows that are done."""
        self._verdict, is_open = verdict, ~self._is_done
        is_infinite = ~np.isfinite(point.size)
        if ((is_infinite | verdict.is_steep | verdict.is_stuck) & is_open).any():
            self._explain({"infinite": is_infinite, "steep": verdict.is_steep, "stuck": verdict.is_stuck}, point.size)
        new = np.flatnonzero(verdict.is_done & is_open)
        if len(new):
            self._write(new, verdict, point)

    def _explain(self, wrong: dict[Failure, Bools], size: Floats) -> None:
        for kind, rows in wrong.items():
            if (rows & ~self._is_done).any():
                self._fail(kind, rows & ~self._is_done, size)

    def _write(self, new: Ints, verdict: Verdict, point: Point) -> None:
        of, rows = torch.from_numpy(new).to(self._device), self._rows[new]
        x, unit = point.z.index_select(0, of), 1.0
        if self._units is not None:
            x = x * self._units.index_select(0, of)
            unit = self._units.squeeze(1).cpu().numpy().astype(np.float64)[new]
        self._outcome.x.index_copy_(0, torch.from_numpy(rows).to(self._device), x)
        self._outcome.evaluations[rows] = self._n
        values: tuple[Floats, ...] = (point.size, verdict.error, verdict.scale)
        for target, value in zip(self._outcome[2:], values, strict=True):
            target[rows] = value[new] * unit
        self._is_done = self._is_done.copy()
        self._is_done[new] = True
        self._n_left -= len(new)

    def _compact(self) -> None:
        if not self._solver.compact or self._n_left > _WORTH_COMPACTING * len(self._rows):
            return
        kept = np.flatnonzero(~self._is_done)
        self._rows, self._point, self._y_size = self._rows[kept], self._point.keep(kept), self._y_size[kept]
        self._verdict = self._verdict.keep(kept)
        self._is_done, self._strikes = self._is_done[kept], self._strikes[kept]
        self._is_plain, self._has_settled = self._is_plain[kept], self._has_settled[kept]
        rows = torch.from_numpy(kept).to(self._device)
        self._y = self._y.index_select(0, rows)
        self._units = None if self._units is None else self._units.index_select(0, rows)
        self._g.keep(rows, torch.from_numpy(self._rows).to(self._device))
        if self._acceleration is not None:
            self._acceleration.keep(rows)

    def _fail(self, kind: Failure, rows: Bools, size: Floats) -> NoReturn:
        relative = np.where(size == 0, 0.0, size / self._verdict.scale)
        worst = int(np.where(rows, np.nan_to_num(relative, nan=np.inf), -1.0).argmax())
        error = float(self._verdict.error[worst] / self._verdict.scale[worst])
        state = State(int(self._rows[worst]), int(rows.sum()), self._n, float(relative[worst]), error)
        raise failure(kind, state, self._solver, self._rule.lipschitz, self._y.dtype)

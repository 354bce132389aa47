"""The iteration itself: evaluate g, judge each sample, take the finished ones out, choose the next point."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from invertible._anderson import Anderson
from invertible._broyden import Broyden
from invertible._rows import Rows
from invertible._rule import Outcome, Past, Point, Rule, Verdict, norm
from invertible._solve_errors import Failure, State, failure
from invertible._solver import FixedPointSolver, relative

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
        self._g, self._rule, self._solver = g, rule, solver
        self._rows = torch.arange(len(y), device=y.device)
        self._is_done = torch.zeros_like(self._rows, dtype=torch.bool)
        self._n, self._n_left = 1, len(y)
        self._strikes, self._is_any_settled = torch.zeros_like(self._rows), False
        self._has_settled = self._is_done  # whose steps are plain ones from now on
        self._is_plain = torch.full_like(self._is_done, solver.method == "plain")  # whose next step is
        self._acceleration = _ACCELERATIONS[solver.method](y, solver.memory) if solver.method != "plain" else None
        self._outcome = Outcome.like(y)
        self._y, self._units, self._point = self._first(y)
        self._y_size = norm(self._y)

    def run(self) -> Outcome:
        """Iterate.

        Returns:
            The solution and what is known of it, for each row.
        """
        none = torch.zeros_like(self._is_done)
        self._conclude(self._rule.judge(self._point, self._y_size, self._g.unit), self._point, none)
        while self._n_left:
            if self._n == self._solver.max_evaluations:
                self._fail("slow", ~self._is_done, self._point)
            self._compact()
            self._advance()
        return self._outcome

    def _first(self, y: Tensor) -> tuple[Tensor, Tensor | None, Point]:
        gx, units = self._g(y), None
        sizes = torch.maximum(y.abs().amax(dim=1), gx.abs().amax(dim=1))
        if bool(((sizes > _SAFE) | ((sizes < 1 / _SAFE) & (sizes > 0))).any()):
            exponents = torch.frexp(sizes)[1].clamp(-120, 120)
            units = torch.ldexp(torch.ones_like(sizes), exponents).unsqueeze(1)
            y, gx = y / units, gx / units
            self._g.rescale(units)
        return y, units, Point.at(y, y, gx)

    def _advance(self) -> None:
        old, x = self._point, self._next()
        new = Point.at(x, self._y, self._g(x))
        self._n += 1
        dx, dz = new.x - old.x, new.z - old.z
        past = Past(self._verdict.seen, self._verdict.goal, self._verdict.age, norm(dx), norm(dz))
        verdict = self._rule.judge(new, self._y_size, self._g.unit, past)
        growth = torch.inf if self._acceleration is None else self._acceleration.growth
        has_grown = (new.size > growth * old.size) & ~self._is_plain & ~(verdict.is_done | self._is_done)
        is_any_back = self._conclude(verdict, new, has_grown)
        if self._acceleration is not None:
            self._acceleration.learn(dx, new.r - old.r)
            self._is_plain = self._has_settled
            if is_any_back:
                new = old.where(has_grown, new)
                self._take_back(has_grown)
        self._point = new

    def _next(self) -> Tensor:
        z = self._point.z
        if self._acceleration is None:
            return z
        x = self._acceleration.propose(z, self._point.r)
        return torch.where(self._has_settled.unsqueeze(1), z, x) if self._is_any_settled else x

    def _take_back(self, rows: Tensor) -> None:
        if self._acceleration is not None:
            self._acceleration.forget(rows)  # so that the next step is plain
        self._strikes = self._strikes + rows
        if self._rule.lipschitz is not None:  # else the plain iteration may be the worse
            self._has_settled = self._strikes >= _MAX_STRIKES
            self._is_any_settled = bool(self._has_settled.any())
        self._is_plain = rows | self._has_settled

    def _conclude(self, verdict: Verdict, point: Point, has_grown: Tensor) -> bool:
        """Raise what is to be raised, and write down the rows that are done.

        Args:
            verdict: What is known of each row.
            point: Where the rows are.
            has_grown: Rows that will be taken back.

        Returns:
            Whether there are such rows.
        """
        self._verdict, open_ = verdict, ~self._is_done
        new = verdict.is_done & open_
        wrong = [~torch.isfinite(point.size) & open_, verdict.is_steep & open_, verdict.is_stuck & open_]
        is_new, is_any_back, *is_wrong = torch.stack([new, has_grown, *wrong]).any(dim=1).tolist()
        if True in is_wrong:
            kind = is_wrong.index(True)
            self._fail(("infinite", "steep", "stuck")[kind], wrong[kind], point)
        if is_new:
            of = new.nonzero().squeeze(1)
            self._outcome.write(self._rows[of], of, point, verdict, self._n, self._units)
            self._is_done = self._is_done | new
            self._n_left -= len(of)
        return is_any_back

    def _compact(self) -> None:
        n = len(self._rows)
        if not self._solver.compact or self._n_left > _WORTH_COMPACTING * n:
            return
        kept = (~self._is_done).nonzero().squeeze(1)
        self._rows, self._y, self._point = self._rows[kept], self._y.index_select(0, kept), self._point.keep(kept)
        self._y_size, self._verdict = self._y_size[kept], Verdict(*(part[kept] for part in self._verdict))
        self._is_done, self._strikes = self._is_done[kept], self._strikes[kept]
        self._is_plain, self._has_settled = self._is_plain[kept], self._has_settled[kept]
        self._units = None if self._units is None else self._units[kept]
        self._g.keep(kept, self._rows)
        if self._acceleration is not None:
            self._acceleration.keep(kept)

    def _fail(self, kind: Failure, rows: Tensor, point: Point) -> NoReturn:
        worst = int(torch.where(rows, relative(point.size, self._verdict.scale), -1.0).nan_to_num(torch.inf).argmax())
        state = State(
            sample=int(self._rows[worst]),
            n_bad=int(rows.sum()),
            n_evaluations=self._n,
            residual=relative(point.size, self._verdict.scale)[worst].item(),
            error=relative(self._verdict.error, self._verdict.scale)[worst].item(),
        )
        raise failure(kind, state, self._solver, self._rule.lipschitz, point.x.dtype)

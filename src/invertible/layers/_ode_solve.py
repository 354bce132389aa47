"""Explicit Runge-Kutta solvers, with steps of equal length or chosen for a tolerance.

Why not torchdiffeq's: the accepted steps are wanted for the backward pass, the log-determinant is a mere integral along
the path (the slopes with weight zero need none), and steps of equal length must be traceable. Methods that are not here
are torchdiffeq's (`_ode_torchdiffeq`).

Source: Hairer, Norsett and Wanner 1993, "Solving Ordinary Differential Equations I", section II.4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from invertible.errors import ConvergenceError
from invertible.layers._ode_dynamics import Dynamics, count_rates, velocity, velocity_and_rates
from invertible.layers._ode_solver import Solver
from invertible.layers._ode_tableau import TABLEAUS, Tableau

HINT = (
    "a smoother field (kinetic=0.01, smaller weights or learning rate), larger rtol and atol, a shorter time, or"
    " Solver('implicit_adams', n_steps=100)"
)
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 10.0


class Step(NamedTuple):
    """One accepted step: from `z` at `t`, of length `h`."""

    t: float
    h: float
    z: Tensor


class Solution(NamedTuple):
    """Where a solve ended, and how it got there.

    Args:
        z: The last state.
        rates: Integrals of the rates, shape (batch, n_rates); None: none were wanted.
        n_evaluations: Of the field.
        n_rejected: Steps that had to be taken again, smaller.
        steps: The accepted steps.
    """

    z: Tensor
    rates: Tensor | None
    n_evaluations: int = 0
    n_rejected: int = 0
    steps: Sequence[Step] = ()


def solve(dynamics: Dynamics, z: Tensor, span: tuple[float, float], solver: Solver) -> Solution:
    """Integrate, with the methods written here.

    Args:
        dynamics: What to integrate.
        z: The first state, shape (batch, ...).
        span: First and last time.
        solver: How.

    Returns:
        The solution; a function that can be differentiated if gradients are on.

    Raises:
        ConvergenceError: If the last time is out of reach.
    """
    tableau = TABLEAUS[solver.method]
    if solver.n_steps is None:
        return _Adaptive(dynamics, tableau, span, solver).run(z)
    start, end = span
    h, total, steps = (end - start) / solver.n_steps, _zeros(dynamics, z), []
    for i in range(solver.n_steps):
        steps.append(Step(start + i * h, h, z))
        z, rates = take(dynamics, tableau, steps[-1])
        total = None if total is None or rates is None else total + rates
    return Solution(z, total, tableau.n_stages * solver.n_steps, 0, steps)


def take(dynamics: Dynamics, tableau: Tableau, step: Step) -> tuple[Tensor, Tensor | None]:
    """Take one step of given length.

    Args:
        dynamics: What to integrate.
        tableau: The method.
        step: Where and how far.

    Returns:
        The next state, and what the step adds to the rates' integrals.
    """
    slopes: list[Tensor] = []
    rates: list[Tensor] = []
    for i in range(tableau.n_stages):
        _evaluate(dynamics, tableau, step, i, slopes, rates)
    return _advance(step.z, step.h, tableau.weights, slopes), _integral(step.h, tableau, rates)


def _evaluate(
    dynamics: Dynamics, tableau: Tableau, step: Step, i: int, slopes: list[Tensor], rates: list[Tensor]
) -> None:
    z, t = _advance(step.z, step.h, tableau.matrix[i], slopes), step.t + tableau.nodes[i] * step.h
    if dynamics.rates is None or not tableau.weights[i]:
        slopes.append(velocity(dynamics, t, z))
        return
    slope, rate = velocity_and_rates(dynamics, t, z)
    slopes.append(slope)
    rates.append(rate)


def _advance(z: Tensor, h: float, weights: Sequence[float], slopes: list[Tensor]) -> Tensor:
    for weight, slope in zip(weights, slopes, strict=False):
        if weight:
            z = torch.add(z, slope, alpha=h * weight)
    return z


def _integral(h: float, tableau: Tableau, rates: list[Tensor]) -> Tensor | None:
    weights = [weight for weight in tableau.weights if weight]
    total = None
    for weight, rate in zip(weights, rates, strict=False):
        total = rate * (h * weight) if total is None else torch.add(total, rate, alpha=h * weight)
    return total


def _zeros(dynamics: Dynamics, z: Tensor) -> Tensor | None:
    return z.new_zeros(z.shape[0], count_rates(dynamics.rates)) if dynamics.rates is not None else None


class _Adaptive:
    """Steps as long as the tolerance allows, by the method's own estimate of the error."""

    def __init__(self, dynamics: Dynamics, tableau: Tableau, span: tuple[float, float], solver: Solver) -> None:
        self.dynamics, self.tableau, self.solver = dynamics, tableau, solver
        (self.start, self.end), self.n_evaluations, self.n_rejected = span, 0, 0
        self.steps: list[Step] = []

    def run(self, z: Tensor) -> Solution:
        self.z, self.total = z, _zeros(self.dynamics, z)
        if not z.numel():
            return Solution(z, self.total)
        self.rtol, self.atol = self.solver.tolerances(z.dtype)
        self.t, (slope, rate) = self.start, self._at(self.start, z)
        h = self._first(z, slope)
        while self.t != self.end:
            h = self._fit(h)
            slopes, rates, new = self._attempt(Step(self.t, h, self.z), slope, rate)
            ratio = self._ratio(self.z, new, h, slopes)
            if ratio <= 1:
                self._accept(h, new, rates)
                slope, rate = slopes[-1], rates[-1] if rates else None
            else:
                self.n_rejected += 1
            h *= self._factor(ratio)
            self._check(h, ratio)
        return Solution(self.z, self.total, self.n_evaluations, self.n_rejected, self.steps)

    def _at(self, t: float, z: Tensor) -> tuple[Tensor, Tensor | None]:
        self.n_evaluations += 1
        if self.dynamics.rates is None:
            return velocity(self.dynamics, t, z), None
        return velocity_and_rates(self.dynamics, t, z)

    @torch.no_grad()
    def _first(self, z: Tensor, slope: Tensor) -> float:
        # Hairer et al., section II.4, with the velocity once more after a small step.
        scale, span = self.atol + self.rtol * z.abs(), self.end - self.start
        sizes = _worst(torch.stack([z / scale, slope / scale]))
        d0, d1 = sizes.tolist()
        h0 = min(abs(span), 0.01 * d0 / d1 if d0 > 1e-5 and d1 > 1e-5 else 1e-6)
        h0 = math.copysign(h0 or 1e-6, span)
        self.n_evaluations += 1
        ahead = velocity(self.dynamics, self.start + h0, z + h0 * slope)
        d2 = _worst(((ahead - slope) / scale)[None]).item() / abs(h0)
        most = max(d1, d2)
        h1 = max(1e-6, abs(h0) * 1e-3) if most <= 1e-15 else (0.01 / most) ** (1 / self.tableau.order)
        return math.copysign(min(100 * abs(h0), h1, abs(span)), span) if math.isfinite(most) else h0

    def _fit(self, h: float) -> float:
        # The last two steps share what is left.
        left = self.end - self.t
        return left if abs(h) >= abs(left) else left / 2 if abs(h) > 0.6 * abs(left) else h

    def _attempt(self, step: Step, slope: Tensor, rate: Tensor | None) -> tuple[list[Tensor], list[Tensor], Tensor]:
        slopes, rates = [slope], [] if rate is None else [rate]
        last = len(self.tableau.nodes) - 1
        for i in range(1, last):
            _evaluate(self.dynamics, self.tableau, step, i, slopes, rates)
        new = _advance(step.z, step.h, self.tableau.matrix[last], slopes)
        slope, rate = self._at(step.t + step.h, new)
        self.n_evaluations += last - 1
        return [*slopes, slope], rates if rate is None else [*rates, rate], new

    @torch.no_grad()
    def _ratio(self, z: Tensor, new: Tensor, h: float, slopes: list[Tensor]) -> float:
        pairs = [(w, s) for w, s in zip(self.tableau.error, slopes, strict=True) if w]
        error = pairs[0][1] * (h * pairs[0][0])
        for weight, slope in pairs[1:]:
            error.add_(slope, alpha=h * weight)
        scale = torch.maximum(z.abs(), new.abs()).mul_(self.rtol).add_(self.atol)
        ratio = _worst(error.div_(scale)[None]).item()
        return ratio if math.isfinite(ratio) else math.inf

    def _accept(self, h: float, new: Tensor, rates: list[Tensor]) -> None:
        self.steps.append(Step(self.t, h, self.z.detach()))
        self.t = self.end if h == self.end - self.t else self.t + h
        self.z = new
        added = _integral(h, self.tableau, rates)
        if added is not None and self.total is not None:
            self.total = self.total + added

    def _factor(self, ratio: float) -> float:
        best = _SAFETY * ratio ** (-1 / self.tableau.order) if ratio > 0 else _GROW
        return max(_SHRINK, min(best, _GROW if ratio <= 1 else 1.0))

    def _check(self, h: float, ratio: float) -> None:
        if self.t == self.end:
            return
        if self.n_evaluations >= self.solver.max_evaluations:
            fail(f"more than {self.solver.max_evaluations} evaluations are needed", self._where(h))
        if abs(h) <= 16 * math.ulp(max(abs(self.t), abs(self.end - self.start))):
            why = "the field is not finite" if ratio == math.inf else "the steps have become too small"
            fail(why, self._where(h))

    def _where(self, h: float) -> str:
        size = self.z.detach().abs().max().item()
        return (
            f"time {self.t:.4g} after {self.n_evaluations} evaluations, {len(self.steps)} steps and"
            f" {self.n_rejected} rejected ones (next step {h:.2g}); the largest number of the state is {size:.3g}"
        )


def fail(why: str, got: str) -> None:
    """Give up on a solve.

    Args:
        why: What went wrong.
        got: How far it came.

    Raises:
        ConvergenceError: Always.
    """
    raise ConvergenceError(f"an ODE could not be solved, {why}", expected="the last time", got=got, hint=HINT)


def _worst(x: Tensor) -> Tensor:
    # (k, batch, ...) -> (k,): the largest root mean square of one element.
    return x.flatten(2).square().mean(dim=2).amax(dim=1).sqrt() if x.ndim > 2 else x.abs().amax(dim=1)

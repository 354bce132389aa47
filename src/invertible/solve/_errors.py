"""What is said when x + g(x) = y cannot be solved as asked."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

from invertible.errors import ConvergenceError, InvertibleError, NonFiniteError, RangeError
from invertible.solve.solver import FixedPointSolver

Failure = Literal["infinite", "steep", "stuck", "slow"]


class State(NamedTuple):
    """Where a solve stood when it failed.

    Args:
        sample: The worst one's index in the batch.
        n_bad: How many samples failed.
        n_evaluations: Of g so far.
        residual: Of the worst sample, relative.
        error: Its guaranteed error, relative.
    """

    sample: int
    n_bad: int
    n_evaluations: int
    residual: float
    error: float


def failure(
    kind: Failure, state: State, solver: FixedPointSolver, lipschitz: float | None, dtype: torch.dtype
) -> InvertibleError:
    """The error that says what happened.

    Args:
        kind: What happened.
        state: Where.
        solver: What was asked for.
        lipschitz: What was promised.
        dtype: What was computed in.

    Returns:
        The error to raise.
    """
    where = f"sample {state.sample} is the worst of {state.n_bad} after {state.n_evaluations} evaluations of g"
    if kind == "infinite":
        hint = "check g's weights, and whether g is meant for inputs of this size"
        if lipschitz is None:
            hint += "; an iteration runs away where g is no contraction: constrain(g, c) with c below 1"
        return NonFiniteError("g must be finite", expected="finite values", got=f"NaN or infinity, {where}", hint=hint)
    if kind == "steep":
        hint = (
            "eval() if g draws at random (dropout); a sound bound of the Lipschitz constant; float64 if g computes "
            "with large numbers inside"
        )
        got = f"two points whose images are farther apart than that allows, {where}"
        expected = f"a map with Lipschitz constant {lipschitz:.6g}"
        return RangeError("g is steeper than it is said to be", expected=expected, got=got, hint=hint)
    known = "" if lipschitz is None else f", guaranteed relative error {state.error:.2e}"
    got = f"relative residual {state.residual:.2e}{known}; {where}"
    return _not_converged(kind, got, solver, lipschitz, dtype)


def _not_converged(
    kind: Failure, got: str, solver: FixedPointSolver, lipschitz: float | None, dtype: torch.dtype
) -> ConvergenceError:
    wanted = "the rounding of the numbers" if solver.tolerance is None else f"tolerance {solver.tolerance:g}"
    precise = "" if dtype == torch.float64 else "float64, "
    smaller = "a g with a Lipschitz constant below 1" if lipschitz is None else "a smaller Lipschitz constant (c)"
    if kind == "stuck":
        problem, hint = "the tolerance is below what rounding allows", f"a larger tolerance, {precise}{smaller}"
        if solver.tolerance is not None:
            hint += ", or tolerance=None for as far as the precision goes"
    else:
        problem = f"x + g(x) = y is not solved within max_evaluations={solver.max_evaluations}"
        hint = f"more evaluations, a larger tolerance, {precise}{smaller}"
    return ConvergenceError(problem, expected=wanted, got=got, hint=hint)

"""x with x + g(x) = y, for a contraction g: found with a bound of its error, and differentiable."""

from invertible.solve.inverse import solve_linear, solve_residual
from invertible.solve.solver import FixedPointSolver, SolveReport

__all__ = ["FixedPointSolver", "SolveReport", "solve_linear", "solve_residual"]

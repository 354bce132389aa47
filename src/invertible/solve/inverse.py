"""The inverse of a residual map: x with x + g(x) = y, where g is a contraction, with a bound of its error.

F(x) = y - g(x) brings points closer together by the factor L, g's Lipschitz constant. So there is one solution x*, and
|F(x) - x*| <= L / (1 - L) |F(x) - x| for any x whatever: an acceleration may choose the points as it likes and the
bound holds.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from invertible._checks import check_finite, check_floating, describe
from invertible.errors import ConfigError, RangeError, ShapeError
from invertible.solve._fixed_point import FixedPoint
from invertible.solve._implicit import Implicit, Pullback
from invertible.solve._point import Outcome
from invertible.solve._rows import Map, Rows, Select
from invertible.solve._rule import Rule
from invertible.solve.solver import FixedPointSolver, SolveReport

_DEFAULT = FixedPointSolver()


def solve_residual(
    g: Map,
    y: Tensor,
    lipschitz: float | None,
    solver: FixedPointSolver = _DEFAULT,
    select: Select | None = None,
) -> tuple[Tensor, SolveReport]:
    """Solve x + g(x) = y for x, each sample to the tolerance.

    Samples that are done cost nothing more: g is called on the others only. A g that depends on the row (a context)
    needs `select`. g must be a function: dropout or batch statistics make it another one at each call.

    The guaranteed error allows for rounding, as estimated from the size of x, y and g(x) and from what was seen of it.
    bfloat16 and float16 are solved in float32 and rounded in the end; autocast is off.

    **Gradient.** The solution can be differentiated once, with respect to y and to anything that g depends on, by
    implicit differentiation: memory holds one evaluation of g, however many there were. The linear system of the
    backward pass is solved in the same way, to the same tolerance or to its rounding where that is larger.

    Args:
        g: From a tensor of shape (rows, ...) to one of the same shape.
        y: The right side, shape (batch, ...).
        lipschitz: An upper bound of g's Lipschitz constant in the Euclidean norm, below 1; None: not known. Then
            nothing is guaranteed and the residual alone decides.
        solver: How.
        select: From indices of rows (int64, shape (rows,)) to g for these rows of the batch. None: g takes any rows.

    Returns:
        x, in y's shape and dtype, and how the solve went.

    Raises:
        ConfigError: If called under compile, export or `torch.func`.
        ConvergenceError: If the tolerance cannot be reached, or not within the allowed evaluations.
        DtypeError: If y holds no real numbers, or g gives none.
        NonFiniteError: If y or a value of g is NaN or infinite.
        RangeError: If the Lipschitz constant is not in [0, 1), or g is seen to be steeper.
        ShapeError: If y has no batch dimension, or g changes the shape.

    Source: Behrmann et al. 2019 (i-ResNet), Algorithm 1.

    Example:
        >>> layer = torch.nn.Linear(3, 3)
        >>> g = lambda x: 0.5 * layer(x) / torch.linalg.matrix_norm(layer.weight, 2)
        >>> x, report = solve_residual(g, torch.ones(4, 3), lipschitz=0.5)
        >>> torch.allclose(x + g(x), torch.ones(4, 3), atol=1e-5), report.converged.all().item()
        (True, True)
    """
    lipschitz = _check(y, lipschitz)
    y = y.clone() if y.is_inference() and not torch.is_inference_mode_enabled() else y
    if y.numel() == 0:
        return y + 0, _report(Outcome.like(y.detach().new_zeros(len(y), 0)), solver, lipschitz)
    low = y.dtype in (torch.bfloat16, torch.float16)
    rule = Rule(lipschitz, solver.tolerance, output_unit=torch.finfo(y.dtype).eps if low else 0.0)
    with torch.autocast(y.device.type, enabled=False):
        precise = y.float() if low else y
        rows = Rows(g, select, precise.detach(), watches=torch.is_grad_enabled() and not y.requires_grad)
        outcome = _solve(rows, precise.detach(), rule, solver)
        x = outcome.x.view_as(y)
        if torch.is_grad_enabled() and (y.requires_grad or rows.needs_graph):
            x = _with_gradient(g, precise, x, lipschitz, solver, select)
    return x.to(y.dtype), _report(outcome, solver, lipschitz)


def solve_linear(
    product: Map,
    v: Tensor,
    lipschitz: float | None,
    solver: FixedPointSolver = _DEFAULT,
    select: Select | None = None,
) -> tuple[Tensor, SolveReport]:
    """Solve (1 + A) w = v for w, each sample by itself, given products with A; of norm below 1.

    It is `solve_residual` for a map that is linear in each sample, without a graph, and with a tolerance below the
    rounding read as the rounding. The gradient of an inverse is such a system, with A = J^T.

    Args:
        product: From w, shape (rows, ...), to A w.
        v: The right side, shape (batch, ...).
        lipschitz: An upper bound of A's largest singular value, below 1; None: not known.
        solver: How.
        select: From indices of rows to the products for these rows.

    Returns:
        w, in v's shape and dtype, and how the solve went.

    Raises:
        ConfigError: As `solve_residual`.
        ConvergenceError: As `solve_residual`, but for a tolerance below the rounding.
        DtypeError: As `solve_residual`.
        NonFiniteError: As `solve_residual`.
        RangeError: As `solve_residual`.
        ShapeError: As `solve_residual`.

    Example:
        >>> a = torch.tensor([[0.0, 0.5], [0.2, 0.0]])
        >>> w, _ = solve_linear(lambda w: w @ a.T, torch.ones(1, 2), lipschitz=0.5)
        >>> torch.allclose(w, torch.linalg.solve(torch.eye(2) + a, torch.ones(2)))
        True
    """
    lipschitz = _check(v, lipschitz)
    v = v.detach()
    if v.numel() == 0:
        return v.clone(), _report(Outcome.like(v.new_zeros(len(v), 0)), solver, lipschitz)
    low = v.dtype in (torch.bfloat16, torch.float16)
    rule = Rule(lipschitz, solver.tolerance, True, torch.finfo(v.dtype).eps if low else 0.0)
    with torch.autocast(v.device.type, enabled=False):
        precise = v.float() if low else v
        outcome = _solve(Rows(product, select, precise), precise, rule, solver)
    return outcome.x.view_as(v).to(v.dtype), _report(outcome, solver, lipschitz)


def _check(y: Tensor, lipschitz: float | None) -> float | None:
    check_floating(y, "the solver")
    if y.ndim < 1:
        raise ShapeError("the solver works on batches", expected="shape (batch, ...)", got=describe(y))
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or y.is_meta:
        raise ConfigError(
            "how often g is evaluated depends on values, which compile, export, torch.func and meta tensors cannot see",
            hint="torch.compile(..., fullgraph=False) round the parts without an inverse; a loop in place of vmap",
        )
    check_finite(y, "y")
    if lipschitz is None:
        return None
    lipschitz = float(lipschitz)
    if not 0 <= lipschitz < 1:
        hint = "constrain g's layers; lipschitz=None solves without a guarantee"
        raise RangeError("no contraction", expected="a Lipschitz constant in [0, 1)", got=lipschitz, hint=hint)
    return lipschitz


@torch.no_grad()
def _solve(g: Rows, y: Tensor, rule: Rule, solver: FixedPointSolver) -> Outcome:
    return FixedPoint(g, y.reshape(len(y), -1), rule, solver).run()


def _with_gradient(
    g: Map, y: Tensor, x: Tensor, lipschitz: float | None, solver: FixedPointSolver, select: Select | None
) -> Tensor:
    z = y - g(x).to(y.dtype)

    def transpose(x: Tensor, v: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            pullback = Pullback(x, g, select)
            return solve_linear(pullback, v, lipschitz, solver, pullback.of_rows)[0]

    return cast(Tensor, Implicit.apply(z, x, transpose))


def _report(outcome: Outcome, solver: FixedPointSolver, lipschitz: float | None) -> SolveReport:
    device = outcome.x.device
    evaluations, residual, error, scale = (torch.from_numpy(part).to(device) for part in outcome[1:])
    return SolveReport(
        evaluations=evaluations,
        residual=residual,
        guaranteed_error=None if lipschitz is None else error,
        scale=scale,
        converged=torch.ones_like(evaluations, dtype=torch.bool),
        method=solver.method,
        lipschitz=lipschitz,
        tolerance=solver.tolerance,
    )

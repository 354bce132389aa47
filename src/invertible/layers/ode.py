"""Continuous flows: the solution of an ordinary differential equation is invertible, whatever the network in it.

z(0) = x, dz/dt = f(t, z), y = z(T), and log|det dy/dx| is the integral of the divergence of f along the path.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from invertible._checks import can_look, check_placement
from invertible.bijection import Bijection
from invertible.errors import ConfigError
from invertible.layers._ode_dynamics import Dynamics, Rates, count_rates, rademacher
from invertible.layers._ode_gradient import solve_and_replay
from invertible.layers._ode_report import OdeError, OdeReport
from invertible.layers._ode_solve import Solution, solve
from invertible.layers._ode_solver import Solver
from invertible.layers._ode_torchdiffeq import solve_with_torchdiffeq
from invertible.layers.vector_field import as_field

Trace = Literal["auto", "exact", "hutchinson"]
_COMPARABLE = 1024


class ContinuousFlow(Bijection):
    """The flow of dz/dt = f(t, z) from time 0 to `time`; its inverse solves backwards.

    Adaptive solves end with an error of about the tolerances, which `measure` tells; a solve that does not get through
    raises. Everything is computed without autocast, and bfloat16 in float32.

    **Log-determinant.** The integral of the divergence of f: exact, or by Hutchinson's estimate e^T J e with random
    signs e, drawn once per solve from the global random state: unbiased, but random. `trace="auto"` is exact for few
    numbers per element (8, more where the field has a cheap formula) and Hutchinson above, in training and in eval
    mode; `flow.trace = "exact"` before an evaluation that shall not be random. `forward` and `inverse` integrate z
    alone, over the same steps.

    **Regularisation.** With `kinetic` and `jacobian` the gradients are those of logdet - kinetic * integral |f|^2
    - jacobian * integral |J|_F^2 (sums over an element's numbers; |J e|^2 estimates the squared Frobenius norm), while
    the value stays the log-determinant's. So minimising the mean negative log-likelihood minimises it plus the
    penalties, however the flow is trained. In eval mode nothing is added.

    Args:
        field: A `VectorField`, or a module to be called as f(x) or f(t, x).
        time: T.
        solver: How to solve, and differentiate; None: `Solver()`, Dormand-Prince with tolerances 1e-5.
        trace: "auto", "exact" or "hutchinson".
        kinetic: Weight of the kinetic energy; makes paths straight, and the equation cheap to solve.
        jacobian: Weight of the Jacobian's norm.

    Attributes:
        report: How the last solve went; None before.
        solver: As above; may be changed.
        trace: As above; may be changed.

    Raises:
        ConfigError: If an argument does not fit; when called under `torch.func.vmap`, compile or export with an
            adaptive solver.
        DtypeError: If the field is no module; when called: if its dtype or device is not the input's.
        ConvergenceError: When called: if the solver does not get through.

    Source: Chen et al. 2018 (Neural ODE), theorem 1; Grathwohl et al. 2019 (FFJORD), section 3; Finlay et al. 2020
        (RNODE), section 3.

    Example:
        >>> from invertible.layers import MLPField
        >>> flow, x = ContinuousFlow(MLPField(2, hidden=(16,))), torch.randn(5, 2)
        >>> y, logdet = flow.forward_with_logdet(x)
        >>> torch.allclose(flow.inverse(y), x, atol=1e-3), flow.report.direction
        (True, 'inverse')
    """

    has_closed_inverse = False

    def __init__(
        self,
        field: nn.Module,
        time: float = 1.0,
        solver: Solver | None = None,
        trace: Trace = "auto",
        kinetic: float = 0.0,
        jacobian: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 < time < math.inf or not (0 <= kinetic < math.inf and 0 <= jacobian < math.inf):
            got = f"time={time}, kinetic={kinetic}, jacobian={jacobian}"
            raise ConfigError("a continuous flow is out of range", expected="time > 0, weights >= 0", got=got)
        if trace not in ("auto", "exact", "hutchinson"):
            raise ConfigError("unknown trace", expected="'auto', 'exact' or 'hutchinson'", got=repr(trace))
        self.field = as_field(field)
        self.time, self.solver, self.kinetic, self.jacobian = time, solver or Solver(), kinetic, jacobian
        self.trace: Trace = trace
        self.takes_context = self.field.takes_context
        self.report: OdeReport | None = None

    def extra_repr(self) -> str:
        """What `print(module)` shows.

        Returns:
            Time, solver and trace.
        """
        return f"time={self.time:g}, solver={self.solver}, trace={self.trace!r}"

    def measure(self, x: Tensor, context: Any = None) -> OdeError:
        """Measure the error of this flow's solves, against those of a copy in float64 with tighter tolerances.

        Args:
            x: Data, shape (batch, ...).
            context: As in `forward`.

        Returns:
            The errors. With equal steps, the copy takes 100 ** (1 / order) times as many, at least twice.
        """
        tight = copy.deepcopy(self).double()
        tight.solver = _tighter(self.solver)
        fine = None if context is None else context.double() if context.is_floating_point() else context
        with torch.no_grad(), torch.random.fork_rng():
            y, logdet = _seeded(lambda: self.forward_with_logdet(x, context))
            n = self.report.n_evaluations if self.report else 0
            back = self.inverse(y, context)
            true, true_logdet = _seeded(lambda: tight.forward_with_logdet(x.double(), fine))
            n_tight = tight.report.n_evaluations if tight.report else 0
            probe = 0.0 if not self._uses_probe(x) else _probe_error(tight, x.double(), fine, true_logdet)
        return OdeError(_most(back - x), _most(y - true), _most(logdet - true_logdet), probe, n, n_tight)

    def _forward(self, x: Tensor, context: Any) -> Tensor:
        return self._solve(x, context, (0.0, self.time), None)[0]

    def _inverse(self, y: Tensor, context: Any) -> Tensor:
        return self._solve(y, context, (self.time, 0.0), None)[0]

    def _forward_with_logdet(self, x: Tensor, context: Any) -> tuple[Tensor, Tensor]:
        return self._with_logdet(x, context, (0.0, self.time))

    def _inverse_with_logdet(self, y: Tensor, context: Any) -> tuple[Tensor, Tensor]:
        return self._with_logdet(y, context, (self.time, 0.0))

    def _with_logdet(self, z: Tensor, context: Any, span: tuple[float, float]) -> tuple[Tensor, Tensor]:
        is_penalised = self.training and torch.is_grad_enabled()
        rates = self._rates(z, self.kinetic > 0 and is_penalised, self.jacobian > 0 and is_penalised)
        out, integrals = self._solve(z, context, span, rates)
        logdet = integrals[:, 0]
        if count_rates(rates) > 1:
            weights = [w for w in (self.kinetic, self.jacobian) if w > 0]
            penalty = (integrals[:, 1:] * integrals.new_tensor(weights)).sum(dim=1)
            penalty = penalty if span[0] < span[1] else -penalty  # time runs backwards
            logdet = logdet - (penalty - penalty.detach())
        return out, logdet

    def _rates(self, z: Tensor, has_kinetic: bool, has_jacobian: bool) -> Rates:
        like = z.float() if z.dtype in (torch.bfloat16, torch.float16) else z
        probe = rademacher(like) if self._uses_probe(z) else None
        return Rates(probe, has_kinetic, (rademacher(like) if probe is None else probe) if has_jacobian else None)

    def _uses_probe(self, z: Tensor) -> bool:
        if self.trace == "auto":
            return math.prod(z.shape[1:]) > self.field.exact_up_to
        return self.trace == "hutchinson"

    def _solve(self, z: Tensor, context: Any, span: tuple[float, float], rates: Rates | None) -> tuple[Tensor, Any]:
        with torch.autocast(z.device.type, enabled=False):
            weight = next((p for p in self.field.parameters() if p.is_floating_point()), z)
            if weight.dtype in (torch.bfloat16, torch.float16):
                names = {f"flow.{name}": p.float() for name, p in self.named_parameters()}
                precise = _Call(self), names, (z.float(), _float(context), span, rates)
                out, integrals = torch.func.functional_call(*precise)
                return out.to(z.dtype), integrals
            if z.dtype in (torch.bfloat16, torch.float16) and weight.dtype == torch.float32:  # autocast made it so
                out, integrals = self._integrate(z.float(), _float(context), span, rates)
                return out, integrals
            check_placement(z, self.field, "ContinuousFlow")
            return self._integrate(z, context, span, rates)

    def _integrate(self, z: Tensor, context: Any, span: tuple[float, float], rates: Rates | None) -> tuple[Tensor, Any]:
        is_traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
        if is_traced:
            self._check_traceable(z)
        dynamics, solver = Dynamics(self.field, context, rates), self.solver
        if solver.tableau is None or solver.gradient == "adjoint":
            solution = solve_with_torchdiffeq(dynamics, z, span, solver, self._note_backward)
        elif is_traced or solver.gradient == "direct" or not self._needs_gradient(z, context):
            solution = solve(dynamics, z, span, solver)
        else:
            solution = solve_and_replay(dynamics, z, span, solver, self._note_backward)
        if not is_traced:
            self.report = self._report(solution, span, rates)
        return solution.z, solution.rates

    def _needs_gradient(self, z: Tensor, context: Any) -> bool:
        needed = z.requires_grad or any(p.requires_grad for p in self.field.parameters())
        return torch.is_grad_enabled() and (needed or context is not None)

    def _check_traceable(self, z: Tensor) -> None:
        is_adaptive = self.solver.n_steps is None or self.solver.tableau is None
        if is_adaptive and not (can_look(z) or z.is_meta):
            hint = "flow.solver = Solver('rk4', n_steps=20)"
            got = f"{self.solver.method} with n_steps={self.solver.n_steps}"
            raise ConfigError(
                "how many steps an adaptive solver takes depends on values, which compile, export and vmap cannot see",
                expected="equal steps",
                got=got,
                hint=hint,
            )

    def _report(self, solution: Solution, span: tuple[float, float], rates: Rates | None) -> OdeReport:
        rtol, atol = self.solver.tolerances(solution.z.dtype)
        direction = "forward" if span[0] < span[1] else "inverse"
        found = {}
        if rates is not None and count_rates(rates) > 1 and solution.rates is not None:
            means = solution.rates.detach()[:, 1:].mean(dim=0).abs().tolist()
            names = [
                name for name, has in (("kinetic", rates.kinetic), ("jacobian", rates.jacobian is not None)) if has
            ]
            found = dict(zip(names, means, strict=True))
        return OdeReport(direction, solution.n_evaluations, solution.n_rejected, rtol, atol, **found)

    def _note_backward(self, n: int) -> None:
        if self.report is not None:
            self.report = dataclasses.replace(self.report, n_backward=n)


class _Call(nn.Module):
    """Makes the solve a `forward`, for `functional_call`."""

    def __init__(self, flow: ContinuousFlow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, z: Tensor, context: Any, span: tuple[float, float], rates: Rates | None) -> tuple[Tensor, Any]:
        return self.flow._integrate(z, context, span, rates)


def _float(context: Any) -> Any:
    is_low = isinstance(context, Tensor) and context.dtype in (torch.bfloat16, torch.float16)
    return context.float() if is_low else context


def _tighter(solver: Solver) -> Solver:
    if solver.n_steps is None:
        return dataclasses.replace(solver, rtol=solver.rtol / 100, atol=solver.atol / 100, max_evaluations=10**6)
    order = solver.tableau.order if solver.tableau else 4
    return dataclasses.replace(solver, n_steps=math.ceil(solver.n_steps * max(2.0, 100 ** (1 / order))))


def _seeded(run: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return run()


def _probe_error(tight: ContinuousFlow, x: Tensor, context: Any, estimate: Tensor) -> float | None:
    if math.prod(x.shape[1:]) > _COMPARABLE:
        return None
    tight.trace = "exact"
    return (tight.forward_with_logdet(x, context)[1] - estimate).square().mean().sqrt().item()


def _most(x: Tensor) -> float:
    return x.abs().max().item() if x.numel() else 0.0

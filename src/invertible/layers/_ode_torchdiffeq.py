"""Methods and adjoint gradients of torchdiffeq, for a state and its rates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from invertible.layers._ode_dynamics import Dynamics, count_rates, velocity, velocity_and_rates
from invertible.layers._ode_solve import Solution, fail
from invertible.layers._ode_solver import Solver

State = tuple[Tensor, ...]


def solve_with_torchdiffeq(
    dynamics: Dynamics,
    z: Tensor,
    span: tuple[float, float],
    solver: Solver,
    on_backward: Callable[[int], None],
) -> Solution:
    """Integrate with torchdiffeq, and with its adjoint if the solver asks for it.

    Args:
        dynamics: What to integrate.
        z: The first state, shape (batch, ...).
        span: First and last time.
        solver: How.
        on_backward: Told how often the backward pass has evaluated the field.

    Returns:
        The solution.

    Raises:
        ConvergenceError: If the last time is out of reach.
    """
    import torchdiffeq

    start = (z,) if dynamics.rates is None else (z, z.new_zeros(z.shape[0], count_rates(dynamics.rates)))
    if not z.numel():
        return Solution(z, start[1] if len(start) > 1 else None)
    function = _Function(dynamics, solver, on_backward)
    times = torch.tensor(span, dtype=torch.float64, device=z.device)
    rtol, atol = solver.tolerances(z.dtype)
    options = {} if solver.n_steps is None else {"step_size": abs(span[1] - span[0]) / solver.n_steps}
    arguments: dict[str, Any] = {"rtol": rtol, "atol": atol, "method": solver.method, "options": options}
    integrate = torchdiffeq.odeint
    if solver.gradient != "direct" and torch.is_grad_enabled():
        integrate, more = torchdiffeq.odeint_adjoint, {"adjoint_params": function.learned()}
        adjoint_options = {**options} if solver.n_steps is not None else {"norm": "seminorm"}
        arguments |= more | {"adjoint_options": adjoint_options}
    path = function.guarded(lambda: integrate(function, start, times, **arguments))
    function.is_backward = True
    last = [part[-1].to(z.dtype) for part in path]
    return Solution(last[0], last[1] if len(last) > 1 else None, function.n_forward)


class _Function:
    """What torchdiffeq calls. It holds on to the parameters as they are now, whatever the field has later."""

    def __init__(self, dynamics: Dynamics, solver: Solver, on_backward: Callable[[int], None]) -> None:
        self.call, self.dynamics, self.solver, self.on_backward = _Call(dynamics), dynamics, solver, on_backward
        self.parameters: dict[str, Tensor] = dict(self.call.named_parameters())
        self.n_forward, self.n_backward, self.is_backward = 0, 0, False
        self.t, self.size = 0.0, 0.0

    def learned(self) -> State:
        context = [leaf for leaf in pytree.tree_flatten(self.dynamics.context)[0] if isinstance(leaf, Tensor)]
        return tuple(t for t in (*self.parameters.values(), *context) if t.requires_grad)

    def __call__(self, t: Tensor, state: State) -> State:
        t = t.detach()
        self._count(float(t), state[0])
        return torch.func.functional_call(self.call, self.parameters, (float(t), state[0]))

    def _count(self, t: float, z: Tensor) -> None:
        self.t, self.size = t, z.detach().abs().max().item()
        self.n_backward += self.is_backward
        self.n_forward += not self.is_backward
        if self.is_backward:
            self.on_backward(self.n_backward)
        if max(self.n_forward, self.n_backward) > self.solver.max_evaluations:
            fail(f"more than {self.solver.max_evaluations} evaluations are needed", self._where())

    def guarded(self, run: Callable[[], Any]) -> Any:
        try:
            return run()
        except AssertionError as error:  # "underflow in dt", "non-finite values in state"
            fail(str(error).partition(":")[0], self._where())
            raise

    def _where(self) -> str:
        n = max(self.n_forward, self.n_backward)
        return f"time {self.t:.4g} after {n} evaluations; the largest number of the state is {self.size:.3g}"


class _Call(nn.Module):
    def __init__(self, dynamics: Dynamics) -> None:
        super().__init__()
        self.field, self.dynamics = dynamics.field, dynamics

    def forward(self, t: float, z: Tensor) -> State:
        if self.dynamics.rates is None:
            return (velocity(self.dynamics, t, z),)
        return velocity_and_rates(self.dynamics, t, z)

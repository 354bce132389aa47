"""The gradient of a solve: its accepted steps are taken again, one by one from the last, and differentiated.

It is the exact gradient of the numbers that were computed. Memory holds a state per step; rejected steps cost nothing.

Source: Zhuang et al. 2020, "Adaptive Checkpoint Adjoint Method for Gradient Estimation in Neural ODE".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils import _pytree as pytree

from invertible._replay import Replay
from invertible.layers._ode_dynamics import Dynamics
from invertible.layers._ode_solve import Solution, Step, solve, take
from invertible.layers._ode_solver import Solver
from invertible.layers._ode_tableau import Tableau


def solve_and_replay(
    dynamics: Dynamics,
    z: Tensor,
    span: tuple[float, float],
    solver: Solver,
    on_backward: Callable[[int], None],
) -> Solution:
    """As `solve`, with a backward pass that takes the steps again.

    Args:
        dynamics: What to integrate.
        z: The first state, shape (batch, ...).
        span: First and last time.
        solver: How.
        on_backward: Told how often the backward pass evaluated the field.

    Returns:
        The solution.
    """
    leaves, spec = pytree.tree_flatten(dynamics.context)
    run = _Run(dynamics, span, solver, on_backward, leaves, spec)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    out = cast(tuple[Tensor, ...], _Replayed.apply(run, len(tensors), z, *tensors, *run.replay.parameters))
    done = run.done
    return Solution(out[0], out[1] if len(out) > 1 else None, done.n_evaluations, done.n_rejected)


class _Run:
    """One solve: what its backward pass needs that is no tensor."""

    def __init__(
        self,
        dynamics: Dynamics,
        span: tuple[float, float],
        solver: Solver,
        on_backward: Callable[[int], None],
        leaves: list[Any],
        spec: pytree.TreeSpec,
    ) -> None:
        self.dynamics, self.span, self.solver, self.on_backward = dynamics, span, solver, on_backward
        self.leaves, self.spec, self.replay = leaves, spec, Replay(dynamics.field)
        self.done: Solution

    def with_context(self, tensors: list[Tensor]) -> Dynamics:
        given = iter(tensors)
        leaves = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        return self.dynamics._replace(context=pytree.tree_unflatten(leaves, self.spec))

    def pull(
        self, steps: list[Step], leaves: list[Tensor], n_context: int, grads: list[Tensor | None]
    ) -> Tensor | None:
        """Take the steps back.

        Args:
            steps: Those of the forward pass.
            leaves: Stand-ins for context and parameters; their gradients add up in them.
            n_context: How many of these are the context's.
            grads: Of the last state and of the rates' integrals.

        Returns:
            The gradient of the first state.
        """
        tableau = cast(Tableau, self.solver.tableau)
        dynamics, wanted = self.with_context(leaves[:n_context]), [t for t in leaves if t.requires_grad]
        grad, grad_rates = grads
        for step in reversed(steps):
            z = step.z.detach().requires_grad_()
            outputs = take(dynamics, tableau, step._replace(z=z))
            given = zip(outputs, (grad, grad_rates), strict=True)
            pairs = [(o, g) for o, g in given if o is not None and g is not None and o.requires_grad]
            if not pairs:
                return grad
            torch.autograd.backward([o for o, _ in pairs], [g for _, g in pairs], inputs=[z, *wanted])
            grad = z.grad
        return grad


class _Replayed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: _Run, n_context: int, z: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        with run.replay.first([z, *tensors[:n_context]]):
            done = solve(run.with_context(list(tensors[:n_context])), z, run.span, run.solver)
        ctx.run, ctx.n_context, ctx.n_steps = run, n_context, len(done.steps)
        ctx.times = [(step.t, step.h) for step in done.steps]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *(step.z for step in done.steps))
        run.done = Solution(done.z, done.rates, done.n_evaluations, done.n_rejected)
        last = done.z.view_as(done.z) if done.z is z else done.z
        return (last,) if done.rates is None else (last, done.rates)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        run, saved, needs = cast(_Run, ctx.run), ctx.saved_tensors, ctx.needs_input_grad[3:]
        n = len(saved) - ctx.n_steps
        leaves = [t.detach().requires_grad_(need) for t, need in zip(saved[:n], needs, strict=True)]
        steps = [Step(t, h, z) for (t, h), z in zip(ctx.times, saved[n:], strict=True)]
        with run.replay.again(leaves[ctx.n_context :]), torch.enable_grad():
            grad = run.pull(steps, leaves, ctx.n_context, [*grads, None][:2])
        run.on_backward(ctx.n_steps * cast(Tableau, run.solver.tableau).n_stages)
        return (None, None, grad, *(leaf.grad for leaf in leaves))

"""What a solver integrates: a field's velocity, and beside it the rates of the log-determinant and of the penalties.

Plain tuples and functions: the compiler has to follow them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from invertible._checks import describe
from invertible.errors import ShapeError
from invertible.layers.vector_field import VectorField


class Rates(NamedTuple):
    """Which rates are wanted beside the velocity; that of the log-determinant is the divergence.

    Args:
        probe: A random tangent e for the divergence, shaped as the state; None: the exact divergence.
        kinetic: Whether |f|^2 is wanted.
        jacobian: A tangent e if |J e|^2 is wanted, whose mean is the squared Frobenius norm of J = df/dx.
    """

    probe: Tensor | None = None
    kinetic: bool = False
    jacobian: Tensor | None = None


class Dynamics(NamedTuple):
    """A vector field with its context.

    Args:
        field: The vector field.
        context: What it depends on.
        rates: What else is wanted; None: the velocity alone.
    """

    field: VectorField
    context: Any = None
    rates: Rates | None = None


def count_rates(rates: Rates | None) -> int:
    """How many rates there are.

    Args:
        rates: Which are wanted.

    Returns:
        The number: the divergence and the penalties.
    """
    return 0 if rates is None else 1 + rates.kinetic + (rates.jacobian is not None)


def velocity(dynamics: Dynamics, t: float, z: Tensor) -> Tensor:
    """The velocity alone.

    Args:
        dynamics: The field.
        t: The time.
        z: The state, shape (batch, ...).

    Returns:
        dz/dt.
    """
    field, context = dynamics.field, dynamics.context
    return _checked(field(t, z) if context is None else field(t, z, context), z, field)


def velocity_and_rates(dynamics: Dynamics, t: float, z: Tensor) -> tuple[Tensor, Tensor]:
    """Velocity and rates.

    Args:
        dynamics: The field.
        t: The time.
        z: The state, shape (batch, ...).

    Returns:
        dz/dt, and the rates, shape (batch, n_rates).
    """
    field, context, rates = dynamics.field, dynamics.context, dynamics.rates or Rates()
    jv = None
    if rates.probe is None:
        f, divergence = field.forward_with_divergence(t, z, context)
    else:
        f, jv = field.forward_with_jvp(t, z, rates.probe[None], context)
        divergence = (jv[0] * rates.probe).flatten(1).sum(dim=1)
    found = [divergence]
    if rates.kinetic:
        found.append(f.flatten(1).square().sum(dim=1))
    if rates.jacobian is not None:
        jv = field.forward_with_jvp(t, z, rates.jacobian[None], context)[1] if jv is None else jv
        found.append(jv[0].flatten(1).square().sum(dim=1))
    return _checked(f, z, field), torch.stack(found, dim=1)


def _checked(f: Tensor, z: Tensor, field: VectorField) -> Tensor:
    if f.shape != z.shape:
        name = type(field).__name__
        hint = "as many numbers out of its network as in"
        raise ShapeError(f"{name} must keep its input's shape", expected=tuple(z.shape), got=describe(f), hint=hint)
    return f


def rademacher(x: Tensor) -> Tensor:
    """Draw signs from the global random state.

    Args:
        x: Tells shape, dtype and device.

    Returns:
        +1 or -1, each with probability 1/2.
    """
    return torch.randint_like(x, 0, 2).mul_(2).sub_(1)

"""What a solver integrates: a field's velocity, and beside it the rates of the log-determinant and of the penalties."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from invertible._checks import describe
from invertible.errors import ShapeError
from invertible.layers.vector_field import VectorField


@dataclass(frozen=True)
class Rates:
    """Which rates are wanted beside the velocity.

    Args:
        probe: A random tangent e for the divergence, shaped as the state; None: the exact divergence.
        kinetic: Whether |f|^2 is wanted.
        jacobian: Whether |J e|^2 is wanted, whose mean is the squared Frobenius norm of J = df/dx.
        jacobian_probe: The tangent for that, if the divergence has none.
    """

    probe: Tensor | None = None
    kinetic: bool = False
    jacobian: bool = False
    jacobian_probe: Tensor | None = None

    @property
    def n(self) -> int:
        """How many there are: the divergence and the penalties."""
        return 1 + self.kinetic + self.jacobian


@dataclass(frozen=True)
class Dynamics:
    """Velocity and rates as functions of time and state.

    Args:
        field: The vector field.
        context: What it depends on.
        rates: What else is wanted; None: the velocity alone.
    """

    field: VectorField
    context: Any = None
    rates: Rates | None = None

    @property
    def n_rates(self) -> int:
        """How many rates there are."""
        return 0 if self.rates is None else self.rates.n

    def velocity(self, t: float, z: Tensor) -> Tensor:
        """The velocity alone.

        Args:
            t: The time.
            z: The state, shape (batch, ...).

        Returns:
            dz/dt.

        Raises:
            ShapeError: If the field does not keep the shape.
        """
        f = self.field(t, z) if self.context is None else self.field(t, z, self.context)
        if f.shape != z.shape:
            name = type(self.field).__name__
            raise ShapeError(f"{name} must keep its input's shape", expected=tuple(z.shape), got=describe(f))
        return f

    def __call__(self, t: float, z: Tensor) -> tuple[Tensor, Tensor]:
        """Velocity and rates.

        Args:
            t: The time.
            z: The state, shape (batch, ...).

        Returns:
            dz/dt, and the rates, shape (batch, n_rates).
        """
        rates = self.rates or Rates()
        if rates.probe is None:
            f, divergence = self.field.forward_with_divergence(t, z, self.context)
            jv = self._jvp(t, z, rates.jacobian_probe)[1] if rates.jacobian_probe is not None else None
        else:
            f, jv = self._jvp(t, z, rates.probe)
            divergence = (jv * rates.probe).flatten(1).sum(dim=1)
        found = [divergence]
        if rates.kinetic:
            found.append(f.flatten(1).square().sum(dim=1))
        if rates.jacobian and jv is not None:
            found.append(jv.flatten(1).square().sum(dim=1))
        return f, torch.stack(found, dim=1)

    def _jvp(self, t: float, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        f, jv = self.field.forward_with_jvp(t, z, v[None], self.context)
        return f, jv[0]


def rademacher(x: Tensor) -> Tensor:
    """Draw signs from the global random state.

    Args:
        x: Tells shape, dtype and device.

    Returns:
        +1 or -1, each with probability 1/2.
    """
    return torch.randint_like(x, 0, 2).mul_(2).sub_(1)

"""Vector fields f(t, x) of ordinary differential equations, and their derivatives forwards, alongside the value.

A solver that needs the divergence asks for `forward_with_jvp` or `forward_with_divergence`. Both carry tangents along
with the values, so that no gradient is taken inside the field, and a training step costs one backward pass through it
and never a second derivative.
"""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from invertible._checks import describe
from invertible.errors import ConfigError, DtypeError


class VectorField(nn.Module, ABC):
    """dx/dt = f(t, x, context). Abstract: write `forward`; the derivatives follow, or can be written to be faster.

    Elements of a batch must not see each other.

    Attributes:
        takes_context: Whether the field depends on a context.
        exact_up_to: Up to how many numbers per element a solver with `trace="auto"` takes the exact divergence.

    Example:
        >>> class Rotation(VectorField):
        ...     def forward(self, t, x, context=None):
        ...         return torch.stack([-x[:, 1], x[:, 0]], dim=1)
        >>> f, divergence = Rotation().forward_with_divergence(0.0, torch.ones(3, 2))
        >>> divergence
        tensor([0., 0., 0.])
    """

    takes_context: bool = False
    exact_up_to: int = 8

    @abstractmethod
    def forward(self, t: float, x: Tensor, context: Any = None) -> Tensor:
        """The velocity.

        Args:
            t: The time.
            x: The state, shape (batch, ...).
            context: One per element, if the field takes one.

        Returns:
            dx/dt, same shape as x.
        """

    def forward_with_jvp(self, t: float, x: Tensor, v: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        """The velocity, and the Jacobian df/dx times each of some tangents.

        Args:
            t: The time.
            x: The state, shape (batch, ...).
            v: Tangents, shape (n_tangents, batch, ...).
            context: As in `forward`.

        Returns:
            f, same shape as x, and J v, same shape as v.
        """
        _load_rules()

        def along(tangent: Tensor) -> tuple[Tensor, Tensor]:
            f, jv, *_ = torch.func.jvp(lambda z: self(t, z, context), (x,), (tangent,))
            return f, jv

        if len(v) == 1:
            f, jv = along(v[0])
            return f, jv[None]
        f, jv = torch.func.vmap(along)(v)
        return f[0], jv

    def forward_with_divergence(self, t: float, x: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        """The velocity and its exact divergence.

        Args:
            t: The time.
            x: The state, shape (batch, ...).
            context: As in `forward`.

        Returns:
            f, same shape as x, and the trace of df/dx, shape (batch,).
        """
        shape = x.shape[1:]
        n = math.prod(shape)
        units = torch.eye(n, dtype=x.dtype, device=x.device).reshape(n, 1, *shape).expand(n, *x.shape)
        f, jv = self.forward_with_jvp(t, x, units, context)
        return f, torch.einsum("nbn->b", jv.reshape(n, x.shape[0], n))


class ModuleField(VectorField):
    """Any module as a vector field: called as module(x), module(t, x) or module(t, x, context).

    What it is called with follows from the number of arguments that its `forward` must have. Its t is a tensor without
    dimensions. Derivatives are taken by `torch.func.jvp`, so it may use what that supports.

    Args:
        module: The module; its output has x's shape.
        takes_context: Whether it is called with a context, as module(t, x, context).

    Raises:
        DtypeError: If it is no module.
        ConfigError: If its `forward` cannot be called in one of these ways.

    Example:
        >>> field = ModuleField(nn.Linear(2, 2))
        >>> field(0.0, torch.zeros(3, 2)).shape
        torch.Size([3, 2])
    """

    def __init__(self, module: nn.Module, takes_context: bool = False) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            hint = "wrap a function in a small nn.Module"
            raise DtypeError("a field needs a network", expected="an nn.Module", got=describe(module), hint=hint)
        self.module, self.takes_context = module, takes_context
        self._n_arguments = 3 if takes_context else _n_arguments(module)

    def forward(self, t: float, x: Tensor, context: Any = None) -> Tensor:
        """The velocity.

        Args:
            t: The time.
            x: The state, shape (batch, ...).
            context: Handed on if the module takes one.

        Returns:
            What the module returns.
        """
        if self._n_arguments == 1:
            return self.module(x)
        time = torch.full((), t, dtype=x.dtype, device=x.device)
        return self.module(time, x) if self._n_arguments == 2 else self.module(time, x, context)


@functools.cache
def _load_rules() -> None:
    # The first `jvp` loads rules that torch writes with `torch.jit.script`, which warns of its own deprecation.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.func.jvp(torch.sin, (torch.zeros(()),), (torch.ones(()),))


def as_field(field: nn.Module) -> VectorField:
    """Make a vector field of a module.

    Args:
        field: A `VectorField`, or a module to be called as f(x) or f(t, x).

    Returns:
        The same field, or a `ModuleField`.
    """
    return field if isinstance(field, VectorField) else ModuleField(field)


def _n_arguments(module: nn.Module) -> int:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(module.forward).parameters.values()
    needed = sum(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters)
    if needed not in (1, 2):
        got = f"{type(module).__name__}.forward with {needed} arguments"
        hint = "ModuleField(module, takes_context=True) for f(t, x, context)"
        raise ConfigError("a field cannot be called", expected="forward(x) or forward(t, x)", got=got, hint=hint)
    return needed

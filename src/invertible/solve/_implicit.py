"""The gradient of a solution: another linear system of the same kind, whose memory is that of one evaluation of g.

At the solution x* of x + g(x) = y, dx* = (1 + J)^-1 (dy - dg), J = dg/dx and dg the change at fixed x. So x* has the
gradient of y - g(x*) with x* held fixed, once the incoming gradient v is replaced by w with w + J^T w = v.

Source: Bai, Kolter and Koltun 2019, "Deep equilibrium models", section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from invertible.errors import ConfigError
from invertible.solve._rows import Map, Select

Transpose = Callable[[Tensor, Tensor], Tensor]
"""From x* and v to w with w + J^T w = v."""


class Implicit(torch.autograd.Function):
    """Gives the solution, and transforms the gradient that comes back."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, x: Tensor, transpose: Transpose) -> Tensor:
        """The solution.

        Args:
            ctx: PyTorch's.
            z: y - g(x), with a graph; its values are not used.
            x: The solution.
            transpose: Solves w + J^T w = v.

        Returns:
            x.
        """
        ctx.transpose = transpose
        ctx.save_for_backward(z, x)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The gradient of z.

        Args:
            ctx: PyTorch's.
            grads: Of the solution.

        Returns:
            w, and nothing for the rest.
        """
        z, x = ctx.saved_tensors
        with torch.no_grad():
            w = cast(Transpose, ctx.transpose)(x.detach(), grads[0].detach())
        if torch.is_grad_enabled():  # create_graph=True
            w = cast(Tensor, _Once.apply(w, z, grads[0]))
        return w, None, None


class _Once(torch.autograd.Function):
    """Stands on every path from a gradient back to its causes, so that no second derivative is silently wrong."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, z: Tensor, v: Tensor) -> Tensor:
        return w.view_as(w)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise ConfigError(
            "the solution of x + g(x) = y can be differentiated once",
            expected="a first derivative",
            got="a second one",
            hint="differentiate the forward map y = x + g(x) instead, or unroll a fixed number of plain steps",
        )


class Pullback:
    """w -> J^T w at a point, on all rows or on some.

    Args:
        x: The point, shape (batch, ...), without graph.
        g: The map.
        select: Gives g for some rows.
    """

    def __init__(self, x: Tensor, g: Map, select: Select | None) -> None:
        self._x, self._select, self._g = x, select, g
        self._leaf, self._image = _graph(x, g)

    def __call__(self, w: Tensor) -> Tensor:
        """The product.

        Args:
            w: Shape (batch, ...).

        Returns:
            J^T w.
        """
        if not self._image.requires_grad:
            return torch.zeros_like(w)
        given = w.to(self._image.dtype)
        (out,) = torch.autograd.grad(self._image, self._leaf, given, retain_graph=True, allow_unused=True)
        return torch.zeros_like(w) if out is None else out.to(w.dtype)

    def of_rows(self, rows: Tensor) -> Map:
        """The same for some rows, at the price of evaluating g there.

        Args:
            rows: Their indices.

        Returns:
            The product.
        """
        return Pullback(self._x[rows], self._g if self._select is None else self._select(rows), None)


def _graph(x: Tensor, g: Map) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        return leaf, g(leaf)

"""g on some rows of the batch, as a function of vectors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from invertible._checks import describe
from invertible.errors import DtypeError, ShapeError

Map = Callable[[Tensor], Tensor]
Select = Callable[[Tensor], Map]
"""From indices of rows to g for these rows."""


class Rows:
    """g on the rows that are not finished, in units in which each sample is of a size of about 1.

    Args:
        g: On all rows.
        select: Gives g for some rows; None: g itself takes any rows.
        like: y, shape (batch, ...); g is called with its dtype.
        watches: Whether to find out, in the first call, if g depends on something that needs a gradient.

    Attributes:
        unit: The relative precision of what g computes.
        needs_graph: Whether g was seen to depend on something that needs a gradient.
    """

    def __init__(self, g: Map, select: Select | None, like: Tensor, watches: bool = False) -> None:
        self._g, self._select, self._shape = g, select, like.shape[1:]
        self._dtype, self._n_all = like.dtype, len(like)
        self._units: Tensor | None = None
        self._watches, self.needs_graph = watches, False
        self._is_whole = True
        self.unit = torch.finfo(like.dtype).eps

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate g.

        Args:
            x: Shape (rows, size).

        Returns:
            g(x), in the same shape.
        """
        x = x if self._units is None else x * self._units
        with torch.set_grad_enabled(self._watches):
            out = self._checked(x.view(len(x), *self._shape)).reshape(len(x), -1)
        self._watches, self.needs_graph = False, self.needs_graph or out.requires_grad
        out = out.detach()
        self.unit = max(self.unit, torch.finfo(out.dtype).eps)
        out = out.to(self._dtype)
        return out if self._units is None else out / self._units

    def _checked(self, x: Tensor) -> Tensor:
        try:
            out = self._g(x)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            self._explain(error, x)
            raise
        if not isinstance(out, Tensor) or not out.is_floating_point():
            raise DtypeError("g must map tensors to tensors", expected="a floating-point tensor", got=describe(out))
        if out.shape != x.shape:
            raise ShapeError("g must keep the shape", expected=describe(x), got=describe(out), hint=self._hint())
        return out

    def _explain(self, error: Exception, x: Tensor) -> None:
        error.add_note(f"x + g(x) = y was being solved; g was called on a tensor of {describe(x)}. {self._hint()}")

    def _hint(self) -> str:
        if self._is_whole:
            return ""
        return (
            f"g was called on the unfinished rows only of a batch of {self._n_all}: if it depends on the row (as by a "
            "context), pass select=lambda rows: (g for these rows), or FixedPointSolver(compact=False)"
        )

    def rescale(self, units: Tensor) -> None:
        """Work in other units from now on.

        Args:
            units: Of each row, shape (rows, 1); powers of two, so that nothing is rounded.
        """
        self._units = units

    def keep(self, kept: Tensor, rows: Tensor) -> None:
        """Go on with fewer rows.

        Args:
            kept: Which of the present rows.
            rows: Their indices in the whole batch.
        """
        self._is_whole = False
        self._units = None if self._units is None else self._units[kept]
        if self._select is not None:
            self._g = self._select(rows)

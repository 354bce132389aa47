"""Kernel systems too large to be solved in one piece: a Cholesky factor in block columns, refinement, a residual."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from invertible.errors import ConvergenceError

BLOCK = 2048
"""Columns at a time: a block is worth a matrix product, and small beside the whole."""


class Kernel(Protocol):
    """What is known of a kernel: blocks of its matrix over the training points, and products with it."""

    n: int

    def block(self, rows: slice, columns: slice) -> Tensor:
        """Part of the matrix.

        Args:
            rows: Which.
            columns: Which.

        Returns:
            float32 or float64.
        """
        ...

    def times(self, a: Tensor) -> Tensor:
        """The matrix over the training points, times a.

        Args:
            a: float64, shape (n, k).

        Returns:
            float64, shape (n, k).
        """
        ...

    def test_times(self, a: Tensor) -> Tensor:
        """The kernel of test points with training points, times a.

        Args:
            a: float64, shape (n, k).

        Returns:
            float64, shape (n_test, k).
        """
        ...


class BlockCholesky:
    """K + shift I = L L^T, where L is kept in block columns: half the memory of K, which is never there as a whole.

    Args:
        kernel: K.
        shift: Added to the diagonal.
        dtype: Of the factor.
        block: Columns at a time.
        progress: Called with the share of the work that is done.

    Raises:
        ConvergenceError: If the matrix is not positive definite in this precision.

    Source: Left-looking block Cholesky; Golub and Van Loan 2013, "Matrix computations", section 4.2.
    """

    def __init__(
        self,
        kernel: Kernel,
        shift: float,
        dtype: torch.dtype = torch.float64,
        block: int = BLOCK,
        progress: Callable[[float], None] = lambda share: None,
    ) -> None:
        self.n, self.dtype, self._block = kernel.n, dtype, block
        self._columns: list[Tensor] = []
        for start in range(0, kernel.n, block):
            self._columns.append(self._factor(kernel, shift, start))
            progress(1 - (1 - self._end(start) / self.n) ** 2)

    def _end(self, start: int) -> int:
        return min(start + self._block, self.n)

    def _factor(self, kernel: Kernel, shift: float, start: int) -> Tensor:
        width = self._end(start) - start
        column = kernel.block(slice(start, None), slice(start, self._end(start))).to(self.dtype)
        column[:width].diagonal().add_(shift)
        for k, earlier in enumerate(self._columns):
            below = earlier[start - k * self._block :]
            column.addmm_(below, below[:width].T, alpha=-1)
        factor, info = torch.linalg.cholesky_ex(column[:width])
        if int(info) != 0:
            hint = "a ridge above 0, no duplicates among the points, or float64"
            got = f"a pivot that is not above 0 at point {start + int(info) - 1} of {self.n}"
            expected = f"a positive definite kernel matrix in {str(self.dtype).removeprefix('torch.')}"
            raise ConvergenceError("the kernel system cannot be solved", expected=expected, got=got, hint=hint)
        column[:width] = factor
        if start + width < self.n:
            column[width:] = torch.linalg.solve_triangular(factor.T, column[width:], upper=True, left=False)
        return column

    def solve(self, y: Tensor) -> Tensor:
        """Solve (K + shift I) a = y.

        Args:
            y: Shape (n, k).

        Returns:
            float64, shape (n, k).
        """
        a = y.to(self.dtype, copy=True)
        for i, column in enumerate(self._columns):
            start, end = i * self._block, self._end(i * self._block)
            width = end - start
            a[start:end] = torch.linalg.solve_triangular(column[:width], a[start:end], upper=False)
            a[end:].addmm_(column[width:], a[start:end], alpha=-1)
        for i, column in reversed(list(enumerate(self._columns))):
            start, end = i * self._block, self._end(i * self._block)
            width = end - start
            rest = a[start:end] - column[width:].T @ a[end:]
            a[start:end] = torch.linalg.solve_triangular(column[:width].T, rest, upper=True)
        return a.double()


@dataclass(frozen=True)
class Solution:
    """Coefficients and how good they are.

    Args:
        a: float64, shape (n, k).
        values: K a, without the shift: what the fitted function is at the training points.
        residual: Largest |(K + shift I) a - y| over the largest |y|, in float64.
        n_refinements: How often the residual was solved for and added.
    """

    a: Tensor
    values: Tensor
    residual: float
    n_refinements: int


def solve_kernel(
    kernel: Kernel, y: Tensor, shift: float, factor: BlockCholesky, tolerance: float, n_refine: int = 10
) -> Solution:
    """Solve, and refine until the residual is small.

    Args:
        kernel: K.
        y: float64, shape (n, k).
        shift: What was added to its diagonal.
        factor: Of both together, in any precision.
        tolerance: On the residual.
        n_refine: At most so many refinements.

    Returns:
        The solution.

    Raises:
        ConvergenceError: If the residual stays above the tolerance.

    Source: Golub and Van Loan 2013, section 3.5.3: iterative refinement in mixed precision.
    """
    a, scale = factor.solve(y), float(y.abs().max()) or 1.0
    best = residual = float("inf")
    for i in range(n_refine + 1):
        values = kernel.times(a)
        rest = y - values - shift * a
        residual = float(rest.abs().max()) / scale
        if residual <= tolerance:
            return Solution(a, values, residual, i)
        if not residual < best / 2:
            break
        best = residual
        a = a + factor.solve(rest)
    hint = "a ridge above 0, dtype=torch.float64, or a larger tolerance"
    expected = f"a residual of {tolerance:g} at most"
    raise ConvergenceError("the kernel system was not solved", expected=expected, got=f"{residual:.3g}", hint=hint)

"""Kernels: of a function of two points, and of features."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from invertible._checks import check_finite, describe
from invertible.errors import ShapeError

KernelFunction = Callable[[Tensor, Tensor], Tensor]
ROWS = 2048
"""Rows of the matrix that are made at a time."""


class FunctionKernel:
    """A kernel that is computed from pairs of points.

    Args:
        x: Training points, float64, shape (n, d).
        x_test: Test points, shape (n_test, d).
        function: From points (m, d) and (n, d) to the matrix (m, n).
    """

    def __init__(self, x: Tensor, x_test: Tensor, function: KernelFunction) -> None:
        self.n, self._x, self._x_test, self._function = len(x), x, x_test, function
        first = function(x[:1], x[:2])
        if tuple(first.shape) != (1, len(x[:2])):
            raise ShapeError("the kernel gives no matrix", expected="(m, n) of (m, d) and (n, d)", got=describe(first))
        check_finite(first, "the kernel")

    def block(self, rows: slice, columns: slice) -> Tensor:
        """See `Kernel`."""  # noqa: DOC201
        return self._function(self._x[rows], self._x[columns])

    def times(self, a: Tensor) -> Tensor:
        """See `Kernel`."""  # noqa: DOC201
        return torch.cat([self._function(x, self._x).double() @ a for x in self._x.split(ROWS)])

    def test_times(self, a: Tensor) -> Tensor:
        """See `Kernel`."""  # noqa: DOC201
        return torch.cat([self._function(x, self._x).double() @ a for x in self._x_test.split(ROWS)])


class FeatureKernel:
    """The inner product of features, and 1: a bias.

    Args:
        features: Of training points, shape (n, D).
        of_test: Of test points, shape (n_test, D).
    """

    def __init__(self, features: Tensor, of_test: Tensor) -> None:
        self.n, self._features, self._of_test = len(features), features, of_test

    def block(self, rows: slice, columns: slice) -> Tensor:
        """See `Kernel`."""  # noqa: DOC201
        return (self._features[rows] @ self._features[columns].T).add_(1)

    def times(self, a: Tensor) -> Tensor:
        """See `Kernel`."""  # noqa: DOC201
        return _times(self._features, self._weights(a)) + a.sum(0)

    def test_times(self, a: Tensor) -> Tensor:
        """See `Kernel`."""  # noqa: DOC201
        return _times(self._of_test, self._weights(a)) + a.sum(0)

    def _weights(self, a: Tensor) -> Tensor:
        parts = zip(self._features.split(ROWS), a.split(ROWS), strict=True)
        total = a.new_zeros(self._features.shape[1], a.shape[1])
        for part, of_part in parts:
            total.addmm_(part.double().T, of_part)
        return total


class CachedKernel:
    """A kernel whose matrix is kept, for several solutions with it.

    Args:
        kernel: The kernel.
    """

    def __init__(self, kernel: FunctionKernel | FeatureKernel) -> None:
        self.n, self._kernel = kernel.n, kernel
        self._matrix = torch.cat([kernel.block(slice(i, i + ROWS), slice(None)) for i in range(0, kernel.n, ROWS)])

    def block(self, rows: slice, columns: slice) -> Tensor:
        """See `Kernel`."""  # noqa: DOC201
        return self._matrix[rows, columns].clone()

    def times(self, a: Tensor) -> Tensor:
        """See `Kernel`."""  # noqa: DOC201
        return self._kernel.times(a)

    def test_times(self, a: Tensor) -> Tensor:
        """See `Kernel`."""  # noqa: DOC201
        return self._kernel.test_times(a)


def rbf(gamma: float) -> KernelFunction:
    """The Gaussian kernel, exp(-gamma |x - y|^2).

    Args:
        gamma: Inverse squared length.

    Returns:
        The function.

    Example:
        >>> round(float(rbf(0.5)(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))), 4)
        0.3679
    """
    return lambda x, y: _squared_distances(x, y).mul_(-gamma).exp_()


def median_squared_distance(x: Tensor, n: int = 1000) -> float:
    """The median over pairs of points.

    Args:
        x: Shape (n, d); the first points of it are looked at, which should be in random order.
        n: How many.

    Returns:
        It.
    """
    few = x[:: max(1, len(x) // n)][:n]
    distances = _squared_distances(few, few)
    pairs = torch.triu_indices(len(few), len(few), 1)
    return float(distances[pairs[0], pairs[1]].median())


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    # |x|^2 + |y|^2 - 2 x.y, in float64: as exact as a kernel needs, and a matrix product.
    found = x.square().sum(1)[:, None] + y.square().sum(1)
    return found.addmm_(x, y.T, alpha=-2).clamp_(min=0)


def _times(features: Tensor, weights: Tensor) -> Tensor:
    return torch.cat([part.double() @ weights for part in features.split(ROWS)])

"""Small trainable invertible matrices, as themselves or in triangular factors. All results are in float64.

(In float32 on devices without float64.)
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


def precise(t: Tensor) -> Tensor:
    """The tensor in the most accurate dtype of its device.

    Args:
        t: Any floating-point tensor.

    Returns:
        It in float64, or float32 where there is no float64.
    """
    return t.to(torch.float32 if t.device.type == "mps" else torch.float64)


def random_rotation(n: int) -> Tensor:
    """An orthogonal matrix, uniformly random, from the global random state.

    Args:
        n: Its size.

    Returns:
        Shape (n, n), float64; its determinant is 1 or -1.

    Source: Mezzadri 2007 (the signs make it uniform).
    """
    q, r = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))
    return q * r.diagonal().sign()


class SquareMatrix(nn.Module, ABC):
    """An invertible matrix that is trained. Abstract: say what it is, its inverse and its determinant.

    Args:
        value: Its first value, shape (n, n).

    Attributes:
        factors: The parameter, n^2 numbers.
    """

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.empty(value.shape, dtype=torch.get_default_dtype(), device=value.device))

    @abstractmethod
    def set(self, value: Tensor) -> None:
        """Make it another matrix."""

    @abstractmethod
    def value(self) -> Tensor:
        """The matrix."""

    @abstractmethod
    def inverse(self) -> tuple[Tensor, Tensor]:
        """Its inverse, and its condition number; if it is singular, these are not finite."""

    @abstractmethod
    def log_abs_det(self) -> Tensor:
        """log|det| in nats; minus infinity if it is singular."""

    def value_and_log_abs_det(self) -> tuple[Tensor, Tensor]:
        """Both, where they share work at less cost than one after the other.

        Returns:
            As `value` and `log_abs_det`.
        """
        return self.value(), self.log_abs_det()


class Direct(SquareMatrix):
    """A matrix that is its own parameter.

    Args:
        value: Its first value.
    """

    def __init__(self, value: Tensor) -> None:
        super().__init__(value)
        self.set(value)

    @torch.no_grad()
    def set(self, value: Tensor) -> None:
        """Make it another matrix.

        Args:
            value: Shape (n, n).
        """
        self.factors.copy_(value)

    def value(self) -> Tensor:
        """The matrix.

        Returns:
            Shape (n, n).
        """
        return precise(self.factors)

    def inverse(self) -> tuple[Tensor, Tensor]:
        """Its inverse, and how badly it is conditioned.

        Returns:
            Shape (n, n), NaN if it is singular; and the condition number in the 1-norm, a scalar without gradient.
        """
        value = precise(self.factors)
        inverse, failed = torch.linalg.inv_ex(value)
        inverse = torch.where(failed == 0, inverse, torch.nan)
        return inverse, _norm(value) * _norm(inverse)

    def log_abs_det(self) -> Tensor:
        """log|det| in nats.

        Returns:
            A scalar.
        """
        return torch.linalg.slogdet(precise(self.factors)).logabsdet


class Factorized(SquareMatrix):
    """P L (U + diag(s)): a fixed permutation, two triangles and a diagonal with fixed signs.

    Args:
        value: Its first value.

    Attributes:
        factors: L below the diagonal, U above it, log|s| on it.
        permutation: Row i of the matrix is row permutation[i] of L (U + diag(s)).
        signs: Those of s.
    """

    permutation: Tensor
    signs: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__(value)
        self.register_buffer("permutation", torch.arange(len(value), device=value.device))
        self.register_buffer("signs", torch.ones_like(self.factors[0]).detach())
        self.set(value)

    @torch.no_grad()
    def set(self, value: Tensor) -> None:
        """Make it another matrix.

        Args:
            value: Shape (n, n).
        """
        p, lower, upper = torch.linalg.lu(value.double())
        s = upper.diagonal()
        self.permutation.copy_(p.argmax(dim=1))
        self.signs.copy_(s.sign())
        self.factors.copy_(lower.tril(-1) + upper.triu(1) + s.abs().log().diag())

    def value(self) -> Tensor:
        """The matrix.

        Returns:
            Shape (n, n).
        """
        return self._product(precise(self.factors))[0]

    def inverse(self) -> tuple[Tensor, Tensor]:
        """Its inverse, by substitution, and how badly it is conditioned.

        Returns:
            Shape (n, n); and the condition number in the 1-norm, a scalar without gradient.
        """
        factors = precise(self.factors)
        lower, upper = self._triangles(factors, _diagonal(factors))
        columns = _eye(upper).index_select(0, self.permutation).mT
        half = torch.linalg.solve_triangular(lower, columns, upper=False, unitriangular=True)
        inverse = torch.linalg.solve_triangular(upper, half, upper=True)
        return inverse, _norm(torch.addmm(upper, lower, upper)) * _norm(inverse)

    def log_abs_det(self) -> Tensor:
        """log|det| in nats, the sum of log|s|.

        Returns:
            A scalar.
        """
        return _diagonal(precise(self.factors)).sum()

    def value_and_log_abs_det(self) -> tuple[Tensor, Tensor]:
        """Both.

        Returns:
            As `value` and `log_abs_det`.
        """
        value, log_s = self._product(precise(self.factors))
        return value, log_s.sum()

    def _product(self, factors: Tensor) -> tuple[Tensor, Tensor]:  # the matrix, log|s|
        log_s = _diagonal(factors)
        lower, upper = self._triangles(factors, log_s)
        return torch.addmm(upper, lower, upper).index_select(0, self.permutation), log_s

    def _triangles(self, factors: Tensor, log_s: Tensor) -> tuple[Tensor, Tensor]:  # L without its ones, U + diag(s)
        s = log_s.exp() * self.signs
        return factors.tril(-1), torch.addcmul(factors.triu(1), s, _eye(factors))


def _eye(like: Tensor) -> Tensor:
    return torch.eye(like.shape[0], dtype=like.dtype, device=like.device)


def _diagonal(matrix: Tensor) -> Tensor:
    # `Tensor.diagonal` makes the compiler of PyTorch 2.13 warn.
    return matrix.flatten()[:: matrix.shape[0] + 1]


def _norm(matrix: Tensor) -> Tensor:
    return matrix.detach().abs().sum(dim=0).amax()

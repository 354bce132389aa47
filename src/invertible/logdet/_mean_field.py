"""A control variate from the layers: what the Jacobians of a batch have in common, and how each differs to first order.

A Jacobian W3 D2 W2 D1 W1 differs from sample to sample in the slopes D only. With their means in place of all of them
it is one matrix, the mean field; with those in place of all but one, a matrix whose trace costs a sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from invertible.logdet._control import log1p_series
from invertible.logdet.layered import Factor, Matrix, n_at_once


class Term(NamedTuple):
    """K = left diag(slopes) right for each sample; no matrix stands for the identity.

    Attributes:
        left: Shape (dimension, width).
        slopes: Shape (batch, width), or (width,) for all.
        right: Shape (width, dimension).
    """

    left: Tensor | None
    slopes: Tensor
    right: Tensor | None

    def forms(self, u: Tensor) -> Tensor:
        """u^T K u.

        Args:
            u: Shape (n, batch, dimension).

        Returns:
            Shape (n, batch).
        """
        a = u if self.left is None else u @ self.left
        b = u if self.right is None else u @ self.right.mT
        return (a * b).mul_(self.slopes).sum(dim=-1)

    def trace(self) -> Tensor:
        """The trace of K.

        Returns:
            Shape (batch,), or a scalar.
        """
        if self.left is None or self.right is None:
            known = self.right if self.left is None else self.left
            return (self.slopes if known is None else self.slopes * known.diagonal()).sum(dim=-1)
        return self.slopes @ (self.left * self.right.mT).sum(dim=0)


def mean_field_deviations(factors: Sequence[Factor], u: Tensor) -> Tensor:
    """u^T K u - tr K for K near log(I + J): that of the mean field, and J's difference from it to first order.

    Args:
        factors: Of J, in the order of the computation.
        u: Probes with covariance I, shape (n, batch, dimension).

    Returns:
        Shape (n, batch); its expectation over the probes is 0.

    Example:
        >>> u = torch.tensor([[[1.0, 1.0]], [[1.0, -1.0]]])
        >>> mean_field_deviations([Matrix(torch.tensor([[0.1, 0.0], [0.2, 0.3]]))], u).sum().abs().item() < 1e-6
        True
    """
    terms = _terms(factors, u)
    trace = torch.stack([term.trace().expand(u.shape[1]) for term in terms]).sum(dim=0)
    parts = u.split(n_at_once(u))
    return torch.cat([torch.stack([term.forms(part) for term in terms]).sum(dim=0) for part in parts]).sub_(trace)


def _terms(factors: Sequence[Factor], u: Tensor) -> list[Term]:
    means = [factor.weight if isinstance(factor, Matrix) else factor.slopes.mean(dim=0) for factor in factors]
    before: list[Tensor | None] = [None]
    for mean in means[:-1]:
        before.append(_after(mean, before[-1]))
    terms: list[Term] = []
    left: Tensor | None = None
    for factor, mean, right in zip(reversed(factors), reversed(means), reversed(before), strict=True):
        if not isinstance(factor, Matrix):
            terms.append(Term(left, factor.slopes - mean, right))
        left = _before(left, mean)
    common = u.new_zeros(u.shape[-1], u.shape[-1]) if left is None else left
    return [*terms, Term(log1p_series(common), u.new_ones(u.shape[-1]), None)]


def _after(mean: Tensor, right: Tensor | None) -> Tensor:
    # diag(mean) or mean, times right
    if mean.ndim == 2:
        return mean if right is None else mean @ right
    return mean.diag() if right is None else mean[:, None] * right


def _before(left: Tensor | None, mean: Tensor) -> Tensor:
    if mean.ndim == 2:
        return mean if left is None else left @ mean
    return mean.diag() if left is None else left * mean

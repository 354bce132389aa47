"""Debiased linear CKA between representations of the same examples, over any number of batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MIN_EXAMPLES = 4


@dataclass(frozen=True)
class Similarity:
    """How alike two representations are.

    Args:
        value: Debiased linear CKA: 1 for equal ones up to rotation and scale; around 0, also below, for unrelated ones.
        error: Standard error over batches (jackknife); None: there was one batch.
    """

    value: float
    error: float | None


def gram(x: Tensor) -> Tensor:
    """Inner products of all pairs of examples.

    Args:
        x: The examples, shape (n, ...).

    Returns:
        Shape (n, n), float64, of the centred examples.
    """
    flat = x.detach().flatten(1) if x.ndim > 1 else x.detach().unsqueeze(1)
    flat = flat.double()
    flat = flat - flat.mean(0)  # changes no debiased HSIC, and spares it cancellation
    return flat @ flat.T


def debiased_hsic(k: Tensor, m: Tensor) -> float:
    """The unbiased estimator of the Hilbert-Schmidt independence criterion.

    Args:
        k: Inner products, shape (n, n) with n >= 4.
        m: Those of the other representation.

    Returns:
        The estimate; its expectation is 0 for independent representations.

    Source: Song et al. 2012, "Feature selection via dependence maximization", equation 5.

    Example:
        >>> x = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
        >>> round(debiased_hsic(gram(x), gram(x)), 3)
        2.667
    """
    n = len(k)
    k, m = k - torch.diag(k.diagonal()), m - torch.diag(m.diagonal())
    trace = (k * m).sum()
    means = k.sum() * m.sum() / ((n - 1) * (n - 2))
    cross = k.sum(0) @ m.sum(0) * (2 / (n - 2))
    return ((trace + means - cross) / (n * (n - 3))).item()


class Cka:
    """CKA over batches: each of the three HSICs is the mean of unbiased estimates on batches.

    Source: Nguyen, Raghu and Kornblith 2021, "Do wide and deep networks learn the same things?", section 2.2; Kornblith
    et al. 2019, "Similarity of neural network representations revisited", equation 3.

    Example:
        >>> cka, x = Cka(), torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
        >>> cka.add(gram(x), gram(2 * x + 1))
        >>> round(cka.similarity.value, 6)
        1.0
    """

    def __init__(self) -> None:
        self._batches: list[tuple[float, float, float, int]] = []

    def add(self, k: Tensor, m: Tensor) -> None:
        """Take in a batch; one of fewer than 4 examples has no estimate and is left out.

        Args:
            k: Inner products in one representation, from `gram`.
            m: In the other.
        """
        if len(k) >= MIN_EXAMPLES:
            hsics = debiased_hsic(k, m), debiased_hsic(k, k), debiased_hsic(m, m)
            self._batches.append((*hsics, len(k)))

    @property
    def similarity(self) -> Similarity | None:
        """The estimate; None where there is none: too few examples, or a representation that is constant."""
        value = _cka(self._batches)
        if math.isnan(value):
            return None
        without = [_cka([*self._batches[:i], *self._batches[i + 1 :]]) for i in range(len(self._batches))]
        n = len(without)
        if n < 2 or any(map(math.isnan, without)):
            return Similarity(value, None)
        mean = math.fsum(without) / n
        return Similarity(value, math.sqrt((n - 1) / n * math.fsum((other - mean) ** 2 for other in without)))


def _cka(batches: Sequence[tuple[float, float, float, int]]) -> float:
    xy, xx, yy = (math.fsum(batch[i] * batch[3] for batch in batches) for i in range(3))
    return xy / math.sqrt(xx * yy) if xx > 0 and yy > 0 else math.nan

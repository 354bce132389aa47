"""Extreme singular values from products with a matrix and its transpose, with the residual of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Ritz:
    """What the iteration found.

    Args:
        values: Approximate singular values, descending.
        residuals: |A^T u - s v| of each, where A v = s u holds to rounding: A has a singular value as near as that.
        n_steps: How many steps were made, each one product with A and one with its transpose.
        is_complete: Whether the steps exhausted the space, so that these are all singular values.
    """

    values: Tensor
    residuals: Tensor
    n_steps: int
    is_complete: bool


def golub_kahan(
    product: Product, transposed: Product, size: int, n_steps: int, n_wanted: int, tolerance: float, seed: int
) -> Ritz:
    """Lanczos bidiagonalisation with full reorthogonalisation.

    Args:
        product: v -> A v, from shape (size,), float64.
        transposed: u -> A^T u.
        size: Of v: the smaller side of A, so that no null space is counted.
        n_steps: At most so many.
        n_wanted: Stop when so many of the largest and the smallest have converged.
        tolerance: Residual over the largest singular value at which one counts as converged.
        seed: Of the first vector.

    Returns:
        Values and residuals.

    Source: Golub and Kahan 1965, "Calculating the singular values and pseudo-inverse of a matrix"; Golub and Van Loan
    2013, "Matrix computations", section 10.4.

    Example:
        >>> a = torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
        >>> golub_kahan(lambda v: a @ v, lambda u: a.T @ u, 3, 3, 1, 1e-12, 0).values.round(decimals=6)
        tensor([3., 2., 1.], dtype=torch.float64)
    """
    v = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    rights, lefts = [v / v.norm()], []
    diagonal, above = [], []
    while True:
        u = product(rights[-1])
        if lefts:
            u = _orthogonal(u - above[-1] * lefts[-1], lefts)
        alpha = u.norm().item()
        lefts.append(u / alpha if alpha > 0 else u)
        diagonal.append(alpha)
        v = _orthogonal(transposed(lefts[-1]) - alpha * rights[-1], rights)
        beta, k = v.norm().item(), len(diagonal)
        found = _ritz(diagonal, above, beta, k == size)
        tiny = 1e-14 * max(found.values[0].item(), 1e-300)
        if found.is_complete or k == n_steps or beta <= tiny or (k % 8 == 0 and _is_done(found, n_wanted, tolerance)):
            return found
        above.append(beta)
        rights.append(v / beta)


def _orthogonal(x: Tensor, others: list[Tensor]) -> Tensor:
    basis = torch.stack(others)
    x = x - basis.T @ (basis @ x)
    return x - basis.T @ (basis @ x)  # twice is enough


def _ritz(diagonal: list[float], above: list[float], beta: float, is_complete: bool) -> Ritz:
    b = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if above:
        b += torch.diag(torch.tensor(above, dtype=torch.float64), 1)
    left, values, _ = torch.linalg.svd(b)
    residuals = (0.0 if is_complete else beta) * left[-1].abs()
    return Ritz(values, residuals, len(diagonal), is_complete)


def _is_done(found: Ritz, n_wanted: int, tolerance: float) -> bool:
    good = found.residuals <= tolerance * found.values[0]
    return len(good) >= 2 * n_wanted and bool(good[:n_wanted].all() and good[-n_wanted:].all())

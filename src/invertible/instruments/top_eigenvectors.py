"""Eigenvectors at the ends of the spectrum of a loss's second derivatives, as arrays."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from invertible.errors import ConfigError
from invertible.instruments._curvature_measure import Measured
from invertible.instruments._curvature_rows import Eigenvalue, Estimate, Share
from invertible.instruments._eigenpairs import assess, extremes
from invertible.instruments._hessian import Curved, matrix_of
from invertible.instruments._krylov import Pairs
from invertible.instruments._loss_functions import Loss
from invertible.instruments._loss_on_data import finite, viewing

Matrix = Literal["hessian", "gauss-newton"]
DENSE_UP_TO = 500
"""Parameters up to which the matrix is built."""


@dataclass(frozen=True, eq=False)
class Eigenvectors:
    """Directions in which the loss bends most, as tensors: for `loss_slice`, or to look at.

    Args:
        eigenvalues: The largest, descending, then the smallest, ascending.
        vectors: Unit rows, shape (k, n_parameters), in the order of the trainable `named_parameters`.
        directions: The same as tensors by the parameters' names and with their shapes.
    """

    eigenvalues: tuple[Eigenvalue, ...]
    vectors: Tensor
    directions: tuple[dict[str, Tensor], ...]


def top_eigenvectors(
    model: nn.Module,
    data: Any,
    *,
    n_largest: int = 2,
    n_smallest: int = 0,
    loss: Loss | None = None,
    matrix: Matrix = "hessian",
    tolerance: float = 1e-4,
    dtype: str = "own",
    batch_fn: Callable[[Any], Any] | None = None,
    batches: int | None = None,
    seed: int = 0,
) -> Eigenvectors:
    """Find eigenvectors at the ends of the spectrum, as arrays.

    Args:
        model: As in `curvature`.
        data: As in `curvature`.
        n_largest: How many at the upper end.
        n_smallest: How many at the lower end.
        loss: As in `curvature`.
        matrix: As in `curvature`.
        tolerance: As in `curvature`.
        dtype: As in `curvature`.
        batch_fn: As in `curvature`.
        batches: As in `curvature`.
        seed: Of the first vector; a vector's sign is that of its largest component.

    Returns:
        Eigenvalues with residuals, and their vectors.

    Raises:
        ConfigError: If an option is wrong; else as in `curvature`.

    Example:
        >>> network = nn.Linear(2, 1, bias=False).double()
        >>> x = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        >>> found = top_eigenvectors(network, x, n_largest=1, loss=lambda output, y: output.square().mean())
        >>> found.directions[0]["weight"]
        tensor([[1., 0.]], dtype=torch.float64)
    """
    if n_largest < 0 or n_smallest < 0 or n_largest + n_smallest < 1 or not 0 < tolerance < 1:
        expected = "one vector or more, 0 < tolerance < 1"
        got = f"n_largest={n_largest}, n_smallest={n_smallest}, tolerance={tolerance:g}"
        raise ConfigError("top_eigenvectors has bad options", expected=expected, got=got)
    settings = {"loss": loss, "dtype": dtype, "batch_fn": batch_fn, "batches": batches, "seed": seed, "quiet": True}
    with viewing("top_eigenvectors", model, data, **settings) as (view, _):
        finite(view)
        return eigenvectors_of(matrix_of(view, matrix), n_largest, n_smallest, tolerance, seed)


def eigenvectors_of(matrix: Curved, n_largest: int, n_smallest: int, tolerance: float, seed: int) -> Eigenvectors:
    """Find eigenvectors of a matrix. Inside `untouched` only.

    Args:
        matrix: The matrix.
        n_largest: How many at the upper end.
        n_smallest: How many at the lower end.
        tolerance: Residual wanted, over the largest absolute eigenvalue.
        seed: Of the first vector.

    Returns:
        Them.
    """
    if matrix.n <= max(DENSE_UP_TO, n_largest + n_smallest):
        values, vectors = torch.linalg.eigh(matrix.dense())
        ends = assess(matrix, Pairs(values, vectors.T.to(matrix.view.device)).ends(n_smallest, n_largest))
    else:
        ends = extremes(matrix, n_smallest, n_largest, tolerance, seed)
    n_low = max(len(ends.values) - n_largest, 0)
    order = [*reversed(range(n_low, len(ends.values))), *range(n_low)]
    rows = ends.vectors[order]
    rows = rows * rows.gather(1, rows.abs().argmax(1, keepdim=True)).sign()
    unknown = Estimate(math.nan, None)
    measured = Measured("", ends, n_low, unknown, (), Share(math.nan, 0.0, 1.0), 0.0)
    own = [matrix.view.unflatten(vector.to(matrix.view.dtype)) for vector in rows]
    return Eigenvectors(measured.eigenvalues, rows, tuple(own))

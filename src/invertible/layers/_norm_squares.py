"""The certified norm of one small matrix, from products of matrices alone: no iteration that has to converge.

With G = W W^T and P = G^(2^k), the largest eigenvalue of G is at most |P|_F^(1 / 2^k), as a Frobenius norm is an upper
bound, and at least n^(-1 / 2^(k + 1)) times as much.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LARGEST = 128
"""The larger a matrix, the more a factorisation is worth: above this it takes less time."""
_N_ROUNDS = 5
_N_REFINEMENTS = 3


def norm_by_squaring(weight: Tensor) -> tuple[Tensor, Tensor]:
    """An upper bound of a matrix's largest singular value, at most 0.25 % above it, and its derivative.

    Rounding is allowed for: each squaring halves what those before it did to the logarithm of the bound, so that all
    together do twice what one does.

    Args:
        weight: Shape (n_out, n_in), float32 or float64, its largest number of size 1; the smaller
            side at most `LARGEST`.

    Returns:
        The bound, a scalar, and u v^T for the leading singular vectors, scaled to make the bound's derivative.

    Source: Gouk et al. 2018 (the derivative); Delattre et al. 2023, "Efficient bound of Lipschitz constant for
        convolutional layers by Gram iteration".

    Example:
        >>> norm, gradient = norm_by_squaring(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        >>> round(norm.item(), 3), [[round(g, 3) for g in row] for row in gradient.tolist()]
        (2.0, [[1.0, 0.0], [0.0, 0.0]])
    """
    is_tall = weight.shape[0] > weight.shape[1]
    wide = weight.T if is_tall else weight
    power, sizes = wide @ wide.T, []
    for _ in range(_N_ROUNDS):  # two squarings at a time stay far from underflow
        sizes.append(torch.linalg.vector_norm(power))
        power = power / sizes[-1]
        power = power @ power
        power = power @ power
    sizes.append(torch.linalg.vector_norm(power))
    log = sum(0.25**i * math.log(size) for i, size in enumerate(torch.stack(sizes).tolist()))
    n, m = wide.shape
    rounding = 12 * torch.finfo(weight.dtype).eps * (m**0.5 + n)
    bound = weight.new_tensor(math.exp(log / 2) * (1 + rounding))
    left = _leading(power)
    right = wide.T @ left
    sigma = torch.linalg.vector_norm(right)
    value = torch.maximum(bound, sigma)
    gradient = torch.outer(left, right) * (value / sigma.square())
    return value, gradient.T if is_tall else gradient


def _leading(power: Tensor) -> Tensor:
    # The columns of such a power are multiples of the eigenvector, nearly; the power itself refines it.
    vector = power[:, power.square().sum(0).argmax()]
    for _ in range(_N_REFINEMENTS):
        vector = power @ (vector / torch.linalg.vector_norm(vector))
    return vector / torch.linalg.vector_norm(vector)

"""A control variate for log-determinants: what the Jacobians of a batch have in common, whose trace is known.

For any matrix M that does not depend on the probe u, E[u^T M u] = tr M. So u^T M u - tr M may be subtracted from an
estimate that has u^T log(I + J) u in it: no bias, and less variance, the more J is alike for all samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from invertible.logdet._linearised import Linearised

_N_TERMS = 6


def mean_jacobian(at: Linearised, n_products: int = 2) -> Tensor:
    """An estimate of the samples' mean Jacobian, of which each sample tells a few rows.

    Args:
        at: The function at its point; best with several samples for each dimension.
        n_products: How many rows a sample tells, each for one product.

    Returns:
        Shape (dimension, dimension), no graph; rows that no sample tells are 0.

    Example:
        >>> at = Linearised(lambda x: 0.5 * x, torch.randn(6, 2))
        >>> mean_jacobian(at)
        tensor([[0.5000, 0.0000],
                [0.0000, 0.5000]])
    """
    batch, dimension = at.like.shape
    first = torch.arange(n_products, device=at.like.device)[:, None] * (dimension // n_products)
    which = (first + torch.arange(batch, device=at.like.device)) % dimension
    chosen = torch.nn.functional.one_hot(which, dimension).to(at.like.dtype)
    total = at.like.new_zeros(dimension, dimension).index_add_(0, which.flatten(), at.pull(chosen).flatten(0, 1))
    return total / chosen.sum((0, 1)).clamp(min=1)[:, None]


def deviations(jacobian: Tensor, u: Tensor) -> Tensor:
    """u^T M u - tr M for M near log(I + J).

    Args:
        jacobian: J, shape (dimension, dimension).
        u: Probes with covariance I, shape (n, batch, dimension).

    Returns:
        Shape (n, batch); its expectation over the probes is 0, whatever J is.

    Example:
        >>> u = torch.tensor([[[1.0, 1.0]], [[1.0, -1.0]]])
        >>> deviations(torch.tensor([[0.1, 0.0], [0.2, 0.3]]), u).sum().abs().item() < 1e-6
        True
    """
    total = log1p_series(jacobian)
    return ((u @ total) * u).sum(dim=-1) - total.trace()


def log1p_series(jacobian: Tensor) -> Tensor:
    """What stands for log(I + J) in a control variate; it need not be near, it is the better for it.

    Args:
        jacobian: J, shape (dimension, dimension).

    Returns:
        The first terms of the power series, the same shape.
    """
    total, power = jacobian, jacobian
    for k in range(2, _N_TERMS + 1):
        power = power @ jacobian
        total = total - (-1) ** k / k * power
    return total

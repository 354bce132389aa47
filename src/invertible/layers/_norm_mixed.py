"""Norms of a linear layer from one p-norm to another: a sound bound.

The logarithm of the norm from L_p to L_q is convex in (1/p, 1/q) (Riesz and Thorin; for p <= q with real numbers too,
and the complex norm, which is not smaller, is the same as the real one at the points used here). It is known for p = 1
(the largest column), for q = infinity (the largest row) and for p = q = 2; all others with p <= q lie between these.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from invertible.errors import ConfigError
from invertible.layers._norm_geometry import Geometry, Size

Point = tuple[float, float]


def mixed_norm(
    weight: Tensor, geometry: Geometry, size: Size | None, norms: tuple[float, float], spectral: Callable[[], Tensor]
) -> Tensor:
    """An upper bound of the operator norm from L_p to L_q, differentiable.

    Args:
        weight: Shape (n_out, n_in / groups, *kernel).
        geometry: Of the layer.
        size: Of the input's axes; None: any.
        norms: p and q, from 1 to infinity.
        spectral: Makes a bound of the norm from L_2 to L_2.

    Returns:
        A scalar.

    Raises:
        ConfigError: If p > q for a convolution without a size: there is no bound for all sizes.

    Source: Chen et al. 2019 (Residual Flows), section 3.4 and appendix C.
    """
    x, y = (1 / p for p in norms)
    if y <= x:
        return _interpolated(weight, geometry, size, (x, y), spectral)
    if size is None and geometry.kernel:
        hint = "norms that do not fall, or in_shape=..."
        raise ConfigError("no bound from L_p to L_q with p > q for images of all sizes", got=norms, hint=hint)
    n_in = weight.shape[1] * geometry.groups * math.prod(size or ())
    n_out = weight.shape[0] * math.prod(geometry.out_size(size)) if size else weight.shape[0]
    after = _interpolated(weight, geometry, size, (x, x), spectral) * n_out ** (y - x)
    before = _interpolated(weight, geometry, size, (y, y), spectral) * n_in ** (y - x)
    return torch.minimum(after, before)


def _interpolated(
    weight: Tensor, geometry: Geometry, size: Size | None, point: Point, spectral: Callable[[], Tensor]
) -> Tensor:
    groups = geometry.groups
    by_tap = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)

    def known(at: Point) -> Tensor:
        if at == (0.5, 0.5):
            return spectral()
        copies = geometry.most_copies(size) ** at[0]
        if at[0] == 1:
            return _largest(by_tap, at[1], (1, 3)) * copies
        return _largest(by_tap, 1 - at[0], (2, 3)) * copies

    bounds = []
    for share, first, second in _between(point):
        bound = known(first) if share == 1 else known(first) ** share * known(second) ** (1 - share)
        bounds.append(bound)
    return torch.stack(bounds).amin()


def _largest(by_tap: Tensor, inverse: float, dim: tuple[int, int]) -> Tensor:
    # The largest norm of a column or row; scaled, as high powers of small numbers vanish.
    scale = by_tap.detach().abs().amax().clamp(min=torch.finfo(by_tap.dtype).tiny)
    order = math.inf if inverse < 1e-12 else 1 / inverse
    return torch.linalg.vector_norm(by_tap / scale, order, dim=dim).amax() * scale


def _between(point: Point) -> list[tuple[float, Point, Point]]:
    # point = share * first + (1 - share) * second, with first and second where the norm is known.
    x, y = point
    if x == 1 or y == 0 or point == (0.5, 0.5):
        return [(1.0, point, point)]
    found = [_split(x, y, share) for share in (y, (x + y) / 2, x)]
    centre = (0.5, 0.5)
    if x > 0.5 and 0 <= (other := 0.5 + (y - 0.5) / (2 * x - 1)) <= 1:
        found.append((2 * x - 1, (1.0, other), centre))
    if y < 0.5 and 0 <= (other := 0.5 + (x - 0.5) / (1 - 2 * y)) <= 1:
        found.append((1 - 2 * y, (other, 0.0), centre))
    return found


def _split(x: float, y: float, share: float) -> tuple[float, Point, Point]:
    return share, (1.0, min(1.0, y / share)), (min(1.0, max(0.0, (x - share) / (1 - share))), 0.0)

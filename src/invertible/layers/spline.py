"""Monotone rational-quadratic splines with identity tails: each number goes through a curve of its own.

A curve has K bins on [-bound, bound]. In the notation here a bin is w wide and h high, its slope is s = h / w, the
derivatives at its left and right knots are d0 and d1, and a point in it is xi of the width from the left and
eta = 1 - xi from the right. With

    a = eta d0 + xi s,   b = eta s + xi d1   (means, so positive as the derivatives are)

the curve is y = y1 - h eta b / (xi a + eta b), y1 the right knot's, and its derivative
(s / (xi a + eta b))^2 (eta a + xi b): the paper's formulas, in a form in which nothing cancels.

Source: Durkan et al. 2019, Neural Spline Flows, section 3.1 and appendix A; Gregory and Delbourgo 1982.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

MIN_BIN = 1e-3
"""Smallest width and height of a bin, as a fraction of the whole range."""
MIN_DERIVATIVE = 1e-3
"""Smallest derivative at a knot."""
_RAW_ONE = math.log(math.expm1(1 - MIN_DERIVATIVE))  # softplus of it is 1 - MIN_DERIVATIVE


def rational_quadratic(x: Tensor, parameters: Tensor, bound: float = 5.0, dim: int = -1) -> tuple[Tensor, Tensor]:
    """Send each number through its spline.

    Outside [-bound, bound] the spline is the identity. Parameters of zero make it the identity everywhere.

    Args:
        x: Any shape, float32 or float64. NaN gives NaN.
        parameters: The same shape with a dimension of 3 K - 1 more at `dim`: K unnormalised log-widths, K unnormalised
            log-heights, and of K - 1 inner knots the raw derivatives (plus a constant, then softplus).
        bound: Half of the range.
        dim: Where that dimension is.

    Returns:
        y, and log dy/dx at x in nats; each of x's shape.

    Example:
        >>> y, log = rational_quadratic(torch.tensor([0.5, 7.0]), torch.zeros(2, 11))
        >>> torch.allclose(y, torch.tensor([0.5, 7.0])), log.abs().max() < 1e-5
        (True, tensor(True))
    """
    inside, sizes, derivatives, scale, dim = _prepare(x, parameters, bound, dim)
    (w, h), (x1, y1), d = _bin(inside, sizes, derivatives, dim, 0)
    eta = _snap((x1 - inside) / w)
    y, log = _curve(eta, h / w, *d)
    return _with_tails(x, (y1 - h * y) / scale - bound, log, bound)


def rational_quadratic_inverse(
    y: Tensor, parameters: Tensor, bound: float = 5.0, dim: int = -1
) -> tuple[Tensor, Tensor]:
    """Undo `rational_quadratic`.

    Args:
        y: Any shape, float32 or float64. NaN gives NaN.
        parameters: As there.
        bound: As there.
        dim: As there.

    Returns:
        x, and log dy/dx at x in nats: that of `rational_quadratic`, of which the inverse's is minus.

    Example:
        >>> x, parameters = torch.tensor([0.5, 7.0]), torch.randn(2, 11)
        >>> y, log = rational_quadratic(x, parameters)
        >>> back, log_again = rational_quadratic_inverse(y, parameters)
        >>> torch.allclose(back, x, atol=1e-5), torch.allclose(log, log_again, atol=1e-4)
        (True, True)
    """
    inside, sizes, derivatives, scale, dim = _prepare(y, parameters, bound, dim)
    (w, h), (x1, y1), d = _bin(inside, sizes, derivatives, dim, 1)
    s = h / w
    eta = _root(_snap((y1 - inside) / h), s, *d)
    _, log = _curve(eta, s, *d)
    return _with_tails(y, (x1 - w * eta) / scale - bound, log, bound)


def _prepare(x: Tensor, parameters: Tensor, bound: float, dim: int) -> tuple[Tensor, Tensor, Tensor, float, int]:
    # Bins are measured from -bound in units in which the smallest adds to what softmax gives.
    dim = dim % parameters.ndim
    n_bins = (parameters.shape[dim] + 1) // 3
    smallest = MIN_BIN / (1 - n_bins * MIN_BIN)
    scale = (1 + n_bins * smallest) / (2 * bound)
    raw_sizes, raw_derivatives = parameters.split([2 * n_bins, n_bins - 1], dim)
    sizes = torch.softmax(raw_sizes.unflatten(dim, (2, n_bins)), dim + 1) + smallest
    return (x.clamp(-bound, bound) + bound) * scale, sizes, raw_derivatives, scale, dim


def _bin(
    z: Tensor, sizes: Tensor, raw_derivatives: Tensor, dim: int, axis: int
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The bin that holds z on one axis.

    Args:
        z: Distance from the left (axis 0) or lower (axis 1) end.
        sizes: Widths and heights of the bins, at `dim`; the bins after it.
        raw_derivatives: At the inner knots.
        dim: Where the bins are.
        axis: On which axis.

    Returns:
        (w, h), the far corner (x1, y1), and the derivatives (d0, d1) at both knots.
    """
    ends = sizes.detach().select(dim, axis).cumsum(dim)
    ends.select(dim, -1).fill_(math.inf)  # the last bin has no next, whatever the sum's rounding
    past = z.unsqueeze(dim) >= ends
    index = past.sum(dim, keepdim=True)
    # A sum over the bins before: unlike a gathered cumulative sum its gradient is one multiplication.
    near = (sizes * past.unsqueeze(dim)).sum(dim + 1)
    size = sizes.gather(dim + 1, _twice(index.unsqueeze(dim), dim)).squeeze(dim + 1)
    raw = functional.pad(raw_derivatives, [0, 0] * (raw_derivatives.ndim - 1 - dim) + [1, 1])
    d = functional.softplus(raw.gather(dim, torch.cat([index, index + 1], dim)) + _RAW_ONE) + MIN_DERIVATIVE
    return size.unbind(dim), (near + size).unbind(dim), d.unbind(dim)


def _twice(index: Tensor, dim: int) -> Tensor:
    shape = list(index.shape)
    shape[dim] = 2
    return index.expand(shape)


def _snap(share: Tensor) -> Tensor:
    # Next to a knot rounding can put a point outside its bin, where a steep curve has no logarithm or root. The
    # gradient is that of the point as it came.
    snapped = share.clamp(0, 1)
    return share + (snapped - share).detach() if share.requires_grad else snapped


def _curve(eta: Tensor, s: Tensor, d0: Tensor, d1: Tensor) -> tuple[Tensor, Tensor]:
    # How far below the right knot, as a fraction of the height; and the log-derivative.
    a, b = torch.lerp(s, d0, eta), torch.lerp(d1, s, eta)
    fraction = 1 / torch.lerp(a, b, eta)
    return eta * b * fraction, torch.log((s * fraction).square() * torch.lerp(b, a, eta))


def _root(e: Tensor, s: Tensor, d0: Tensor, d1: Tensor) -> Tensor:
    """Solve for eta where the curve is the fraction e of the height below the right knot.

    The quadratic's discriminant is g^2 + 4 s^2 e f with f = 1 - e and g = f d1 - e d0: a sum, so it does not cancel.
    For g >= 0 eta = 2 s e / (2 s e + g + root), and for g < 0, by symmetry, xi = 2 s f / (2 s f - g + root).
    """  # noqa: DOC201
    f = 1 - e
    g = f * d1 - e * d0
    is_near_right = g >= 0
    root = torch.sqrt(g.square() + 4 * s.square() * e * f)
    share = 2 * s * torch.where(is_near_right, e, f)
    ratio = share / (share + torch.where(is_near_right, g, -g) + root)
    return torch.where(is_near_right, ratio, 1 - ratio)


def _with_tails(x: Tensor, y: Tensor, log: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    outside = x.abs() > bound
    return torch.where(outside, x, y), log.masked_fill(outside, 0)

"""Information in closed form: what the estimators have to come out at."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from invertible._checks import check_floating, describe
from invertible.errors import ConfigError, ShapeError

Nonlinearity = Literal["tanh", "sigmoid", "relu", "identity"]
_FAR = 10.0
"""Standard deviations beyond which a normal number has a probability below 1e-22."""
_MAX_BINS = 2**24


def binned_gaussian_information(
    nonlinearity: Nonlinearity, weight: float, *, n_bins: int = 30, span: tuple[float, float] = (-1.0, 1.0)
) -> float:
    """I(X; T) of one unit, exactly: X ~ N(0, 1), h = f(weight X), T the bin of h.

    p_i = Phi(f^-1(b_(i+1)) / weight) - Phi(f^-1(b_i) / weight), and I(X; T) = H(T). The grid is that of
    `binned_information`: it goes on beyond the span.

    Args:
        nonlinearity: f: "tanh", "sigmoid", "relu" or "identity".
        weight: Above 0.
        n_bins: On the span.
        span: Of the grid.

    Returns:
        Bits.

    Raises:
        ConfigError: If an argument is out of its range.

    Source: Saxe et al. 2018, "On the information bottleneck theory of deep learning", section 2 (the minimal model).

    Example:
        >>> [round(binned_gaussian_information("tanh", w), 3) for w in (0.871, 100.0)]
        [4.9, 1.151]
    """
    from scipy.special import xlogy

    if nonlinearity not in get_args(Nonlinearity):
        raise ConfigError("no such nonlinearity", expected=" or ".join(get_args(Nonlinearity)), got=repr(nonlinearity))
    if not 0 < weight < math.inf or n_bins < 1 or not span[0] < span[1]:
        got = f"weight {weight}, n_bins {n_bins}, span {span}"
        raise ConfigError("bad unit or bins", expected="weight > 0, n_bins >= 1, low < high", got=got)
    p = _masses(nonlinearity, weight, n_bins, span)
    return float(max(0.0, -xlogy(p, p).sum() / math.log(2)))


def linear_gaussian_information(weight: Tensor, covariance: Tensor | None = None, *, sigma2: float = 1e-3) -> float:
    """I(X; T) of a linear network with noise, exactly: T = W X + N(0, sigma2), X ~ N(0, covariance).

    1/2 log2 det(W C W^T + sigma2 I) - d/2 log2 sigma2, as 1/2 log2 det(I + W C W^T / sigma2).

    Args:
        weight: W, shape (d, n): of a deep linear network the product of its matrices.
        covariance: C, shape (n, n); None: I / n.
        sigma2: Variance of the noise, above 0.

    Returns:
        Bits.

    Raises:
        ShapeError: If the shapes do not fit.
        DtypeError: If they hold no real numbers.
        ConfigError: If the variance is none.

    Source: Saxe et al. 2018, section 3 (deep linear networks).

    Example:
        >>> linear_gaussian_information(torch.eye(2), sigma2=0.5)
        1.0
    """
    check_floating(weight, "linear_gaussian_information")
    if weight.ndim != 2 or not weight.numel():
        raise ShapeError("bad weight", expected="shape (d, n)", got=describe(weight))
    n = weight.shape[1]
    inside = torch.eye(n, dtype=torch.float64, device=weight.device) / n if covariance is None else covariance.double()
    if tuple(inside.shape) != (n, n):
        raise ShapeError("bad covariance", expected=f"shape ({n}, {n})", got=describe(inside))
    if not 0 < sigma2 < math.inf:
        raise ConfigError("bad noise", expected="sigma2 > 0", got=sigma2)
    w = weight.detach().double()
    values = torch.linalg.eigvalsh(w @ inside @ w.T).clamp_min(0)
    return float((values / sigma2).log1p().sum() / (2 * math.log(2)))


def _masses(nonlinearity: str, weight: float, n_bins: int, span: tuple[float, float]) -> np.ndarray:
    from scipy.special import ndtr

    with np.errstate(divide="ignore"):  # the ends have their images at infinity
        edges = _INVERSES[nonlinearity](_edges(nonlinearity, weight, n_bins, span)) / weight
    # From the nearer tail, or differences of numbers next to 1 lose all digits.
    return np.where(edges[1:] <= 0, ndtr(edges[1:]) - ndtr(edges[:-1]), ndtr(-edges[:-1]) - ndtr(-edges[1:]))


def _edges(nonlinearity: str, weight: float, n_bins: int, span: tuple[float, float]) -> np.ndarray:
    low, pitch = span[0], (span[1] - span[0]) / n_bins
    ends = {"tanh": (-1.0, 1.0), "sigmoid": (0.0, 1.0), "relu": (0.0, _FAR * weight)}
    least, most = ends.get(nonlinearity, (-_FAR * weight, _FAR * weight))
    first, last = math.floor((least - low) / pitch + 1e-9), math.ceil((most - low) / pitch - 1e-9)
    if last - first > _MAX_BINS:
        raise ConfigError("too many bins", expected=f"at most {_MAX_BINS}", got=last - first, hint="a smaller weight")
    edges = low + pitch * np.arange(first, max(last, first + 1) + 1)
    edges[[0, -1]] = -math.inf, math.inf
    return edges


def _logit(p: np.ndarray) -> np.ndarray:
    from scipy.special import logit

    return logit(np.clip(p, 0, 1))


_INVERSES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "tanh": lambda h: np.arctanh(np.clip(h, -1, 1)),
    "sigmoid": _logit,
    "relu": lambda h: h,
    "identity": lambda h: h,
}

"""Searching for points at which the gradient is zero: by its norm, and by saddle-free Newton. Dense, float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from invertible.errors import NonFiniteError
from invertible.instruments._hessian import Hessian
from invertible.instruments._loss_on_data import LossOnData

FLAT = 1e-6
"""A search ends where |H g| is this small beside |H| |g|: a minimum of the gradient's norm, which need not be zero."""
_MOST_TRIALS = 30
_FIRST_DAMPING = 1e-3
_SUFFICIENT = 1e-4


class Landscape(Protocol):
    """A function of one vector with two derivatives, in float64."""

    def value(self, theta: Tensor) -> float:
        """The function at theta, shape (n,)."""
        ...

    def gradient(self, theta: Tensor) -> Tensor:
        """Its gradient, shape (n,)."""
        ...

    def hessian(self, theta: Tensor) -> Tensor:
        """Its second derivatives, shape (n, n)."""
        ...


class NetworkLandscape:
    """A network's loss over data, plus decay / 2 |theta|^2.

    Args:
        view: The loss, in float64.
        decay: Of the weights; above 0, the loss grows in all directions and has its critical points at finite places.
    """

    def __init__(self, view: LossOnData, decay: float = 0.0) -> None:
        self._view, self._decay = view, decay

    def value(self, theta: Tensor) -> float:
        """The loss with decay.

        Args:
            theta: Shape (n,).

        Returns:
            A number.
        """
        return self._view.value(theta) + self._decay / 2 * theta.square().sum().item()

    def gradient(self, theta: Tensor) -> Tensor:
        """Its gradient.

        Args:
            theta: Shape (n,).

        Returns:
            Shape (n,).
        """
        return self._view.gradient(theta) + self._decay * theta

    def hessian(self, theta: Tensor) -> Tensor:
        """Its second derivatives.

        Args:
            theta: Shape (n,).

        Returns:
            Shape (n, n), symmetric.
        """
        found = Hessian(self._view, theta)
        found.at_once = self._view.n  # networks here are tiny: all rows in one backward pass
        matrix = found.dense()
        matrix.diagonal().add_(self._decay)
        return matrix


@dataclass(frozen=True)
class End:
    """Where a search ended.

    Args:
        theta: The point, shape (n,).
        gradient: At it, shape (n,).
        values: Of the Hessian, ascending, shape (n,).
        vectors: Likewise, as columns, shape (n, n).
        n_iterations: How many Hessians it took to get there.
    """

    theta: Tensor
    gradient: Tensor
    values: Tensor
    vectors: Tensor
    n_iterations: int

    @property
    def largest(self) -> float:
        """Largest eigenvalue, in size."""
        return self.values.abs().max().item()

    @property
    def flatness(self) -> float:
        """|H g| / (|H| |g|): 0 where the norm of the gradient is stationary, 1 at most; 1 where either is zero."""
        norm = self.gradient.norm().item()
        scale = self.largest * norm
        return (self.values * (self.vectors.T @ self.gradient)).norm().item() / scale if scale else 1.0


Keep = Callable[[], bool]


def by_gradient_norm(land: Landscape, theta: Tensor, tolerance: float, n_iterations: int, keep_on: Keep) -> End:
    """Minimise |g|^2 / 2 by Levenberg-Marquardt steps -(H^2 + damping)^-1 H g, which find saddles as well as minima.

    Args:
        land: The function.
        theta: Where to begin, shape (n,).
        tolerance: Norm of the gradient at which it ends.
        n_iterations: At most so many Hessians.
        keep_on: Asked before each; false: stop.

    Returns:
        The end: a zero of the gradient, a place where its norm is stationary, or as far as it came.
    """
    gradient, damping, i = land.gradient(theta), 0.0, 0
    while True:
        end = _end(land, theta, gradient, i)
        if gradient.norm().item() <= tolerance or end.flatness < FLAT or i >= n_iterations or not keep_on():
            return end
        found = _flatter(land, end, damping or _FIRST_DAMPING * end.largest**2)
        if found is None:
            return end
        theta, gradient, damping = found
        i += 1


def _flatter(land: Landscape, end: End, damping: float) -> tuple[Tensor, Tensor, float] | None:
    # More damping until the gradient's norm falls by a fair part of what the linear model promises.
    parts, norm, squares = end.vectors.T @ end.gradient, end.gradient.norm().item(), end.values.square()
    for _ in range(_MOST_TRIALS):
        theta = end.theta - end.vectors @ (end.values * parts / (squares + damping))
        gradient = land.gradient(theta)
        promised = 1 - (damping * parts / (squares + damping)).square().sum().item() / norm**2
        kept = 1 - gradient.square().sum().item() / norm**2
        if kept > 0 and kept > _SUFFICIENT * promised:
            return theta, gradient, damping * (0.1 if kept > 0.5 * promised else 1.0)
        damping *= 10
    return None


def by_saddle_free_newton(land: Landscape, theta: Tensor, tolerance: float, n_iterations: int, keep_on: Keep) -> End:
    """Follow -|H|^-1 g downhill: along directions of negative curvature too, so that saddles are left, not approached.

    Args:
        land: The function.
        theta: Where to begin, shape (n,).
        tolerance: Norm of the gradient at which it ends.
        n_iterations: At most so many Hessians.
        keep_on: Asked before each; false: stop.

    Returns:
        The end: as a rule a minimum, or as far as it came.

    Source: Dauphin et al. 2014, "Identifying and attacking the saddle point problem", section 6.
    """
    gradient, damping, i = land.gradient(theta), 0.0, 0
    while True:
        end = _end(land, theta, gradient, i)
        if gradient.norm().item() <= tolerance or i >= n_iterations or not keep_on():
            return end
        found = _lower(land, end, damping or _FIRST_DAMPING * end.largest)
        if found is None:
            return end
        theta, gradient, damping = found
        i += 1


def _lower(land: Landscape, end: End, damping: float) -> tuple[Tensor, Tensor, float] | None:
    value, parts, norm = land.value(end.theta), end.vectors.T @ end.gradient, end.gradient.norm().item()
    rounding = 1e-15 * (1 + abs(value))  # within it the loss no longer tells what is lower: then the gradient does
    for _ in range(_MOST_TRIALS):
        theta = end.theta - end.vectors @ (parts / (end.values.abs() + damping))
        trial = land.value(theta)
        if trial < value + rounding:
            gradient = land.gradient(theta)
            if trial < value - rounding or gradient.norm().item() < norm:
                return theta, gradient, damping * 0.1
        damping *= 10
    return None


METHODS = {"gradient-norm": by_gradient_norm, "saddle-free": by_saddle_free_newton}


def _end(land: Landscape, theta: Tensor, gradient: Tensor, i: int) -> End:
    matrix = land.hessian(theta)
    if not bool(matrix.isfinite().all()) or not bool(gradient.isfinite().all()):
        hint = "smaller amplitudes, or a loss without kinks"
        raise NonFiniteError("derivatives are not finite", expected="finite numbers", got="NaN or infinity", hint=hint)
    values, vectors = torch.linalg.eigh(matrix)
    return End(theta, gradient, values, vectors, i)

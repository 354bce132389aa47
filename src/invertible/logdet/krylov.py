"""log|det(I + dg/dx)| by quadrature in Krylov spaces."""

from __future__ import annotations

import dataclasses
import math
from typing import TypeGuard

import torch
from torch import Tensor

from invertible.errors import ConfigError
from invertible.logdet._control import deviations, mean_jacobian
from invertible.logdet._krylov import Level, arnoldi
from invertible.logdet._linearised import Linearised
from invertible.logdet._mean_field import mean_field_deviations
from invertible.logdet._probes import draw, hadamard_order
from invertible.logdet._roulette import tail
from invertible.logdet._surrogate import with_gradient_of
from invertible.logdet._telescope import combine, probe_weights, standard_error
from invertible.logdet.estimator import Cost, Gradient, LogDet, LogDetEstimator, check_choices, check_count
from invertible.logdet.layered import LinearisedLayers


@dataclasses.dataclass(frozen=True)
class Krylov(LogDetEstimator):
    """Quadrature in Krylov spaces, most of the probes in small ones: little bias, and the least variance for the price.

    A probe's m-step value |u|^2 [log(I + H_m)]_11 is exact for polynomials of degree m. What step m adds to it varies
    far less between probes than the value, so a `taper` of the probes is enough for each further step: the estimate is
    the mean of the 1-step values, plus the mean of what step 2 adds for those that make it, and so on. Probes are
    orthogonal signs.

    Without gradients there is a control variate. In a `Residual` of a fully connected network: the mean field of the
    layers, and each sample's difference from it to first order, for one to two products a probe; on digits it leaves a
    tenth of the variance of a step or less. Otherwise, in a batch of at least twice the dimension: the samples' mean
    Jacobian, two products for a third to two thirds less variance.

    Args:
        n_steps: The largest number of steps; 3 leave a bias far below the standard error.
        n_probes: Probes per sample.
        taper: Which share of the probes of one step makes the next one, rounded, at least one probe.
        gradient: "neumann" or "backprop".

    Raises:
        ConfigError: If a number is out of range.

    Source: Golub and Meurant 2010 (matrices, moments and quadrature); Giles 2015 (multilevel Monte Carlo).

    Example:
        >>> Krylov(n_steps=3, n_probes=7).counts, Krylov(n_steps=3, n_probes=7).cost(64).products
        ((7, 2, 1), 10)
    """

    n_steps: int = 3
    n_probes: int = 7
    taper: float = 0.25
    gradient: Gradient = "neumann"

    def __post_init__(self) -> None:
        check_count(self.n_steps, "n_steps")
        check_choices(self.n_probes, "orthogonal", self.gradient)
        if not 0 < self.taper <= 1:
            raise ConfigError("taper is a share", expected="0 < taper <= 1", got=self.taper)

    @classmethod
    def within(cls, products: int, n_steps: int = 3, taper: float = 0.25, gradient: Gradient = "neumann") -> Krylov:
        """Make the estimator that spends a budget.

        Args:
            products: How many products each sample may take.
            n_steps: As above; fewer where the budget is smaller.
            taper: As above.
            gradient: As above.

        Returns:
            The one with the most probes.

        Example:
            >>> Krylov.within(20).counts
            (15, 4, 1)
        """
        check_count(products, "products")
        n_steps = min(n_steps, products)
        fitting = [n for n in range(1, products + 1) if sum(_taper(n, n_steps, taper)) <= products]
        return cls(n_steps, max(fitting), taper, gradient)

    @property
    def counts(self) -> tuple[int, ...]:
        """How many probes make 1, 2, ... steps."""
        return _taper(self.n_probes, self.n_steps, self.taper)

    def cost(self, dimension: int) -> Cost:
        """Tell what it costs.

        Args:
            dimension: Numbers per sample; makes no difference.

        Returns:
            The products of all steps; their graph, or that of one a probe.
        """
        products = sum(self.counts)
        return Cost(products, products if self.gradient == "backprop" else self.n_probes)

    def _estimate(self, at: Linearised, lipschitz: float | None, generator: torch.Generator | None) -> LogDet:
        u = draw("orthogonal", self.n_probes, at.like, generator)
        is_through = at.has_graph and self.gradient == "backprop"
        levels, power = arnoldi(at, u, self.counts, is_through)
        known = self._known(at, u)
        if known is not None:
            levels = [level._replace(value=level.value - known[: len(level.value)]) for level in levels]
        value = combine([level.value for level in levels])
        if at.has_graph and not is_through:
            w = _solutions(u, levels)
            value = with_gradient_of(value, (at.pull(w, create_graph=True) * u).sum(dim=(0, 2)))
        error = standard_error([level.value.detach() for level in levels], hadamard_order(u.shape[-1]))
        return LogDet(value, error, self._bias_bound(u, power, lipschitz), at.n_products)

    def _known(self, at: Linearised, u: Tensor) -> Tensor | None:
        # The control variate: something near the 1-step values, less its expectation.
        batch, dimension = at.like.shape
        if has_mean_field(at):
            at.n_products += _CONTROL * len(u)
            return mean_field_deviations(at.factors, u)
        is_worth_it = not at.has_graph and self.n_probes > 4 and batch >= 2 * dimension
        return deviations(mean_jacobian(at), u) if is_worth_it else None

    def _bias_bound(self, u: Tensor, power: Tensor, c: float | None) -> Tensor | None:
        # m steps are exact for polynomials of degree m; of the series' rest, both u^T J^k u and its stand-in are at
        # most |u| c^(k - m) |J^T^m u|
        if c is None:
            return None
        return (2 * tail(c, self.n_steps) * math.sqrt(u.shape[-1]) * power).mean(dim=0)


def has_mean_field(at: Linearised) -> TypeGuard[LinearisedLayers]:
    """Whether a control variate can be had from the layers: no gradients, and no fewer samples than are worth it.

    Args:
        at: The function at its point.

    Returns:
        Whether there is one.
    """
    batch, dimension = at.like.shape
    return isinstance(at, LinearisedLayers) and not at.has_graph and 4 * batch >= dimension


def controlled(products: int, n_steps: int) -> Krylov:
    """The estimator that spends a budget where there is a mean field, whose control costs two products a probe.

    It takes so much of the variance of the first steps that more of the probes should go on.

    Args:
        products: How many products each sample may take.
        n_steps: The largest number of steps.

    Returns:
        The one with the most probes.

    Example:
        >>> controlled(24, 3).counts
        (6, 3, 1)
    """
    n_steps = max(1, min(n_steps, products - _CONTROL))
    fitting = [n for n in range(1, products + 1) if sum(_taper(n, n_steps, _TAPER)) + _CONTROL * n <= products]
    return Krylov(n_steps, max(fitting, default=1), _TAPER)


_TAPER, _CONTROL = 0.45, 2


def _solutions(u: Tensor, levels: list[Level]) -> Tensor:
    # what the telescoped mean of the values has as its gradient's (I + J)^-T u, each with its probe's weight
    total, counts = torch.zeros_like(u), tuple(len(level.value) for level in levels)
    for n, weights, level in zip(counts, probe_weights(counts, u), levels, strict=True):
        if level.solution is not None:
            total[:n] += weights[:, None, None] * level.solution
    return total


def _taper(n_probes: int, n_steps: int, taper: float) -> tuple[int, ...]:
    return tuple(max(1, round(n_probes * taper**step)) for step in range(n_steps))

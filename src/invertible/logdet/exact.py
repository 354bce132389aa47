"""The dense determinant, and the choice between it and an estimate."""

from __future__ import annotations

import dataclasses
import math

import torch

from invertible.errors import ConfigError
from invertible.logdet._linearised import Linearised
from invertible.logdet.estimator import Cost, Gradient, LogDet, LogDetEstimator, check_choices, check_count
from invertible.logdet.krylov import Krylov, controlled, has_mean_field


@dataclasses.dataclass(frozen=True)
class ExactLogDet(LogDetEstimator):
    """The determinant of the dense Jacobian. Needs no contraction; gradients of every order are exact.

    Costs `dimension` products and holds batch x dimension^2 numbers; with gradients also the graph of every product.

    Args:
        chunk: How many products to take at once; None: as many as fit into about 256 MB of gradients.

    Example:
        >>> y, logdet = ExactLogDet()(torch.tanh, torch.zeros(2, 3))
        >>> torch.allclose(logdet.value, torch.tensor(3 * 0.6931), atol=1e-3), logdet.products
        (True, 3)
    """

    chunk: int | None = None

    def __post_init__(self) -> None:
        check_count(1 if self.chunk is None else self.chunk, "chunk")

    def cost(self, dimension: int) -> Cost:
        """Tell what it costs.

        Args:
            dimension: Numbers per sample.

        Returns:
            `dimension` products, all in the graph.
        """
        return Cost(dimension, dimension)

    def _estimate(self, at: Linearised, lipschitz: float | None, generator: torch.Generator | None) -> LogDet:
        jacobian = at.jacobian(self.chunk)
        eye = torch.eye(jacobian.shape[-1], dtype=jacobian.dtype, device=jacobian.device)
        value = torch.linalg.slogdet(eye + jacobian)[1]
        zero = torch.zeros_like(value.detach())
        return LogDet(value, zero, zero, at.n_products)


@dataclasses.dataclass(frozen=True)
class AutoLogDet(LogDetEstimator):
    """Exact where that is cheap, Krylov quadrature within a budget otherwise: the default for evaluations.

    With an `accuracy` it takes a first estimate of 10 products, and from its spread as many more as are missing, until
    the standard error (root mean square over the batch) is reached or the budget spent; without budget, until it is
    exact. The result's `standard_error` says what was reached.

    Args:
        max_products: The budget for each sample; None: none, which asks for an accuracy.
        accuracy: The standard error that is enough, nats; None: spend the budget.
        exact_up_to: The largest dimension for which the exact determinant is taken anyway.
        n_steps: As in `Krylov`.
        gradient: As in `Krylov`.

    Raises:
        ConfigError: If a number is out of range.

    Example:
        >>> AutoLogDet(max_products=20).cost(2), AutoLogDet(max_products=20).cost(3072)
        (Cost(products=2, graph=2), Cost(products=20, graph=15))
    """

    max_products: int | None = 24
    accuracy: float | None = None
    exact_up_to: int = 32
    n_steps: int = 3
    gradient: Gradient = "neumann"

    def __post_init__(self) -> None:
        check_count(self.n_steps, "n_steps")
        check_choices(1, "orthogonal", self.gradient)
        check_count(1 if self.max_products is None else self.max_products, "max_products")
        if self.max_products is None and self.accuracy is None:
            raise ConfigError("nothing says when to stop", expected="max_products or accuracy", got="neither")
        if self.accuracy is not None and not 0 < self.accuracy < math.inf:
            raise ConfigError("accuracy is in nats", expected="a positive number", got=self.accuracy)

    def is_exact(self, dimension: int) -> bool:
        """Tell whether the exact determinant is taken from the start.

        Args:
            dimension: Numbers per sample.

        Returns:
            True where it costs no more than the budget, or the dimension is small.
        """
        return dimension <= max(self.exact_up_to, self.max_products or 2 * _PILOT)

    def cost(self, dimension: int) -> Cost:
        """Tell what it costs at most.

        Args:
            dimension: Numbers per sample.

        Returns:
            The dimension, or the budget.
        """
        if self.is_exact(dimension):
            return ExactLogDet().cost(dimension)
        if self.max_products is None:
            return Cost(_PILOT + dimension, dimension)
        return Krylov.within(self.max_products, self.n_steps, gradient=self.gradient).cost(dimension)

    def _estimate(self, at: Linearised, lipschitz: float | None, generator: torch.Generator | None) -> LogDet:
        dimension = at.like.shape[1]
        if self.is_exact(dimension):
            return ExactLogDet()._estimate(at, lipschitz, generator)
        budget = dimension if self.max_products is None else self.max_products
        first = self._krylov(_PILOT if self.accuracy and budget > _PILOT else budget, at)
        found = first._estimate(at, lipschitz, generator)
        spent = at.n_products if has_mean_field(at) else int(first.cost(0).products)
        missing = self._missing(found, spent, budget)
        if missing < 4:
            return found
        if spent + missing >= dimension:
            return ExactLogDet()._estimate(at, lipschitz, generator)
        rest = self._krylov(missing, at)
        return _pool(found, rest._estimate(at, lipschitz, generator), first.n_probes, rest.n_probes)

    def _krylov(self, products: int, at: Linearised) -> Krylov:
        if has_mean_field(at):
            return controlled(products, self.n_steps)
        return Krylov.within(products, self.n_steps, gradient=self.gradient)

    def _missing(self, found: LogDet, spent: int, budget: int) -> int:
        if self.accuracy is None or spent >= budget:
            return 0
        variance = found.standard_error.square().mean().item()
        needed = math.inf if math.isnan(variance) else 1.2 * spent * variance / self.accuracy**2
        return int(min(needed, budget)) - spent


_PILOT = 10


def _pool(a: LogDet, b: LogDet, n_a: int, n_b: int) -> LogDet:
    share = n_a / (n_a + n_b)
    value = share * a.value + (1 - share) * b.value
    error = (share**2 * a.standard_error.square() + (1 - share) ** 2 * b.standard_error.square()).sqrt()
    bound = None
    if a.bias_bound is not None and b.bias_bound is not None:
        bound = share * a.bias_bound + (1 - share) * b.bias_bound
    return LogDet(value, error, bound, b.products)

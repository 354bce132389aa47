"""log|det(I + dg/dx)| by the power series of the logarithm: cut off (i-ResNet), or of random length (Residual Flow)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from invertible.errors import ConfigError
from invertible.logdet._linearised import Linearised
from invertible.logdet._probes import Probe, draw, hadamard_order
from invertible.logdet._roulette import Lengths, draw_lengths, series, survival, tail
from invertible.logdet._surrogate import with_gradient_of
from invertible.logdet._telescope import standard_error
from invertible.logdet.estimator import Cost, Gradient, LogDet, LogDetEstimator, check_choices, check_count


@dataclasses.dataclass(frozen=True)
class PowerSeries(LogDetEstimator):
    """The first terms of log(I + J) = J - J^2 / 2 + J^3 / 3 - ..., as in i-ResNet.

    Biased: by at most dimension * sum over k > n_terms of c^k / k.

    Args:
        n_terms: Products per probe.
        n_probes: Independent probes per sample.
        probe: "gaussian" (the paper's), "rademacher" or "orthogonal"; signs have less variance.
        gradient: "neumann" or "backprop", see `invertible.logdet`.

    Source: Behrmann et al. 2019 (i-ResNet), algorithm 2.

    Example:
        >>> PowerSeries(n_terms=5).cost(64)
        Cost(products=5, graph=1)
    """

    n_terms: int = 5
    n_probes: int = 1
    probe: Probe = "gaussian"
    gradient: Gradient = "neumann"

    def __post_init__(self) -> None:
        check_count(self.n_terms, "n_terms")
        check_choices(self.n_probes, self.probe, self.gradient)

    def cost(self, dimension: int) -> Cost:
        """Tell what it costs.

        Args:
            dimension: Numbers per sample; makes no difference.

        Returns:
            n_terms products a probe; their graph, or that of one a probe.
        """
        products = self.n_terms * self.n_probes
        return Cost(products, products if self.gradient == "backprop" else self.n_probes)

    def bias_bound(self, dimension: int, lipschitz: float) -> float:
        """Tell how large the bias can be.

        Args:
            dimension: Numbers per sample.
            lipschitz: A bound of g's Lipschitz constant.

        Returns:
            Nats.

        Example:
            >>> round(PowerSeries(5).bias_bound(64, 0.9), 1)
            30.2
        """
        return dimension * lipschitz**self.n_terms * tail(lipschitz, self.n_terms)

    def _estimate(self, at: Linearised, lipschitz: float | None, generator: torch.Generator | None) -> LogDet:
        u = draw(self.probe, self.n_probes, at.like, generator)
        value, error = _of_series(at, u, torch.ones(self.n_probes, self.n_terms), self.probe, self.gradient)
        bound = None
        if lipschitz is not None:
            bound = torch.full_like(error, self.bias_bound(at.like.shape[1], lipschitz))
        return LogDet(value, error, bound, at.n_products)


@dataclasses.dataclass(frozen=True)
class RussianRoulette(LogDetEstimator):
    """The power series of random length, its terms weighted so that the estimate is unbiased, as in Residual Flow.

    The length is drawn for each probe; a batch shares it. Unbiased in value and (Neumann) gradient.

    Args:
        n_exact: Terms that are always taken.
        length: How many more: "geometric", P(N >= j) = (1 - p)^(j - 1), or "poisson".
        parameter: The p of the geometric distribution, or the mean of Poisson's.
        n_probes: Independent probes per sample.
        probe: "gaussian" (the paper's), "rademacher" or "orthogonal".
        gradient: "neumann" or "backprop".

    Source: Chen et al. 2019 (Residual Flows), equations 6 and 8.

    Example:
        >>> RussianRoulette().cost(64)
        Cost(products=4.0, graph=1.0)
    """

    n_exact: int = 2
    length: Lengths = "geometric"
    parameter: float = 0.5
    n_probes: int = 1
    probe: Probe = "gaussian"
    gradient: Gradient = "neumann"

    def __post_init__(self) -> None:
        check_choices(self.n_probes, self.probe, self.gradient)
        if self.n_exact < 0:
            raise ConfigError("n_exact counts terms", expected="0 or more", got=self.n_exact)
        if self.length not in ("geometric", "poisson"):
            raise ConfigError("unknown length", expected="'geometric' or 'poisson'", got=repr(self.length))
        low, high = (0.15, 0.95) if self.length == "geometric" else (0.1, 50.0)
        if not low <= self.parameter <= high:
            expected = f"{low} to {high} for {self.length}"
            raise ConfigError("the roulette's parameter is out of range", expected=expected, got=self.parameter)

    def cost(self, dimension: int) -> Cost:
        """Tell what it costs on average.

        Args:
            dimension: Numbers per sample; makes no difference.

        Returns:
            The mean number of products; their graph, or that of one a probe.
        """
        mean = 1 / self.parameter if self.length == "geometric" else self.parameter
        products = self.n_probes * (self.n_exact + mean)
        return Cost(products, products if self.gradient == "backprop" else float(self.n_probes))

    def _estimate(self, at: Linearised, lipschitz: float | None, generator: torch.Generator | None) -> LogDet:
        u = draw(self.probe, self.n_probes, at.like, generator)
        more = torch.tensor(draw_lengths(self.length, self.parameter, self.n_probes, generator))
        n_terms = self.n_exact + int(more[0])
        term = torch.arange(1, n_terms + 1)
        weight = torch.ones(n_terms, dtype=torch.float64)
        weight[self.n_exact :] = 1 / survival(self.length, self.parameter, n_terms - self.n_exact)
        weights = torch.where(term <= self.n_exact + more[:, None], weight, 0)
        value, error = _of_series(at, u, weights, self.probe, self.gradient)
        return LogDet(value, error, torch.zeros_like(error), at.n_products)


def _of_series(at: Linearised, u: Tensor, weights: Tensor, probe: Probe, gradient: Gradient) -> tuple[Tensor, Tensor]:
    is_through = at.has_graph and gradient == "backprop"
    each, w = series(at, u, weights, is_through)
    value = each.mean(dim=0)
    if at.has_graph and not is_through:
        value = with_gradient_of(value, (at.pull(w, create_graph=True) * u).sum(dim=-1).mean(dim=0))
    return value, standard_error([each.detach()], hadamard_order(u.shape[-1]) if probe == "orthogonal" else None)

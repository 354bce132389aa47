"""log|det(I + dg/dx)| of a residual map x + g(x), |dg/dx| < 1, from products with the Jacobian.

All estimators average u^T log(I + J) u over random probes u. They differ in what stands for the logarithm:

| estimator | stands for the logarithm | products | bias | variance |
|---|---|---|---|---|
| `ExactLogDet` | the dense determinant | dimension | 0 | 0 |
| `PowerSeries` | n terms of its power series | n a probe | order c^(n + 1) | the probes' |
| `RussianRoulette` | a power series of random length | random | 0 | the probes' and the length's |
| `Krylov` | quadrature in Krylov spaces | 1 a probe, more for a few | far below the series' | the probes' |
| `AutoLogDet` | the exact one if cheap, else Krylov | up to a budget | as theirs | as theirs |

Gradients: `gradient="neumann"` differentiates w^T J u with w = (I + J)^-T u, approximated by the products that the
value took anyway: the graph holds one product a probe. `"backprop"` differentiates through every product, and is the
gradient of the estimate itself, to all orders.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from invertible._checks import check_finite, check_floating, describe
from invertible._krylov import arnoldi
from invertible._linearised import Function, Linearised
from invertible._probes import PROBES, Probe, draw, hadamard_order
from invertible._roulette import Lengths, draw_lengths, series, survival, tail
from invertible._surrogate import with_gradient_of
from invertible._telescope import combine, probe_weights, standard_error
from invertible.errors import ConfigError, RangeError, ShapeError

Gradient = Literal["neumann", "backprop"]


@dataclasses.dataclass(frozen=True, eq=False)
class LogDet:
    """log|det(I + dg/dx)| of each sample, and how far to trust it.

    Attributes:
        value: Nats, shape (batch,), with a graph if the input or g's parameters need gradients. In x's dtype, but
            float32 for 16-bit x.
        standard_error: Of the value, nats, shape (batch,), from the spread over the probes. 0 where exact; NaN with
            one probe, which has no spread.
        bias_bound: Nats, shape (batch,): a bound on what the truncation can do to the value, from the Euclidean
            Lipschitz constant that was given; 0 where exact or unbiased; None where no constant is known.
        products: How many products with the Jacobian each sample took, those for the gradient included.
    """

    value: Tensor
    standard_error: Tensor
    bias_bound: Tensor | None
    products: int


class Cost(NamedTuple):
    """What an estimate costs, in products with the Jacobian for each sample.

    Attributes:
        products: On average, without gradients.
        graph: How many of them the graph for the gradient holds, and recomputes in the backward pass.
    """

    products: float
    graph: float


class LogDetEstimator(ABC):
    """How to find log|det(I + dg/dx)|. Abstract: see the module's table.

    Example:
        >>> estimator: LogDetEstimator = ExactLogDet()
        >>> y, logdet = estimator(lambda x: 0.5 * x, torch.zeros(4, 3))
        >>> torch.allclose(logdet.value.exp(), torch.tensor(1.5**3))
        True
    """

    def __call__(
        self, g: Function, x: Tensor, lipschitz: float | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, LogDet]:
        """Evaluate g once, and from its graph the log-determinant.

        Computed without autocast. x is not changed, and neither is whether it requires gradients.

        Args:
            g: Maps batches of shape (batch, ...) to the same shape, each sample for itself.
            x: Where, shape (batch, ...).
            lipschitz: A bound of g's Lipschitz constant in the Euclidean norm, for `bias_bound`.
            generator: Where the probes come from; None: the global random state.

        Returns:
            g(x) and its log-determinant.

        Raises:
            DtypeError: If x is no real tensor.
            ShapeError: If x has no batch dimension, or g changes the shape.
            ConfigError: If g changes x in place.
            RangeError: If the Lipschitz constant is not in [0, 1), or g turns out to be no contraction.
            NonFiniteError: If x, g or its Jacobian hold NaN or infinity.
        """
        check_floating(x, type(self).__name__)
        if x.ndim == 0:
            raise ShapeError(f"{type(self).__name__} takes batches", expected="(batch, ...)", got=describe(x))
        if lipschitz is not None and not 0 <= lipschitz < 1:
            raise RangeError("g must be a contraction", expected="0 <= lipschitz < 1", got=lipschitz)
        wants_graph = torch.is_grad_enabled()
        with (
            torch.inference_mode(False),
            torch.set_grad_enabled(wants_graph),
            torch.autocast(x.device.type, enabled=False),
        ):
            at = Linearised(g, x)
            found = self._estimate(at, lipschitz, generator) if at.like.numel() else _nothing(at)
        check_finite(found.value, "log|det(I + dg/dx)|")
        return at.value, found

    @abstractmethod
    def cost(self, dimension: int) -> Cost:
        """Tell what an estimate costs.

        Args:
            dimension: Numbers per sample.

        Returns:
            The products it takes.
        """

    @abstractmethod
    def _estimate(self, at: Linearised, lipschitz: float | None, generator: torch.Generator | None) -> LogDet: ...


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
        _check_count(self.chunk or 1, "chunk")

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
class PowerSeries(LogDetEstimator):
    """The first terms of log(I + J) = J - J^2 / 2 + J^3 / 3 - ..., as in i-ResNet.

    Biased: by at most dimension * sum over k > n_terms of c^k / k.

    Args:
        n_terms: Products per probe.
        n_probes: Independent probes per sample.
        probe: "gaussian" (the paper's), "rademacher" or "orthogonal"; signs have less variance.
        gradient: "neumann" or "backprop", see the module.

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
        _check_count(self.n_terms, "n_terms")
        _check_choices(self.n_probes, self.probe, self.gradient)

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
        return dimension * tail(lipschitz, self.n_terms)

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
        _check_choices(self.n_probes, self.probe, self.gradient)
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


@dataclasses.dataclass(frozen=True)
class Krylov(LogDetEstimator):
    """Quadrature in Krylov spaces, most of the probes in small ones: little bias, and the least variance for the price.

    A probe's m-step value |u|^2 [log(I + H_m)]_11 is exact for polynomials of degree m. What step m adds to it varies
    far less between probes than the value, so a `taper` of the probes is enough for each further step: the estimate is
    the mean of the 1-step values, plus the mean of what step 2 adds for those that make it, and so on. Probes are
    orthogonal signs.

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
        _check_count(self.n_steps, "n_steps")
        _check_choices(self.n_probes, "orthogonal", self.gradient)
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
        _check_count(products, "products")
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
        levels = arnoldi(at, u, self.counts, is_through)
        value = combine([level.value for level in levels])
        if at.has_graph and not is_through:
            scales = probe_weights(self.counts, u)
            w = torch.zeros_like(u)
            for n, scale, level in zip(self.counts, scales, levels, strict=True):
                w[:n] += scale[:n, None, None] * level.solution
            value = with_gradient_of(value, (at.pull(w, create_graph=True) * u).sum(dim=(0, 2)))
        error = standard_error([level.value.detach() for level in levels], hadamard_order(u.shape[-1]))
        bound = None
        if lipschitz is not None:
            factor = tail(lipschitz, self.n_steps) / lipschitz**self.n_steps if lipschitz else 0.0
            bound = (2 * factor * math.sqrt(u.shape[-1]) * levels[-1].power).mean(dim=0)
        return LogDet(value, error, bound, at.n_products)


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

    max_products: int | None = 20
    accuracy: float | None = None
    exact_up_to: int = 64
    n_steps: int = 3
    gradient: Gradient = "neumann"

    def __post_init__(self) -> None:
        _check_count(self.n_steps, "n_steps")
        _check_choices(1, "orthogonal", self.gradient)
        _check_count(1 if self.max_products is None else self.max_products, "max_products")
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
        return dimension <= max(self.exact_up_to, self.max_products or 0)

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
        first = self._krylov(_PILOT if self.accuracy and budget > 2 * _PILOT else budget)
        found = first._estimate(at, lipschitz, generator)
        missing = self._missing(found, first, budget)
        if missing < 4:
            return found
        if first.cost(0).products + missing >= dimension:
            return ExactLogDet()._estimate(at, lipschitz, generator)
        rest = self._krylov(missing)
        return _pool(found, rest._estimate(at, lipschitz, generator), first.n_probes, rest.n_probes)

    def _krylov(self, products: int) -> Krylov:
        return Krylov.within(products, self.n_steps, gradient=self.gradient)

    def _missing(self, found: LogDet, first: Krylov, budget: int) -> int:
        spent = int(first.cost(0).products)
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


def _of_series(at: Linearised, u: Tensor, weights: Tensor, probe: Probe, gradient: Gradient) -> tuple[Tensor, Tensor]:
    is_through = at.has_graph and gradient == "backprop"
    each, w = series(at, u, weights, is_through)
    value = each.mean(dim=0)
    if at.has_graph and not is_through:
        value = with_gradient_of(value, (at.pull(w, create_graph=True) * u).sum(dim=-1).mean(dim=0))
    return value, standard_error([each.detach()], hadamard_order(u.shape[-1]) if probe == "orthogonal" else None)


def _nothing(at: Linearised) -> LogDet:
    value = at.value.reshape(at.like.shape).sum(dim=1)
    zero = torch.zeros_like(value.detach())
    return LogDet(value.to(at.like.dtype), zero, zero, 0)


def _taper(n_probes: int, n_steps: int, taper: float) -> tuple[int, ...]:
    return tuple(max(1, round(n_probes * taper**step)) for step in range(n_steps))


def _check_count(n: int, name: str) -> None:
    if not isinstance(n, int) or n < 1:
        raise ConfigError(f"{name} is a number of things", expected="1 or more", got=n)


def _check_choices(n_probes: int, probe: str, gradient: str) -> None:
    _check_count(n_probes, "n_probes")
    if probe not in PROBES:
        raise ConfigError("unknown probe", expected=" or ".join(map(repr, PROBES)), got=repr(probe))
    if gradient not in ("neumann", "backprop"):
        raise ConfigError("unknown gradient", expected="'neumann' or 'backprop'", got=repr(gradient))

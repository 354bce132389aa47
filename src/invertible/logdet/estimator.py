"""What every estimator of log|det(I + dg/dx)| takes and gives."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from invertible._checks import check_finite, check_floating, describe
from invertible.errors import ConfigError, RangeError, ShapeError
from invertible.logdet._linearised import Function, Linearised
from invertible.logdet._probes import PROBES
from invertible.logdet.layered import linearised

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
        products: How many products with the Jacobian each sample took, those for the gradient included, and what a
            control variate cost.
    """

    value: Tensor
    standard_error: Tensor
    bias_bound: Tensor | None
    products: int


@dataclasses.dataclass(frozen=True)
class Cost:
    """What an estimate costs, in products with the Jacobian for each sample.

    Attributes:
        products: On average, without gradients.
        graph: How many of them the graph for the gradient holds, and recomputes in the backward pass.
    """

    products: float
    graph: float


class LogDetEstimator(ABC):
    """How to find log|det(I + dg/dx)|. Abstract: see the table in `invertible.logdet`.

    Example:
        >>> from invertible.logdet import ExactLogDet
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
            ConfigError: If g changes x in place; under torch.func's transforms.
            RangeError: If the Lipschitz constant is not in [0, 1), or g turns out to be no contraction.
            NonFiniteError: If x, g or its Jacobian hold NaN or infinity.
        """
        check_floating(x, type(self).__name__)
        if x.ndim == 0:
            raise ShapeError(f"{type(self).__name__} takes batches", expected="(batch, ...)", got=describe(x))
        if lipschitz is not None and not 0 <= lipschitz < 1:
            raise RangeError("g must be a contraction", expected="0 <= lipschitz < 1", got=lipschitz)
        if torch._C._are_functorch_transforms_active():
            hint = "torch.autograd.grad, and batches instead of vmap"
            raise ConfigError("log-determinants take derivatives by autograd", got="a torch.func transform", hint=hint)
        wants_graph = torch.is_grad_enabled()
        with (
            torch.inference_mode(False),
            torch.set_grad_enabled(wants_graph),
        ):
            at = linearised(g, x)
            with torch.autocast(x.device.type, enabled=False):
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


def _nothing(at: Linearised) -> LogDet:
    value = at.value.reshape(at.like.shape).sum(dim=1)
    zero = torch.zeros_like(value.detach())
    return LogDet(value.to(at.like.dtype), zero, zero, 0)


def check_count(n: int, name: str) -> None:
    """Refuse what counts nothing.

    Args:
        n: The number.
        name: What it is called.

    Raises:
        ConfigError: If it is no whole number above 0.
    """
    if not isinstance(n, int) or n < 1:
        raise ConfigError(f"{name} is a number of things", expected="1 or more", got=n)


def check_choices(n_probes: int, probe: str, gradient: str) -> None:
    """Refuse unknown choices.

    Args:
        n_probes: How many probes.
        probe: Their kind.
        gradient: How to differentiate.

    Raises:
        ConfigError: If one is unknown.
    """
    check_count(n_probes, "n_probes")
    if probe not in PROBES:
        raise ConfigError("unknown probe", expected=" or ".join(map(repr, PROBES)), got=repr(probe))
    if gradient not in ("neumann", "backprop"):
        raise ConfigError("unknown gradient", expected="'neumann' or 'backprop'", got=repr(gradient))

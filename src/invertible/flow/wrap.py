"""Any `torch.distributions` object as a flow's base: a fixed one, or one that a module makes (learned, conditional)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import (
    Cauchy,
    Distribution,
    Gumbel,
    Independent,
    Laplace,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    StudentT,
)

from invertible._checks import describe
from invertible.errors import ConfigError, DtypeError, ShapeError
from invertible.flow._take_apart import put_together, take_apart
from invertible.flow.base import Base, StandardNormal

_LOCATED = (Cauchy, Gumbel, Laplace, LowRankMultivariateNormal, MultivariateNormal, Normal, StudentT)


def as_base(base: object) -> Base:
    """Take whatever may stand for a base.

    Args:
        base: A `Base`; the shape of a standard normal one; a `torch.distributions.Distribution`; or a module whose
            forward, of the context if it takes one, returns such a distribution.

    Returns:
        A base.

    Raises:
        DtypeError: If it is none of these.
    """
    if isinstance(base, Base):
        return base
    if isinstance(base, Distribution):
        return FixedBase(base)
    if isinstance(base, int) or (isinstance(base, Sequence) and all(isinstance(n, int) for n in base)):
        return StandardNormal(base if isinstance(base, int) else tuple(base))
    hint = "the shape of a latent, e.g. Flow(bijection, 2); for a module: LearnedBase(module, shape)"
    raise DtypeError("a flow needs a base", expected="a shape or a distribution", got=describe(base), hint=hint)


class FixedBase(Base):
    """A distribution of `torch.distributions` without parameters to learn; its tensors become buffers.

    Batch dimensions count as part of a latent.

    Args:
        distribution: The distribution.

    Raises:
        ConfigError: If its parameters require gradients (use `LearnedBase`).

    Example:
        >>> FixedBase(torch.distributions.Laplace(torch.zeros(2), torch.ones(2))).event_shape
        (2,)
    """

    def __init__(self, distribution: Distribution) -> None:
        super().__init__(tuple(distribution.batch_shape + distribution.event_shape))
        tensors: list[Tensor] = []
        self._plan = take_apart(distribution, tensors)
        if any(tensor.requires_grad for tensor in tensors):
            hint = "LearnedBase(module, shape) with a module whose forward returns the distribution"
            raise ConfigError("this base has parameters to learn", expected="fixed ones", got=distribution, hint=hint)
        self.has_rsample, self._n_tensors = bool(distribution.has_rsample), len(tensors)
        for i, tensor in enumerate(tensors):
            self.register_buffer(f"tensor_{i}", tensor.clone())

    def log_prob(self, z: Tensor, context: Any = None) -> Tensor:
        """Log-density; see `Base`.

        Args:
            z: Latents, shape (batch, *event_shape).
            context: None.

        Returns:
            Nats, shape (batch,).
        """
        return _log_prob(self._now(), z)

    def sample(self, n: int, context: Any = None, temperature: float = 1.0) -> Tensor:
        """Draw latents; see `Base`.

        Args:
            n: How many.
            context: None.
            temperature: Multiplies the scale of location-scale families; others take 1 only.

        Returns:
            Shape (n, *event_shape).
        """
        now = self._now()
        return _tempered(now, _draw(now, (n,)), temperature).to(self.here.dtype)

    def _now(self) -> Distribution:
        tensors, dtype = [self.get_buffer(f"tensor_{i}") for i in range(self._n_tensors)], self.here.dtype
        return _joined(put_together(self._plan, [t.to(dtype) if t.is_floating_point() else t for t in tensors]))


class LearnedBase(Base):
    """A distribution that a module makes: learned if it has parameters, conditional if its forward takes a context.

    Args:
        module: Its forward returns a `torch.distributions.Distribution`, of the context if `takes_context`. Dimensions
            beyond the batch's count as part of a latent.
        shape: Of one latent.
        takes_context: Whether the forward takes the context.

    Raises:
        ShapeError: When called: if the distribution has another shape.

    Example:
        >>> class Scaled(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.log_scale = nn.Parameter(torch.zeros(2))
        ...     def forward(self):
        ...         return torch.distributions.Laplace(torch.zeros(2), self.log_scale.exp())
        >>> LearnedBase(Scaled(), 2).log_prob(torch.zeros(3, 2)).shape
        torch.Size([3])
    """

    def __init__(self, module: nn.Module, shape: int | Sequence[int], takes_context: bool = False) -> None:
        super().__init__(shape)
        self.module, self.takes_context = module, takes_context

    def log_prob(self, z: Tensor, context: Any = None) -> Tensor:
        """Log-density; see `Base`.

        Args:
            z: Latents, shape (batch, *event_shape).
            context: As the module takes it.

        Returns:
            Nats, shape (batch,).
        """
        return _log_prob(self._now(context), z)

    def sample(self, n: int, context: Any = None, temperature: float = 1.0) -> Tensor:
        """Draw latents; see `Base`.

        Args:
            n: How many.
            context: As the module takes it.
            temperature: Multiplies the scale of location-scale families; others take 1 only.

        Returns:
            Shape (n, *event_shape).

        Raises:
            ConfigError: If gradients are wanted (outside `torch.no_grad`) that the distribution does not give.
        """
        now = self._now(context)
        if torch.is_grad_enabled() and not now.has_rsample:
            hint = "flow.sample(), or torch.no_grad()"
            raise ConfigError("these samples have no gradient", expected="rsample", got=now, hint=hint)
        z = _draw(now, () if self.takes_context else (n,))
        return _tempered(now, z, temperature).to(self.here.dtype)

    def _now(self, context: Any) -> Distribution:
        made = self.module(context) if self.takes_context else self.module()
        n_batch = 1 if self.takes_context else 0
        shape = tuple(made.batch_shape + made.event_shape)[n_batch:]
        if shape != self.event_shape:
            hint = "Independent(distribution, 1) has its last batch dimension as an event"
            raise ShapeError("a base made another shape", expected=self.event_shape, got=shape, hint=hint)
        return _joined(made, n_batch)


def _joined(distribution: Distribution, n_batch: int = 0) -> Distribution:
    # All but the batch counts as one event. Checks of values are the flow's affair, and stop vmap.
    n = len(distribution.batch_shape) - n_batch
    distribution._validate_args = False
    for inner in _parts(distribution):
        inner._validate_args = False
    return Independent(distribution, n, validate_args=False) if n else distribution


def _log_prob(distribution: Distribution, z: Tensor) -> Tensor:
    return distribution.log_prob(z)


def _draw(distribution: Distribution, shape: tuple[int, ...]) -> Tensor:
    size = torch.Size(shape)
    return distribution.rsample(size) if distribution.has_rsample else distribution.sample(size)


def _tempered(distribution: Distribution, z: Tensor, temperature: float) -> Tensor:
    if temperature == 1:
        return z
    inner = distribution
    while isinstance(inner, Independent):
        inner = inner.base_dist
    if not isinstance(inner, _LOCATED):
        expected = "temperature 1, or a location-scale family"
        hint = "NormalMixture, DiagonalNormal and the other bases of invertible.flow take any temperature"
        raise ConfigError(
            "this base has no temperature", expected=expected, got=f"{temperature} for {inner}", hint=hint
        )
    return inner.loc + (z - inner.loc) * temperature


def _parts(distribution: Distribution) -> Iterator[Distribution]:
    for value in vars(distribution).values():
        if isinstance(value, Distribution):
            yield value
            yield from _parts(value)

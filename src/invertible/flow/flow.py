"""`Flow`: a bijection and a base distribution make a density that can be evaluated and sampled from.

log p(x) = log p_base(f(x)) + log|det df/dx|, where f maps data to latents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import index
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from invertible._checks import check_event_shape, check_floating, describe, is_finite
from invertible.bijection import Bijection
from invertible.errors import ConfigError, ContextError, ConvergenceError, DtypeError, ShapeError
from invertible.flow import _store
from invertible.flow._diagnose import check_columns, explain_latents, explain_log_prob, explain_sample
from invertible.flow._inputs import Method, as_context, as_tensor, call_in, expanded, rows_of
from invertible.flow._memory import rows_within
from invertible.flow.base import Base
from invertible.flow.dequantization import Dequantization
from invertible.flow.distribution import FlowDistribution
from invertible.flow.fit import Fit, FitReport
from invertible.flow.wrap import as_base
from invertible.layers.certify import ModelCertificate, certify

Shape = int | Sequence[int]


class Flow(nn.Module):
    """A normalizing flow: a density of data, through a bijection to latents of a simple distribution.

    Everything is computed in the data's dtype if that is finer than the weights' (a float64 input gives float64 nats),
    else in the weights'. Data and contexts may have any leading shape, which broadcast against each other. NaN and
    infinity raise, naming the column or layer; where values cannot be looked at (compile, vmap) nothing is checked.

    `forward` is the mean negative log-likelihood, so that DDP and compiled training work as usual.

    Args:
        bijection: From data to latents. `Chain(..., memory="reconstruct")` trains in memory that does not grow with
            depth.
        base: Of the latents: a `Base`, the shape of a standard normal one, or a `torch.distributions.Distribution`.
        event_shape: Of one data point; None: as the base's.
        embed: What the bijection gets of a context, e.g. `nn.Embedding`; the base gets the context itself. None: the
            same.
        context_shape: Of one context; None: () for whole numbers (labels), else vectors along the last dimension.
        dequantization: For data of whole numbers (pixels 0 to 255): noise that makes them real. Densities become random
            lower bounds of log-probabilities, and samples are whole numbers again.

    Attributes:
        config: Name and arguments of the model in `invertible.models`, which `save` writes down; None for a flow made
            by hand.
        fitted: How `fit` went; None before.

    Raises:
        ConfigError: If an argument does not fit.
        DtypeError: If one is of the wrong kind.

    Example:
        >>> from invertible import Chain
        >>> from invertible.layers import AffineCoupling
        >>> net = lambda: nn.Sequential(nn.Linear(1, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> flow = Flow(Chain(AffineCoupling(net()), AffineCoupling(net(), target="first")), base=2)
        >>> flow.log_prob(torch.randn(5, 3, 2)).shape, flow.sample(7).shape
        (torch.Size([5, 3]), torch.Size([7, 2]))
    """

    fit = Fit()

    def __init__(
        self,
        bijection: Bijection,
        base: Base | Distribution | Shape,
        *,
        event_shape: Shape | None = None,
        embed: nn.Module | None = None,
        context_shape: Sequence[int] | None = None,
        dequantization: Dequantization | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(bijection, Bijection):
            hint = "Chain(*layers); networks go into couplings"
            raise DtypeError("a flow needs a bijection", expected="a Bijection", got=describe(bijection), hint=hint)
        self.bijection, self.base = bijection, as_base(base)
        shape = self.base.event_shape if event_shape is None else event_shape
        self.event_shape = (shape,) if isinstance(shape, int) else tuple(shape)
        if math.prod(self.event_shape) != math.prod(self.base.event_shape):
            expected, got = f"{math.prod(self.event_shape)} numbers", self.base.event_shape
            raise ConfigError("data and latents differ in size", expected=expected, got=got, hint="event_shape=...")
        self.embed, self.dequantization = embed, dequantization
        self.context_shape = None if context_shape is None else tuple(context_shape)
        self.config: dict[str, Any] | None = None
        self.fitted: FitReport | None = None

    @property
    def takes_context(self) -> bool:
        """Whether the density depends on a context."""
        return self.bijection.takes_context or self.base.takes_context

    def forward(self, x: Any, context: Any = None) -> Tensor:
        """The mean negative log-likelihood, to be minimised.

        Args:
            x: Data, shape (*leading, *event_shape), at least one point.
            context: One per point, or to be broadcast.

        Returns:
            Nats per data point, a scalar.

        Raises:
            ShapeError: If there is no point to take the mean of, or contexts and points pair up in more ways than one.
        """
        x = as_tensor(x, self.base.here.device)
        log_prob = self.log_prob(x, context)
        if not log_prob.numel():
            raise ShapeError("an empty batch has no mean", expected="at least one data point", got="none")
        if log_prob.numel() * math.prod(self.event_shape) != x.numel():  # labels of shape (n, 1), say
            expected = "one context per data point, or one for all"
            got = f"{tuple(x.shape)}, and contexts that make it {tuple(log_prob.shape)} pairs"
            raise ShapeError("a loss does not pair all with all", expected=expected, got=got, hint="context.squeeze(1)")
        return -log_prob.mean()

    def log_prob(self, x: Any, context: Any = None) -> Tensor:
        """Log-density of data.

        Args:
            x: Data, a tensor or an array, shape (*leading, *event_shape).
            context: Labels, shape (*leading), or vectors, shape (*leading, n); None if the flow takes none.

        Returns:
            Nats, shape (*leading). With dequantisation a random lower bound of the log-probability.
        """
        return self._precisely(self._log_prob, x, context)

    def bits_per_dim(self, x: Any, context: Any = None) -> Tensor:
        """Negative log-likelihood per number of the data, in bits.

        Args:
            x: Data, shape (*leading, *event_shape).
            context: As in `log_prob`.

        Returns:
            Bits, shape (*leading).
        """
        return self.log_prob(x, context) / (-math.log(2) * math.prod(self.event_shape))

    def encode(self, x: Any, context: Any = None) -> Tensor:
        """Map data to latents. With dequantisation noise is drawn first.

        Args:
            x: Data, shape (*leading, *event_shape).
            context: As in `log_prob`.

        Returns:
            Latents, shape (*leading, *base.event_shape).
        """
        return self._precisely(self._encode, x, context)

    def encode_with_log_prob(self, x: Any, context: Any = None) -> tuple[Tensor, Tensor]:
        """Latents and log-density from one evaluation, with the same noise of dequantisation.

        Args:
            x: Data, shape (*leading, *event_shape).
            context: As in `log_prob`.

        Returns:
            As `encode`, and as `log_prob`.
        """
        return self._precisely(self._encode_with_log_prob, x, context)

    def decode(self, z: Any, context: Any = None) -> Tensor:
        """Map latents to data.

        Args:
            z: Latents, shape (*leading, *base.event_shape).
            context: As in `log_prob`.

        Returns:
            Data, shape (*leading, *event_shape); with dequantisation whole numbers in a floating-point dtype.
        """
        return self._precisely(self._decode, z, context)

    @torch.no_grad()
    def sample(self, n: Shape = (), context: Any = None, temperature: float = 1.0, *, max_bytes: int = 2**28) -> Tensor:
        """Draw data from the global random state, without gradients, in chunks.

        Args:
            n: How many, or a shape.
            context: Shape (*contexts, ...); n points are drawn for each.
            temperature: Multiplies the base's standard deviation: below 1 draws nearer to the mode.
            max_bytes: A bound for what the networks hold at a time; only the size of the chunks depends on it.

        Returns:
            Shape (*n, *contexts, *event_shape); with dequantisation whole numbers in a floating-point dtype.

        Raises:
            ConfigError: If a number is out of range.
        """
        if max_bytes < 1:
            raise ConfigError("max_bytes is out of range", expected="at least 1", got=max_bytes)
        shape, total, raw, own = self._plan(n, context, temperature)
        rows = rows_within(max_bytes, self, total, own)
        # Drawn at once, so that the size of the chunks does not change them; but a base's network is held to it.
        draws = self.base.sample(total, None, temperature) if not self.base.takes_context else None
        chunks = []
        for start in range(0, max(total, 1), rows):
            n = min(rows, total - start)
            z = self.base.sample(n, rows_of(raw, start, n), temperature) if draws is None else draws[start : start + n]
            chunks.append(self._decoded(z, rows_of(own, start, n)))
        x = torch.cat(chunks) if len(chunks) > 1 else chunks[0]
        return (self.dequantization.quantise(x) if self.dequantization else x).reshape(*shape, *self.event_shape)

    def rsample(self, n: Shape = (), context: Any = None, temperature: float = 1.0) -> Tensor:
        """Draw data as a differentiable function of the flow's parameters, in one piece.

        Args:
            n: How many, or a shape.
            context: As in `sample`.
            temperature: As in `sample`.

        Returns:
            Shape (*n, *contexts, *event_shape).
        """
        return self.rsample_with_log_prob(n, context, temperature)[0]

    def rsample_with_log_prob(
        self, n: Shape = (), context: Any = None, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Draw data and know their density, from one evaluation; for variational inference.

        Args:
            n: How many, or a shape.
            context: As in `sample`.
            temperature: Of the draw; the density is that of the flow at temperature 1.

        Returns:
            As `rsample`, and nats, shape (*n, *contexts).

        Raises:
            ConfigError: If samples have no gradient: a mixture, or data of whole numbers.
        """
        if not self.base.has_rsample or self.dequantization is not None:
            got = "whole numbers" if self.dequantization is not None else f"{type(self.base).__name__} as base"
            hint = "sample() draws without gradients"
            raise ConfigError("these samples have no gradient", expected="a base with rsample", got=got, hint=hint)
        shape, total, raw, own = self._plan(n, context, temperature)
        z = self.base.sample(total, rows_of(raw, 0, total), temperature)
        own = rows_of(own, 0, total)
        x, logdet = self.bijection.inverse_with_logdet(z, own)
        if not is_finite(x):
            explain_sample(self.bijection, z, own, x)
        log_prob = self.base.log_prob(z, rows_of(raw, 0, total)) - logdet
        return x.reshape(*shape, *self.event_shape), log_prob.reshape(shape)

    def distribution(self, context: Any = None) -> FlowDistribution:
        """This flow as a `torch.distributions.Distribution`.

        Args:
            context: Fixed for the distribution; its leading shape is the batch shape.

        Returns:
            The distribution; it shares the flow's parameters.
        """
        return FlowDistribution(self, context)

    def certificate(self) -> ModelCertificate:
        """What each member of the bijection does to distances, and how much decoding can magnify an error.

        Returns:
            The bounds, for data of `event_shape`; print them.
        """
        return certify(self.bijection, self.event_shape)

    def save(self, path: str | Path) -> None:
        """Write weights (NAME.safetensors) and what they belong to (NAME.json), each whole or not at all.

        Args:
            path: NAME, or NAME.safetensors.
        """
        _store.save(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Flow:
        """Read a flow back that is one of `invertible.models`; nothing is unpickled.

        Args:
            path: As `save` got it.

        Returns:
            The flow, in eval mode.
        """
        return _store.load(cls, Path(path))

    def load_weights(self, path: str | Path) -> Flow:
        """Read the weights of a flow made by hand into one that is made the same way.

        Args:
            path: As `save` got it.

        Returns:
            This flow.
        """
        _store.load_weights(self, Path(path))
        return self

    def _precisely(self, method: Method, x: Any, context: Any) -> Any:
        here = self.base.here
        own, x, context = here.dtype, as_tensor(x, here.device), as_context(context, here.device)
        if not x.is_floating_point():
            # A table's counts are fine; pixels must be dequantised.
            if self.dequantization is None and (len(self.event_shape) > 1 or x.is_complex()):
                check_floating(x, "Flow")
            x = x.to(own)
        if x.dtype == own:
            return method(x, context)
        finer = torch.promote_types(x.dtype, own)
        return method(x.to(own), context) if finer == own else call_in(finer, self, method, x, context)

    def _log_prob(self, x: Tensor, context: Tensor | None) -> Tensor:
        return self._encode_with_log_prob(x, context)[1]

    def _encode_with_log_prob(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        flat, lead, raw, own = self._flat(x, self.event_shape, context)
        extra = None
        if self.dequantization is not None:
            flat, extra = self.dequantization(flat, own)
        try:
            z, logdet = self.bijection.forward_with_logdet(flat, own)
        except ConvergenceError:
            check_columns(flat, "the data")  # NaN is the likelier reason for an equation that cannot be solved
            raise
        self._check_latents(z)
        log_prob = self.base.log_prob(z, raw) + logdet
        if not is_finite(log_prob):
            explain_log_prob(self.bijection, flat, own, log_prob)
        log_prob = log_prob if extra is None else log_prob + extra
        if len(lead) == 1:
            return z, log_prob
        return z.reshape(*lead, *self.base.event_shape), log_prob.reshape(lead)

    def _encode(self, x: Tensor, context: Tensor | None) -> Tensor:
        flat, lead, _, own = self._flat(x, self.event_shape, context)
        flat = flat if self.dequantization is None else self.dequantization(flat, own)[0]
        z = self.bijection(flat, own)
        self._check_latents(z)
        if not is_finite(z):
            explain_latents(self.bijection, flat, own)
        return z.reshape(*lead, *self.base.event_shape)

    def _decode(self, z: Tensor, context: Tensor | None) -> Tensor:
        flat, lead, _, own = self._flat(z, self.base.event_shape, context)
        x = self._decoded(flat, own)
        return (x if self.dequantization is None else self.dequantization.quantise(x)).reshape(*lead, *self.event_shape)

    def _check_latents(self, z: Tensor) -> None:
        if z.shape[1:] != self.base.event_shape:
            expected, hint = f"shape (batch, *{self.base.event_shape})", "a base of the latents' shape, event_shape=..."
            raise ShapeError("latents do not have the base's shape", expected=expected, got=describe(z), hint=hint)

    def _flat(
        self, x: Tensor, shape: tuple[int, ...], context: Tensor | None
    ) -> tuple[Tensor, tuple[int, ...], Tensor | None, Tensor | None]:
        # Data as (batch, ...), their leading shape, the context for the base and that for the bijection.
        if shape == (1,) and (x.ndim == 0 or x.shape[-1] != 1):  # numbers, not vectors of one
            x = x.unsqueeze(-1)
        n = x.ndim - len(shape)
        if n < 0 or tuple(x.shape[n:]) != shape:
            check_event_shape(x, shape, "Flow")
        lead = tuple(x.shape[:n])
        if context is None and not self.takes_context:
            return (x if n == 1 else x.reshape(-1, *shape)), lead, None, None
        raw, own, contexts = self._contexts(context, x.dtype)
        try:
            lead = tuple(torch.broadcast_shapes(lead, contexts))
        except RuntimeError as error:
            got = f"{lead} and {contexts}"
            raise ShapeError("data and context do not broadcast", expected="alike leading shapes", got=got) from error
        flat = x.expand(*lead, *shape).reshape(-1, *shape)
        return flat, lead, expanded(raw, contexts, lead), expanded(own, contexts, lead)

    def _contexts(
        self, context: Tensor | None, dtype: torch.dtype | None = None
    ) -> tuple[Tensor | None, Tensor | None, tuple[int, ...]]:
        # For the base and for the bijection, shape (contexts, ...) each, and the contexts' leading shape.
        if (context is not None) != self.takes_context:
            given = "one" if context is not None else "None"
            raise ContextError(
                "flow and context disagree", expected="a context" if self.takes_context else "no context", got=given,
                hint="pass context=..." if self.takes_context else "build the flow with n_context=... or n_classes=...",
            )  # fmt: skip
        if context is None:
            return None, None, ()
        n = len(self.context_shape) if self.context_shape is not None else int(context.is_floating_point())
        shape = tuple(context.shape[context.ndim - n :])
        if context.ndim < n or (self.context_shape is not None and shape != self.context_shape):
            expected = f"(*leading, *{self.context_shape or '(n,)'})"
            raise ContextError("the context has the wrong shape", expected=expected, got=describe(context))
        if context.is_floating_point():
            context = context.to(dtype or self.base.here.dtype)
        raw = context.reshape(-1, *shape)
        own = raw if self.embed is None else self.embed(raw)
        lead = tuple(context.shape[: context.ndim - n])
        return raw if self.base.takes_context else None, own if self.bijection.takes_context else None, lead

    def _plan(
        self, n: Shape, context: Any, temperature: float
    ) -> tuple[tuple[int, ...], int, Tensor | None, Tensor | None]:
        # The leading shape of samples, how many there are, the context for the base and that for the bijection.
        if not 0 <= temperature < math.inf:
            raise ConfigError("a bad temperature", expected="0 or more, finite", got=temperature)
        lead = tuple(map(index, n)) if isinstance(n, Sequence) else (index(n),)
        if min(lead, default=0) < 0:
            raise ConfigError("a bad number of samples", expected="0 or more", got=n)
        raw, own, contexts = self._contexts(as_context(context, self.base.here.device))
        shape = (*lead, *contexts)
        return shape, math.prod(shape), raw, own

    def _decoded(self, z: Tensor, own: Tensor | None) -> Tensor:
        x = self.bijection.inverse(z, own)
        if not is_finite(x):
            explain_sample(self.bijection, z, own, x)
        return x

"""Coupling layers: one stream is changed by what a network makes of the other, so the change can be undone."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from invertible._checks import describe, explained, version
from invertible.bijection import Bijection, Leaf, Method, zero_logdet
from invertible.errors import ConfigError, DtypeError, ShapeError
from invertible.streams import Split, Streams

Target = Literal["first", "second"]


class _Roles:
    """Which of two streams a coupling reads (the source) and which it changes (the target)."""

    def __init__(self, network: nn.Module, target: Target, split: Split) -> None:
        if not isinstance(network, nn.Module):
            hint = "wrap a function in a small nn.Module"
            raise DtypeError("a coupling needs a network", expected="an nn.Module", got=describe(network), hint=hint)
        if target not in ("first", "second"):
            raise ConfigError("a coupling has a bad target", expected="'first' or 'second'", got=repr(target))
        if split.n_streams != 2:
            raise ConfigError("a coupling works on two streams", expected="2 sizes", got=split.sizes)
        self.second, self.dim, self.sizes = target == "second", split.dim, split.sizes

    def describe(self, takes_context: bool) -> str:
        parts = [f"target={'second' if self.second else 'first'!r}", f"sizes={self.sizes}", f"dim={self.dim}"]
        return ", ".join(parts + ["takes_context=True"] * takes_context)

    def read(self, streams: Streams) -> tuple[Tensor, Tensor]:  # (source, target)
        first, second = streams
        return (first, second) if self.second else (second, first)

    def write(self, source: Tensor, target: Tensor) -> Streams:  # (first, second)
        return (source, target) if self.second else (target, source)


def _run(network: nn.Module, source: Tensor, context: Any, name: str) -> Tensor:
    before = version(source)
    try:
        out = network(source) if context is None else network(source, context)
    except (RuntimeError, TypeError) as error:
        clearer = explained(error, source, network, name)
        if clearer is error:
            raise
        raise clearer from error
    if version(source) != before:
        hint = "inplace=False in its first layers (ReLU), no x.mul_() on its input"
        got = f"{type(network).__name__} changing it in place"
        raise ConfigError(f"{name}'s network must leave its input alone", expected="x unchanged", got=got, hint=hint)
    return out


def _check_output(out: object, target: Tensor, shape: tuple[int, ...], name: str) -> None:
    if isinstance(out, Tensor) and torch.promote_types(out.dtype, target.dtype) != target.dtype:
        hint = "give all of the network's weights the input's dtype: network.to(x.dtype)"
        raise DtypeError(f"{name}'s network changed the dtype", expected=target.dtype, got=out.dtype, hint=hint)
    if not isinstance(out, Tensor) or tuple(out.shape) != shape:
        hint = "keep the spatial size (padding) and set the last layer's output channels to this"
        raise ShapeError(f"{name}'s network returned the wrong shape", expected=shape, got=describe(out), hint=hint)


class Coupling(Bijection):
    """(x1, x2) -> (x1, change(x2; network(x1))). Abstract: say how the target changes, and how that is undone.

    The network runs once in each direction, and once in a backward pass that reconstructs the input.

    Args:
        network: Any module, of any architecture. With a context it is called as `network(source, context)`.
        target: Which stream is changed: "second" (as above) or "first".
        sizes: Sizes of the two streams; None parts the channels in halves.
        dim: The dimension that is parted.
        takes_context: Whether the network takes a context.

    Raises:
        ConfigError: If an argument is out of range.
        DtypeError: If the network is no module; when called: if its dtype or device is not the input's.
        ShapeError: When called: if the network's output does not fit.

    Example:
        >>> class Scaling(Coupling):
        ...     def _change(self, target, h):
        ...         return target * h.exp()
        ...     def _restore(self, target, h):
        ...         return target * (-h).exp()
        ...     def _log_derivative(self, target, h):
        ...         return h
        >>> coupling, x = Scaling(nn.Linear(2, 2)), torch.randn(3, 4)
        >>> y, logdet = coupling.forward_with_logdet(x)
        >>> torch.allclose(coupling.inverse(y), x, atol=1e-6)
        True
    """

    def __init__(
        self,
        network: nn.Module,
        target: Target = "second",
        sizes: tuple[int, int] | None = None,
        dim: int = 1,
        takes_context: bool = False,
    ) -> None:
        super().__init__()
        split = self.split_in = self.split_out = Split(sizes, dim)
        self._roles = _Roles(network, target, split)
        self.network, self.takes_context = network, takes_context

    @abstractmethod
    def _change(self, target: Tensor, h: Any) -> Tensor:
        """The new target from the old one and what the network gave."""

    @abstractmethod
    def _restore(self, target: Tensor, h: Any) -> Tensor:
        """The old target from the new one."""

    @abstractmethod
    def _log_derivative(self, target: Tensor, h: Any) -> Tensor | None:
        """log|d change(target; h) / d target|, elementwise, in nats; None: zero."""

    def _outcome(self, target: Tensor, out: object) -> Any:
        """What the network gave, checked and ready for use; by default a tensor of the target's shape."""  # noqa: DOC201
        _check_output(out, target, tuple(target.shape), type(self).__name__)
        return out

    def _value(self, out: Tensor, target: Tensor, h: Any) -> Tensor:
        # `out` is known already; only its graph is wanted. Cheaper ways may be overridden.
        return self._change(target, h)

    def extra_repr(self) -> str:
        """What `print(module)` shows.

        Returns:
            Roles and split.
        """
        return self._roles.describe(self.takes_context)

    def _forward(self, x: Streams, context: Any) -> Streams:
        source, target = self._roles.read(x)
        return self._roles.write(source, self._change(target, self._ask(source, target, context)))

    def _inverse(self, y: Streams, context: Any) -> Streams:
        source, target = self._roles.read(y)
        return self._roles.write(source, self._restore(target, self._ask(source, target, context)))

    def _forward_with_logdet(self, x: Streams, context: Any) -> tuple[Streams, Tensor]:
        source, target = self._roles.read(x)
        h = self._ask(source, target, context)
        return self._roles.write(source, self._change(target, h)), self._logdet(target, h)

    def _inverse_with_logdet(self, y: Streams, context: Any) -> tuple[Streams, Tensor]:
        source, target = self._roles.read(y)
        h = self._ask(source, target, context)
        target = self._restore(target, h)
        return self._roles.write(source, target), -self._logdet(target, h)

    def _rerun(self, method: Method, out: Streams, context: Any, leaf: Leaf) -> tuple[Streams, Streams, Tensor | None]:
        backwards, has_logdet, second = method.startswith("_inverse"), method.endswith("logdet"), self._roles.second
        source, target_out = self._roles.read(out)
        source = leaf(source, 0 if second else 1)
        h = self._ask(source, target_out, context)
        with torch.no_grad():
            target = self._change(target_out, h) if backwards else self._restore(target_out, h)
        target = leaf(target, 1 if second else 0)
        again = self._restore(target, h) if backwards else self._value(target_out, target, h)
        logdet = None
        if has_logdet:
            logdet = -self._logdet(again, h) if backwards else self._logdet(target, h)
        return self._roles.write(source, target), self._roles.write(source, again), logdet

    def _ask(self, source: Tensor, target: Tensor, context: Any) -> Any:
        # The same bits both ways need the same layout both ways.
        source = source if self.lattice is None else source.contiguous()
        return self._outcome(target, _run(self.network, source, context, type(self).__name__))

    def _logdet(self, target: Tensor, h: Any) -> Tensor:
        log_derivative = self._log_derivative(target, h)
        return zero_logdet(target) if log_derivative is None else _sum_events(log_derivative)


class AdditiveCoupling(Coupling):
    """(x1, x2) -> (x1, x2 + network(x1)). Undone by a subtraction; volume is kept.

    In a chain with `exact=True` the network's output is rounded to the lattice, and the subtraction is exact.

    Args:
        network: Any module, of any architecture; it maps the source stream to the target stream's shape. With a
            context it is called as `network(source, context)`.
        target: Which stream is changed: "second" (as above) or "first": (x1 + network(x2), x2).
        sizes: Sizes of the two streams; None parts the channels in halves.
        dim: The dimension that is parted.
        takes_context: Whether the network takes a context.

    Raises:
        ConfigError: If an argument is out of range.
        DtypeError: If the network is no module; when called: if its dtype or device is not the input's.
        ShapeError: When called: if the network's output does not fit.

    Source: Dinh et al. 2015 (NICE), section 3.2; Gomez et al. 2017 (RevNet), equation 6.

    Example:
        >>> coupling = AdditiveCoupling(nn.Linear(2, 2))
        >>> x = torch.randn(3, 4)
        >>> torch.allclose(coupling.inverse(coupling(x)), x, atol=1e-6)
        True
    """

    keeps_lattice = True

    def _change(self, target: Tensor, h: Tensor) -> Tensor:
        return target + h if self.lattice is None else self.lattice.add(target, h)

    def _restore(self, target: Tensor, h: Tensor) -> Tensor:
        return target - h if self.lattice is None else self.lattice.subtract(target, h)

    def _log_derivative(self, target: Tensor, h: Tensor) -> None:
        return None

    def _value(self, out: Tensor, target: Tensor, h: Tensor) -> Tensor:
        return known_sum(out, target, h)


class AffineCoupling(Coupling):
    """(x1, x2) -> (x1, x2 * exp(s) + t), where network(x1) gives t and the raw log-scale, stacked along `dim`.

    By default s = b tanh(raw / b) with b = `scale_bound`: no step multiplies anything by more than e^b, so that
    neither direction explodes. Log-determinant: the sum of s.

    Args:
        network: Any module that maps the source stream to twice the target stream's channels: shift first, then
            raw log-scale. With a context it is called as `network(source, context)`.
        target: Which stream is changed, "second" or "first".
        sizes: Sizes of the two streams; None parts the channels in halves.
        dim: The dimension that is parted.
        scale_bound: b, in nats per element; None leaves the log-scale as it comes.
        takes_context: Whether the network takes a context.

    Raises:
        ConfigError: If an argument is out of range.
        DtypeError: If the network is no module; when called: if its dtype or device is not the input's.
        ShapeError: When called: if the network's output does not fit.

    Source: Dinh et al. 2017 (RealNVP), equations 7 and 8.

    Example:
        >>> coupling = AffineCoupling(nn.Linear(2, 4))
        >>> y, logdet = coupling.forward_with_logdet(torch.randn(3, 4))
        >>> x, back = coupling.inverse_with_logdet(y)
        >>> logdet.shape, torch.allclose(logdet, -back)
        (torch.Size([3]), True)
    """

    def __init__(
        self,
        network: nn.Module,
        target: Target = "second",
        sizes: tuple[int, int] | None = None,
        dim: int = 1,
        scale_bound: float | None = 2.0,
        takes_context: bool = False,
    ) -> None:
        if scale_bound is not None and not 0 < scale_bound < math.inf:
            raise ConfigError("AffineCoupling has a bad scale_bound", expected="a number > 0 or None", got=scale_bound)
        super().__init__(network, target, sizes, dim, takes_context)
        self.scale_bound = scale_bound

    def extra_repr(self) -> str:
        """What `print(module)` shows.

        Returns:
            Roles, split and bound.
        """
        return f"{self._roles.describe(self.takes_context)}, scale_bound={self.scale_bound}"

    def _outcome(self, target: Tensor, out: Any) -> tuple[Tensor, Tensor]:
        shape, dim = list(target.shape), self._roles.dim
        shape[dim] *= 2
        _check_output(out, target, tuple(shape), "AffineCoupling")
        shift, raw = out.to(target.dtype).chunk(2, dim=dim)  # before exp: autocast's bfloat16 would not cancel
        return shift, raw if self.scale_bound is None else self.scale_bound * torch.tanh(raw / self.scale_bound)

    def _change(self, target: Tensor, h: tuple[Tensor, Tensor]) -> Tensor:
        shift, log_scale = h
        return target * log_scale.exp() + shift

    def _restore(self, target: Tensor, h: tuple[Tensor, Tensor]) -> Tensor:
        shift, log_scale = h
        return (target - shift) * (-log_scale).exp()

    def _log_derivative(self, target: Tensor, h: tuple[Tensor, Tensor]) -> Tensor:
        return h[1]


def _sum_events(log_scale: Tensor) -> Tensor:
    # In float32 at least: bfloat16 would lose nats.
    dtype = torch.promote_types(log_scale.dtype, torch.float32)
    return log_scale.flatten(1).sum(dim=1, dtype=dtype)


def known_sum(value: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """A sum whose value is known: only the graph is made.

    Args:
        value: a + b, or that on a lattice.
        a: One summand.
        b: The other, same shape.

    Returns:
        The value, with the gradient of a sum.
    """
    return _KnownSum.apply(value, a, b)  # type: ignore[return-value]


class _KnownSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, a: Tensor, b: Tensor) -> Tensor:
        ctx.dtype = b.dtype
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, grad, grad.to(ctx.dtype)

"""Coupling layers: one stream is changed by what a network makes of the other, so the change can be undone."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, cast

import torch
from torch import Tensor, nn

from invertible._tap_points import TapPoints
from invertible.bijection import Bijection, Leaf, Method, zero_logdet
from invertible.errors import ConfigError
from invertible.layers._conditioning import check_network, check_output, run_network, shift_and_raw
from invertible.layers._roles import Target, make_roles
from invertible.layers._sums import known_sum, sum_events
from invertible.layers.masks import Mask
from invertible.streams import State


class Coupling(Bijection):
    """(x1, x2) -> (x1, change(x2; network(x1))). Abstract: say how the target changes, and how that is undone.

    The network runs once in each direction, and once in a backward pass that reconstructs the input.

    With a mask b the input is not parted: y = b x + (1 - b) change(x; network(b x)). The network sees the whole
    tensor, with zeros where something changes, and gives numbers for the whole; the kept elements come through as
    they are, to the bit.

    Args:
        network: Any module, of any architecture. With a context it is called as `network(source, context)`.
        target: Which stream is changed: "second" (as above) or "first".
        sizes: Sizes of the two streams; None parts the channels in halves.
        dim: The dimension that is parted.
        takes_context: Whether the network takes a context.
        mask: Instead of sizes and dim: where x1 is, such as `Checkerboard()`.

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
        mask: Mask | None = None,
    ) -> None:
        super().__init__()
        check_network(network)
        self._roles = make_roles(target, sizes, dim, mask)
        self.split_in = self.split_out = self._roles.split
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

    # Where value and log-derivative share work, override these as well.

    def _change_with_log(self, target: Tensor, h: Any) -> tuple[Tensor, Tensor | None]:
        """The new target, and log|d change / d target| at the old one."""  # noqa: DOC201
        return self._change(target, h), self._log_derivative(target, h)

    def _restore_with_log(self, target: Tensor, h: Any) -> tuple[Tensor, Tensor | None]:
        """The old target, and log|d change / d target| at it: of the change, not of its inverse."""  # noqa: DOC201
        old = self._restore(target, h)
        return old, self._log_derivative(old, h)

    def _outcome(self, target: Tensor, out: object) -> Any:
        """What the network gave, checked and ready for use; by default a tensor of the target's shape."""  # noqa: DOC201
        check_output(out, target, tuple(target.shape), type(self).__name__)
        return out

    # Of the new target `out` only the graph is wanted, its value is known. Cheaper ways may be overridden.

    def _value(self, out: Tensor, target: Tensor, h: Any) -> Tensor:
        return self._change(target, h)

    def _value_with_log(self, out: Tensor, target: Tensor, h: Any) -> tuple[Tensor, Tensor | None]:
        return self._change_with_log(target, h)

    def extra_repr(self) -> str:
        """What `print(module)` shows.

        Returns:
            Roles, and split or mask.
        """
        return self._roles.describe(self.takes_context)

    def _forward(self, x: State, context: Any) -> State:
        source, target = self._roles.read(x)
        return self._roles.write(source, target, self._change(target, self._ask(source, target, context)))

    def _inverse(self, y: State, context: Any) -> State:
        source, target = self._roles.read(y)
        return self._roles.write(source, target, self._restore(target, self._ask(source, target, context)))

    def _forward_with_logdet(self, x: State, context: Any) -> tuple[State, Tensor]:
        source, target = self._roles.read(x)
        changed, log = self._change_with_log(target, self._ask(source, target, context))
        return self._roles.write(source, target, changed), self._logdet(target, log)

    def _inverse_with_logdet(self, y: State, context: Any) -> tuple[State, Tensor]:
        source, target = self._roles.read(y)
        changed, log = self._restore_with_log(target, self._ask(source, target, context))
        return self._roles.write(source, target, changed), -self._logdet(target, log)

    def _rerun(self, method: Method, out: State, context: Any, leaf: Leaf) -> tuple[State, State, Tensor | None]:
        backwards = method.startswith("_inverse")
        source, target_out, finish = self._roles.reopen(out, leaf)
        h = self._ask(source, target_out, context)
        with torch.no_grad():
            target = self._change(target_out, h) if backwards else self._restore(target_out, h)
        x, target = finish(target)
        if not method.endswith("logdet"):
            again = self._restore(target, h) if backwards else self._value(target_out, target, h)
            return x, self._roles.write(source, target, again), None
        again, log = self._restore_with_log(target, h) if backwards else self._value_with_log(target_out, target, h)
        logdet = self._logdet(target, log)
        return x, self._roles.write(source, target, again), -logdet if backwards else logdet

    def _ask(self, source: Tensor, target: Tensor, context: Any) -> Any:
        # The same bits both ways need the same layout both ways.
        source = source if self.lattice is None else source.contiguous()
        network = cast(nn.Module, self._modules["network"])  # twice as fast as self.network
        out = run_network(network, source, context, type(self).__name__)
        return self._outcome(target, self._roles.clean(out, target))

    def _logdet(self, target: Tensor, log: Tensor | None) -> Tensor:
        return zero_logdet(target) if log is None else sum_events(self._roles.clean_log(log, target))


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
        mask: Instead of sizes and dim: where x1 is, such as `Checkerboard()`.

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

    def tap_points(self) -> TapPoints:
        """Where instruments listen: exact sums hide their addition from those that would find it themselves.

        Returns:
            The network: its output is added.
        """
        return TapPoints("network")

    def _change(self, target: Tensor, h: Tensor) -> Tensor:
        return target + h if self.lattice is None else self.lattice.add(target, h)

    def _restore(self, target: Tensor, h: Tensor) -> Tensor:
        return target - h if self.lattice is None else self.lattice.subtract(target, h)

    def _log_derivative(self, target: Tensor, h: Tensor) -> None:
        return None

    def _value(self, out: Tensor, target: Tensor, h: Tensor) -> Tensor:
        return known_sum(out, target, h)

    def _value_with_log(self, out: Tensor, target: Tensor, h: Tensor) -> tuple[Tensor, None]:
        return known_sum(out, target, h), None


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
        mask: Instead of sizes and dim: where x1 is, such as `Checkerboard()`.

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
        mask: Mask | None = None,
    ) -> None:
        if scale_bound is not None and not 0 < scale_bound < math.inf:
            raise ConfigError("AffineCoupling has a bad scale_bound", expected="a number > 0 or None", got=scale_bound)
        super().__init__(network, target, sizes, dim, takes_context, mask)
        self.scale_bound = scale_bound

    def extra_repr(self) -> str:
        """What `print(module)` shows.

        Returns:
            Roles, split and bound.
        """
        return f"{self._roles.describe(self.takes_context)}, scale_bound={self.scale_bound}"

    def _outcome(self, target: Tensor, out: Any) -> tuple[Tensor, Tensor]:
        shift, raw = shift_and_raw(target, out, self._roles.dim, "AffineCoupling")
        return shift, raw if self.scale_bound is None else self.scale_bound * torch.tanh(raw / self.scale_bound)

    def _change(self, target: Tensor, h: tuple[Tensor, Tensor]) -> Tensor:
        shift, log_scale = h
        return target * log_scale.exp() + shift

    def _restore(self, target: Tensor, h: tuple[Tensor, Tensor]) -> Tensor:
        shift, log_scale = h
        return (target - shift) / log_scale.exp()

    def _log_derivative(self, target: Tensor, h: tuple[Tensor, Tensor]) -> Tensor:
        return h[1]

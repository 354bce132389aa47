"""`Bijection`, the invertible map everything is built from, and how to turn one round.

A bijection takes a tensor of shape (batch, ...). Those that act on parts of it (couplings) declare how it parts into
streams (`Split`) and hand these on as a tuple of tensors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from invertible._checks import check_floating, describe
from invertible.errors import ContextError, DtypeError, ShapeError
from invertible.lattice import Lattice
from invertible.streams import (
    Split,
    State,
    Streams,
    check_logdet,
    check_result,
    check_streams,
    first_stream,
)

S = TypeVar("S", Tensor, tuple[Tensor, ...], State)

Method = Literal["_forward", "_inverse", "_forward_with_logdet", "_inverse_with_logdet"]
Runner = Callable[["Bijection", Method, State, Any], Any]
RUNNER: ContextVar[Runner | None] = ContextVar("who runs the members of a chain that saves memory", default=None)

Leaf = Callable[[Tensor, int], Tensor]
"""From a stream and its index to the same values as a leaf of a new graph."""

OPPOSITE: dict[Method, Method] = {
    "_forward": "_inverse",
    "_inverse": "_forward",
    "_forward_with_logdet": "_inverse",
    "_inverse_with_logdet": "_forward",
}


class Bijection(nn.Module, ABC):
    """An invertible map. Abstract: write the four hooks (`VolumePreserving` asks for two of them), get the contract.

    The hooks get a tensor where the matching split is None, and a tuple of streams otherwise; the public methods take
    either and give back the same kind.

    Attributes:
        split_in: How the hooks want their input parted; None: not at all.
        split_out: How they leave their output parted.
        takes_context: Whether the map depends on a context (any value; its network gets it as second argument).
        is_onto: Whether every point is an image; injective maps into a larger space are not.
        is_total: Whether every point has an image; the inverse of an injective map is defined on its image only.
        is_isometric: Whether distances are kept, as by permutations and padding.
        has_closed_inverse: Whether the inverse is a formula, good to rounding. Those that iterate say False, and a
            `Chain` that saves memory keeps their input instead of reconstructing it.
        keeps_lattice: Whether it maps lattice points to lattice points once `lattice` is set (`Chain(exact=True)`).
        lattice: The lattice it computes on; None: plain floating point.
        is_initialised: Whether it has its parameters; False while it waits for a first batch to set them from.

    Example:
        >>> class Scale(Bijection):
        ...     def _forward(self, x, context):
        ...         return 2 * x
        ...     def _inverse(self, y, context):
        ...         return y / 2
        ...     def _forward_with_logdet(self, x, context):
        ...         return 2 * x, x.new_full(x.shape[:1], x[0].numel() * math.log(2))
        ...     def _inverse_with_logdet(self, y, context):
        ...         return y / 2, y.new_full(y.shape[:1], -y[0].numel() * math.log(2))
        >>> import math
        >>> y, logdet = Scale().forward_with_logdet(torch.ones(1, 3))
        >>> y, round(logdet.item(), 4)
        (tensor([[2., 2., 2.]]), 2.0794)
    """

    split_in: Split | None = None
    split_out: Split | None = None
    takes_context: bool = False
    is_onto: bool = True
    is_total: bool = True
    is_isometric: bool = False
    has_closed_inverse: bool = True
    keeps_lattice: bool = False
    lattice: Lattice | None = None
    is_initialised: bool = True
    _is_container: bool = False  # its members run, one by one

    @abstractmethod
    def _forward(self, x: Any, context: Any) -> Any: ...

    @abstractmethod
    def _inverse(self, y: Any, context: Any) -> Any: ...

    @abstractmethod
    def _forward_with_logdet(self, x: Any, context: Any) -> tuple[Any, Tensor]: ...

    @abstractmethod
    def _inverse_with_logdet(self, y: Any, context: Any) -> tuple[Any, Tensor]: ...

    def forward(self, x: S, context: Any = None) -> S:
        """Apply the map.

        Args:
            x: Shape (batch, ...), or a tuple of streams.
            context: What a conditional map depends on.

        Returns:
            The image, a tensor or a tuple as x was.
        """
        state = self._enter(x, self.split_in, context)
        return self._leave(self._run("_forward", state, context), self.split_out, like=x)

    def inverse(self, y: S, context: Any = None) -> S:
        """Apply the inverse map.

        Args:
            y: Shape (batch, ...), or a tuple of streams.
            context: As in `forward`.

        Returns:
            The preimage, a tensor or a tuple as y was.
        """
        state = self._enter(y, self.split_out, context)
        return self._leave(self._run("_inverse", state, context), self.split_in, like=y)

    def forward_with_logdet(self, x: S, context: Any = None) -> tuple[S, Tensor]:
        """Apply the map and measure its change of volume.

        Args:
            x: Shape (batch, ...), or a tuple of streams.
            context: As in `forward`.

        Returns:
            The image, and log|det J| with J = dy/dx at x: nats, shape (batch,), dtype of x. For a map into a larger
            space it is log det(J^T J) / 2.
        """
        y, logdet = self._run("_forward_with_logdet", self._enter(x, self.split_in, context), context)
        check_logdet(logdet, x, self)
        return self._leave(y, self.split_out, like=x), logdet.to(first_stream(x).dtype)

    def inverse_with_logdet(self, y: S, context: Any = None) -> tuple[S, Tensor]:
        """Apply the inverse map and measure its change of volume.

        Args:
            y: Shape (batch, ...), or a tuple of streams.
            context: As in `forward`.

        Returns:
            The preimage x, and log|det(dx/dy)| at y, which is minus the forward one at x: nats, shape (batch,).
        """
        x, logdet = self._run("_inverse_with_logdet", self._enter(y, self.split_out, context), context)
        check_logdet(logdet, y, self)
        return self._leave(x, self.split_in, like=y), logdet.to(first_stream(y).dtype)

    def _run(self, method: Method, state: State, context: Any) -> Any:
        runner = None if self._is_container or torch.compiler.is_compiling() else RUNNER.get()
        return getattr(self, method)(state, context) if runner is None else runner(self, method, state, context)

    def _rerun(self, method: Method, out: Any, context: Any, leaf: Leaf) -> tuple[Any, Any, Tensor | None]:
        """Find the input of `method` from its output, and run the method again so that it can be differentiated.

        Maps whose inverse and forward need the same expensive evaluation do it once, by overriding this.

        Args:
            method: The hook that made the output.
            out: Its output, without graph.
            context: As it was, as leaves of a new graph.
            leaf: Makes an input stream a leaf of the new graph.

        Returns:
            The input, as leaves; the output again, a function of these; and the log-determinant, if the method has it.
        """
        with torch.no_grad():
            x = getattr(self, OPPOSITE[method])(out, context)
        x = tuple(map(leaf, x, range(len(x)))) if isinstance(x, tuple) else leaf(x, 0)
        again = getattr(self, method)(x, context)
        return (x, *again) if method.endswith("logdet") else (x, again, None)

    def _enter(self, x: State, split: Split | None, context: Any) -> State:
        name = type(self).__name__
        if (context is not None) != self.takes_context:
            raise _context_error(name, self.takes_context)
        if isinstance(x, tuple):
            return check_streams(x, split, name)
        check_floating(x, name)
        if x.ndim < 1:
            raise ShapeError(f"{name} works on batches", expected="shape (batch, ...)", got=describe(x))
        return split.part(x) if split else x

    def _leave(self, y: State, split: Split | None, like: S) -> S:
        check_result(y, split, type(self).__name__)
        if isinstance(like, Tensor) and split is not None:
            return cast(S, split.merge(cast(Streams, y)))
        return cast(S, (y,) if isinstance(y, Tensor) and isinstance(like, tuple) else y)


def _context_error(name: str, wanted: bool) -> ContextError:
    if wanted:
        return ContextError(f"{name} is conditional", expected="a context", got="None", hint="pass context=...")
    hint = "leave it out, or build the layer with takes_context=True"
    return ContextError(f"{name} is not conditional", expected="no context", got="one", hint=hint)


def zero_logdet(x: State) -> Tensor:
    """The log-determinant of a map that keeps volume.

    Args:
        x: Its input.

    Returns:
        Zeros, shape (batch,), in x's dtype.
    """
    first = first_stream(x)
    return torch.zeros(first.shape[0], dtype=first.dtype, device=first.device)


class VolumePreserving(Bijection):
    """A bijection with log-determinant zero everywhere. Abstract: write `_forward` and `_inverse`."""

    def _forward_with_logdet(self, x: Any, context: Any) -> tuple[Any, Tensor]:
        return self._forward(x, context), zero_logdet(x)

    def _inverse_with_logdet(self, y: Any, context: Any) -> tuple[Any, Tensor]:
        return self._inverse(y, context), zero_logdet(y)


class Inverse(Bijection):
    """A bijection run backwards: `Inverse(b)(x)` is `b.inverse(x)`.

    Args:
        bijection: The map to turn round.

    Raises:
        DtypeError: If it is no `Bijection`.

    Example:
        >>> from invertible.layers import Squeeze
        >>> Inverse(Squeeze(2))(torch.zeros(1, 4, 3, 3)).shape
        torch.Size([1, 1, 6, 6])
    """

    _is_container = True

    def __init__(self, bijection: Bijection) -> None:
        super().__init__()
        if not isinstance(bijection, Bijection):
            raise DtypeError("Inverse turns round", expected="a Bijection", got=describe(bijection))
        self.bijection = bijection
        self.takes_context = bijection.takes_context
        self.is_onto, self.is_total = bijection.is_total, bijection.is_onto
        self.is_isometric, self.keeps_lattice = bijection.is_isometric, bijection.keeps_lattice
        self.has_closed_inverse = bijection.has_closed_inverse
        self.split_in, self.split_out = bijection.split_out, bijection.split_in

    def _forward(self, x: State, context: Any) -> State:
        return self.bijection._run("_inverse", x, context)

    def _inverse(self, y: State, context: Any) -> State:
        return self.bijection._run("_forward", y, context)

    def _forward_with_logdet(self, x: State, context: Any) -> tuple[State, Tensor]:
        return self.bijection._run("_inverse_with_logdet", x, context)

    def _inverse_with_logdet(self, y: State, context: Any) -> tuple[State, Tensor]:
        return self.bijection._run("_forward_with_logdet", y, context)

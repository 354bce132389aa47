"""`Bijection`, the invertible map everything is built from, and how maps compose.

A bijection takes a tensor of shape (batch, ...). Those that act on parts of it (couplings) declare how it parts into
streams (`Split`); between two maps with the same split a `Chain` hands the streams on as they are, a tuple of tensors,
so that nothing is concatenated and split again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast, overload

import torch
from torch import Tensor, nn

from invertible._checks import check_floating, describe
from invertible.errors import ConfigError, ContextError, DtypeError, ShapeError
from invertible.streams import (
    Split,
    State,
    Streams,
    check_logdet,
    check_result,
    check_streams,
    convert,
    first_stream,
)

S = TypeVar("S", Tensor, tuple[Tensor, ...], State)


def _call(method: Callable[..., State], state: State, target: Split | None, context: Any) -> State:
    # The output shall come parted as the member leaves it. A tensor would come back as a tensor, so a whole state on
    # its way into streams goes in as a tuple of one.
    if isinstance(state, tuple) or target is not None:
        streams = method(state if isinstance(state, tuple) else (state,), context)
        return streams if target is not None else streams[0]
    return method(state, context)


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
        return self._leave(self._forward(state, context), self.split_out, like=x)

    def inverse(self, y: S, context: Any = None) -> S:
        """Apply the inverse map.

        Args:
            y: Shape (batch, ...), or a tuple of streams.
            context: As in `forward`.

        Returns:
            The preimage, a tensor or a tuple as y was.
        """
        state = self._enter(y, self.split_out, context)
        return self._leave(self._inverse(state, context), self.split_in, like=y)

    def forward_with_logdet(self, x: S, context: Any = None) -> tuple[S, Tensor]:
        """Apply the map and measure its change of volume.

        Args:
            x: Shape (batch, ...), or a tuple of streams.
            context: As in `forward`.

        Returns:
            The image, and log|det J| with J = dy/dx at x: nats, shape (batch,), dtype of x. For a map into a larger
            space it is log det(J^T J) / 2.
        """
        y, logdet = self._forward_with_logdet(self._enter(x, self.split_in, context), context)
        check_logdet(logdet, x, type(self).__name__)
        return self._leave(y, self.split_out, like=x), logdet.to(first_stream(x).dtype)

    def inverse_with_logdet(self, y: S, context: Any = None) -> tuple[S, Tensor]:
        """Apply the inverse map and measure its change of volume.

        Args:
            y: Shape (batch, ...), or a tuple of streams.
            context: As in `forward`.

        Returns:
            The preimage x, and log|det(dx/dy)| at y, which is minus the forward one at x: nats, shape (batch,).
        """
        x, logdet = self._inverse_with_logdet(self._enter(y, self.split_out, context), context)
        check_logdet(logdet, y, type(self).__name__)
        return self._leave(x, self.split_in, like=y), logdet.to(first_stream(y).dtype)

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


class Chain(Bijection):
    """Bijections one after the other, first argument first. Its state-dict keys are those of `nn.Sequential`.

    A context is handed to those members that take one. Chains nest, slice (`chain[2:5]`), index and iterate.

    Log-determinants of the members add up. The exception is a chain that pads and then bends: log det(J^T J) / 2 of an
    injective map followed by one that does not keep distances is no sum, and asking for it raises.

    Args:
        *bijections: The members.

    Raises:
        DtypeError: If a member is no `Bijection`.
        ConfigError: From the methods with log-determinant: if an injective member is followed by one that is not
            isometric.

    Example:
        >>> from invertible.layers import AdditiveCoupling, Permute
        >>> chain = Chain(AdditiveCoupling(nn.Linear(2, 2)), Permute([3, 2, 1, 0]), AdditiveCoupling(nn.Linear(2, 2)))
        >>> x = torch.randn(5, 4)
        >>> torch.allclose(chain.inverse(chain(x)), x, atol=1e-6)
        True
    """

    def __init__(self, *bijections: Bijection) -> None:
        super().__init__()
        for i, bijection in enumerate(bijections):
            if not isinstance(bijection, Bijection):
                hint = "wrap a network in a coupling, e.g. AdditiveCoupling(network); unpack lists: Chain(*members)"
                raise DtypeError(f"member {i} of a Chain", expected="a Bijection", got=describe(bijection), hint=hint)
            self.add_module(str(i), bijection)
        self.takes_context = any(b.takes_context for b in bijections)
        self.is_onto, self.is_total = all(b.is_onto for b in bijections), all(b.is_total for b in bijections)
        self.is_isometric = all(b.is_isometric for b in bijections)
        if bijections:
            self.split_in, self.split_out = bijections[0].split_in, bijections[-1].split_out

    def _forward(self, x: State, context: Any) -> State:
        split = self.split_in
        for member in self:
            x = convert(x, split, member.split_in)
            x = _call(member, x, member.split_out, context if member.takes_context else None)
            split = member.split_out
        return x

    def _inverse(self, y: State, context: Any) -> State:
        split = self.split_out
        for member in reversed(list(self)):
            y = convert(y, split, member.split_out)
            y = _call(member.inverse, y, member.split_in, context if member.takes_context else None)
            split = member.split_in
        return y

    def _forward_with_logdet(self, x: State, context: Any) -> tuple[State, Tensor]:
        self._check_volume()
        split, total = self.split_in, zero_logdet(x)
        for member in self:
            x = convert(x, split, member.split_in)
            x, logdet = member._forward_with_logdet(x, context if member.takes_context else None)
            check_logdet(logdet, x, type(member).__name__)
            split, total = member.split_out, total + logdet
        return x, total

    def _inverse_with_logdet(self, y: State, context: Any) -> tuple[State, Tensor]:
        self._check_volume()
        split, total = self.split_out, zero_logdet(y)
        for member in reversed(list(self)):
            y = convert(y, split, member.split_out)
            y, logdet = member._inverse_with_logdet(y, context if member.takes_context else None)
            check_logdet(logdet, y, type(member).__name__)
            split, total = member.split_in, total + logdet
        return y, total

    def _check_volume(self) -> None:
        members = list(self)
        padded = next((i for i, member in enumerate(members) if not member.is_onto), len(members))
        cut = next((i for i in reversed(range(len(members))) if not members[i].is_total), 0)
        for i, member in enumerate(members):
            if (i > padded or i < cut) and not member.is_isometric:
                name = type(members[padded if i > padded else cut]).__name__
                where = "after" if i > padded else "before"
                hint = "a bijective network (no padding), or forward and inverse without log-determinant"
                expected, got = f"only permutations and the like {where} {name}", f"{type(member).__name__} {where} it"
                raise ConfigError("this chain's log-determinant is no sum", expected=expected, got=got, hint=hint)

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Bijection]:
        return iter(cast("dict[str, Bijection]", self._modules).values())

    @overload
    def __getitem__(self, index: int) -> Bijection: ...
    @overload
    def __getitem__(self, index: slice) -> Chain: ...
    def __getitem__(self, index: int | slice) -> Bijection:
        members = list(self)[index]
        return Chain(*members) if isinstance(members, list) else members


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

    def __init__(self, bijection: Bijection) -> None:
        super().__init__()
        if not isinstance(bijection, Bijection):
            raise DtypeError("Inverse turns round", expected="a Bijection", got=describe(bijection))
        self.bijection = bijection
        self.takes_context = bijection.takes_context
        self.is_onto, self.is_total = bijection.is_total, bijection.is_onto
        self.is_isometric = bijection.is_isometric
        self.split_in, self.split_out = bijection.split_out, bijection.split_in

    def _forward(self, x: State, context: Any) -> State:
        return self.bijection._inverse(x, context)

    def _inverse(self, y: State, context: Any) -> State:
        return self.bijection._forward(y, context)

    def _forward_with_logdet(self, x: State, context: Any) -> tuple[State, Tensor]:
        return self.bijection._inverse_with_logdet(x, context)

    def _inverse_with_logdet(self, y: State, context: Any) -> tuple[State, Tensor]:
        return self.bijection._forward_with_logdet(y, context)

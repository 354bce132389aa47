"""Streams: the parts of a tensor that couplings work on, handed on between them without a copy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from invertible._checks import check_channels, check_floating, describe
from invertible.errors import ConfigError, DtypeError, ShapeError

Streams = tuple[Tensor, ...]
State = Tensor | Streams


@dataclass(frozen=True)
class Split:
    """How a tensor parts into streams along one dimension.

    Args:
        sizes: Size of each stream; None parts it into two halves, the second one larger if the size is odd.
        dim: The dimension, 1 (the channels) or higher.

    Raises:
        ConfigError: If there are fewer than two streams, a size is below 1, or dim is.

    Example:
        >>> [tuple(s.shape) for s in Split().part(torch.zeros(2, 5, 4))]
        [(2, 2, 4), (2, 3, 4)]
    """

    sizes: tuple[int, ...] | None = None
    dim: int = 1

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ConfigError("a split leaves the batch whole", expected="dim >= 1", got=f"dim={self.dim}")
        if self.sizes is None:
            return
        object.__setattr__(self, "sizes", tuple(self.sizes))  # a list, as YAML gives, would be unequal to a tuple
        if len(self.sizes) < 2 or min(self.sizes) < 1:
            raise ConfigError("a split needs two streams or more", expected="positive sizes", got=self.sizes)

    @property
    def n_streams(self) -> int:
        """How many streams there are."""
        return 2 if self.sizes is None else len(self.sizes)

    def part(self, x: Tensor) -> Streams:
        """Part a tensor into its streams: views, nothing is copied.

        Args:
            x: Shape (batch, ..., sum(sizes), ...).

        Returns:
            The streams.

        Raises:
            ShapeError: If the size along `dim` does not fit.
        """
        size = x.shape[self.dim] if x.ndim > self.dim else 0
        sizes = self.sizes or (size // 2, size - size // 2)
        if sum(sizes) != size or min(sizes) < 1:
            expected = f"size {sum(sizes)} in dimension {self.dim}" if self.sizes else "2 channels or more"
            hint = "pad with InjectivePad or squeeze with Squeeze first, or pass sizes=..."
            raise ShapeError("cannot part the tensor into streams", expected=expected, got=describe(x), hint=hint)
        return torch.split(x, list(sizes), dim=self.dim)

    def merge(self, streams: Streams) -> Tensor:
        """Put streams together again.

        Args:
            streams: As `part` returns them.

        Returns:
            Their concatenation along `dim`.
        """
        return torch.cat(streams, dim=self.dim)


def convert(state: State, source: Split | None, target: Split | None) -> State:
    """Hand a state on from one map to the next.

    Args:
        state: A tensor or streams.
        source: How the map that made it leaves it parted.
        target: How the next one wants it.

    Returns:
        The state as it is if both agree, otherwise merged and parted again.
    """
    if source == target:
        return state
    whole = source.merge(cast(Streams, state)) if source else cast(Tensor, state)
    return target.part(whole) if target else whole


def check_streams(x: Streams, split: Split | None, name: str) -> State:
    """Refuse streams that do not fit a map.

    Args:
        x: The streams.
        split: How the map wants its input parted; None: as one tensor, a tuple of one.
        name: Who asks, for the message.

    Returns:
        The streams, or the one tensor.

    Raises:
        ShapeError: If their number, sizes or batches do not fit.
        DtypeError: If they are no floating-point tensors of one dtype and device.
    """
    n_streams = split.n_streams if split else 1
    if len(x) != n_streams:
        expected = f"a tensor or a tuple of {n_streams}"
        raise ShapeError(f"{name} got the wrong number of streams", expected=expected, got=describe(x))
    for stream in x:
        check_floating(stream, name)
    if len({(stream.dtype, stream.device) for stream in x}) > 1:
        raise DtypeError(f"{name} got unlike streams", expected="one dtype and device", got=[s.dtype for s in x])
    if any(stream.shape[0] != x[0].shape[0] for stream in x):
        got = [describe(s) for s in x]
        raise ShapeError(f"{name} got unlike streams", expected="one batch size", got=got)
    if split is not None:
        _check_sizes(x, split, name)
    return x if split else x[0]


def _check_sizes(x: Streams, split: Split, name: str) -> None:
    total = sum(stream.shape[split.dim] if stream.ndim > split.dim else 0 for stream in x)
    for stream, size in zip(x, split.sizes or (total // 2, total - total // 2), strict=True):
        check_channels(stream, size, name, split.dim)


def check_result(y: object, split: Split | None, name: str) -> None:
    """Hold a map to the streams it declares.

    Args:
        y: What its hook returned.
        split: How it says to leave its output parted.
        name: The map.

    Raises:
        DtypeError: If it is no tensor (split None) or no tuple of that many.
        ShapeError: If the streams have other sizes than declared.
    """
    if split is None:
        if not isinstance(y, Tensor):
            hint = "return a tensor, or declare split_in and split_out"
            raise DtypeError(f"{name}'s hook returned the wrong kind", expected="a tensor", got=describe(y), hint=hint)
        return
    if not isinstance(y, tuple) or len(y) != split.n_streams:
        expected = f"a tuple of {split.n_streams} streams"
        raise DtypeError(f"{name}'s hook returned the wrong kind", expected=expected, got=describe(y))
    _check_sizes(y, split, f"{name}'s output")


def check_logdet(logdet: object, x: State, asked: object) -> None:
    """Hold a map to one log-determinant per element of the batch.

    Args:
        logdet: What its hook returned.
        x: Its input.
        asked: The map.

    Raises:
        ShapeError: If it is no tensor of shape (batch,).
    """
    batch = first_stream(x).shape[0]
    if not isinstance(logdet, Tensor) or logdet.shape != (batch,):
        name = type(asked).__name__
        hint = "sum over all dimensions but the first; expand what is the same for all: logdet.expand(len(x))"
        got = describe(logdet)
        raise ShapeError(f"{name}'s log-determinant", expected=f"shape ({batch},)", got=got, hint=hint)


def first_stream(x: State) -> Tensor:
    """The first stream, which tells batch size, dtype and device.

    Args:
        x: A tensor or streams.

    Returns:
        The tensor itself, or the first of the streams.
    """
    return x[0] if isinstance(x, tuple) else x

"""Which part of its input a coupling reads, the source, and which it changes, the target: streams, or a mask."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from invertible._checks import describe
from invertible.bijection import Leaf
from invertible.errors import ConfigError, ShapeError
from invertible.layers.masks import Mask
from invertible.streams import Split, State, Streams

Target = Literal["first", "second"]
Finish = Callable[[Tensor], tuple[State, Tensor]]
"""From the values of a target to the whole input, as leaves of a new graph, and the target in it."""

_N_CACHED = 16


class Roles(ABC):
    """Who is source and who is target. Abstract.

    Attributes:
        split: How the coupling wants its input parted; None: not at all.
        dim: The dimension along which a network stacks its outputs.
        second: Whether the second part is the target.
    """

    split: Split | None
    dim: int
    second: bool

    @abstractmethod
    def describe(self, takes_context: bool) -> str: ...

    @abstractmethod
    def read(self, state: State) -> tuple[Tensor, Tensor]:  # (source, target)
        ...

    @abstractmethod
    def write(self, source: Tensor, target: Tensor, changed: Tensor) -> State:  # the target's new values
        ...

    @abstractmethod
    def clean(self, out: Tensor, target: Tensor) -> Tensor:  # a network's output, zero where nothing changes
        ...

    @abstractmethod
    def clean_log(self, log: Tensor, target: Tensor) -> Tensor:  # a log-derivative, zero where nothing changes
        ...

    @abstractmethod
    def reopen(self, out: State, leaf: Leaf) -> tuple[Tensor, Tensor, Finish]:
        """Begin to find the input from the output.

        Args:
            out: The output.
            leaf: As in `Bijection._rerun`.

        Returns:
            The source, in a new graph; the target's values in the output; and how to go on.
        """


class StreamRoles(Roles):
    """One of two streams is read, the other changed."""

    def __init__(self, target: Target, split: Split) -> None:
        if split.n_streams != 2:
            raise ConfigError("a coupling works on two streams", expected="2 sizes", got=split.sizes)
        self.split, self.dim, self.second = split, split.dim, is_second(target)

    def describe(self, takes_context: bool) -> str:
        sizes = self.split.sizes if self.split else None
        parts = [f"target={'second' if self.second else 'first'!r}", f"sizes={sizes}", f"dim={self.dim}"]
        return ", ".join(parts + ["takes_context=True"] * takes_context)

    def read(self, state: State) -> tuple[Tensor, Tensor]:
        first, second = state
        return (first, second) if self.second else (second, first)

    def write(self, source: Tensor, target: Tensor, changed: Tensor) -> Streams:
        return (source, changed) if self.second else (changed, source)

    def clean(self, out: Tensor, target: Tensor) -> Tensor:
        return out

    def clean_log(self, log: Tensor, target: Tensor) -> Tensor:
        return log

    def reopen(self, out: State, leaf: Leaf) -> tuple[Tensor, Tensor, Finish]:
        source, target_out = self.read(out)
        source = leaf(source, 0 if self.second else 1)

        def finish(target: Tensor) -> tuple[State, Tensor]:
            target = leaf(target, 1 if self.second else 0)
            return self.write(source, target, target), target

        return source, target_out, finish


class MaskRoles(Roles):
    """The network sees the kept elements and zeros; the target is the whole tensor, of which the others change."""

    def __init__(self, target: Target, mask: Mask) -> None:
        if not isinstance(mask, Mask):
            raise ConfigError("a coupling has a bad mask", expected="Checkerboard() or the like", got=describe(mask))
        self.split, self.dim, self.second, self.mask = None, 1, is_second(target), mask
        self._cache: dict[tuple[tuple[int, ...], torch.device], tuple[Tensor, Tensor]] = {}

    def describe(self, takes_context: bool) -> str:
        parts = [f"mask={self.mask}", f"target={'second' if self.second else 'first'!r}"]
        return ", ".join(parts + ["takes_context=True"] * takes_context)

    def read(self, state: State) -> tuple[Tensor, Tensor]:
        x = cast(Tensor, state)
        return x.masked_fill(self._parts(x)[1], 0), x

    def write(self, source: Tensor, target: Tensor, changed: Tensor) -> Tensor:
        return torch.where(self._parts(target)[0], target, changed)

    def clean(self, out: Tensor, target: Tensor) -> Tensor:
        # Else an overflow where nothing changes would give a gradient of 0 * inf.
        n = target.shape[1]
        if not isinstance(out, Tensor) or out.ndim != target.ndim or out.shape[2:] != target.shape[2:]:
            return out  # to be refused by who knows what is expected
        if out.shape[1] % n:
            return out
        return out.unflatten(1, (out.shape[1] // n, n)).masked_fill(self._parts(target)[0], 0).flatten(1, 2)

    def clean_log(self, log: Tensor, target: Tensor) -> Tensor:
        return log.masked_fill(self._parts(target)[0], 0)

    def reopen(self, out: State, leaf: Leaf) -> tuple[Tensor, Tensor, Finish]:
        y = cast(Tensor, out)
        kept, changed = self._parts(y)
        x = leaf(y.masked_fill(changed, 0), 0)

        def finish(target: Tensor) -> tuple[State, Tensor]:
            with torch.no_grad():  # the graph so far has saved the mask only
                x.copy_(torch.where(kept, y, target))
            return x, x

        return x.masked_fill(changed, 0), y, finish

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:  # (kept, changed)
        shape = tuple(x.shape[1:])
        if not _is_plain():
            return self._build(shape, x.device)
        key = (shape, x.device)
        if key not in self._cache:
            if len(self._cache) >= _N_CACHED:
                self._cache.clear()
            with torch.inference_mode(False):  # it will serve training as well
                self._cache[key] = self._build(shape, x.device)
        return self._cache[key]

    def _build(self, shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
        if not shape:
            raise ShapeError("a mask needs elements with a shape", expected="(batch, channels, ...)", got="(batch,)")
        first = self.mask.build(shape, device)
        return (first, ~first) if self.second else (~first, first)


def _is_plain() -> bool:
    # Elsewhere tensors are wrappers, which must not outlive the transformation.
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    return _get_current_dispatch_mode() is None


def is_second(target: object) -> bool:
    """Read the name of a target.

    Args:
        target: What the caller passed.

    Returns:
        Whether it is "second".

    Raises:
        ConfigError: If it is neither "first" nor "second".
    """
    if target not in ("first", "second"):
        raise ConfigError("a coupling has a bad target", expected="'first' or 'second'", got=repr(target))
    return target == "second"


def make_roles(target: Target, sizes: tuple[int, int] | None, dim: int, mask: Mask | None) -> Roles:
    """The roles that a coupling's arguments describe.

    Args:
        target: "first" or "second".
        sizes: Of the streams.
        dim: That is parted.
        mask: Instead of streams.

    Returns:
        Streams or a mask.

    Raises:
        ConfigError: If there are both.
    """
    if mask is None:
        return StreamRoles(target, _split(None if sizes is None else tuple(sizes), dim))
    if sizes is not None or dim != 1:
        got = f"sizes={sizes}, dim={dim} and mask={mask}"
        raise ConfigError("a coupling parts its input in one way", expected="sizes and dim, or a mask", got=got)
    return MaskRoles(target, mask)


@functools.lru_cache(maxsize=256)
def _split(sizes: tuple[int, ...] | None, dim: int) -> Split:
    # One object for all that are equal: that two layers agree is then seen at a glance.
    return Split(sizes, dim)

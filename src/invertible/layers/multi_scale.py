"""The multi-scale architecture: after each level half of the channels are done, and pass through the rest unchanged.

The state stays one tensor: channels that are done are squeezed along with the others, so that the latents of all
levels end side by side, those of the last level first. Channels that leave may depend on those that stay (a "split
prior"): that is a coupling as the level's last member.

Source: Dinh et al. 2017 (RealNVP), section 3.6; Kingma and Dhariwal 2018 (Glow), section 2.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from invertible._checks import describe
from invertible.bijection import Bijection, Inverse, Leaf, Method
from invertible.chain import Chain
from invertible.errors import ConfigError, DtypeError
from invertible.layers.squeeze import Squeeze
from invertible.reversible import Memory
from invertible.streams import Split, State, Streams, convert


class OnFirst(Bijection):
    """A bijection of the first channels; the others pass.

    Args:
        bijection: Of the first channels. No `Chain` and no `Inverse`: wrap what is in them, so that each part can be
            reconstructed by itself.
        sizes: How many channels come first, and how many pass.

    Raises:
        ConfigError: If the bijection holds others.
        DtypeError: If it is no bijection.

    Example:
        >>> from invertible.layers import Permute
        >>> OnFirst(Permute.reverse(2), (2, 1))(torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[2., 1., 3.]])
    """

    def __init__(self, bijection: Bijection, sizes: tuple[int, int]) -> None:
        super().__init__()
        if not isinstance(bijection, Bijection):
            raise DtypeError("OnFirst wraps a bijection", expected="a Bijection", got=describe(bijection))
        if bijection._is_container:
            hint = "Chain(*(OnFirst(member, sizes) for member in chain)); Inverse(OnFirst(bijection, sizes))"
            got = type(bijection).__name__
            raise ConfigError("OnFirst wraps single bijections", expected="no Chain, no Inverse", got=got, hint=hint)
        self.bijection = bijection
        self.split_in = self.split_out = Split(sizes)
        self.takes_context = bijection.takes_context
        self.is_isometric, self.has_closed_inverse = bijection.is_isometric, bijection.has_closed_inverse

    def _forward(self, x: Streams, context: Any) -> Streams:
        return self._on_first("_forward", x, context)

    def _inverse(self, y: Streams, context: Any) -> Streams:
        return self._on_first("_inverse", y, context)

    def _forward_with_logdet(self, x: Streams, context: Any) -> tuple[Streams, Tensor]:
        return self._on_first("_forward_with_logdet", x, context)

    def _inverse_with_logdet(self, y: Streams, context: Any) -> tuple[Streams, Tensor]:
        return self._on_first("_inverse_with_logdet", y, context)

    def _on_first(self, method: Method, x: Streams, context: Any) -> Any:
        first, rest = x
        before, after = self._splits(method)
        out = getattr(self.bijection, method)(convert(first, None, before), context)
        if method.endswith("logdet"):
            return (cast(Tensor, convert(out[0], after, None)), rest), out[1]
        return cast(Tensor, convert(out, after, None)), rest

    def _splits(self, method: Method) -> tuple[Split | None, Split | None]:
        pair = self.bijection.split_in, self.bijection.split_out
        return pair if method.startswith("_forward") else (pair[1], pair[0])

    def _rerun(self, method: Method, out: Streams, context: Any, leaf: Leaf) -> tuple[State, State, Tensor | None]:
        first, rest = out
        before, after = self._splits(method)
        rest = leaf(rest, 1)
        parts = _Parts(first, before, leaf)
        _, again, logdet = self.bijection._rerun(method, convert(first, None, after), context, parts)
        return (parts.whole, rest), (cast(Tensor, convert(again, after, None)), rest), logdet


class _Parts:
    """Leaves for a bijection that wants its input parted, as copies out of one leaf."""

    def __init__(self, like: Tensor, split: Split | None, leaf: Leaf) -> None:
        self.split, self.leaf = split, leaf
        self.whole = like if split is None else leaf(torch.empty_like(like), 0)

    def __call__(self, t: Tensor, i: int) -> Tensor:
        if self.split is None:
            self.whole = self.leaf(t, 0)
            return self.whole
        with torch.no_grad():
            self.split.part(self.whole)[i].copy_(t)
        return self.split.part(self.whole)[i].clone()  # a view would be changed when the other part arrives


def multi_scale(
    levels: Sequence[Sequence[Bijection]], n_channels: int, *, memory: Memory = "store", check_every: int | None = 100
) -> Chain:
    """Chain levels so that half of the channels leave after each but the last.

    Args:
        levels: The members of each level, for the channels that are still there. Those are: all at first; `Squeeze`
            multiplies them; after each level they halve (the larger half leaves if their number is odd).
        n_channels: Of the data.
        memory: What a training step keeps, as in `Chain`.
        check_every: As in `Chain`.

    Returns:
        A chain from (batch, n_channels, ...) to the shape that the squeezes give: channels of the last level first.

    Raises:
        ConfigError: If a level has too few channels to halve.

    Example:
        >>> from invertible.layers import Permute, Squeeze
        >>> chain = multi_scale([[Squeeze(2), Permute.reverse(4)], [Squeeze(2), Permute.reverse(8)]], n_channels=1)
        >>> chain(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 16, 2, 2])
    """
    members: list[Bijection] = []
    active, done = n_channels, 0
    for i, level in enumerate(levels):
        for member in _flat(level):
            if isinstance(member, Squeeze):
                if member.order != "channel":
                    hint = "Squeeze(2), whose order keeps each channel's pixels together"
                    raise ConfigError("multi_scale cannot squeeze like this", got=f"order={member.order!r}", hint=hint)
                members.append(member)
                n = math.prod(member.factors)
                active, done = active * n, done * n
            else:
                members.append(_on_first(member, (active, done)) if done else member)
        if i < len(levels) - 1:
            if active < 2:
                hint = "a Squeeze in each level, or fewer levels"
                raise ConfigError(f"level {i} has too few channels to halve", expected="2", got=active, hint=hint)
            active, done = active // 2, done + active - active // 2
    return Chain(*members, memory=memory, check_every=check_every)


def _on_first(member: Bijection, sizes: tuple[int, int]) -> Bijection:
    if isinstance(member, Inverse):
        inner = member.bijection
        if isinstance(inner, Chain):
            return Chain(*(_on_first(Inverse(part), sizes) for part in reversed(list(inner))))
        return Inverse(_on_first(inner, sizes))
    return OnFirst(member, sizes)


def _flat(level: Sequence[Bijection]) -> list[Bijection]:
    found: list[Bijection] = []
    for member in level:
        found += _flat(list(member)) if isinstance(member, Chain) else [member]
    return found

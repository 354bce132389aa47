"""A chain of bijections, nested or not, as one flat list of steps that can be taken one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from invertible.bijection import Bijection, Inverse
from invertible.chain import Chain, Each
from invertible.errors import ContextError
from invertible.lattice import Lattice
from invertible.streams import Split, Streams


@dataclass(frozen=True)
class Step:
    """One member of a chain, and how the members before it leave its input.

    Args:
        name: As in `named_modules`.
        kind: The class, `Inverse(...)` if it runs backwards.
        bijection: The member.
        split: How its input comes parted.
        lattice: The one it computes on, if any.
        enters: Whether its input still has to be put on that lattice.
        context: Its own, None if it takes none.
    """

    name: str
    kind: str
    bijection: Bijection
    split: Split | None
    lattice: Lattice | None
    enters: bool
    context: Any

    def forward(self, x: Streams) -> Streams:
        """Apply the member.

        Args:
            x: The input, parted as `split` says; a whole tensor is a tuple of one.

        Returns:
            The output, parted as the member leaves it.
        """
        x = convert(x, self.split, self.bijection.split_in)
        if self.lattice is not None and self.enters:
            x = quantise(x, self.lattice)
        return self.bijection(x, self.context)

    def inverse(self, y: Streams) -> Streams:
        """Undo the member.

        Args:
            y: An output.

        Returns:
            The input, parted as `split` says.
        """
        x = self.bijection.inverse(y, self.context)
        return convert(x, self.bijection.split_in, self.split)


def steps_of(bijection: Bijection, context: Any) -> list[Step]:
    """Take a bijection apart. Its modules are used, not copied.

    Args:
        bijection: A chain, an inverse of one, or a single map, which makes one step.
        context: As it would be called with.

    Returns:
        The members in the order they run, chains among them taken apart as well.
    """
    steps: list[Step] = []
    for name, member, lattice, own in _leaves(bijection, "", None, context):
        last = steps[-1] if steps else None
        split = last.bijection.split_out if last else member.split_in
        enters = last is not None and last.lattice != lattice
        steps.append(Step(name or kind_of(member), kind_of(member), member, split, lattice, enters, own))
    return steps


def kind_of(bijection: Bijection) -> str:
    """The name of a map's class.

    Args:
        bijection: The map.

    Returns:
        "AffineCoupling", "Inverse(AffineCoupling)".
    """
    name = type(bijection).__name__
    return f"{name}({kind_of(bijection.bijection)})" if isinstance(bijection, Inverse) else name


def convert(x: Streams, source: Split | None, target: Split | None) -> Streams:
    """As `streams.convert`, with a whole tensor as a tuple of one.

    Args:
        x: The streams.
        source: How they are parted.
        target: How they shall be.

    Returns:
        The same values.
    """
    if source == target:
        return x
    whole = source.merge(x) if source else x[0]
    return target.part(whole) if target else (whole,)


def quantise(x: Streams, lattice: Lattice) -> Streams:
    """Put streams on a lattice.

    Args:
        x: The streams.
        lattice: The lattice.

    Returns:
        Its nearest points.
    """
    return tuple(lattice.quantise(stream) for stream in x)


_Leaf = tuple[str, Bijection, Lattice | None, Any]


def _leaves(bijection: Bijection, name: str, lattice: Lattice | None, context: Any) -> Iterator[_Leaf]:
    lattice = lattice if bijection.lattice is None else bijection.lattice
    if isinstance(bijection, Chain):
        for i, (member, own) in enumerate(zip(bijection, _contexts(bijection, context), strict=True)):
            yield from _leaves(member, _join(name, str(i)), lattice, own)
    elif isinstance(bijection, Inverse):
        inner = _leaves(bijection.bijection, _join(name, "bijection"), lattice, context)
        for leaf_name, leaf, its_lattice, own in reversed(list(inner)):
            yield leaf_name, Inverse(leaf), its_lattice, own
    else:
        yield name, bijection, lattice, context


def _contexts(chain: Chain, context: Any) -> list[Any]:
    if not isinstance(context, Each):
        return [context if member.takes_context else None for member in chain]
    if len(context.contexts) != len(chain):
        got = f"{len(context.contexts)} for {len(chain)} members"
        raise ContextError("Each has the wrong number of contexts", expected="one per member", got=got)
    return list(context.contexts)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name

"""Which part of a network is decoded, and how."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from invertible.bijection import Bijection
from invertible.errors import ConfigError, ContextError
from invertible.instruments._batch import Batch
from invertible.instruments._chain_of import chains_in
from invertible.instruments._tensors import main_tensor
from invertible.instruments.taps import Heard, Layers, Tap, find_taps, listen

Inverse = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Coder:
    """A part of a network that can be undone.

    Args:
        tap: The part; its output is the representation.
        decode: From representations back.
        is_given: Whether the inverse is the user's.
    """

    tap: Tap
    decode: Inverse
    is_given: bool

    @property
    def name(self) -> str:
        """Of the part."""
        return self.tap.name or "the network"


@dataclass(frozen=True)
class Encoded:
    """What went into the part, and came out.

    Args:
        x: The part's input; of an inverse that the user gave, the network's.
        z: Its output.
        is_input: Whether x is the network's own input.
    """

    x: Tensor
    z: Tensor
    is_input: bool


def find_coder(model: nn.Module, batch: Batch, part: str | None, layers: Layers, inverse: Inverse | None) -> Coder:
    """Choose the part.

    Args:
        model: The network.
        batch: A few examples, to see which part starts at the input.
        part: Its name; None: the longest stretch from the network's input, else the longest of all.
        layers: With an inverse of the user's: where the representation is.
        inverse: The user's.

    Returns:
        The part.

    Raises:
        ConfigError: If there is none.
        ContextError: If it takes a context.
    """
    if inverse is not None:
        taps = find_taps(model, layers)
        if len(taps) != 1:
            got = ", ".join(tap.name for tap in taps[:3])
            raise ConfigError("an inverse undoes one place", expected="layers that name it", got=got)
        return Coder(taps[0], inverse, True)
    chains = {"": model} if isinstance(model, Bijection) else chains_in(model)
    if not chains or (part is not None and part not in chains):
        expected = " or ".join(map(repr, chains)) or "a network with bijections in it"
        hint = "inverse=... for a network of your own"
        raise ConfigError("the network has no such invertible part", expected=expected, got=repr(part), hint=hint)
    name = part if part is not None else _best(model, batch, chains)
    if chains[name].takes_context:
        raise ContextError(f"{name or 'the network'} takes a context", hint="inverse=... that knows it")
    return Coder(Tap(name, chains[name]), chains[name].inverse, False)


def _best(model: nn.Module, batch: Batch, chains: dict[str, Bijection]) -> str:
    def rank(name: str) -> tuple[bool, int]:
        n_parameters = sum(parameter.numel() for parameter in chains[name].parameters())
        coder = Coder(Tap(name, chains[name]), chains[name].inverse, False)
        return encode(model, coder, batch).is_input, n_parameters

    return max(chains, key=rank) if len(chains) > 1 else next(iter(chains))


def encode(model: nn.Module, coder: Coder, batch: Batch) -> Encoded:
    """Let examples through.

    Args:
        model: The network.
        coder: The part.
        batch: The examples.

    Returns:
        Input and output of the part, at its first call.

    Raises:
        ConfigError: If it never ran or the network has no real input.
    """
    first = next((tensor for tensor in batch.tensors if tensor.is_floating_point()), None)
    if first is None:
        raise ConfigError("there is nothing to interpolate", expected="inputs of real numbers", got="none")
    heard: dict[str, Tensor] = {}

    def hear(sound: Heard) -> None:
        value = main_tensor(sound.tap.module, sound.value, sound.tap.side == "input")
        if value is not None:
            heard.setdefault(sound.tap.side, value.detach().clone())

    with listen(model, [coder.tap, Tap(coder.tap.name, coder.tap.module, "input")], hear) as listener:
        batch.run(model)
    listener.check_heard()
    if "output" not in heard:
        raise ConfigError(f"{coder.name} returns no real numbers", expected="a representation")
    x = first if coder.is_given else heard.get("input", first)
    return Encoded(x, heard["output"], x.shape == first.shape and bool(torch.equal(x, first)))


def to_lattice(coder: Coder, z: Tensor) -> Tensor:
    """Move points between representations to where an exact inverse takes them.

    Args:
        coder: The part.
        z: The points.

    Returns:
        The nearest ones on the lattice of an exact chain; for others the same.
    """
    part = coder.tap.module
    lattice = part.lattice if isinstance(part, Bijection) and not coder.is_given else None
    return z if lattice is None else lattice.quantise(z)


def forgive(coder: Coder) -> bool:
    """Let injective members drop what is not in their image, in place of refusing it. Inside `untouched` only.

    Args:
        coder: The part.

    Returns:
        Whether there were none: whether every point is a representation.
    """
    injective = [member for member in coder.tap.module.modules() if _is_injective(member)]
    for member in () if coder.is_given else injective:
        vars(member)["tolerance"] = math.inf
    return coder.is_given or not injective


def _is_injective(member: nn.Module) -> bool:
    return isinstance(member, Bijection) and not member.is_onto and "tolerance" in vars(member)

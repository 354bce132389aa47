"""The reversibility report for any network that has an invertible part, with that part's own input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from invertible.bijection import Bijection
from invertible.chain import Chain
from invertible.errors import ConfigError, ContextError
from invertible.instruments._tensors import main_tensor
from invertible.instruments._unwrap import unwrap
from invertible.instruments.feeding import Feed
from invertible.instruments.reversibility import Reversibility, reversibility
from invertible.instruments.taps import Heard, Tap, listen
from invertible.instruments.untouched import measuring


def chains_in(model: nn.Module) -> dict[str, Bijection]:
    """Find a network's invertible parts.

    Args:
        model: Any module.

    Returns:
        Outermost bijections with parameters, by name; "" is the network itself.

    Example:
        >>> from invertible.models import revnet
        >>> list(chains_in(revnet(n_blocks=(2, 2, 2))))
        ['stages.0', 'stages.1', 'stages.2']
    """
    found: dict[str, Bijection] = {}
    for name, module in unwrap(model).named_modules():
        is_inside = any(outer == "" or name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, Bijection) and not is_inside and next(module.parameters(), None) is not None:
            found[name] = module
    return found


def reversibility_of(
    model: nn.Module,
    data: Any,
    *,
    part: str | None = None,
    n_examples: int = 8,
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    tolerance: float = 1e-2,
    n_iterations: int = 100,
    batches: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> Reversibility:
    """`reversibility` of the longest invertible part of a network, on what reaches it.

    Args:
        model: The network.
        data: As `feeding.Feed` takes them; the first batch is used.
        part: Name of the part; None: the longest.
        n_examples: How many examples of the batch.
        dtypes: As in `reversibility`.
        tolerance: As in `reversibility`.
        n_iterations: As in `reversibility`.
        batches: One is all that is used.
        seconds: It cannot stop early; not looked at.
        seed: Of noise, shuffling, random starts and signs.
        quiet: There is no progress to show.

    Returns:
        The report.

    Raises:
        ConfigError: If the network has no such part, or it never runs forward.
        ContextError: If the part takes a context.
    """
    chains = chains_in(model)
    if not chains or (part is not None and part not in chains):
        expected = " or ".join(map(repr, chains)) or "a network with bijections in it"
        raise ConfigError("the network has no such invertible part", expected=expected, got=repr(part))
    name = part if part is not None else max(chains, key=lambda name: _length(chains[name]))
    chain = chains[name]
    if chain.takes_context:
        raise ContextError(f"{name or 'the network'} takes a context", hint="reversibility(chain, x, context)")
    with measuring(model) as network:
        feed = Feed("reversibility", network, data, batches=batches or 1, seed=seed, quiet=quiet)
        x = _input_of(network, Tap(name, chain, "input"), feed)
    return reversibility(
        chain, x[:n_examples], dtypes=dtypes, tolerance=tolerance, n_iterations=n_iterations, seed=seed
    )


def _length(chain: Bijection) -> int:
    return sum(_length(member) for member in chain) if isinstance(chain, Chain) else 1


def _input_of(network: nn.Module, tap: Tap, feed: Feed) -> Tensor:
    heard: list[Tensor] = []

    def hear(sound: Heard) -> None:
        x = main_tensor(sound.tap.module, sound.value, is_input=True)
        if x is not None and not heard:
            heard.append(x.detach().clone())

    with listen(network, [tap], hear):
        feed.first.run(network)
    if not heard:
        hint = "reversibility(chain, x) with an input of its own"
        raise ConfigError(f"{tap.name} never ran forward", expected="a call in the network's forward pass", hint=hint)
    with torch.inference_mode(False):
        return heard[0].clone()

"""Skip gains (SkipInit, ReZero): scalars that multiply a residual branch and start at zero."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from invertible._tap_points import HasTapPoints
from invertible.errors import ConfigError
from invertible.instruments.taps import Tap


def zero_gains(model: nn.Module, blocks: Sequence[Tap]) -> tuple[str, ...]:
    """Find the skip gains that are zero.

    Args:
        model: The network.
        blocks: Its blocks.

    Returns:
        Names of parameters.
    """
    return tuple(name for name, gain in _gains(model, blocks) if not gain.any())


def set_to_one(model: nn.Module, blocks: Sequence[Tap]) -> tuple[str, ...]:
    """Put ones in the place of skip gains. Inside `untouched` only, which puts the parameters back.

    Args:
        model: The network.
        blocks: Its blocks. Those that declare gains have these replaced, others every zero of one element.

    Returns:
        Names of the parameters that were replaced.
    """
    names = []
    for name, gain in list(_gains(model, blocks)):
        parent, _, own = name.rpartition(".")
        model.get_submodule(parent)._parameters[own] = nn.Parameter(torch.ones_like(gain), gain.requires_grad)
        names.append(name)
    return tuple(names)


def _gains(model: nn.Module, blocks: Sequence[Tap]) -> Iterator[tuple[str, nn.Parameter]]:
    seen = set()
    for block in blocks:
        for name, gain in _gains_in(block):
            if id(gain) not in seen:
                seen.add(id(gain))
                yield f"{block.name}.{name}".lstrip("."), gain


def _gains_in(block: Tap) -> list[tuple[str, nn.Parameter]]:
    parameters = dict(block.module.named_parameters())
    if not isinstance(block.module, HasTapPoints):
        return [(name, value) for name, value in parameters.items() if value.numel() == 1 and not value.any()]
    declared = block.module.tap_points().skip_gains
    missing = [name for name in declared if name not in parameters]
    if missing:
        raise ConfigError(f"{type(block.module).__name__}.tap_points names no parameter of its", got=missing[0])
    return [(name, parameters[name]) for name in declared]

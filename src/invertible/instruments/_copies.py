"""Copies to measure on, so that nothing happens to what is measured."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from invertible.bijection import Bijection
from invertible.chain import Chain, Each
from invertible.errors import ConfigError


def copy_of(chain: Bijection) -> Bijection:
    """Copy a chain, to do with it what the original must not see.

    Args:
        chain: The original.

    Returns:
        A copy whose parameters ask for no gradients and whose chains save no memory.

    Raises:
        ConfigError: If it cannot be copied.
    """
    try:
        copied = copy.deepcopy(chain)
    except RuntimeError as error:
        hint = "torch.nn.utils.parametrizations in place of the old weight_norm and spectral_norm"
        raise ConfigError("the chain cannot be copied to be measured", got=str(error), hint=hint) from error
    copied.requires_grad_(False)  # no graphs of weights, which nobody asks for
    for module in copied.modules():
        if isinstance(module, Chain):
            module.memory = "store"  # reconstruction would add errors of its own
    return copied


def cast_floats(value: Any, dtype: torch.dtype) -> Any:
    """Convert the floating-point tensors in a context.

    Args:
        value: A tensor, or `Each`, tuples, lists and dicts of anything.
        dtype: To this.

    Returns:
        The same with converted copies; other things as they are.
    """
    if isinstance(value, Tensor):
        copied = value.detach().clone()
        return copied.to(dtype) if copied.is_floating_point() else copied
    if isinstance(value, dict):
        return {key: cast_floats(item, dtype) for key, item in value.items()}
    if isinstance(value, Each):
        return Each(*(cast_floats(item, dtype) for item in value.contexts))
    if type(value) in (tuple, list):
        return type(value)(cast_floats(item, dtype) for item in value)
    return value

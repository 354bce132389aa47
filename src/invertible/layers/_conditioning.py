"""A coupling's network: how it is run, and what it may return."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from invertible._checks import describe, explained
from invertible.errors import ConfigError, DtypeError, ShapeError


def check_network(network: object) -> None:
    """Refuse what is no module.

    Args:
        network: What the caller passed.

    Raises:
        DtypeError: If it is no `nn.Module`.
    """
    if not isinstance(network, nn.Module):
        hint = "wrap a function in a small nn.Module"
        raise DtypeError("a coupling needs a network", expected="an nn.Module", got=describe(network), hint=hint)


def run_network(network: nn.Module, source: Tensor, context: Any, name: str) -> Any:
    """Run a network that must leave its input alone.

    Args:
        network: The network.
        source: Its input.
        context: Its second argument; None: there is none.
        name: Who calls it, for messages.

    Returns:
        What it returns.

    Raises:
        ConfigError: If it changed its input in place.
        DtypeError: If it failed because dtype or device are not the input's.
        RuntimeError: As the network raised it, with a note.
        TypeError: Likewise.
    """
    is_watched = not (torch.compiler.is_compiling() or source.is_inference())  # there PyTorch keeps no count
    before = source._version if is_watched else 0
    try:
        out = network(source) if context is None else network(source, context)
    except (RuntimeError, TypeError) as error:
        clearer = explained(error, source, network, name)
        if clearer is error:
            raise
        raise clearer from error
    if is_watched and source._version != before:
        hint = "inplace=False in its first layers (ReLU), no x.mul_() on its input"
        got = f"{type(network).__name__} changing it in place"
        raise ConfigError(f"{name}'s network must leave its input alone", expected="x unchanged", got=got, hint=hint)
    return out


def check_output(out: object, target: Tensor, shape: tuple[int, ...], name: str) -> None:
    """Refuse an output that does not fit.

    Args:
        out: What the network returned.
        target: What it is to change.
        shape: That the output must have.
        name: Whose network it is.

    Raises:
        DtypeError: If its dtype would promote the target's.
        ShapeError: If it is no tensor of that shape.
    """
    if isinstance(out, Tensor) and torch.promote_types(out.dtype, target.dtype) != target.dtype:
        hint = "give all of the network's weights the input's dtype: network.to(x.dtype)"
        raise DtypeError(f"{name}'s network changed the dtype", expected=target.dtype, got=out.dtype, hint=hint)
    if not isinstance(out, Tensor) or tuple(out.shape) != shape:
        hint = "keep the spatial size (padding) and set the last layer's output channels to this"
        raise ShapeError(f"{name}'s network returned the wrong shape", expected=shape, got=describe(out), hint=hint)


def check_stacked(out: object, target: Tensor, n: int, dim: int, name: str) -> None:
    """Refuse an output that is no stack of `n` tensors of the target's shape.

    Args:
        out: What the network returned.
        target: What it is to change.
        n: How many numbers there must be for each element.
        dim: Along which they are stacked.
        name: Whose network it is.
    """
    shape = list(target.shape)
    shape[dim] *= n
    check_output(out, target, tuple(shape), name)


def shift_and_raw(target: Tensor, out: Any, dim: int, name: str) -> tuple[Tensor, Tensor]:
    """Take a shift and a raw scale from a network's output, checked.

    Args:
        target: What they are to change.
        out: What the network returned: both, stacked along `dim`.
        dim: Along which they are stacked.
        name: Whose network it is.

    Returns:
        Two tensors of the target's shape and dtype.
    """
    if isinstance(out, Tensor) and out.dtype == target.dtype and out.ndim == target.ndim:
        parts = out.chunk(2, dim=dim)  # most calls end here, without the cost of the checks below
        if len(parts) == 2 and parts[0].shape == target.shape == parts[1].shape:
            return parts[0], parts[1]
    check_stacked(out, target, 2, dim, name)
    shift, raw = out.to(target.dtype).chunk(2, dim=dim)  # before exp: autocast's bfloat16 would not cancel
    return shift, raw

"""When a value is NaN or infinite: which column of the input, or which layer, it comes from."""

from __future__ import annotations

from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from invertible.bijection import Bijection, Inverse
from invertible.chain import Chain, context_of
from invertible.errors import NonFiniteError
from invertible.streams import State, convert, first_stream


def explain_log_prob(bijection: Bijection, x: Tensor, context: Any, log_prob: Tensor) -> NoReturn:
    """Say why log-densities are not finite.

    Args:
        bijection: From data to latents.
        x: The data as they entered it, shape (batch, ...).
        context: Its context.
        log_prob: What came out, shape (batch,).

    Raises:
        NonFiniteError: Always; it names the column, the layer or the base.
    """
    check_columns(x, "the data")
    if isinstance(context, Tensor) and context.is_floating_point():
        check_columns(context, "the context")
    bad = ~torch.isfinite(log_prob)
    row = int(bad.nonzero()[0, 0])
    name = _first_bad(bijection, x, context, "")
    where = f"the first layer to give one is {name}" if name else "every layer is finite: the base's log-density is not"
    got = f"{log_prob[row].item()} for row {row} ({int(bad.sum())} of {len(bad)} rows); {where}"
    largest = x[row].detach().abs().max().item() if x[row].numel() else 0.0
    hint = f"row {row} has a value as large as {largest:.3g}: standardise the data (layers.Standardize.fit, SoftTails),"
    hint += " bound the scales, or a smaller learning rate" if name else " or a base that is positive everywhere"
    raise NonFiniteError("the log-density is not finite", expected="finite nats", got=got, hint=hint)


def explain_latents(bijection: Bijection, x: Tensor, context: Any) -> NoReturn:
    """Say why latents are not finite.

    Args:
        bijection: From data to latents.
        x: The data as they entered it, shape (batch, ...).
        context: Its context.

    Raises:
        NonFiniteError: Always; it names the column or the layer.
    """
    check_columns(x, "the data")
    got = f"the first layer to give NaN or infinity is {_first_bad(bijection, x, context, '')}"
    raise NonFiniteError("latents are not finite", got=got, hint="standardised data, bounded scales, float64")


def explain_sample(bijection: Bijection, z: Tensor, context: Any, x: Tensor) -> NoReturn:
    """Say why samples are not finite.

    Args:
        bijection: From data to latents.
        z: The latents.
        context: Its context.
        x: What its inverse made of them.

    Raises:
        NonFiniteError: Always; it names the latents or the layer.
    """
    check_columns(z, "the latents")
    n_bad = int((~torch.isfinite(x)).flatten(1).any(1).sum())
    name = _first_bad(Inverse(bijection), z, context, "")
    got = f"{n_bad} of {len(x)} samples; the first layer whose inverse gives one is {name}"
    raise NonFiniteError("samples are not finite", got=got, hint="a lower temperature, bounded scales, float64")


def check_columns(x: Tensor, name: str) -> None:
    """Refuse NaN and infinity, naming the first one's column and row.

    Args:
        x: Shape (batch, ...).
        name: What it is.

    Raises:
        NonFiniteError: If a value is not finite.
    """
    bad = ~torch.isfinite(x)
    if not bool(bad.any()):
        return
    first = tuple(int(i) for i in bad.nonzero()[0])
    place = f"column {first[1]}" if x.ndim == 2 else f"element {first[1:]}"
    got = f"{x[first].item()} in {place} of row {first[0]}; {int(bad.sum())} of {x.numel()} values"
    raise NonFiniteError(f"{name} must be finite", expected="only finite values", got=got, hint="torch.nan_to_num(x)")


@torch.no_grad()
def _first_bad(bijection: Bijection, x: State, context: Any, path: str) -> str | None:
    state, split = x, bijection.split_in
    inverted, leaf = _unturned(bijection)
    if not isinstance(leaf, Chain):
        out, logdet = bijection.forward_with_logdet(state, context if bijection.takes_context else None)
        fine = all(bool(torch.isfinite(t).all()) for t in (*_streams(out), logdet))
        return None if fine else f"{path.rstrip('.') or 'the bijection'} ({type(leaf).__name__})"
    members = list(enumerate(leaf))
    for i, member in reversed(members) if inverted else members:
        own = context_of(context, member, i, len(members))
        turned = Inverse(member) if inverted else member
        state = convert(_parted(state, split), split, turned.split_in)
        found = _first_bad(turned, state, own, f"{path}{i}.")
        if found is not None:
            return found
        state, split = turned._run("_forward", state, own), turned.split_out
    return None


def _unturned(bijection: Bijection) -> tuple[bool, Bijection]:
    inverted = False
    while isinstance(bijection, Inverse):
        inverted, bijection = not inverted, bijection.bijection
    return inverted, bijection


def _parted(state: State, split: Any) -> State:
    return split.part(state) if split is not None and isinstance(state, Tensor) else state


def _streams(state: State) -> tuple[Tensor, ...]:
    return cast("tuple[Tensor, ...]", state) if isinstance(state, tuple) else (first_stream(state),)

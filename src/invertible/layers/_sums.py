"""Sums that couplings need: of log-derivatives, and one whose value is known already."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def sum_events(log: Tensor) -> Tensor:
    """Sum over all dimensions but the first, in float32 at least: bfloat16 would lose nats.

    Args:
        log: Shape (batch, ...), nats.

    Returns:
        Shape (batch,).
    """
    if log.ndim == 2 and log.dtype in (torch.float32, torch.float64):
        return log.sum(1)
    rows = log.reshape(log.shape[0], math.prod(log.shape[1:]))
    return rows.sum(1, dtype=torch.promote_types(log.dtype, torch.float32))


def known_sum(value: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """A sum whose value is known: only the graph is made.

    Args:
        value: a + b, or that on a lattice.
        a: One summand.
        b: The other, same shape.

    Returns:
        The value, with the gradient of a sum.
    """
    return _KnownSum.apply(value, a, b)  # type: ignore[return-value]


class _KnownSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, a: Tensor, b: Tensor) -> Tensor:
        ctx.dtype = b.dtype
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, grad, grad.to(ctx.dtype)

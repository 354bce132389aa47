"""How many samples may be drawn at a time within a bound on memory."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

if TYPE_CHECKING:
    from invertible.flow.flow import Flow

N_PROBED = 2
GENEROUS = 16
"""A layer is taken to hold at most so many times the latents until it is measured."""


def rows_within(max_bytes: int, flow: Flow, total: int, context: Tensor | None) -> int:
    """Choose the size of a chunk.

    Args:
        max_bytes: What the layers may hold at a time.
        flow: The flow.
        total: How many samples are wanted.
        context: For the bijection, if it takes one.

    Returns:
        How many to draw at a time, at least 1.
    """
    one = flow.base.here.element_size() * math.prod(flow.base.event_shape)
    if total * one * GENEROUS <= max_bytes / 64 or total <= N_PROBED:
        return max(total, 1)
    return max(1, min(total, max_bytes // max(_largest(flow, context) // N_PROBED, one * 4)))


def _largest(flow: Flow, context: Tensor | None) -> int:
    # The largest sum of a part's inputs and outputs, for N_PROBED samples. Draws and buffers stay as they are.
    largest = 0

    def look(part: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        nonlocal largest
        tensors = [t for t in pytree.tree_leaves((args, out)) if isinstance(t, Tensor)]
        largest = max(largest, sum(t.numel() * t.element_size() for t in tensors))

    modes = [(part, part.training) for part in flow.modules()]
    hooks = [part.register_forward_hook(look) for part in flow.modules() if not list(part.children())]
    z = flow.base.here.new_zeros((N_PROBED, *flow.base.event_shape))
    own = None if context is None else context[:1].expand(N_PROBED, *context.shape[1:])
    try:
        flow.eval()
        with torch.no_grad():
            flow.bijection.inverse(z, own)
    finally:
        for hook in hooks:
            hook.remove()
        for part, mode in modes:
            part.training = mode
    return largest

"""Activations together with their slopes."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from invertible.layers.activations import LipSwish
from invertible.logdet.layered import Slopes


def swish(module: LipSwish, x: Tensor) -> tuple[Tensor, Slopes]:
    """A LipSwish and its slopes, in one go.

    Args:
        module: The activation.
        x: Any shape.

    Returns:
        Both, differentiable to all orders.
    """
    scale = functional.softplus(module.beta)
    if torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad):
        value, slopes = cast(tuple[Tensor, Tensor], _Swish.apply(x, scale))
    else:
        value, slopes, _ = _swish(x, scale)
    return value, Slopes(slopes)


def by_autograd(module: nn.Module, x: Tensor) -> tuple[Tensor, Slopes]:
    """Any function of single numbers without parameters, and its slopes.

    Args:
        module: The activation.
        x: Any shape.

    Returns:
        Both, differentiable as far as the function is.
    """
    has_graph = torch.is_grad_enabled() and x.requires_grad
    with torch.enable_grad():
        at = x if has_graph else x.detach().requires_grad_()
        value = module(at)
        (slopes,) = torch.autograd.grad(value, at, torch.ones_like(value), create_graph=has_graph)
    return (value if has_graph else value.detach()), Slopes(slopes)


def _swish(x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    sigmoid = torch.sigmoid(x * scale)
    value = x * sigmoid / 1.1
    return value, torch.addcmul(sigmoid / 1.1, value * scale, 1 - sigmoid), sigmoid


class _Swish(torch.autograd.Function):
    """Autograd of the formulas would take three times as many operations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        value, slopes, sigmoid = _swish(x, scale)
        ctx.save_for_backward(x, scale, sigmoid, slopes)
        return value, slopes

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None]:
        x, scale, sigmoid, slopes = ctx.saved_tensors
        if torch.is_grad_enabled():  # what was saved has no graph to x
            sigmoid = torch.sigmoid(x * scale)
        of_value, of_slopes = gradients
        one = torch.ones_like(scale)
        steep = torch.addcmul(sigmoid, sigmoid, sigmoid, value=-1)  # 1.1 times too much, as what follows from it
        bent = torch.addcmul(2 * one, x * scale, torch.sub(one, sigmoid, alpha=2)) * steep * of_slopes
        by_scale = None
        if ctx.needs_input_grad[1]:
            by_scale = torch.dot(x.flatten(), torch.addcmul(bent, of_value * steep, x).flatten()) / 1.1
        return torch.addcmul(of_value * slopes, bent, scale / 1.1), by_scale

"""A value that was computed without a graph, and the gradient of something else with one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from invertible.errors import ConfigError


def with_gradient_of(value: Tensor, surrogate: Tensor) -> Tensor:
    """Give a value the gradient of a surrogate.

    Each element's upstream gradient goes to its own element of the surrogate. Second derivatives are refused: the
    surrogate's are not those of the value.

    Args:
        value: The values, without a graph.
        surrogate: What to differentiate, the same shape.

    Returns:
        The values.

    Raises:
        ConfigError: When differentiated twice.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> with_gradient_of(torch.zeros(2), 3 * x).sum().backward()
        >>> x.grad
        tensor([3., 3.])
    """
    return _WithGradientOf.apply(value, surrogate)


class _WithGradientOf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, surrogate: Tensor) -> Tensor:
        ctx.save_for_backward(surrogate)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        (surrogate,) = ctx.saved_tensors
        return None, _RefuseSecond.apply(gradients[0], surrogate)


class _RefuseSecond(torch.autograd.Function):
    """The identity. It hangs on the surrogate, so every second derivative comes past here."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, surrogate: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> None:
        raise ConfigError(
            "the memory-saving gradient of a log-determinant has no second derivative",
            expected="gradient='backprop'",
            got="gradient='neumann', differentiated twice",
            hint="an estimator with gradient='backprop', or ExactLogDet()",
        )

"""What a flow is given, as tensors: arrays, contexts that broadcast, data in a finer dtype than the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from invertible._checks import describe
from invertible.bijection import Bijection
from invertible.errors import DtypeError

if TYPE_CHECKING:
    from invertible.flow.flow import Flow

Method = Callable[[Tensor, Tensor | None], Any]


def as_tensor(x: Any, device: torch.device) -> Tensor:
    """Take whatever holds numbers.

    Args:
        x: A tensor, which is returned as it is; an array, a data frame, lists of numbers.
        device: For what is no tensor.

    Returns:
        A tensor.

    Raises:
        DtypeError: If x holds no numbers.
    """
    if not isinstance(x, Tensor):
        x = _converted(x, device)
    if x.is_complex():
        hint = "its real and imaginary parts as columns of their own: torch.view_as_real(x).flatten(1)"
        raise DtypeError("a flow takes real numbers", expected="floating point", got=describe(x), hint=hint)
    return x


def _converted(x: Any, device: torch.device) -> Tensor:
    try:
        return torch.as_tensor(x if isinstance(x, list | tuple | float | int) else _array(x), device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        hint = "x.to_numpy(dtype='float32') of a data frame, after its columns of text were encoded or dropped"
        raise DtypeError("a flow takes numbers", expected="a tensor or an array", got=describe(x), hint=hint) from error


def _array(x: Any) -> np.ndarray:
    # Torch refuses negative strides, and warns of memory that must not be written.
    array = np.asarray(x)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return array if array.flags.writeable and min(array.strides, default=0) >= 0 else array.copy()


def as_context(context: Any, device: torch.device) -> Tensor | None:
    """Take a context as `as_tensor` takes data; whole numbers become int64, which every look-up takes.

    Args:
        context: Anything, or None.
        device: For what is no tensor.

    Returns:
        A tensor, or None.
    """
    if context is None:
        return None
    context = as_tensor(context, device)
    return context if context.is_floating_point() or context.dtype == torch.bool else context.long()


def rows_of(context: Tensor | None, start: int, n: int) -> Tensor | None:
    """The contexts of some samples; they repeat, so that sample i belongs to context i modulo their number.

    Args:
        context: Shape (contexts, ...), or None.
        start: The first sample.
        n: How many.

    Returns:
        Shape (n, ...), or None.
    """
    if context is None or (start == 0 and n == len(context)):
        return context
    return context[torch.arange(start, start + n, device=context.device) % len(context)]


def expanded(context: Tensor | None, contexts: tuple[int, ...], lead: tuple[int, ...]) -> Tensor | None:
    """Broadcast contexts to the data's leading shape.

    Args:
        context: Shape (product of `contexts`, ...), or None.
        contexts: The contexts' leading shape.
        lead: What it broadcasts to.

    Returns:
        Shape (product of `lead`, ...), or None.
    """
    if context is None or contexts == lead:
        return context
    shape = context.shape[1:]
    return context.reshape(*contexts, *shape).expand(*lead, *shape).reshape(-1, *shape)


def call_in(dtype: torch.dtype, flow: Flow, method: Method, x: Tensor, context: Tensor | None) -> Any:
    """Call a method of a flow as if all its weights had another dtype; gradients reach the weights that it has.

    Args:
        dtype: The finer dtype.
        flow: The flow.
        method: One of its bound methods.
        x: Data.
        context: Or None.

    Returns:
        What the method returns.
    """
    parts = [part for part in flow.modules() if isinstance(part, Bijection)]
    if flow.training and not all(part.is_initialised for part in parts):
        with torch.no_grad():  # layers that the first batch sets must set their own weights, no copies
            method(x.to(flow.base.here.dtype), context)
    finer = _finer(flow, dtype)
    # Tied by _finer: torch leaves the replacements in modules that occur twice when it does that.
    return torch.func.functional_call(_Method(flow, method), finer, (x.to(dtype), context), tie_weights=False)


def _finer(flow: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    finer: dict[str, Tensor] = {}
    known: dict[Tensor, Tensor] = {}
    for prefix, part in flow.named_modules(prefix="flow"):
        for name, own in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
            if own not in known:
                known[own] = own.to(dtype) if own.is_floating_point() else own
            finer[f"{prefix}.{name}"] = known[own]
    return finer


class _Method(nn.Module):
    """A bound method of a flow as a module, for `functional_call`."""

    def __init__(self, flow: nn.Module, method: Method) -> None:
        super().__init__()
        self.flow, self.method = flow, method

    def forward(self, x: Tensor, context: Tensor | None) -> Any:
        return self.method(x, context)

"""Every check of a tensor's type, shape, dtype, device and values: one place, one wording."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from invertible.errors import (
    ConfigError,
    ContextError,
    DtypeError,
    InvertibleError,
    NonFiniteError,
    RangeError,
    ShapeError,
)


def describe(x: object) -> str:
    """A value in a few words, for error messages.

    Args:
        x: Anything.

    Returns:
        Shape and dtype of a tensor, the type's name of everything else.

    Example:
        >>> describe(torch.zeros(2, 3))
        'shape (2, 3) and dtype float32'
    """
    if isinstance(x, Tensor):
        return f"shape {tuple(x.shape)} and dtype {str(x.dtype).removeprefix('torch.')}"
    if isinstance(x, tuple | list):
        return f"a {type(x).__name__} of {len(x)}"
    return f"a {type(x).__name__}"


def version(x: Tensor) -> int:
    """How often a tensor was changed in place.

    Args:
        x: Any tensor.

    Returns:
        PyTorch's count; 0 where it keeps none (inference mode, compilation).
    """
    return 0 if torch.compiler.is_compiling() or x.is_inference() else x._version


def check_floating(x: object, name: str) -> None:
    """Refuse what is no floating-point tensor.

    Args:
        x: What the caller passed.
        name: Who asks, for the message.

    Raises:
        DtypeError: If x is no tensor or holds integers, booleans or complex numbers.
    """
    if not isinstance(x, Tensor):
        hint = "torch.as_tensor(x, dtype=torch.float32)"
        raise DtypeError(f"{name} takes tensors", expected="a torch.Tensor", got=describe(x), hint=hint)
    if not x.is_floating_point():
        hint = "x.float() / 255 for 8-bit pixels, x.float() otherwise"
        raise DtypeError(f"{name} takes real numbers", expected="a floating-point tensor", got=describe(x), hint=hint)


def check_n_dims(x: Tensor, n_dims: int, name: str) -> None:
    """Refuse a tensor with the wrong number of dimensions.

    Args:
        x: The tensor.
        n_dims: How many dimensions it must have, the batch included.
        name: Who asks, for the message.

    Raises:
        ShapeError: If they differ.
    """
    if x.ndim == n_dims:
        return
    hint = "x.unsqueeze(0) adds the batch dimension" if x.ndim == n_dims - 1 else ""
    expected = f"{n_dims} dimensions (batch, channels{', ...' if n_dims > 2 else ''})"
    raise ShapeError(f"{name} got a tensor of the wrong rank", expected=expected, got=describe(x), hint=hint)


def check_channels(x: Tensor, n_channels: int, name: str, dim: int = 1) -> None:
    """Refuse a tensor with the wrong number of channels.

    Args:
        x: The tensor.
        n_channels: The size that dimension `dim` must have.
        name: Who asks, for the message.
        dim: Which dimension counts as the channels.

    Raises:
        ShapeError: If x has no such dimension or it has another size.
    """
    if x.ndim <= dim or x.shape[dim] != n_channels:
        expected = f"size {n_channels} in dimension {dim}"
        hint = "check the layer before, or build this one for that many channels"
        raise ShapeError(f"{name} got the wrong number of channels", expected=expected, got=describe(x), hint=hint)


def check_event_shape(x: Tensor, shape: Sequence[int], name: str) -> None:
    """Refuse a batch whose single elements do not have the given shape.

    Args:
        x: The batch, shape (batch, *shape).
        shape: Shape of one element.
        name: Who asks, for the message.

    Raises:
        ShapeError: If the shapes differ; a missing batch dimension and swapped channels are recognised.
    """
    if x.ndim == len(shape) + 1 and tuple(x.shape[1:]) == tuple(shape):
        return
    expected = f"shape (batch, {', '.join(map(str, shape))})"
    raise ShapeError(f"{name} got the wrong shape", expected=expected, got=describe(x), hint=_shape_hint(x, shape))


def _shape_hint(x: Tensor, shape: Sequence[int]) -> str:
    if tuple(x.shape) == tuple(shape):
        return "x.unsqueeze(0) adds the batch dimension"
    if x.ndim == 4 and (x.shape[3], x.shape[1], x.shape[2]) == tuple(shape):
        return "x.permute(0, 3, 1, 2), the channels come before height and width"
    return "resize or convert the input, or build the model for this shape (in_shape=...)"


def check_finite(x: Tensor, name: str) -> None:
    """Refuse NaN and infinity. Where values are unknown (compile, export, vmap, meta tensors) nothing is checked.

    Args:
        x: Any tensor.
        name: What it is, for the message.

    Raises:
        NonFiniteError: If an element is NaN or infinite; the message counts them and names the first.
    """
    if is_finite(x):
        return
    bad = ~torch.isfinite(x)
    first = tuple(int(i) for i in bad.nonzero()[0])
    got = f"{int(bad.sum())} NaN or infinite of {x.numel()}, the first at index {first}"
    hint = "torch.nan_to_num(x), or find where they come from"
    raise NonFiniteError(f"{name} must be finite", expected="only finite values", got=got, hint=hint)


def is_finite(x: Tensor) -> bool:
    """Tell whether all values are finite.

    Args:
        x: Any tensor.

    Returns:
        False if one is NaN or infinite; True where that cannot be known (compile, torch.func, meta tensors).
    """
    if not can_look(x):
        return True
    x = x.detach()
    return math.isfinite(x.sum().item()) or bool(torch.isfinite(x).all())  # a finite sum has finite summands only


def check_labels(labels: Tensor, n_classes: int, name: str) -> None:
    """Refuse labels that are no classes. On a GPU, and where values are unknown, nothing is checked.

    Args:
        labels: Whole numbers.
        n_classes: How many classes there are.
        name: Who asks, for the message.

    Raises:
        DtypeError: If they are no whole numbers.
        RangeError: If one is negative or too large.
    """
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise DtypeError(f"{name} takes labels", expected="int64", got=describe(labels), hint="labels.long()")
    if labels.device.type != "cpu" or not labels.numel() or not can_look(labels):
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= n_classes:
        expected = f"labels 0 to {n_classes - 1}"
        hint = "build the model with n_classes=... of the data set"
        raise RangeError(f"{name} got labels out of range", expected=expected, got=f"{low} to {high}", hint=hint)


def can_look(x: Tensor | tuple[Tensor, ...]) -> bool:
    """Tell whether tensors have values to look at.

    Args:
        x: A tensor or streams.

    Returns:
        False while compiling, under `torch.func` and on the meta device.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    return not any(t.is_meta for t in (x if isinstance(x, tuple) else (x,)))


def check_placement(x: Tensor, module: nn.Module, name: str) -> None:
    """Refuse an input whose dtype or device is not the module's. Under autocast the dtype is free.

    Args:
        x: The input.
        module: The module it goes into; its first floating-point parameter tells dtype and device.
        name: Who asks, for the message.

    Raises:
        DtypeError: If they differ.
    """
    error = _placement_error(x, module, name)
    if error is not None:
        raise error


def _placement_error(x: Tensor, module: nn.Module, name: str) -> DtypeError | None:
    weight = next((p for p in module.parameters() if p.is_floating_point()), None)
    if weight is None:
        return None
    if weight.device != x.device:
        hint = f"x.to('{weight.device}') or module.to('{x.device}')"
        return DtypeError(f"{name} got a tensor on another device", expected=weight.device, got=x.device, hint=hint)
    if weight.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
        hint = f"x.to({weight.dtype}) or module.to({x.dtype})"
        return DtypeError(f"{name} got a tensor of another dtype", expected=weight.dtype, got=x.dtype, hint=hint)
    return None


def explained(error: RuntimeError | TypeError, x: Tensor, module: nn.Module, name: str) -> Exception:
    """The clearest account of why a user's network failed on x: dtype or device, else torch's own error with a note.

    Args:
        error: What the network raised.
        x: Its input.
        module: The network.
        name: Who called it.

    Returns:
        The error to raise.
    """
    if isinstance(error, InvertibleError):
        return error
    clearer = _placement_error(x, module, name)
    if clearer is not None:
        return clearer
    if isinstance(error, TypeError) and "positional argument" in str(error):
        hint = "takes_context=True if the network's forward takes (x, context), False if it takes x alone"
        return ContextError(f"{name} and its network disagree about the context", got=str(error), hint=hint)
    if "modified inplace" in str(error) or "modified by an inplace" in str(error):
        hint = "inplace=False in its first layers (ReLU), no x.mul_() on its input"
        return ConfigError(f"{name}'s network must leave its input alone", got="a change in place", hint=hint)
    error.add_note(f"{name} called its network {type(module).__name__} on a tensor of {describe(x)}.")
    return error

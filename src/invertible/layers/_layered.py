"""Networks that are matrices and activations in a row: log-determinants get their derivatives layer by layer."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules import module as hooks

from invertible.layers._constrained import is_as_attached, is_plain
from invertible.layers._slopes import by_autograd, swish
from invertible.layers.activations import LipSwish
from invertible.logdet.layered import Factor, Layer, Layered, Matrix

_OF_NUMBERS = (nn.ELU, nn.CELU, nn.Softplus, nn.Tanh, nn.Sigmoid, nn.SiLU)
_DTYPES = (torch.float32, torch.float64)


def layered(network: nn.Module, x: Tensor) -> Layered | None:
    """What a network is made of, if calling it on x is nothing but calling its layers in turn.

    A layer with a hook, with a forward of its own, of a subclass, or with tensors of a subclass, is left to autograd.

    Args:
        network: Any.
        x: The input.

    Returns:
        The layers; None if there are others, or they do not fit x.

    Example:
        >>> network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))
        >>> g = layered(network, torch.ones(5, 3))
        >>> torch.allclose(g(torch.ones(5, 3)), network(torch.ones(5, 3)))
        True
    """
    is_hooked = hooks._global_forward_hooks or hooks._global_forward_pre_hooks or hooks._global_backward_hooks
    if x.ndim != 2 or is_hooked or hooks._global_backward_pre_hooks:
        return None
    parts = _parts(network)
    return Layered([_layer(part) for part in parts]) if parts and _fits(parts, x) else None


def _parts(network: nn.Module) -> list[nn.Module] | None:
    # None: something that is not known.
    if type(network) is not nn.Sequential:
        return [network] if _is_known(network) else None
    found = [_parts(part) for part in network]
    if not is_plain(network) or any(parts is None for parts in found):
        return None
    return [part for parts in found if parts for part in parts]


def _is_known(part: nn.Module) -> bool:
    if isinstance(part, nn.Linear):
        return is_as_attached(part) if type(part) is not nn.Linear else is_plain(part)
    return type(part) in (LipSwish, *_OF_NUMBERS) and is_plain(part) and not getattr(part, "inplace", False)


def _fits(parts: list[nn.Module], x: Tensor) -> bool:
    n = x.shape[1]
    for part in parts:
        if isinstance(part, nn.Linear):
            if part.in_features != n:
                return False
            n = part.out_features
    return n == x.shape[1] and all(_is_alike(p, x) for part in parts for p in part.parameters()) and _is_alike(x, x)


def _is_alike(a: Tensor, x: Tensor) -> bool:
    return type(a) in (Tensor, nn.Parameter) and a.dtype == x.dtype and a.device == x.device and a.dtype in _DTYPES


def _layer(part: nn.Module) -> Layer:
    if isinstance(part, nn.Linear):
        return partial(_linear, part)
    return partial(swish, part) if isinstance(part, LipSwish) else partial(by_autograd, part)


def _linear(layer: nn.Linear, x: Tensor) -> tuple[Tensor, Factor]:
    weight = layer.weight  # a constrained one is worked out here, once for the value and the derivative
    return functional.linear(x, weight, layer.bias), Matrix(weight)

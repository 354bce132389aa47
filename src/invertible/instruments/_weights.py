"""The weights of linear maps in any network, and the matrices they unfold to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from invertible._checks import describe
from invertible.errors import ConfigError
from invertible.instruments.taps import Layers, find_taps

LINEAR = (nn.Linear, _ConvNd)
_NOT_LINEAR = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
_MIN_DIMS, _MAX_DIMS = 2, 5


@runtime_checkable
class _Standardized(Protocol):
    """A layer that computes with another weight than its parameter."""

    def standardized(self) -> Tensor: ...


@dataclass(frozen=True)
class Weight:
    """One weight.

    Args:
        name: Of its module, and of the parameter where it is not called "weight".
        kind: Class of the module.
        values: Shape (out, in / groups, ...), as the module computes with it.
        groups: Of a convolution.
        is_convolution: Whether it is one's.
    """

    name: str
    kind: str
    values: Tensor
    groups: int = 1
    is_convolution: bool = False


def find_weights(model: nn.Module, layers: Layers = "auto") -> tuple[Weight, ...]:
    """Find the weights of linear maps: linear layers, convolutions, attention's projections, recurrent layers.

    Parametrizations, spectral norms and weight standardization are applied; query, key and value come apart; a weight
    that several modules share comes once. Embeddings and norms have none.

    Args:
        model: The network, inside `measuring`.
        layers: Modules, as in `find_taps`; modules inside them count. "auto": all.

    Returns:
        At least one.

    Raises:
        ConfigError: If there is none, or it has no values.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.MultiheadAttention(4, 2))
        >>> [weight.name for weight in find_weights(net)]
        ['0', '2 query', '2 key', '2 value', '2.out_proj']
    """
    tops = [("", model)] if layers == "auto" else [(tap.name, tap.module) for tap in find_taps(model, layers)]
    modules = {
        f"{top}.{inner}".strip("."): module for top, root in tops for inner, module in root.named_modules()
    }  # fmt: skip
    seen: dict[int, Tensor] = {}
    found = [weight for name, module in modules.items() for weight in _weights_of(name, module, seen)]
    if not found:
        got, hint = ", ".join(sorted({type(module).__name__ for module in modules.values()})[:6]), "other layers"
        raise ConfigError("no weight of a linear map", expected="linear layers or convolutions", got=got, hint=hint)
    return tuple(found)


def _weights_of(name: str, module: nn.Module, seen: dict[int, Tensor]) -> Iterator[Weight]:
    for parameter, values in _own(module):
        if id(values) in seen or not _MIN_DIMS <= values.ndim <= _MAX_DIMS:
            continue
        seen[id(values)] = values  # kept, so that no other tensor gets its id
        if not values.is_floating_point() or values.is_meta:
            got = "no values (meta)" if values.is_meta else describe(values)
            raise ConfigError(f"the weight of {name or 'the network'} cannot be measured", got=got)
        groups = module.groups if isinstance(module, _ConvNd) else 1
        weight = Weight(name, type(module).__name__, values.detach(), groups, isinstance(module, _ConvNd))
        yield from _named(name, parameter, weight)


def _own(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    if isinstance(module, (*_NOT_LINEAR, parametrize.ParametrizationList)):
        return
    if isinstance(module, _Standardized):
        yield "weight", module.standardized()
    elif isinstance(module, LINEAR):
        yield "weight", module.weight  # also where spectral norm or pruning has put it there
    else:
        parametrizations = dict(module.named_children()).get("parametrizations", nn.Module())
        computed = (
            [name for name, _ in parametrizations.named_children()] if parametrize.is_parametrized(module) else []
        )
        names = [*(name for name, _ in module.named_parameters(recurse=False)), *computed]
        yield from ((name, getattr(module, name)) for name in names if "weight" in name)


def _named(name: str, parameter: str, weight: Weight) -> Iterator[Weight]:
    if parameter == "in_proj_weight":
        for part, values in zip(("query", "key", "value"), weight.values.chunk(3), strict=True):
            yield Weight(f"{name} {part}".strip(), weight.kind, values)
    elif parameter == "weight":
        yield weight
    else:
        yield Weight(f"{name} {parameter}".strip(), weight.kind, weight.values)


def filters(weight: Weight) -> Tensor:
    """One row per filter.

    Args:
        weight: Any.

    Returns:
        float64, shape (1, out, in / groups * positions).
    """
    return weight.values.double().flatten(1)[None]


def frequencies(weight: Weight) -> tuple[Tensor, Tensor] | None:
    """The matrices between channels, one per frequency of the kernel and group.

    Their singular values, times the root of the number of positions, are those of the convolution with circular borders
    on a grid as large as the kernel; for independent entries each matrix has independent entries of the same variance.

    Args:
        weight: Of a convolution.

    Returns:
        complex128, shape (matrices, out / groups, in / groups), without conjugates of others; and how often each
        occurs. None where a kernel has one position, or a matrix a single row or column.

    Source: Sedghi, Gupta and Long 2019, "The singular values of convolutional layers".

    Example:
        >>> matrices, times = frequencies(Weight("", "Conv2d", torch.randn(4, 2, 3, 3), is_convolution=True))
        >>> matrices.shape, times.tolist()
        (torch.Size([5, 4, 2]), [1, 2, 2, 2, 2])
    """
    kernel = weight.values.shape[2:]
    out, n_in = weight.values.shape[0] // weight.groups, weight.values.shape[1]
    if not weight.is_convolution or kernel.numel() < 2 or min(out, n_in) < 2:
        return None
    transformed = torch.fft.fftn(weight.values.double(), dim=tuple(range(2, 2 + len(kernel))), norm="ortho")
    grid = torch.cartesian_prod(*(torch.arange(size) for size in kernel)).reshape(-1, len(kernel))
    mirrored = torch.stack([-grid[:, i] % size for i, size in enumerate(kernel)], dim=1)
    strides = torch.tensor([kernel[i + 1 :].numel() for i in range(len(kernel))])
    here, there = (grid * strides).sum(1), (mirrored * strides).sum(1)
    kept = here <= there
    matrices = transformed.flatten(2).movedim(2, 0)[kept.to(transformed.device)]
    times = torch.where(here == there, 1, 2)[kept]
    grouped = matrices.unflatten(1, (weight.groups, out)).flatten(0, 1)
    return grouped, times.repeat_interleave(weight.groups)

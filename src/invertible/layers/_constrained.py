"""How a layer carries the constraint of its weight: called, copied, pickled and asked for its bound."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.nn.utils import parametrize

from invertible._checks import describe
from invertible.errors import DtypeError
from invertible.layers._constraint import SIZE, Constraint
from invertible.layers._norm_geometry import Geometry, Size
from invertible.layers._norm_operator import operator_norm

LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def attach(layer: nn.Module, constraint: Constraint) -> None:
    """Make a layer compute with its constrained weight.

    Args:
        layer: A linear layer or convolution.
        constraint: Of its weight.

    Raises:
        DtypeError: If its weight holds no real numbers.
    """
    weight: Any = layer.weight
    if not weight.is_floating_point():
        raise DtypeError("a constraint needs real weights", expected="floating point", got=describe(weight))
    detach(layer)
    parametrize.register_parametrization(layer, "weight", constraint, unsafe=True)
    layer.register_forward_pre_hook(_enter, with_kwargs=True)
    layer.register_forward_hook(_leave, always_call=True)
    _equip(type(layer))


def detach(layer: nn.Module) -> None:
    """Take the constraint off; the raw weight stays.

    Args:
        layer: Any module.
    """
    if constraint_of(layer) is not None:
        for hooks in (layer._forward_pre_hooks, layer._forward_hooks):
            for key in [key for key, hook in hooks.items() if hook in (_enter, _leave)]:
                del hooks[key]
        others = list(cast(Any, layer).parametrizations.weight)[:-1]
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        for other in others:
            parametrize.register_parametrization(layer, "weight", other)


def constraint_of(layer: nn.Module) -> Constraint | None:
    """The constraint of a layer's weight.

    Args:
        layer: Any module.

    Returns:
        None if it has none, or if something else acts on the weight after it.
    """
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    last = cast(Any, layer).parametrizations.weight[-1]
    return last if isinstance(last, Constraint) else None


def is_plain(module: nn.Module) -> bool:
    """Whether calling a module is nothing but its class's forward.

    Args:
        module: Any.

    Returns:
        Whether it has no hooks and no forward of its own.
    """
    return "forward" not in module.__dict__ and not any(_hooks(module))


def is_as_attached(layer: nn.Module) -> bool:
    """Whether calling a layer is nothing but computing with its constrained weight.

    Args:
        layer: Any module.

    Returns:
        Whether its class is PyTorch's own, and it has only the hooks of its constraint.
    """
    before, after, *others = _hooks(layer)
    is_own = type(layer).__bases__[0] in LINEAR and "forward" not in layer.__dict__ and not any(others)
    has_only = tuple(before.values()) == (_enter,) and tuple(after.values()) == (_leave,)
    return is_own and has_only and constraint_of(layer) is not None


def _hooks(module: nn.Module) -> tuple[dict[int, Any], ...]:
    # Those of before and after the call first.
    return (module._forward_pre_hooks, module._forward_hooks, module._backward_hooks, module._backward_pre_hooks)


def raw_weight(layer: nn.Module) -> Tensor:
    """What the constraint of a layer is applied to.

    Args:
        layer: A constrained layer.

    Returns:
        The parameter, or what other parametrizations made of it.
    """
    chain: Any = cast(Any, layer).parametrizations.weight
    weight = chain.original
    for other in list(chain)[:-1]:
        weight = other(weight)
    return weight


@_disable_dynamo
def _enter(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    constraint = constraint_of(layer)
    x = args[0] if args else kwargs.get("input")
    if constraint is None or not isinstance(x, Tensor):
        return
    n_axes = len(constraint.geometry.kernel)
    SIZE.set((constraint, tuple(x.shape[x.ndim - n_axes :])))
    parametrize._cache.pop((id(layer), "weight"), None)  # of another size


@_disable_dynamo
def _leave(layer: nn.Module, args: Any, out: Any) -> None:
    SIZE.set(None)
    parametrize._cache.pop((id(layer), "weight"), None)


def _equip(kind: type[nn.Module]) -> None:
    # `register_parametrization` made this class for the one layer; it refuses to be pickled, which costs nothing here.
    setattr(kind, "__reduce_ex__", _reduce)  # noqa: B010
    if "lipschitz_bound" not in dir(kind):
        setattr(kind, "lipschitz_bound", layer_bound)  # noqa: B010


def layer_bound(layer: nn.Module, in_shape: Size | None = None) -> float:
    """A sound bound of the operator norm of a linear layer, constrained or not.

    Args:
        layer: An `nn.Linear` or a convolution.
        in_shape: Shape of one input, (..., n_in) or (n_in, *size); None: any.

    Returns:
        The bound.
    """
    geometry = Geometry.of(layer)
    size = in_shape[len(in_shape) - len(geometry.kernel) :] if in_shape is not None else None
    constraint = constraint_of(layer)
    if constraint is not None:
        return constraint.bound(raw_weight(layer), size)
    return float(operator_norm(cast(Any, layer).weight, geometry, size).value)


def _reduce(layer: nn.Module, protocol: Any) -> tuple[Any, ...]:
    state = dict(layer.__dict__)
    modules = dict(state["_modules"])
    lists = modules.pop("parametrizations")
    originals = {name: (chain.original, list(chain)) for name, chain in lists.items()}
    return _restored, (type(layer).__bases__[0], {**state, "_modules": modules}, originals)


def _restored(kind: type[nn.Module], state: dict[str, Any], originals: dict[str, Any]) -> nn.Module:
    layer = kind.__new__(kind)
    layer.__dict__.update(state)
    for name, (original, chain) in originals.items():
        layer.register_parameter(name, original)
        for each in chain:
            parametrize.register_parametrization(layer, name, each, unsafe=True)
    _equip(type(layer))
    return layer

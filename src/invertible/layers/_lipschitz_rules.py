"""What each kind of module does to distances: the rules that `lipschitz_bound` applies."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from invertible.bijection import Bijection
from invertible.errors import ConfigError
from invertible.layers._channels import ChannelAffine
from invertible.layers._constrained import LINEAR, layer_bound
from invertible.layers.activations import SWISH_SLOPE, LipSwish, MaxMin

Rule = Callable[[Any, tuple[int, ...] | None], float]

RULES: dict[type[nn.Module], Rule] = {}
"""By type; a subclass that keeps `forward` has the rule of its parent."""

GELU_SLOPE = 1.1289041871
"""The largest slope of x Phi(x), rounded up; of the tanh approximation 1.12899."""

_SLOPES: dict[type[nn.Module], float] = {
    nn.Identity: 1.0,
    nn.ReLU: 1.0,
    nn.ReLU6: 1.0,
    nn.Tanh: 1.0,
    nn.Softsign: 1.0,
    nn.LogSigmoid: 1.0,
    nn.Tanhshrink: 1.0,
    nn.Softshrink: 1.0,
    nn.Hardtanh: 1.0,
    nn.Sigmoid: 0.25,
    nn.SiLU: SWISH_SLOPE,
    nn.Hardswish: 1.5,
    nn.Hardsigmoid: 0.166667,
    nn.Mish: 1.0885,
    nn.SELU: 1.0507009873554805 * 1.6732632423543772,
    nn.Flatten: 1.0,
    nn.Unflatten: 1.0,
    nn.PixelShuffle: 1.0,
    nn.PixelUnshuffle: 1.0,
    nn.ChannelShuffle: 1.0,
    nn.ZeroPad1d: 1.0,
    nn.ZeroPad2d: 1.0,
    nn.ZeroPad3d: 1.0,
    LipSwish: SWISH_SLOPE / 1.1,
    MaxMin: 1.0,
}
_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_AVERAGE_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


def rule_of(module: nn.Module) -> Rule | None:
    """The rule for a module.

    Args:
        module: Any module.

    Returns:
        None if there is none, or if the module's class computes something else than the class with the rule.
    """
    for kind in type(module).__mro__:
        if kind in RULES:
            return RULES[kind] if type(module).forward is kind.forward else None
    return None


def is_elementwise(module: nn.Module) -> bool:
    """Whether the rule of a module holds in all p-norms alike.

    Args:
        module: Any module.

    Returns:
        False for layers that mix their inputs, and for what users register.
    """
    return isinstance(module, (*_ELEMENTWISE, ChannelAffine))


def _slope(slope: float) -> Rule:
    return lambda module, in_shape: slope


def _leaky(module: nn.LeakyReLU, in_shape: Any) -> float:
    return max(1.0, abs(module.negative_slope))


def _prelu(module: nn.PReLU, in_shape: Any) -> float:
    return max(1.0, float(module.weight.detach().abs().max()))


def _elu(module: nn.ELU, in_shape: Any) -> float:
    return max(1.0, abs(module.alpha))


def _celu(module: nn.CELU, in_shape: Any) -> float:
    if module.alpha <= 0:
        raise ConfigError("CELU is Lipschitz for positive alpha only", expected="alpha > 0", got=module.alpha)
    return 1.0


def _softplus(module: nn.Softplus, in_shape: Any) -> float:
    if module.beta <= 0:
        raise ConfigError("Softplus is Lipschitz for positive beta only", expected="beta > 0", got=module.beta)
    if module.threshold < 20:
        hint = "nn.Softplus(beta), whose threshold is 20: the jump is below 2e-9 there"
        got = f"threshold={module.threshold:g}"
        raise ConfigError("Softplus jumps at its threshold", expected="20 or more", got=got, hint=hint)
    return 1.0


def _gelu(module: nn.GELU, in_shape: Any) -> float:
    return GELU_SLOPE if module.approximate == "none" else 1.12900


def _dropout(module: nn.Dropout, in_shape: Any) -> float:
    if not module.training:
        return 1.0
    return 1 / (1 - module.p) if module.p < 1 else 0.0


def _max_pool(module: Any, in_shape: Any) -> float:
    return math.sqrt(math.prod(_overlaps(module)))


def _average_pool(module: Any, in_shape: Any) -> float:
    is_plain = not module.ceil_mode and getattr(module, "divisor_override", None) is None
    pads = module.padding if isinstance(module.padding, tuple) else (module.padding,)
    if not is_plain or (any(pads) and not module.count_include_pad):
        raise ConfigError("no bound for average pooling with uneven divisors", expected="ceil_mode=False, no "
                          "divisor_override, count_include_pad=True")  # fmt: skip
    return math.sqrt(math.prod(_overlaps(module)) / math.prod(_per_axis(module, module.kernel_size)))


def _overlaps(module: Any) -> list[int]:
    # In how many windows a pixel can lie, per axis.
    sizes, strides = (_per_axis(module, value) for value in (module.kernel_size, module.stride))
    dilations = _per_axis(module, getattr(module, "dilation", 1))
    return [k if d > 1 else -(-k // s) for k, s, d in zip(sizes, strides, dilations, strict=True)]


def _per_axis(module: Any, value: int | tuple[int, ...]) -> tuple[int, ...]:
    n_axes = int(type(module).__name__[-2]) if type(module).__name__[-2:-1].isdigit() else 1
    return value if isinstance(value, tuple) else (value,) * n_axes


def _channel_affine(module: Any, in_shape: Any) -> float:
    return float(module.log_scale.detach().double().exp().max())


def _isometry(module: Bijection, in_shape: Any) -> float:
    if not module.is_isometric:
        name = type(module).__name__
        hint = f"@register_lipschitz({name}) on a function from the module to its bound"
        raise ConfigError(f"the Lipschitz constant of {name} is not known", expected="an isometry", hint=hint)
    return 1.0


RULES |= {kind: _slope(slope) for kind, slope in _SLOPES.items()}
RULES |= dict.fromkeys(_DROPOUT, _dropout) | dict.fromkeys(LINEAR, layer_bound)
RULES |= dict.fromkeys(_MAX_POOLS, _max_pool) | dict.fromkeys(_AVERAGE_POOLS, _average_pool)
RULES |= {nn.LeakyReLU: _leaky, nn.PReLU: _prelu, nn.ELU: _elu, nn.CELU: _celu, nn.Softplus: _softplus}

RULES |= {nn.GELU: _gelu, ChannelAffine: _channel_affine, Bijection: _isometry}
_ELEMENTWISE = tuple(RULES.keys() - {*LINEAR, *_MAX_POOLS, *_AVERAGE_POOLS, Bijection})

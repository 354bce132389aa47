"""Networks whose Lipschitz constant is bounded, and the bound, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal, TypeVar

from torch import nn

from invertible._checks import describe
from invertible.errors import ConfigError, DtypeError
from invertible.layers._constrained import LINEAR, attach, detach
from invertible.layers._constraint import Certified, Constraint
from invertible.layers._constraint_power import Power
from invertible.layers._lipschitz_rules import rule_of
from invertible.layers._norm_geometry import Geometry
from invertible.layers.certificate import (
    Certificate,
    Link,
    certificate,
    lipschitz_bound,
    promised_bound,
    register_lipschitz,
)

__all__ = [
    "Certificate",
    "Link",
    "certificate",
    "constrain",
    "lipschitz_bound",
    "promised_bound",
    "register_lipschitz",
    "unconstrain",
]

M = TypeVar("M", bound=nn.Module)
Bound = Literal["certified", "power"]

_NORMALISATIONS: tuple[Any, ...] = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm,
                                    nn.LocalResponseNorm)  # fmt: skip


def constrain(
    module: M,
    c: float = 0.9,
    bound: Bound = "certified",
    *,
    norms: Sequence[float] | None = None,
    n_iterations: int = 1,
) -> M:
    """Keep every linear layer and convolution of a network below a norm, from now on and by itself.

    Each weight gets a parametrization (`torch.nn.utils.parametrize`): the layer computes with W / max(1, norm / c), the
    parameter is W, and the gradient goes through the norm. There is nothing to call after a step. With "certified" the
    norm is a proven upper bound of the operator norm for the padding, stride and image size in use (outside of a call:
    for all sizes), a pure function of W. With "power" it is the papers' estimate from below.

    In place. Set initial weights before: `nn.init` on a constrained `layer.weight` changes a copy. State-dict keys
    become "parametrizations.weight.original".

    Args:
        module: Any network, or one layer.
        c: The target of each layer; a network of n layers with 1-Lipschitz activations has a constant of at most c^n.
        bound: "certified" or "power".
        norms: p_0, ..., p_n for n layers in the order of the computation: layer i is bounded as a map from L_{p_(i-1)}
            to L_{p_i}, and p_0 = p_n (Residual Flow's induced mixed norms). The network then contracts in L_{p_0},
            not in L_2. None: 2 everywhere.
        n_iterations: Of "power", for each evaluation in training mode.

    Returns:
        The module.

    Raises:
        ConfigError: If an argument is out of range, or the network has a layer that cannot be bounded: normalisation
            by statistics, transposed convolutions, anything unknown with parameters.
        DtypeError: If a weight holds no real numbers.
        NonFiniteError: When called: if a weight is NaN or infinite.

    Source: Behrmann et al. 2019, section 2.1, equation 3; Gouk et al. 2018. The bound: see docs/residual.md.

    Example:
        >>> network = constrain(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ELU(), nn.Conv2d(8, 3, 1)), 0.9)
        >>> lipschitz_bound(network) <= 0.9**2
        True
    """
    if not isinstance(module, nn.Module):
        raise DtypeError("constrain takes a network", expected="an nn.Module", got=describe(module))
    if not (isinstance(c, int | float) and 0 < c < math.inf):
        raise ConfigError("the target of a constraint is out of range", expected="a positive number", got=repr(c))
    layers = list(dict.fromkeys(_layers_to_constrain(module)))
    if not layers:
        raise ConfigError("nothing to constrain", expected="a linear layer or convolution", got=type(module).__name__)
    lazy = [type(layer).__name__ for layer in layers if isinstance(layer.weight, nn.UninitializedParameter)]
    if lazy:
        hint = "a forward pass of the network before it is constrained"
        raise ConfigError("a layer has no weight yet", expected="layers of known size", got=lazy[0], hint=hint)
    pairs = _pairs(norms, len(layers))
    constraints = [_constraint(layer, c, bound, pair, n_iterations) for layer, pair in zip(layers, pairs, strict=True)]
    for layer, constraint in zip(layers, constraints, strict=True):
        attach(layer, constraint)
    return module


def unconstrain(module: M) -> M:
    """Take the constraints off; the raw weights stay.

    Args:
        module: A network that was constrained.

    Returns:
        The module.

    Example:
        >>> layer = unconstrain(constrain(nn.Linear(2, 2), 0.5))
        >>> sorted(layer.state_dict())
        ['bias', 'weight']
    """
    for layer in module.modules():
        detach(layer)
    return module


def _pairs(norms: Sequence[float] | None, n_layers: int) -> list[tuple[float, float]]:
    if norms is None:
        return [(2.0, 2.0)] * n_layers
    is_list = isinstance(norms, Sequence) and all(isinstance(p, int | float) and p >= 1 for p in norms)
    if not is_list or len(norms) != n_layers + 1 or norms[0] != norms[-1]:
        expected = f"{n_layers + 1} numbers from 1 to infinity for {n_layers} layers, the last equal to the first"
        raise ConfigError("the norms do not fit", expected=expected, got=repr(norms), hint="norms=None for L_2")
    return list(pairwise(map(float, norms)))


def _constraint(layer: nn.Module, c: float, bound: str, norms: tuple[float, float], n_iterations: int) -> Constraint:
    geometry, made = Geometry.of(layer), None
    if bound == "certified":
        made = Certified(geometry, float(c), norms)
    if bound == "power":
        made = Power(geometry, float(c), norms, n_iterations)
    if made is None:
        raise ConfigError("unknown bound", expected="'certified' or 'power'", got=repr(bound))
    return made.train(layer.training)


def _layers_to_constrain(module: nn.Module, name: str = "") -> Iterator[nn.Module]:
    if isinstance(module, LINEAR):
        yield module
        return
    own = list(module.parameters(recurse=False))
    if isinstance(module, _NORMALISATIONS) or (own and rule_of(module) is None):
        hint = "leave it out (ActNorm normalises by fixed numbers), or register_lipschitz(...) its bound"
        problem = f"{type(module).__name__} ({name or 'the module itself'}) has no Lipschitz bound"
        raise ConfigError(problem, expected="linear layers, convolutions, Lipschitz activations", hint=hint)
    for child_name, child in module.named_children():
        yield from _layers_to_constrain(child, f"{name}.{child_name}" if name else child_name)

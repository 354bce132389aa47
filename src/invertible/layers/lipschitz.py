"""Networks whose Lipschitz constant is bounded, and the bound, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from invertible.errors import ConfigError
from invertible.layers._constrained import LINEAR, attach, constraint_of, detach
from invertible.layers._constraint import Certified, Constraint
from invertible.layers._constraint_power import Power
from invertible.layers._lipschitz_rules import RULES, Rule, rule_of
from invertible.layers._norm_geometry import Geometry

M = TypeVar("M", bound=nn.Module)
R = TypeVar("R", bound=Rule)
Bound = Literal["certified", "power"]
Shape = tuple[int, ...]

_NORMALISATIONS: tuple[Any, ...] = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm,
                                    nn.LocalResponseNorm)  # fmt: skip


def constrain(module: M, c: float = 0.9, bound: Bound = "certified", *, n_iterations: int = 1) -> M:
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
        n_iterations: Of "power", for each evaluation in training mode.

    Returns:
        The module.

    Raises:
        ConfigError: If an argument is out of range, or the network has a layer that cannot be bounded: normalisation
            by statistics, transposed convolutions, anything unknown with parameters.
        DtypeError: If a weight holds no real numbers.
        NonFiniteError: When called: if a weight is NaN or infinite.

    Source: Behrmann et al. 2019, section 2.1, equation 3; Gouk et al. 2018. The bound: see docs/lipschitz.

    Example:
        >>> network = constrain(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ELU(), nn.Conv2d(8, 3, 1)), 0.9)
        >>> lipschitz_bound(network) <= 0.9**2
        True
    """
    if not (isinstance(c, int | float) and 0 < c < math.inf):
        raise ConfigError("the target of a constraint is out of range", expected="a positive number", got=repr(c))
    layers = list(dict.fromkeys(_layers_to_constrain(module)))
    if not layers:
        raise ConfigError("nothing to constrain", expected="a linear layer or convolution", got=type(module).__name__)
    constraints = [_constraint(layer, c, bound, n_iterations) for layer in layers]
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
        >>> list(layer.state_dict())
        ['weight', 'bias']
    """
    for layer in module.modules():
        detach(layer)
    return module


def _constraint(layer: nn.Module, c: float, bound: str, n_iterations: int) -> Constraint:
    geometry, made = Geometry.of(layer), None
    if bound == "certified":
        made = Certified(geometry, float(c))
    if bound == "power":
        made = Power(geometry, float(c), n_iterations)
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


def register_lipschitz(kind: type[nn.Module]) -> Callable[[R], R]:
    """Say how a module of your own is bounded.

    Args:
        kind: Its class; subclasses that keep `forward` are covered as well.

    Returns:
        A decorator for a function from (module, in_shape) to a bound of the module's l2 Lipschitz constant that holds
        as long as its parameters are what they are; in_shape is the shape of one input, or None for any.

    Example:
        >>> class Half(nn.Module):
        ...     def forward(self, x):
        ...         return x / 2
        >>> @register_lipschitz(Half)
        ... def _(module, in_shape):
        ...     return 0.5
        >>> lipschitz_bound(nn.Sequential(Half(), nn.Tanh(), Half()))
        0.25
    """

    def register(rule: R) -> R:
        RULES[kind] = rule
        return rule

    return register


@dataclass(frozen=True)
class Link:
    """One module in the chain of bounds.

    Attributes:
        name: As in `named_modules`.
        kind: Its class.
        bound: Of its Lipschitz constant.
        promised: The target that it was constrained to; None: it was not.
        how: "certified", "power" or "", with what it is constrained.
    """

    name: str
    kind: str
    bound: float
    promised: float | None = None
    how: str = ""


@dataclass(frozen=True)
class Certificate:
    """The bounds that make up the bound of a network. `print` shows a table.

    Attributes:
        links: One for each module, in the order of the computation.

    Example:
        >>> print(certificate(nn.Sequential(nn.Tanh(), nn.LeakyReLU(0.1))))
        name  kind          bound  promised
        0     Tanh       1.000000         -
        1     LeakyReLU  1.000000         -
        product          1.000000
    """

    links: tuple[Link, ...]

    @property
    def bound(self) -> float:
        """The product of all, rounded up."""
        return math.prod(link.bound for link in self.links) * (1 + 1e-15 * len(self.links))

    @property
    def is_kept(self) -> bool:
        """Whether every constrained layer is within its promise."""
        return all(link.promised is None or link.bound <= link.promised for link in self.links)

    def __str__(self) -> str:
        kinds = [f"{link.kind} ({link.how})" if link.how else link.kind for link in self.links]
        wide, wider = (max(map(len, column), default=0) for column in ([link.name for link in self.links], kinds))
        wide, wider = max(wide, len("name")), max(wider, len("product") - wide)
        lines = [f"{'name':{wide}}  {'kind':{wider}}  {'bound':>8}  {'promised':>8}"]
        for link, kind in zip(self.links, kinds, strict=True):
            promised = "-" if link.promised is None else f"{link.promised:g}"
            lines.append(f"{link.name:{wide}}  {kind:{wider}}  {link.bound:8.6f}  {promised:>8}")
        return "\n".join([*lines, f"{'product':{wide + wider + 2}}  {self.bound:8.6f}"])


def certificate(module: nn.Module, in_shape: Shape | None = None) -> Certificate:
    """The bounds of a network's layers, one by one.

    Args:
        module: A layer or an `nn.Sequential`, however nested.
        in_shape: Shape of one input without the batch; the bounds of convolutions are tighter for a size. None: any.

    Returns:
        The chain of bounds.

    Raises:
        ConfigError: If there is no rule for a module; the message says how to make one.
        NonFiniteError: If a weight is NaN or infinite.

    Example:
        >>> certificate(constrain(nn.Linear(2, 2), 0.5)).links[0].promised
        0.5
    """
    shape = None if in_shape is None else tuple(in_shape)
    return Certificate(tuple(link for link, _ in _links(module, shape, "")))


def lipschitz_bound(module: nn.Module, in_shape: Shape | None = None) -> float:
    """A sound upper bound of a network's l2 Lipschitz constant: the product of its layers' bounds.

    Args:
        module: A layer or an `nn.Sequential`, constrained or not.
        in_shape: Shape of one input without the batch; None: any.

    Returns:
        The bound.

    Raises:
        ConfigError: If there is no rule for a module; the message says how to make one.
        NonFiniteError: If a weight is NaN or infinite.

    Example:
        >>> lipschitz_bound(nn.Sequential(nn.Sigmoid(), nn.LeakyReLU(2.0)))
        0.5
    """
    return certificate(module, in_shape).bound


def _links(module: nn.Module, shape: Shape | None, name: str) -> Iterator[tuple[Link, Shape | None]]:
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        for child_name, child in module.named_children():
            for link, after in _links(child, shape, f"{name}.{child_name}" if name else child_name):
                yield link, after
                shape = after
        return
    rule, kind = rule_of(module), type(module).__name__
    constraint = constraint_of(module) if isinstance(module, LINEAR) else None
    kind = type(module).__bases__[0].__name__ if torch.nn.utils.parametrize.is_parametrized(module) else kind
    if rule is None:
        hint = (
            f"@register_lipschitz({kind}) on a function from (module, in_shape) to a bound, or pass the bound by hand"
        )
        problem = f"the Lipschitz constant of {kind} ({name or 'the module itself'}) is not known"
        raise ConfigError(problem, expected="linear layers, convolutions, activations, nn.Sequential", hint=hint)
    promised, how = (None, "") if constraint is None else (constraint.c, constraint.kind)
    yield Link(name, kind, float(rule(module, shape)), promised, how), _out_shape(module, shape)


def _out_shape(module: nn.Module, shape: Shape | None) -> Shape | None:
    if shape is None:
        return None
    if isinstance(module, nn.Linear):
        return (*shape[:-1], module.out_features)
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return module.out_channels, *Geometry.of(module).out_size(shape[1:])
    like = next(module.parameters(), torch.zeros(()))
    with torch.no_grad():
        out = module(torch.zeros(1, *shape, dtype=like.dtype, device=like.device))
    return tuple(out.shape[1:])

"""The bound on a network's Lipschitz constant, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
from torch import nn

from invertible.errors import ConfigError
from invertible.layers._branch import children
from invertible.layers._constrained import LINEAR, constraint_of
from invertible.layers._constraint import Certified
from invertible.layers._lipschitz_rules import RULES, Rule, is_elementwise, rule_of
from invertible.layers._norm_geometry import Geometry

R = TypeVar("R", bound=Rule)
Shape = tuple[int, ...]


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
        norms: p and q if the bound is from L_p to L_q; None: it holds in every p-norm.
    """

    name: str
    kind: str
    bound: float
    promised: float | None = None
    how: str = ""
    norms: tuple[float, float] | None = None


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
        """The product of all."""
        return math.prod(link.bound for link in self.links)

    @property
    def p(self) -> float:
        """The norm L_p that the product bounds distances in; 2 unless layers were constrained in other norms."""
        return next((link.norms[0] for link in self.links if link.norms is not None), 2.0)

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
        >>> from invertible.layers import constrain
        >>> certificate(constrain(nn.Linear(2, 2), 0.5)).links[0].promised
        0.5
    """
    shape = None if in_shape is None else tuple(in_shape)
    links = tuple(link for link, _ in _links(module, shape, ""))
    norms = [link.norms for link in links if link.norms is not None]
    for (_, before), (after, _) in pairwise(norms):
        if before != after:
            hint = "constrain all layers with one sequence of norms"
            raise ConfigError("bounds in different norms do not multiply", expected=f"L_{before:g}",
                              got=f"L_{after:g}", hint=hint)  # fmt: skip
    return Certificate(links)


def lipschitz_bound(module: nn.Module, in_shape: Shape | None = None) -> float:
    """A sound upper bound of a network's Lipschitz constant: the product of its layers' bounds.

    In the Euclidean norm, unless the network was constrained with other `norms`: then in L_{p_0}.

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


def promised_bound(module: nn.Module) -> float:
    """As `lipschitz_bound`, but certified constraints count with their target, which takes no time.

    Args:
        module: A layer or an `nn.Sequential`, constrained or not.

    Returns:
        A sound bound, for inputs of any size.

    Example:
        >>> from invertible.layers import constrain
        >>> round(promised_bound(nn.Sequential(constrain(nn.Linear(2, 2), 0.9), nn.Tanh())), 6)
        0.9
    """
    return Certificate(tuple(link for link, _ in _links(module, None, "", is_promised=True))).bound


def _links(
    module: nn.Module, shape: Shape | None, name: str, is_promised: bool = False
) -> Iterator[tuple[Link, Shape | None]]:
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        for child_name, child in children(module):  # one that is used twice counts twice
            inner = f"{name}.{child_name}" if name else child_name
            for link, after in _links(child, shape, inner, is_promised):
                yield link, after
                shape = after
        return
    rule, kind = rule_of(module), type(module).__name__
    constraint = constraint_of(module) if isinstance(module, LINEAR) else None
    kind = type(module).__bases__[0].__name__ if torch.nn.utils.parametrize.is_parametrized(module) else kind
    if rule is None:
        hint = f"@register_lipschitz({kind}) on a function (module, in_shape) -> bound, or give the bound by hand"
        problem = f"the Lipschitz constant of {kind} ({name or 'the module itself'}) is not known"
        raise ConfigError(problem, expected="linear layers, convolutions, activations, nn.Sequential", hint=hint)
    promised, how = (None, "") if constraint is None else (constraint.c, constraint.kind)
    norms = None if is_elementwise(module) else (2.0, 2.0) if constraint is None else constraint.norms
    is_known = is_promised and isinstance(constraint, Certified)
    bound = float(rule(module, shape)) if promised is None or not is_known else promised
    yield Link(name, kind, bound, promised, how, norms), _out_shape(module, shape)


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

"""How far each kind of bijection can stretch distances, there and back."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch

from invertible._checks import check_finite
from invertible.bijection import Bijection, Inverse
from invertible.chain import Chain
from invertible.errors import ConfigError
from invertible.layers._channels import ChannelAffine
from invertible.layers.certificate import Certificate, certificate
from invertible.layers.coupling import Coupling
from invertible.layers.elementwise import Elementwise, SoftTails, Tanh
from invertible.layers.invertible_linear import Invertible1x1
from invertible.layers.marginal import MarginalSpline
from invertible.layers.multi_scale import OnFirst
from invertible.layers.ode import ContinuousFlow
from invertible.layers.preprocess import Logit
from invertible.layers.residual import Residual
from invertible.streams import Split

Shape = tuple[int, ...]

WAITS = "waits for its first batch"

_KEEP_SHAPE = (Residual, ChannelAffine, Invertible1x1, Elementwise, Coupling, MarginalSpline, ContinuousFlow, OnFirst)


@dataclass(frozen=True)
class MemberBound:
    """What one member of a model does to distances. Norms are Euclidean.

    Attributes:
        name: Its place, as in `named_modules`.
        kind: Its class.
        forward: |f(a) - f(b)| <= forward |a - b| for all a, b; None: not bounded, or not known.
        inverse: Likewise for the inverse, on what the member can put out.
        contraction: Of a residual block: a bound of g's Lipschitz constant; None: not known, or no residual block.
        branch: That bound, layer by layer; None where the user gave it.
        is_invertible: Whether it is no residual block, or one whose bound is below 1.
        note: What to know about the row.

    Example:
        >>> MemberBound("3", "Squeeze", 1.0, 1.0).is_invertible
        True
    """

    name: str
    kind: str
    forward: float | None = None
    inverse: float | None = None
    contraction: float | None = None
    branch: Certificate | None = None
    is_invertible: bool = True
    note: str = ""


def member_bounds(member: Bijection, shape: Shape | None, name: str = "") -> Iterator[tuple[MemberBound, Shape | None]]:
    """The bounds of a bijection's members, in the order of the computation, and the shape after each.

    Args:
        member: Any bijection; chains, and chains turned round, are taken apart.
        shape: Of one element of its input; None: any.
        name: Its place.

    Yields:
        A row, and the shape of one element of the member's output.
    """
    inner, is_turned, place = _peel(member, name)
    if not isinstance(inner, Chain):
        after = _shape_after(member, shape)
        row = _row(inner, after if is_turned else shape, name)
        yield (_turned(row) if is_turned else row), after
        return
    parts = list(zip(inner._modules, inner, strict=True))
    for part_name, part in reversed(parts) if is_turned else parts:
        inside = f"{place}.{part_name}" if place else part_name
        for row, after in member_bounds(Inverse(part) if is_turned else part, shape, inside):
            yield row, after
            shape = after


def _peel(member: Bijection, name: str) -> tuple[Bijection, bool, str]:
    is_turned = False
    while isinstance(member, Inverse):
        member, is_turned = member.bijection, not is_turned
        name = f"{name}.bijection" if name else "bijection"
    return member, is_turned, name


def _turned(row: MemberBound) -> MemberBound:
    return dataclasses.replace(row, kind=f"Inverse({row.kind})", forward=row.inverse, inverse=row.forward)


def _row(leaf: Bijection, shape: Shape | None, name: str) -> MemberBound:
    kind = type(leaf).__name__
    if isinstance(leaf, OnFirst):
        return _on_first(leaf, shape, name)
    if isinstance(leaf, Residual):
        return _residual(leaf, shape, name)
    if isinstance(leaf, ChannelAffine):
        note = "" if leaf.is_initialised else WAITS
        log_scale = leaf._log_scale(torch.float64).detach()
        check_finite(log_scale, f"the log-scale of {kind} {name}")
        return MemberBound(name, kind, float(log_scale.max().exp()), float((-log_scale.min()).exp()), note=note)
    if isinstance(leaf, Invertible1x1):
        weight = leaf.weight.detach().double()
        check_finite(weight, f"the weight of {kind} {name}")
        scales = torch.linalg.svdvals(weight)
        return MemberBound(name, kind, float(scales.max()), float(1 / scales.min()))
    if isinstance(leaf, Logit):
        return _logit(leaf, name)
    if isinstance(leaf, Tanh | SoftTails):
        return MemberBound(name, kind, 1.0, None, note="its inverse grows without bound")
    if leaf.is_isometric:
        return MemberBound(name, kind, 1.0, 1.0)
    return MemberBound(name, kind, note="not bounded")


def _residual(block: Residual, shape: Shape | None, name: str) -> MemberBound:
    if isinstance(block.lipschitz, int | float):
        return _sum(MemberBound(name, "Residual", note="bound as given"), float(block.lipschitz), 1.0)
    try:
        branch = certificate(block.network, shape)
    except ConfigError:  # there is a layer without a rule
        if block.lipschitz is None:
            raise
        return MemberBound(name, "Residual", is_invertible=False, note="not bounded")
    if branch.p == 2:
        return _sum(MemberBound(name, "Residual", branch=branch), branch.bound, 1.0)
    # |x|_2 and |x|_p differ by a power of the dimension at most.
    factor = None if shape is None else math.prod(shape) ** abs(1 / 2 - 1 / branch.p)
    return _sum(MemberBound(name, "Residual", branch=branch, note=f"contracts in L_{branch.p:g}"), branch.bound, factor)


def _sum(row: MemberBound, bound: float, factor: float | None) -> MemberBound:
    # |x + g(x)| <= (1 + L) |x|, and |a + g(a) - b - g(b)| >= (1 - L) |a - b|.
    forward = None if factor is None else factor * (1 + bound)
    inverse = None if factor is None or bound >= 1 else factor / (1 - bound)
    return dataclasses.replace(row, forward=forward, inverse=inverse, contraction=bound, is_invertible=bound < 1)


def _on_first(member: OnFirst, shape: Shape | None, name: str) -> MemberBound:
    first = None if shape is None else cast(Split, member.split_in).part(torch.empty(1, *shape))[0].shape[1:]
    row = _row(member.bijection, first, name)
    forward, inverse = (None if bound is None else max(1.0, bound) for bound in (row.forward, row.inverse))
    return dataclasses.replace(row, kind=f"OnFirst({row.kind})", forward=forward, inverse=inverse)


def _logit(logit: Logit, name: str) -> MemberBound:
    a = logit.alpha
    slope = (1 - 2 * a) / (a * (1 - a)) if a else None  # at the ends
    return MemberBound(name, "Logit", slope, 1 / (4 * (1 - 2 * a)), note="for numbers in [0, 1]")


def _shape_after(member: Bijection, shape: Shape | None) -> Shape | None:
    inner = _peel(member, "")[0]
    if shape is None or isinstance(inner, _KEEP_SHAPE):
        return shape
    if inner.takes_context:  # what one looks like is not known here
        return None
    twin = copy.deepcopy(member).eval()  # a run may count calls, or draw numbers
    like = next((p for p in twin.parameters() if p.is_floating_point()), torch.zeros(()))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        out = twin(torch.zeros(1, *shape, dtype=like.dtype, device=like.device))
    return tuple(out.shape[1:])

"""The bounds of a whole model: that its inverse exists, and how much it can magnify an error."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from invertible.bijection import Bijection
from invertible.errors import ConfigError
from invertible.layers._member_bounds import WAITS, MemberBound, member_bounds

__all__ = ["MemberBound", "ModelCertificate", "certify"]

_FLOAT32 = 2.0**24


@dataclass(frozen=True)
class ModelCertificate:
    """What each member of a model does to distances, and the model as a whole. `print` shows a table.

    Attributes:
        rows: One for each member, in the order of the computation.
        in_shape: Of one input, that the bounds hold for; None: any.

    Example:
        >>> from invertible.layers import Residual, Squeeze, constrain
        >>> from invertible import Chain
        >>> print(certify(Chain(Squeeze(2), Residual(nn.Identity(), 0.5)), (1, 4, 4)))
        name   kind      Lip(g)     forward     inverse
        0      Squeeze        -           1           1
        1      Residual  0.5000         1.5           2  bound as given
        model                           1.5           2
    """

    rows: tuple[MemberBound, ...]
    in_shape: tuple[int, ...] | None = None

    @property
    def forward(self) -> float | None:
        """How much the model can stretch a difference of two inputs; None: not bounded, or not known."""
        return _product(row.forward for row in self.rows)

    @property
    def inverse(self) -> float | None:
        """How much the inverse can magnify an error of the representation; None: not bounded, or not known."""
        return _product(row.inverse for row in self.rows)

    @property
    def is_invertible(self) -> bool:
        """Whether every residual block has a bound below 1. Couplings and the like are invertible by construction."""
        return all(row.is_invertible for row in self.rows)

    @property
    def worst(self) -> tuple[MemberBound, ...]:
        """The rows, those first that promise least for the inverse."""
        return tuple(sorted(self.rows, key=_promise, reverse=True))

    @property
    def findings(self) -> tuple[str, ...]:
        """What the bounds tell, in words, worst first."""
        return tuple(_findings(self))

    def __str__(self) -> str:
        lines = [(row.name or "-", row.kind, row.contraction, row.forward, row.inverse, row.note) for row in self.rows]
        return _table([*lines, ("model", "", math.nan, self.forward, self.inverse, "")])

    def layers(self) -> str:
        """The bounds of the branches, layer by layer.

        Returns:
            A text: for each residual block its name, and the table of its certificate.

        Example:
            >>> from invertible.layers import Residual, constrain
            >>> print(certify(Residual(nn.Tanh(), 0.5)).layers())
            <BLANKLINE>
        """
        known = [(row.name, row.branch) for row in self.rows if row.branch is not None]
        return "\n\n".join(f"{name or 'Residual'}\n{branch}" for name, branch in known)


def certify(model: nn.Module, in_shape: Sequence[int] | None = None) -> ModelCertificate:
    """Bound what each member of a model does to distances.

    Residual blocks get 1 + L and 1 / (1 - L), L being the bound of their branch; ActNorm, scalings and 1x1 convolutions
    their largest and smallest scale; permutations and the like 1. Couplings are not bounded: their networks may be
    anything. Nothing is changed: no buffer, no mode, no random state.

    Args:
        model: A bijection, or a module that holds one. `Flow`, `Classifier` and `Hybrid` have a method `certificate()`
            that calls this with the shape they know.
        in_shape: Shape of one input without the batch; the bounds of convolutions are tighter for a size. None: any.

    Returns:
        The bounds.

    Raises:
        ConfigError: If the model holds no bijection, or several, or a branch has a layer without a rule.
        NonFiniteError: If a weight is NaN or infinite.

    Source: Behrmann et al. 2019, lemma 2 and theorem 1.

    Example:
        >>> from invertible.layers import Residual, constrain
        >>> block = Residual(constrain(nn.Linear(3, 3), 0.5))
        >>> certify(block).is_invertible, certify(block).inverse <= 2
        (True, True)
    """
    shape = None if in_shape is None else tuple(in_shape)
    name, bijection = _the_bijection(model)
    rows = tuple(row for row, _ in member_bounds(bijection, shape, name))
    return ModelCertificate(rows, shape)


def _the_bijection(model: nn.Module) -> tuple[str, Bijection]:
    found = list(_outermost(model, ""))
    if len(found) != 1:
        got = ", ".join(name for name, _ in found) or f"none in {type(model).__name__}"
        hint = "certify one of them; for a Flow, flow.certificate()" if found else "certify(chain, in_shape)"
        raise ConfigError("certify takes a bijection", expected="one in the model", got=got, hint=hint)
    return found[0]


def _outermost(module: nn.Module, name: str) -> Iterator[tuple[str, Bijection]]:
    if isinstance(module, Bijection):
        yield name, module
        return
    for child_name, child in module.named_children():
        yield from _outermost(child, f"{name}.{child_name}" if name else child_name)


def _product(bounds: Iterable[float | None]) -> float | None:
    product = 1.0
    for bound in bounds:
        if bound is None:
            return None
        product *= bound
    return product


def _promise(row: MemberBound) -> tuple[bool, float]:
    return not row.is_invertible, math.inf if row.inverse is None else row.inverse


def _findings(certificate: ModelCertificate) -> Iterator[str]:
    for row in certificate.worst:
        where = f"{row.kind} {row.name}".strip()
        if not row.is_invertible:
            bound = "no bound" if row.contraction is None else f"the bound {row.contraction:.4g}"
            yield f"{where} has {bound}: it may have no inverse. layers.constrain(network, 0.9) makes it have one."
    unbounded = [row for row in certificate.rows if row.is_invertible and row.inverse is None]
    if unbounded:
        kinds = ", ".join(dict.fromkeys(row.kind for row in unbounded))
        yield f"{len(unbounded)} members have no bound of their inverse ({kinds}): nor has the model."
    if certificate.inverse is not None and certificate.inverse > _FLOAT32:
        worst = certificate.worst[0]
        yield (
            f"The inverse may magnify rounding {certificate.inverse:.1e} times, more than float32 has digits for; "
            f"{worst.kind} {worst.name} by {worst.inverse:.3g} of it. It is a bound: measure with a round trip."
        )
    waiting = sum(row.note == WAITS for row in certificate.rows)
    if waiting:
        yield f"{waiting} ActNorms wait for their first training batch, which changes the bounds."


def _table(rows: list[tuple[str, str, float | None, float | None, float | None, str]]) -> str:
    wide, wider = max(5, *(len(row[0]) for row in rows)), max(4, *(len(row[1]) for row in rows))
    lines = [f"{'name':{wide}}  {'kind':{wider}}  {'Lip(g)':>6}  {'forward':>10}  {'inverse':>10}"]
    for name, kind, contraction, forward, inverse, note in rows:
        lip = "-" if contraction is None else "" if math.isnan(contraction) else f"{contraction:.4f}"
        there, back = ("?" if bound is None else f"{bound:.4g}" for bound in (forward, inverse))
        lines.append(f"{name:{wide}}  {kind:{wider}}  {lip:>6}  {there:>10}  {back:>10}  {note}".rstrip())
    return "\n".join(lines)

"""Bit-exact sums: on a lattice of multiples of 2^-k, floating-point addition is exact and can be undone to the bit.

A float32 holds every multiple of q = 2^-k below 2^24 q in absolute value exactly, so sums and differences of such
numbers are exact as long as they stay in that range. A coupling layer whose streams lie on the lattice, and which
rounds what it adds to the lattice, is undone without any error, at any depth and whatever precision its network
computes in. Rounding has no derivative; gradients pass straight through it.

The idea is that of reversible learning in fixed point: Maclaurin, Duvenaud and Adams 2015, section 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from invertible.errors import ConfigError, DtypeError, RangeError

_BITS = {torch.float32: 24, torch.float64: 53}
_Sum = tuple[Tensor, Tensor, float]  # smallest and largest value, and the limit
_Extremes = list[_Sum] | Literal["trusted"] | None
_EXTREMES: ContextVar[_Extremes] = ContextVar("extremes of the sums so far", default=None)


@dataclass(frozen=True)
class Lattice:
    """The multiples of q = 2^-k, and the arithmetic on them.

    In float32 sums are exact below 2^(24-k): with k = 12, q = 2.4e-4, below 4,096; with 16, 1.5e-5, below 256; with 18
    (the default), 3.8e-6, below 64; with 20, 9.5e-7, below 16. In float64 below 2^(53-k).

    Args:
        k: Resolution: neighbours are 2^-k apart.

    Raises:
        ConfigError: If k is no whole number from 0 to 40.

    Source: Maclaurin et al. 2015, section 3.1.

    Example:
        >>> lattice = Lattice(2)
        >>> lattice.quantise(torch.tensor([0.3, 1.0]))
        tensor([0.2500, 1.0000])
        >>> lattice.limit(torch.float32)
        4194304.0
    """

    k: int = 18

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or not 0 <= self.k <= 40:
            hint = "k=18 resolves 3.8e-6 within |x| < 64; a smaller k has a larger range"
            raise ConfigError("a lattice has a bad resolution", expected="k from 0 to 40", got=self.k, hint=hint)

    @property
    def step(self) -> float:
        """Distance of neighbours, 2^-k."""
        return 2.0**-self.k

    def limit(self, dtype: torch.dtype) -> float:
        """Where sums stop being exact.

        Args:
            dtype: Of the streams.

        Returns:
            2^(24-k) for float32, 2^(53-k) for float64; absolute values must stay below.

        Raises:
            DtypeError: If the dtype has too few bits for a lattice.
        """
        if dtype not in _BITS:
            hint = "keep weights and inputs in float32 and use torch.autocast for bfloat16"
            raise DtypeError("exact mode has no bits to spare", expected="float32 or float64", got=dtype, hint=hint)
        return 2.0 ** (_BITS[dtype] - self.k)

    def quantise(self, x: Tensor) -> Tensor:
        """Move to the nearest point of the lattice. The gradient passes straight through.

        Args:
            x: Any shape, float32 or float64.

        Returns:
            Same shape.

        Raises:
            RangeError: If a value is NaN or too large.
        """
        self._look(x, None, "exact mode's input")
        return self._straight(x)

    def add(self, target: Tensor, shift: Tensor) -> Tensor:
        """Add, exactly.

        Args:
            target: On the lattice. (Outside `session` it is moved there.)
            shift: What to add; it is rounded to the lattice. Same shape, any floating-point dtype.

        Returns:
            The sum, on the lattice.
        """
        return self._sum(target, shift, 1)

    def subtract(self, target: Tensor, shift: Tensor) -> Tensor:
        """Undo `add`.

        Args:
            target: On the lattice. (Outside `session` it is moved there.)
            shift: The same bits that were added.

        Returns:
            The difference, on the lattice.
        """
        return self._sum(target, shift, -1)

    def _sum(self, target: Tensor, shift: Tensor, sign: int) -> Tensor:
        seen = None if torch.compiler.is_compiling() else _EXTREMES.get()
        target = self._straight(target) if seen is None else target
        shift = self._straight(shift.to(target.dtype))
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            out = target + shift if sign > 0 else target - shift
        else:  # the rounded shift is nobody else's
            out = torch.add(target, shift, alpha=sign, out=shift)
        self._look(out, seen, "an exact sum")
        return out

    def _look(self, x: Tensor, seen: _Extremes, name: str) -> None:
        limit = self.limit(x.dtype)
        if not x.numel() or seen == "trusted":
            return
        low, high = torch.aminmax(x.detach())
        if seen is None:
            check_range([(low, high, limit)], name)
        else:
            seen.append((low, high, limit))

    def _straight(self, x: Tensor) -> Tensor:
        rounded = (x.detach() * 2.0**self.k).round_().mul_(self.step)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return rounded
        # Both sums are exact: the difference has no more bits than x, and its sum with x is `rounded`.
        return x + (rounded - x.detach())


@contextmanager
def session(name: str) -> Iterator[bool]:
    """Trust that targets are on the lattice, and look at all ranges once, at the end: one wait for the device.

    Args:
        name: Whose sums they are, for the message.

    Yields:
        Whether this is the outermost session, whose caller has to put the input on the lattice.

    Raises:
        RangeError: At the end, if a sum left the range or is NaN.
    """
    if _EXTREMES.get() is not None:
        yield False
        return
    extremes: list[_Sum] = []
    token = _EXTREMES.set(extremes)
    try:
        yield True
    finally:
        _EXTREMES.reset(token)
    check_range(extremes, name)


@contextmanager
def trusted() -> Iterator[None]:
    """Take ranges as checked: for sums that undo others.

    Yields:
        Nothing.
    """
    token = _EXTREMES.set("trusted")
    try:
        yield
    finally:
        _EXTREMES.reset(token)


def check_range(sums: list[_Sum], name: str) -> None:
    """Refuse sums that left the range.

    Args:
        sums: Smallest and largest value of each, and their limit.
        name: Whose sums, for the message.

    Raises:
        RangeError: If an absolute value reaches the limit, or is NaN.
    """
    if not sums:
        return
    limit, device = max(limit for *_, limit in sums), sums[0][0].device
    extremes = torch.stack([value.to(device) for low, high, _ in sums for value in (low, high)]).abs()
    if torch.compiler.is_compiling():
        torch.ops.aten._assert_async.msg((extremes < limit).all(), f"{name} left the range in which sums are exact")
        return
    if extremes.is_meta or bool((extremes < limit).all()):
        return
    worst = next(i for i, value in enumerate(extremes.tolist()) if not value < limit)
    value = extremes[worst].item()
    hint = "a smaller k (exact=14 allows |x| < 1024 in float32), smaller inputs or weights, or float64"
    raise RangeError(
        f"{name} left the range in which sums are exact",
        expected=f"absolute values below {limit:g}",
        got=f"{'NaN' if math.isnan(value) else format(value, '.3g')}, first in sum {worst // 2 + 1} of {len(sums)}",
        hint="find where it comes from: the input, or a network's weights" if math.isnan(value) else hint,
    )

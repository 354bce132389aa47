"""The spectrum of one Jacobian."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from invertible.instruments.result import Row

Method = Literal["dense", "lanczos"]


@dataclass(frozen=True)
class Spectrum:
    """Singular values of d place / d input at one example.

    Args:
        place: Name of the module; "output" is the network itself.
        example: Which of the data, from 0.
        n_in: Numbers of the input (in the window).
        n_out: Numbers of the output.
        method: "dense": the whole Jacobian was built; "lanczos": extreme values from products with it.
        values: Descending: all of them, or those at the upper end.
        residuals: Of each of them, as a distance within which there is a singular value; rounding for dense ones.
        smallest: Lanczos only, descending: those at the lower end.
        smallest_residuals: Likewise.
        log_abs_det: Nats, sum of the logarithms, where it is square and dense; None otherwise.
        condition: Largest over smallest of the min(n_in, n_out) singular values.
        is_lower_bound: Whether the smallest has not converged, or drowns in rounding: the condition is this or more.
        rank: How many are above the rounding of the network's precision; None for Lanczos.
        effective_rank: exp of the entropy of s / sum(s): n for n equal values; None for Lanczos.
        n_steps: Of Lanczos; 0 for dense.
    """

    place: str
    example: int
    n_in: int
    n_out: int
    method: Method
    values: tuple[float, ...]
    residuals: tuple[float, ...]
    smallest: tuple[float, ...]
    smallest_residuals: tuple[float, ...]
    log_abs_det: float | None
    condition: float
    is_lower_bound: bool
    rank: int | None
    effective_rank: float | None
    n_steps: int

    @property
    def normalised(self) -> tuple[float, ...]:
        """The values over the largest, as in figure 4; NaN if all are 0."""
        largest = self.values[0]
        return tuple(value / largest if largest else math.nan for value in self.values)

    def n_above(self, share: float) -> int:
        """How many exceed a share of the largest.

        Args:
            share: 0 to 1.

        Returns:
            Their number among `values`.
        """
        return sum(value > share * self.values[0] for value in self.values)

    def row(self) -> Row:
        """As a row of the table.

        Returns:
            Plain values.
        """
        return {
            "place": self.place,
            "example": self.example,
            "n_in": self.n_in,
            "n_out": self.n_out,
            "method": self.method,
            "largest": self.values[0],
            "smallest": (self.smallest or self.values)[-1],
            "residual": max((*self.residuals, *self.smallest_residuals)),
            "condition": self.condition,
            "condition_is_lower_bound": self.is_lower_bound,
            "log_abs_det": self.log_abs_det,
            "rank": self.rank,
            "effective_rank": self.effective_rank,
            "n_above_1_percent": self.n_above(0.01) if self.method == "dense" else None,
            "n_steps": self.n_steps,
        }


def effective_rank(values: Sequence[float]) -> float:
    """The exponential of the entropy of normalised singular values.

    Args:
        values: Singular values.

    Returns:
        1 to their number; 0 if all are 0.

    Source: Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality".

    Example:
        >>> round(effective_rank([2.0, 2.0, 2.0, 0.0]), 6)
        3.0
    """
    total = math.fsum(values)
    shares = [value / total for value in values if value > 0] if total > 0 else []
    return math.exp(-math.fsum(share * math.log(share) for share in shares)) if shares else 0.0

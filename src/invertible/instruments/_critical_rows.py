"""One end of a search: what it is, and why."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from invertible.instruments._critical_search import End
from invertible.instruments.result import Row

Verdict = Literal["critical", "gradient-flat", "not converged", "in the kernel", "fading"]
WHY = {
    "critical": "",
    "gradient-flat": "the gradient is not zero, but its norm is stationary: H g is almost zero",
    "not converged": "the gradient is not zero, and its norm could still fall",
    "in the kernel": "what is left of the gradient lies in the kernel of the Hessian: no step of Newton's removes it",
    "fading": "the gradient is small, but Newton's step to where it would be zero is long",
}
FLAT_POINT = 1e-4
KERNEL = 1e-10
MOSTLY = 0.5
NEAR = 1e-3
ZERO = 1e-6


@dataclass(frozen=True)
class Point:
    """Where one search ended.

    Args:
        start: Step of the path at which it began.
        amplitude: Standard deviation of the noise added there.
        method: "gradient-norm" or "saddle-free".
        verdict: "critical", or why it is no critical point; see `why`.
        loss: With weight decay, if there is any.
        error: Share of examples that are wrong; NaN where that cannot be told.
        gradient_norm: Euclidean.
        flatness: |H g| / (|H| |g|), 0 to 1.
        kernel_share: Share of the gradient's norm in the Hessian's kernel.
        newton_step: Length of Newton's step outside the kernel, over 1 + |theta|.
        index: Share of eigenvalues that are negative.
        zero_share: Share that count as zero: within 1e-6 of the largest, in size.
        same_as: Number of an earlier point with the same loss and eigenvalues; None: it is the first.
        n_iterations: Hessians that the search took.
        eigenvalues: All, ascending.
    """

    start: int
    amplitude: float
    method: str
    verdict: Verdict
    loss: float
    error: float
    gradient_norm: float
    flatness: float
    kernel_share: float
    newton_step: float
    index: float
    zero_share: float
    same_as: int | None
    n_iterations: int
    eigenvalues: tuple[float, ...]

    @property
    def is_critical(self) -> bool:
        """Whether it passed all tests."""
        return self.verdict == "critical"

    @property
    def why(self) -> str:
        """Why it is no critical point; "" if it is one."""
        return f"not a critical point: {WHY[self.verdict]}" if WHY[self.verdict] else ""

    def row(self) -> Row:
        """As a row of the table.

        Returns:
            Plain values.
        """
        plain = {key: value for key, value in vars(self).items() if key != "eigenvalues"}
        return {**plain, "smallest": self.eigenvalues[0], "largest": self.eigenvalues[-1], "why": self.why}


@dataclass(frozen=True)
class Judgement:
    """What the tests say of a point.

    Args:
        verdict: See `Point`.
        kernel_share: Likewise.
        newton_step: Likewise.
    """

    verdict: Verdict
    kernel_share: float
    newton_step: float


def judge(end: End, tolerance: float) -> Judgement:
    """Tell a critical point from a place that only looks like one.

    The gradient must be small. That alone is passed by places where it merely fades (towards infinity) and, for small
    gradients as for large ones, by minima of its norm that are not zero: so Newton's step from it must be short, and
    what is left of the gradient must not lie in the Hessian's kernel, which no step removes. A gradient as small as
    rounding of theta makes it has no direction left to test.

    Args:
        end: Where a search ended.
        tolerance: Norm of the gradient that counts as small.

    Returns:
        The verdict, and what it rests on.

    Source: Frye et al. 2021, "Critical point-finding methods reveal gradient-flat regions of deep network losses".

    Example:
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> fading = End(20 * one, 1e-9 * one, 1e-9 * one, one[:, None], 3)  # of exp(-x), at 20
        >>> judge(fading, 1e-8).verdict, judge(End(0 * one, 0 * one, one, one[:, None], 3), 1e-8).verdict
        ('fading', 'critical')
    """
    parts, largest, norm = end.vectors.T @ end.gradient, end.largest, end.gradient.norm().item()
    is_kernel = end.values.abs() <= KERNEL * largest
    share = parts[is_kernel].norm().item() / norm if norm else 0.0
    length = 1 + end.theta.norm().item()
    step = (parts[~is_kernel] / end.values[~is_kernel]).norm().item() / length
    rounding = 10 * torch.finfo(torch.float64).eps * max(1.0, largest) * length
    if norm > tolerance:
        verdict: Verdict = "gradient-flat" if end.flatness < FLAT_POINT else "not converged"
    elif norm > rounding and share > MOSTLY:
        verdict = "in the kernel"
    else:
        verdict = "fading" if step > NEAR else "critical"
    return Judgement(verdict, share, step)


def same(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Tell whether two spectra are those of one point, or of its mirror images.

    Args:
        one: Eigenvalues, ascending.
        other: Likewise.

    Returns:
        Whether they differ by no more than a millionth of the largest.
    """
    scale = max(abs(one[0]), abs(one[-1]), abs(other[0]), abs(other[-1]))
    return all(math.isclose(a, b, rel_tol=0, abs_tol=1e-6 * scale) for a, b in zip(one, other, strict=True))

"""What a fixed-point solver is told, and what it tells: the options and the report."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from invertible.errors import ConfigError

Method = Literal["anderson", "broyden", "plain"]
METHODS: tuple[Method, ...] = ("anderson", "broyden", "plain")


@dataclass(frozen=True)
class FixedPointSolver:
    """How x + g(x) = y is solved for x.

    Args:
        method: "anderson" (residuals kept orthogonal), "broyden" (a secant estimate of the Jacobian) or "plain"
            (x <- y - g(x), Algorithm 1 of i-ResNet). The first two fall back to the plain iteration, sample by sample,
            where they do not help.
        tolerance: Largest error, root mean square over a sample's numbers, relative to the larger of the sample's y and
            x (root mean square as well). With a Lipschitz constant it is the guaranteed error that must get this small,
            else the residual. None: as far as the numbers' precision goes.
        max_evaluations: Of g, in one solve.
        memory: How many directions "anderson" and "broyden" remember; each takes two copies of y. None: 3 and 5.
        compact: Whether g is called on the unfinished rows of the batch only. False: always on all rows, for a g that
            is no function of single rows.

    Raises:
        ConfigError: If an argument does not fit.

    Source: Behrmann et al. 2019 ("plain"); Tang et al. 2024, "Anderson acceleration with truncated Gram-Schmidt";
        Broyden 1965, the first ("good") method.

    Example:
        >>> FixedPointSolver(tolerance=1e-5).method
        'anderson'
    """

    method: Method = "anderson"
    tolerance: float | None = None
    max_evaluations: int = 1000
    memory: int | None = None
    compact: bool = True

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError("unknown fixed-point method", expected=", ".join(METHODS), got=repr(self.method))
        if self.tolerance is not None and not 0 < self.tolerance < math.inf:
            hint = "tolerance=None goes as far as the precision"
            raise ConfigError("tolerance out of range", expected="a positive number", got=self.tolerance, hint=hint)
        for name in ("max_evaluations", "memory"):
            value = getattr(self, name)
            if value is None and name == "memory":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} out of range", expected="a whole number of at least 1", got=value)


@dataclass(frozen=True)
class SolveReport:
    """How a solve of x + g(x) = y went, for each sample. Norms are Euclidean, over all numbers of a sample, in float64.

    Args:
        evaluations: Of g, until the sample was done; int64, shape (batch,).
        residual: |y - g(x') - x'| of the last point x' where g was evaluated; the x returned is y - g(x').
        guaranteed_error: |x - solution| is not larger than this, if g's Lipschitz constant is as said; rounding is
            allowed for. None without a Lipschitz constant.
        scale: The larger of |y| and |x|: errors over this are in the units of the tolerance.
        converged: Whether the tolerance is met; a solve that does not meet it raises, so all are True.
        method: How it was solved.
        lipschitz: The constant that the guarantee rests on.
        tolerance: What was asked for; None: as far as the precision goes.

    Example:
        >>> from invertible import solve_residual
        >>> x, report = solve_residual(lambda x: x.sin() / 2, torch.ones(2, 3), lipschitz=0.5)
        >>> bool((report.guaranteed_error < 1e-5).all()), report.relative_error.shape
        (True, torch.Size([2]))
    """

    evaluations: Tensor
    residual: Tensor
    guaranteed_error: Tensor | None
    scale: Tensor
    converged: Tensor
    method: str
    lipschitz: float | None
    tolerance: float | None

    @property
    def relative_error(self) -> Tensor | None:
        """The guaranteed error in the units of the tolerance, shape (batch,); None without a guarantee."""
        return None if self.guaranteed_error is None else relative(self.guaranteed_error, self.scale)

    def __str__(self) -> str:
        n = len(self.evaluations)
        if n == 0:
            return f"{self.method}: nothing to solve, an empty batch"
        mean, most = self.evaluations.double().mean().item(), int(self.evaluations.max())
        residual = relative(self.residual, self.scale).max().item()
        error = self.relative_error
        bound = "no guarantee" if error is None else f"guaranteed relative error <= {error.max().item():.1e}"
        certificate = "no Lipschitz constant" if self.lipschitz is None else f"Lipschitz constant {self.lipschitz:.4g}"
        return (
            f"{self.method}: {int(self.converged.sum())} of {n} samples converged, {mean:.1f} evaluations a sample "
            f"(at most {most}), relative residual <= {residual:.1e}, {bound} ({certificate})"
        )


def relative(error: Tensor, scale: Tensor) -> Tensor:
    """An error in the units of the tolerance.

    Args:
        error: Norms, shape (batch,).
        scale: What they are compared with, shape (batch,).

    Returns:
        Their quotient; 0 where the error is.
    """
    return torch.where(error == 0, 0.0, error / scale)

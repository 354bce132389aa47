"""What the reversibility report says of one block."""

from __future__ import annotations

from dataclasses import dataclass

from invertible.instruments.result import Row


@dataclass(frozen=True)
class Drift:
    """How far the reconstruction has come off before a block, in one dtype. All relative to the activation there.

    Args:
        error_max: Largest absolute error / largest absolute value; inf where inverting this block failed, NaN where
            the inversion never came.
        error_rms: The same with root mean squares.
        expected: The root mean square that the blocks' rounding errors, with random signs, make to first order.
        upper: The most they can make to first order, from norms and inverse Lipschitz constants alone.
        failure: What the block raised, if it did.
    """

    error_max: float
    error_rms: float
    expected: float
    upper: float
    failure: str = ""

    def breaks(self, tolerance: float) -> bool:
        """Tell whether this is no reconstruction any more.

        Args:
            tolerance: Largest relative error allowed, in the root mean square.

        Returns:
            Whether the error is larger or the block failed; False where the inversion never came.
        """
        return bool(self.failure) or self.error_rms > tolerance


@dataclass(frozen=True)
class Block:
    """One member of the chain. The Lipschitz constants are local, in float64, mean and maximum over the batch.

    Args:
        name: As in `named_modules`.
        kind: The class.
        lipschitz_mean: Of the block, at its input.
        lipschitz_max: Of the block, at its input.
        inverse_mean: Of the inverse, at the block's output.
        inverse_max: Of the inverse, at the block's output.
        condition_mean: Product of both.
        condition_max: Product of both.
        residual: Of the power iterations, the worse of the two.
        n_iterations: The larger of the two numbers.
        converged: Whether both reached the tolerance; if not, the constants are too small.
        ties_examples: Whether an example depends on the others in the batch; the constants are then the batch's.
        drift: By dtype.
        failure: Why there are no constants, if so.
    """

    name: str
    kind: str
    lipschitz_mean: float
    lipschitz_max: float
    inverse_mean: float
    inverse_max: float
    condition_mean: float
    condition_max: float
    residual: float
    n_iterations: int
    converged: bool
    ties_examples: bool
    drift: dict[str, Drift]
    failure: str = ""

    def row(self) -> Row:
        """All of it in one row.

        Returns:
            Column names and plain values.
        """
        row = {key: value for key, value in vars(self).items() if key != "drift"}
        for dtype, drift in self.drift.items():
            row |= {f"{dtype}_{key}": value for key, value in vars(drift).items()}
        return row

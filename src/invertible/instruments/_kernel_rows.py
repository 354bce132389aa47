"""One solution of a kernel system."""

from __future__ import annotations

from dataclasses import dataclass

from invertible.instruments._estimates import Estimate
from invertible.instruments.result import Row


@dataclass(frozen=True)
class RidgeFit:
    """The function of one ridge.

    Args:
        ridge: Over the mean of the kernel's diagonal; 0: interpolation.
        train: Accuracy on the training points; None: it could not be solved.
        test: Accuracy on the test points.
        norm: Of the function in the kernel's space, over all classes: sqrt(sum_c a_c^T K a_c).
        residual: Largest |(K + ridge) a - Y|, in float64.
        n_refinements: How often the solution was refined.
        seconds: How long it took.
        failure: Why it could not be solved; "": it was.
    """

    ridge: float
    train: Estimate | None
    test: Estimate | None
    norm: float | None
    residual: float | None
    n_refinements: int
    seconds: float
    failure: str = ""

    def row(self) -> Row:
        """As a row of the table.

        Returns:
            Plain values.
        """
        row: Row = {"ridge": self.ridge}
        for name, found in {"train": self.train, "test": self.test}.items():
            row[name] = None if found is None else found.mean
            row[f"{name}_low"] = None if found is None else found.low
            row[f"{name}_high"] = None if found is None else found.high
        row |= {"norm": self.norm, "residual": self.residual, "n_refinements": self.n_refinements}
        return row | {"seconds": self.seconds, "failure": self.failure}

"""What signal propagation says of one block."""

from __future__ import annotations

import math
from dataclasses import dataclass

from invertible.instruments.result import Row


@dataclass(frozen=True)
class SignalBranch:
    """The end of a residual branch.

    Args:
        name: The module whose output it is; "" in the table where a block has none.
        variance: Average over the channels of the biased variance.
        squared_mean: Average over the channels of the squared mean.
        expected_variance: What theory expects of the variance; None: nothing was declared.
    """

    name: str
    variance: float
    squared_mean: float
    expected_variance: float | None


@dataclass(frozen=True)
class SignalBlock:
    """The output of one block, or what goes into the first one.

    Args:
        name: As in `named_modules`, with the number of the call behind it where there are several.
        kind: The class; "stem" for what goes into the first block.
        squared_mean: Average over the channels of the squared mean.
        variance: Average over the channels of the biased variance.
        expected_variance: What theory expects of it; None: nothing was declared.
        n_channels: Channels.
        n_values: Values per channel: examples times positions.
        channel_axis: Which dimension they were found in.
        branches: Ends of its residual branches, in order.
    """

    name: str
    kind: str
    squared_mean: float
    variance: float
    expected_variance: float | None
    n_channels: int
    n_values: int
    channel_axis: int
    branches: tuple[SignalBranch, ...]

    @property
    def is_finite(self) -> bool:
        """Whether all of it is."""
        values = [self.squared_mean, self.variance]
        values += [value for branch in self.branches for value in (branch.variance, branch.squared_mean)]
        return all(map(math.isfinite, values))

    @property
    def residual_variance(self) -> float | None:
        """Variance at the end of the last residual branch; None if there is none."""
        return self.branches[-1].variance if self.branches else None

    def rows(self) -> list[Row]:
        """All of it: one row per branch, at least one.

        Returns:
            Column names and plain values.
        """
        own = {key: value for key, value in vars(self).items() if key != "branches"}
        ends = [vars(branch) for branch in self.branches] or [dict.fromkeys(_ENDS)]
        return [own | {f"residual_{key}": value for key, value in end.items()} for end in ends]


_ENDS = ("name", "variance", "squared_mean", "expected_variance")

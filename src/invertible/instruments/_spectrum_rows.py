"""What the weight spectrum says of one layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from invertible.instruments._power_law import PowerLaw
from invertible.instruments.result import Row

LEVEL, MIN_ORDERS = 0.05, 19
"""By chance one layer in 20 is not random-like; 19 orders can tell."""
Unfolding = Literal["filters", "frequencies"]


@dataclass(frozen=True)
class Histogram:
    """Counts in bins of equal width.

    Args:
        low: Where the first bin begins.
        high: Where the last one ends; what lies outside is in none.
        counts: One per bin.
        n: All values, those outside too.
    """

    low: float
    high: float
    counts: tuple[int, ...]
    n: int


@dataclass(frozen=True)
class Permuted:
    """The same figures for the same entries in random order.

    Args:
        n: How many orders.
        ks: 95 % quantile of the distance from Marchenko-Pastur.
        largest: 95 % quantile of the largest singular value over the bulk's edge.
        n_outliers: Mean number of outliers.
        p_value: Chance of a distance as large as the layer's, at best 1 / (n + 1).
        alpha_low: Smallest exponent of the tail; None: no tail.
        alpha_high: Largest.
    """

    n: int
    ks: float
    largest: float
    n_outliers: float
    p_value: float
    alpha_low: float | None
    alpha_high: float | None


@dataclass(frozen=True)
class Spectrum:
    """Singular values of one unfolding of a weight.

    Args:
        unfolding: "filters", one matrix with a row per output; "frequencies", one matrix between channels per frequency
            of the kernel.
        shorter: Rows or columns of each matrix, whichever are fewer.
        longer: The others.
        n_values: Singular values of all matrices.
        rank: How many of them are not zero.
        ks: Kolmogorov-Smirnov distance of all from the Marchenko-Pastur law of the entries' variance.
        ks_bulk: That of the bulk, with its own variance.
        edge: The largest singular value of the bulk, in the weight's units.
        largest: The largest singular value over that edge.
        n_outliers: Singular values above the edge by more than chance.
        outlier_energy: Share of the sum of squares that they hold.
        outliers: The largest ones over the edge, at most 20, in falling order.
        histogram: Of the singular values over s sqrt(longer), with s the bulk's entries' standard deviation.
        aspect: Of the bulk: its shorter side over its longer side.
        power_law: Of the squared singular values' tail; None: too few.
        permuted: The null; None: none was asked for.
    """

    unfolding: Unfolding
    shorter: int
    longer: int
    n_values: int
    rank: int
    ks: float
    ks_bulk: float
    edge: float
    largest: float
    n_outliers: int
    outlier_energy: float
    outliers: tuple[float, ...]
    histogram: Histogram
    aspect: float
    power_law: PowerLaw | None
    permuted: Permuted | None

    @property
    def is_random_like(self) -> bool | None:
        """Whether nothing tells it from its entries in random order; None with fewer than 19 orders."""
        if self.permuted is None or self.permuted.n < MIN_ORDERS:
            return None
        return self.permuted.p_value > LEVEL and not self.more_outliers

    @property
    def more_outliers(self) -> bool:
        """Whether it has more outliers than its entries in random order."""
        return self.n_outliers > (self.permuted.n_outliers if self.permuted else 0) + 0.5

    def row(self) -> Row:
        """As part of a row of the table.

        Returns:
            Column names and plain values.
        """
        skipped = ("outliers", "histogram", "power_law", "permuted")
        own: Row = {key: value for key, value in vars(self).items() if key not in skipped}
        law: Row = {f"tail_{key}": value for key, value in _fields(self.power_law, _LAW)}
        null: Row = {f"permuted_{key}": value for key, value in _fields(self.permuted, _NULL)}
        return own | law | null


_LAW = ("alpha", "low", "high", "n_tail", "ks")
_NULL = ("n", "ks", "largest", "n_outliers", "p_value", "alpha_low", "alpha_high")


def _fields(value: object, names: tuple[str, ...]) -> list[tuple[str, float | None]]:
    return [(name, None if value is None else getattr(value, name)) for name in names]


@dataclass(frozen=True)
class WeightLayer:
    """One weight.

    Args:
        name: Of the module, and of the parameter where it is not "weight".
        kind: Class of the module.
        shape: Of the weight.
        mean: Of the entries.
        std: Their standard deviation.
        zeros: Share of the entries that are exactly zero.
        entry_ks: Kolmogorov-Smirnov distance of the entries from the Gaussian of this mean and deviation.
        entry_ks_null: What a Gaussian sample of this size exceeds in one case of 20.
        kurtosis: Excess kurtosis: 0 for a Gaussian, -1.2 for a uniform distribution.
        kurtosis_error: Its standard error, were the entries Gaussian.
        entries: Histogram of (entry - mean) / std.
        spectra: One per unfolding; none where the weight is constant, not finite or too small.
        is_finite: Whether all entries are.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    mean: float
    std: float
    zeros: float
    entry_ks: float
    entry_ks_null: float
    kurtosis: float
    kurtosis_error: float
    entries: Histogram
    spectra: tuple[Spectrum, ...]
    is_finite: bool = True

    @property
    def main(self) -> Spectrum | None:
        """The spectrum of the filters; None where there is none."""
        return self.spectra[0] if self.spectra else None

    def rows(self) -> list[Row]:
        """All of it: one row per unfolding, at least one.

        Returns:
            Column names and plain values.
        """
        own: Row = {key: value for key, value in vars(self).items() if key not in ("entries", "spectra", "shape")}
        own["shape"] = "x".join(map(str, self.shape))
        spectra = [spectrum.row() for spectrum in self.spectra] or [dict.fromkeys(_COLUMNS)]
        return [own | row for row in spectra]


_COLUMNS = (
    *("unfolding", "shorter", "longer", "n_values", "rank", "ks", "ks_bulk", "edge", "largest", "n_outliers"),
    *("outlier_energy", "aspect"),
    *(f"tail_{name}" for name in _LAW),
    *(f"permuted_{name}" for name in _NULL),
)

"""Weight spectrum: how far a network's weights are from random matrices (Arora, Liang and Ma 2015)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from invertible.errors import ConfigError
from invertible.instruments._compare_plot import Curve
from invertible.instruments._spectrum_findings import findings_of
from invertible.instruments._spectrum_measure import Measurement
from invertible.instruments._spectrum_plot import draw_layers, draw_overview, draw_with_panels
from invertible.instruments._spectrum_rows import WeightLayer
from invertible.instruments._weights import Weight, find_weights
from invertible.instruments.feeding import Bar, check_budget
from invertible.instruments.provenance import Fingerprint, Stopwatch, provenance
from invertible.instruments.result import Result, Row
from invertible.instruments.taps import Layers
from invertible.instruments.untouched import measuring

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "weight_spectrum"


@dataclass(frozen=True)
class WeightSpectrum(Result):
    """What `weight_spectrum` found.

    Args:
        findings: Worst first.
        layers: The weights, in the order of `named_modules`.
        model: The network's class.
        n_permutations: How many random orders of the entries each was compared with.
    """

    layers: tuple[WeightLayer, ...]
    model: str
    n_permutations: int

    @property
    def table(self) -> list[Row]:
        """One row per weight and unfolding: the weight's fields, the spectrum's, the tail's, those in random order."""
        return [row for layer in self.layers for row in layer.rows()]

    @property
    def curves(self) -> dict[str, Curve]:
        """Against the number of the weight, for the filters: "ks", "largest", "outlier energy", "kurtosis"."""
        spectra = [layer.main for layer in self.layers]
        values = {
            "ks": ("KS distance from Marchenko-Pastur", [math.nan if s is None else s.ks for s in spectra]),
            "largest": ("largest singular value / edge", [math.nan if s is None else s.largest for s in spectra]),
            "outlier energy": ("energy above the edge", [math.nan if s is None else s.outlier_energy for s in spectra]),
            "kurtosis": ("excess kurtosis of the entries", [layer.kurtosis for layer in self.layers]),
        }
        x = tuple(map(float, range(len(self.layers))))
        logs = {"ks", "largest"}
        return {name: Curve(x, tuple(y), "weight", label, log=name in logs) for name, (label, y) in values.items()}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw each weight's distance from Marchenko-Pastur beside that of its entries in random order.

        Args:
            ax: Where; None: on a new figure, with small multiples of the weights furthest from random below.

        Returns:
            The axes.
        """
        title = f"Weight spectrum: {self.model}"
        return draw_with_panels(self.layers, title) if ax is None else draw_overview(ax, self.layers, title)

    def plot_layers(self, names: Sequence[str] | None = None) -> Figure:
        """Draw small multiples: entries against a Gaussian, singular values against their law; outliers are triangles.

        Args:
            names: Of weights; None: all.

        Returns:
            A new figure.

        Raises:
            ConfigError: If there is no such weight.
        """
        known = {layer.name: layer for layer in self.layers}
        unknown = [name for name in names or () if name not in known]
        if unknown or (names is not None and not names):
            raise ConfigError("no such weight", expected=" or ".join(known), got=", ".join(unknown) or "no name")
        return draw_layers([known[name] for name in names or known], self.model)


def weight_spectrum(
    model: nn.Module,
    *,
    layers: Layers = "auto",
    n_permutations: int = 19,
    seconds: float | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> WeightSpectrum:
    """Compare each weight of a linear map with a random matrix: its entries, its singular values, their tail.

    Entries are held against a Gaussian; singular values against the Marchenko-Pastur law (the quarter circle, for
    square matrices) of the entries' variance, by Kolmogorov-Smirnov distance; with the same entries in random order as
    the null. Outliers are what lies above the edge of the bulk, whose variance is measured without them. A power law is
    fitted to the largest eigenvalues, and means nothing unless its interval lies apart from the exponents in random
    order.

    A convolution is unfolded twice: "filters", the matrix (out, in / groups * k * k) with one row per filter; and
    "frequencies", one matrix (out / groups, in / groups) per frequency of the kernel's own k x k grid, all together:
    the singular values of the convolution with circular borders on that grid.

    Args:
        model: Any module. It is left as it is, to the bit; it is not run.
        layers: Which modules: "auto" (all with linear layers, convolutions, attention, recurrent layers), names,
            patterns, types; as in `find_taps`. Modules inside them count.
        n_permutations: Random orders for the null; 19 is the fewest that can tell at the 5 % level, 0 measures none.
        seconds: Start no more weights or permutations after so much time. One weight is always measured.
        seed: Of the orders.
        quiet: Show no progress.

    Returns:
        Figures per weight and unfolding, with findings; see `WeightSpectrum` and its `layers`.

    Raises:
        ConfigError: If there are no such weights, a name is unknown or an option is wrong.
        DtypeError: If `model` or `layers` is something else. (NaN in a weight is a finding.)

    Source: Arora, Liang and Ma 2015, "Why are deep nets reversible", the experiments on random-likeness; Marchenko and
    Pastur 1967; Clauset, Shalizi and Newman 2009 for the exponent.

    Example:
        >>> found = weight_spectrum(nn.Sequential(nn.Linear(300, 200), nn.ReLU(), nn.Linear(200, 100)))
        >>> [layer.main.n_outliers for layer in found.layers], found.layers[0].main.ks < 0.03
        ([0, 0], True)
    """
    _check(n_permutations, seconds)
    with measuring(model) as network, ExitStack() as stack:
        weights = find_weights(network, layers)
        clock = _Clock(seconds, len(weights) * (1 + n_permutations), Bar(NAME, stack, quiet))
        measured: list[Measurement] = []
        for i, weight in enumerate(weights):
            if clock.is_over(f"after {i} of {len(weights)} weights and no permutation"):
                break
            measured.append(Measurement(weight, seed + i))
        for i in range(n_permutations * len(measured)):
            if clock.is_over(f"after {i // len(measured)} of {n_permutations} permutations"):
                break
            measured[i % len(measured)].permute()
        origin = provenance(network, clock.watch, seed=seed, data=_fingerprint(weights), n_batches=0,
                            stopped=clock.stopped)  # fmt: skip
    found = tuple(measurement.layer() for measurement in measured)
    n_done = min(measurement.n_permutations for measurement in measured)
    return WeightSpectrum(findings_of(found, clock.stopped), found, type(network).__name__, n_done, provenance=origin)


class _Clock:
    """Ends a measurement in time, and shows how far it is."""

    def __init__(self, seconds: float | None, total: int, update: Bar) -> None:
        self.watch, self.stopped = Stopwatch(), ""
        self._seconds, self._total, self._update, self._done = seconds, total, update, 0

    def is_over(self, where: str) -> bool:
        self._update(self.watch.seconds, self._done / self._total)
        if self._done and self._seconds is not None and self.watch.seconds >= self._seconds:
            self.stopped = self.stopped or f"seconds={self._seconds:g}, {where}"
        self._done += 1
        return bool(self.stopped)


def _check(n_permutations: object, seconds: object) -> None:
    check_budget(NAME, None, seconds)
    if isinstance(n_permutations, bool) or not isinstance(n_permutations, int) or n_permutations < 0:
        got, expected = repr(n_permutations), "n_permutations >= 0, a whole number"
        raise ConfigError(f"{NAME} cannot permute so often", expected=expected, got=got)


def _fingerprint(weights: Sequence[Weight]) -> str:
    digest = Fingerprint()
    digest.add([weight.values for weight in weights])
    return digest.digest()

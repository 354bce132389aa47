"""What an information plane holds: measurements, places, and how they change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from invertible.instruments.result import Row

Kind = Literal["binned fixed", "binned adaptive", "KDE upper", "KDE lower"]


@dataclass(frozen=True)
class Measurement:
    """The M in "discretised entropy under measurement M".

    Args:
        kind: "binned fixed", "binned adaptive", "KDE upper" or "KDE lower".
        size: Number of bins, or the noise's variance.

    Example:
        >>> Measurement("binned fixed", 30).name, Measurement("KDE upper", 1e-3).name
        ('30 bins, fixed', 'KDE upper, variance 0.001')
    """

    kind: Kind
    size: float

    @property
    def name(self) -> str:
        """In words."""
        if self.is_binned:
            return f"{self.size:g} bins, {self.kind.removeprefix('binned ')}"
        return f"{self.kind}, variance {self.size:g}"

    @property
    def is_binned(self) -> bool:
        """Whether by bins."""
        return self.kind in ("binned fixed", "binned adaptive")


@dataclass(frozen=True)
class PlaceInformation:
    """What one place of a network tells, in bits, under each of several measurements.

    Of several networks the means, with standard deviations over the networks (0 for one).

    Args:
        place: Name of the module; "output" is the network itself.
        width: Numbers that one example is there.
        inputs: I(X; T), per measurement.
        inputs_deviation: Of it, over networks.
        labels: I(T; Y), per measurement.
        labels_deviation: Of it, over networks.
        shuffled: I(T; Y) with shuffled labels, mean: what finitely many examples give for nothing.
        shuffled_high: The largest of the shuffles.
        unmeasured: Entropy of the activations as they are, to the bit: no bins, no noise.
        duplicates: Share of examples whose activations equal, to the bit, those of an earlier one.
        within: Mean squared distance of two examples of one class.
        between: The same of two classes.
    """

    place: str
    width: int
    inputs: tuple[float, ...]
    inputs_deviation: tuple[float, ...]
    labels: tuple[float, ...]
    labels_deviation: tuple[float, ...]
    shuffled: tuple[float, ...]
    shuffled_high: tuple[float, ...]
    unmeasured: float
    duplicates: float
    within: float
    between: float

    def rows(self, measurements: Sequence[Measurement]) -> list[Row]:
        """As rows of a table, one per measurement.

        Args:
            measurements: In the order of the figures.

        Returns:
            Plain values.
        """
        return [
            {
                "place": self.place,
                "width": self.width,
                "measurement": measurement.name,
                "kind": measurement.kind,
                "size": measurement.size,
                "input_bits": self.inputs[i],
                "input_bits_deviation": self.inputs_deviation[i],
                "label_bits": self.labels[i],
                "label_bits_deviation": self.labels_deviation[i],
                "shuffled_label_bits": self.shuffled[i],
                "shuffled_label_bits_high": self.shuffled_high[i],
                "unmeasured_bits": self.unmeasured,
                "duplicates": self.duplicates,
                "within": self.within,
                "between": self.between,
            }
            for i, measurement in enumerate(measurements)
        ]


@dataclass(frozen=True)
class About:
    """What an information plane was measured on, and with.

    Args:
        measurements: The sweep; the first of each kind is the one that is drawn unasked.
        n_examples: How many for bins.
        n_kernel: How many for kernels.
        n_networks: Over which means were taken.
        n_inputs: How many different inputs there are among them.
        ceiling: log2 of it.
        input_bits: H(X) of the examples: below the ceiling if some inputs come twice.
        label_bits: H(Y), the most that I(T; Y) can be.
        invertible: Places up to which the network is invertible by construction.
        keeps_input: Whether what enters the invertible part is the network's input itself.
        linear: Places heard before a nonlinearity, or without one.
    """

    measurements: tuple[Measurement, ...]
    n_examples: int
    n_kernel: int
    n_networks: int
    n_inputs: int
    ceiling: float
    input_bits: float
    label_bits: float
    invertible: tuple[str, ...] = ()
    keeps_input: bool = False
    linear: tuple[str, ...] = ()

    def number_of(self, kind: Kind, size: float | None = None) -> int:
        """Which measurement.

        Args:
            kind: Of it.
            size: Of it; None: the first of the kind.

        Returns:
            Its number; -1 if there is none.
        """
        found = (i for i, m in enumerate(self.measurements) if m.kind == kind and size in (None, m.size))
        return next(found, -1)

    def ceiling_of(self, measurement: Measurement) -> float:
        """The most that I(X; T) can be under a measurement.

        Args:
            measurement: It.

        Returns:
            Bits.
        """
        return self.input_bits if measurement.is_binned else min(self.input_bits, math.log2(self.n_kernel))


@dataclass(frozen=True)
class Fall:
    """How far the information of one place about the input fell, under one measurement.

    Args:
        place: Which.
        measurement: Which.
        peak_epoch: When the mean over networks was largest.
        peak: I(X; T) then, mean over networks, bits.
        last: At the last epoch.
        fall: The difference, mean over networks.
        interval: Half the width of its 95 % interval over networks; None for one network.
        jitter: What it typically changes from one snapshot to the next after the peak: median of sizes.
        is_clear: Whether it is beyond 0.1 bits, the interval, and three times the jitter.
    """

    place: str
    measurement: Measurement
    peak_epoch: int
    peak: float
    last: float
    fall: float
    interval: float | None
    jitter: float
    is_clear: bool


@dataclass(frozen=True)
class LayerGradient:
    """The gradient of one layer's weights over the batches of an epoch.

    Args:
        layer: Name of the module that has the weights.
        mean: Norm of the mean over batches.
        deviation: Norm of the standard deviations over batches; 0 for one batch.
        ratio: Mean over deviation; infinite for one batch. Of several networks the geometric mean.
        weight: Norm of the weights.
    """

    layer: str
    mean: float
    deviation: float
    ratio: float
    weight: float


@dataclass(frozen=True)
class Phase:
    """When the gradient of a layer went from drift (mean above deviation) to diffusion (below).

    Args:
        layer: Which.
        turn: First measured epoch from which the ratio stays below 1; -1: it does not.
        first: The ratio at first.
        last: At last.
    """

    layer: str
    turn: int
    first: float
    last: float

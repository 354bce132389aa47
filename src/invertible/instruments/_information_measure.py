"""One moment of an information plane, from the activations at each place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from invertible.errors import ConfigError, NonFiniteError, ShapeError
from invertible.instruments._information_bins import (
    Bits,
    bin_ranks,
    bits_of_ranks,
    check_activations,
    check_classes,
    entropy_of_ranks,
    pattern_ranks,
)
from invertible.instruments._information_kde import kde_sweep
from invertible.instruments._information_rows import About, Kind, Measurement, PlaceInformation


@dataclass(frozen=True)
class Sweep:
    """Under what measurements information is measured.

    Args:
        n_bins: Numbers of bins; the first is the main one.
        span: Of the fixed grid.
        sigma2: Variances of the noise; the first is the main one.
        n_kernel: At most so many examples for kernels, whose cost is that number squared.
        n_shuffles: How often labels are shuffled for the null.
        seed: Of shuffles, and of which examples the kernels see.

    Raises:
        ConfigError: If one is out of its range.

    Example:
        >>> [m.name for m in Sweep((30,), sigma2=(1e-3,)).measurements]
        ['30 bins, fixed', '30 bins, adaptive', 'KDE upper, variance 0.001', 'KDE lower, variance 0.001']
    """

    n_bins: tuple[int, ...] = (30, 15, 60)
    span: tuple[float, float] = (-1.0, 1.0)
    sigma2: tuple[float, ...] = (1e-3, 1e-4, 1e-2)
    n_kernel: int = 1000
    n_shuffles: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        checks = {
            "n_bins": (bool(self.n_bins) and min(self.n_bins) >= 1, "one or more whole numbers from 1"),
            "span": (-math.inf < self.span[0] < self.span[1] < math.inf, "low < high"),
            "sigma2": (bool(self.sigma2) and all(0 < s < math.inf for s in self.sigma2), "one or more above 0"),
            "n_kernel": (self.n_kernel >= 2, "2 or more"),
            "n_shuffles": (self.n_shuffles >= 1, "1 or more"),
        }
        for name, (is_good, expected) in checks.items():
            if not is_good:
                raise ConfigError(f"the information plane has a bad {name}", expected=expected, got=vars(self)[name])

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """All of them; the main one of each kind before the others of that kind."""
        binned: tuple[Kind, Kind] = "binned fixed", "binned adaptive"
        kernels: tuple[Kind, Kind] = "KDE upper", "KDE lower"
        found = [Measurement(kind, float(n)) for kind in binned for n in dict.fromkeys(self.n_bins)]
        return (*found, *(Measurement(kind, s) for kind in kernels for s in dict.fromkeys(self.sigma2)))


class Labels:
    """The labels of all examples, shuffled ones, and which examples the kernels see.

    Args:
        labels: Whole numbers from 0, shape (N,), two classes or more.
        sweep: How to measure.

    Raises:
        ConfigError: If there is one class only.
        ShapeError: If they are not of shape (N,).
        RangeError: If they are no classes.
    """

    def __init__(self, labels: Tensor, sweep: Sweep) -> None:
        self.own = check_classes(labels, len(labels)).cpu()
        classes = self.own.unique()
        if len(classes) < 2:
            got = f"class {int(classes[0])} only, {len(self.own)} examples"
            hint = "data of several classes; sorted data need larger n_examples"
            raise ConfigError("the information plane needs classes", expected="two or more", got=got, hint=hint)
        generator = torch.Generator().manual_seed(sweep.seed)
        self.kernel = torch.randperm(len(self.own), generator=generator)[: sweep.n_kernel].sort().values
        shuffles = [torch.randperm(len(self.own), generator=generator) for _ in range(sweep.n_shuffles)]
        self.shuffled = [self.own[order] for order in shuffles]

    @property
    def bits(self) -> float:
        """H(Y)."""
        return float(entropy_of_ranks(self.own))


def measure_places(places: Mapping[str, Tensor], labels: Labels, sweep: Sweep) -> list[tuple[PlaceInformation, Tensor]]:
    """Measure each place.

    Args:
        places: By name, shape (N, d), or (n_networks, N, d).
        labels: Of the N examples.
        sweep: How.

    Returns:
        Per place the figures, and I(X; T) of each network, shape (measurements, n_networks).

    Raises:
        ShapeError: If a place has another number of examples.
        NonFiniteError: If a place holds NaN or infinity; it is named.
    """
    return [_measure(name, _checked(name, h, len(labels.own)), labels, sweep) for name, h in places.items()]


def about(inputs: Tensor | None, labels: Labels, sweep: Sweep, n_networks: int) -> About:
    """Say what was measured on what.

    Args:
        inputs: What enters the network, shape (N, ...); None: unknown, all different.
        labels: Of the N examples.
        sweep: How.
        n_networks: How many.

    Returns:
        The record, nothing known of invertible parts.
    """
    n = len(labels.own)
    ranks = torch.arange(n) if inputs is None else pattern_ranks(inputs.reshape(n, -1)).cpu()
    n_inputs, bits = int(ranks.max()) + 1, float(entropy_of_ranks(ranks))
    return About(
        sweep.measurements, n, len(labels.kernel), n_networks, n_inputs, math.log2(n_inputs), bits, labels.bits
    )  # fmt: skip


def _checked(name: str, h: Tensor, n: int) -> Tensor:
    try:
        check_activations(h)
    except NonFiniteError as error:
        raise NonFiniteError(f"{name}: {error}", hint="when did the network diverge?") from error
    if h.ndim > 3 or h.shape[-2] != n:
        expected = f"shape ({n}, d) or (networks, {n}, d)"
        raise ShapeError(f"{name} has other examples", expected=expected, got=tuple(h.shape), hint="h.flatten(1)")
    return h if h.ndim == 3 else h.unsqueeze(0)


def _measure(name: str, h: Tensor, labels: Labels, sweep: Sweep) -> tuple[PlaceInformation, Tensor]:
    found = [*_binned(h, labels, sweep), *_kernels(h, labels, sweep)]
    inputs = torch.stack([bits.inputs for bits in found])
    own = torch.stack([bits.labels[0] for bits in found])
    nulls = torch.stack([bits.labels[1:].flatten() for bits in found])
    ranks = pattern_ranks(h)
    within, between = _distances(h, labels.own.to(h.device))
    figures = PlaceInformation(
        place=name,
        width=h.shape[-1],
        inputs=_means(inputs),
        inputs_deviation=_deviations(inputs),
        labels=_means(own),
        labels_deviation=_deviations(own),
        shuffled=_means(nulls),
        shuffled_high=tuple(nulls.amax(1).tolist()),
        unmeasured=float(entropy_of_ranks(ranks).mean()),
        duplicates=1 - float((ranks.amax(-1) + 1).double().mean()) / h.shape[-2],
        within=within,
        between=between,
    )
    return figures, inputs.cpu()


def _binned(h: Tensor, labels: Labels, sweep: Sweep) -> list[Bits]:
    labelings = [labels.own, *labels.shuffled]
    found: list[Bits] = []
    for measurement in (m for m in sweep.measurements if m.is_binned):
        span = sweep.span if measurement.kind == "binned fixed" else "adaptive"
        ranks = bin_ranks(h, int(measurement.size), span)
        bits = [bits_of_ranks(ranks, labeling.to(h.device)) for labeling in labelings]
        found.append(Bits(bits[0].inputs, torch.stack([one.labels for one in bits])))
    return found


def _kernels(h: Tensor, labels: Labels, sweep: Sweep) -> list[Bits]:
    labelings = [labeling[labels.kernel] for labeling in (labels.own, *labels.shuffled)]
    part = h if len(labels.kernel) == h.shape[-2] else h[:, labels.kernel.to(h.device)]
    pairs = kde_sweep(part, labelings, tuple(dict.fromkeys(sweep.sigma2)))
    return [upper for upper, _ in pairs] + [lower for _, lower in pairs]


def _distances(h: Tensor, labels: Tensor) -> tuple[float, float]:
    # Over all pairs, from sums: sum_ij |a_i - a_j|^2 = 2 n sum |a_i|^2 - 2 |sum a_i|^2.
    within, between = zip(*(_distances_of(one.double(), labels) for one in h), strict=True)
    return math.fsum(within) / len(h), math.fsum(between) / len(h)


def _distances_of(h: Tensor, labels: Tensor) -> tuple[float, float]:
    centred = h - h.mean(0)
    members = torch.nn.functional.one_hot(labels).double()
    sizes, squares, sums = members.sum(0), members.T @ centred.square().sum(1), members.T @ centred
    within = float((2 * (sizes * squares - sums.square().sum(1))).sum())
    everything = float(2 * (len(h) * squares.sum() - sums.sum(0).square().sum()))
    n_within, n_all = float((sizes * (sizes - 1)).sum()), len(h) * (len(h) - 1)
    mean_within = max(within, 0.0) / n_within if n_within else math.nan
    return mean_within, max(everything - within, 0.0) / (n_all - n_within)


def _means(values: Tensor) -> tuple[float, ...]:
    return tuple(values.mean(1).tolist())


def _deviations(values: Tensor) -> tuple[float, ...]:
    return tuple((values.std(1) if values.shape[1] > 1 else torch.zeros(len(values))).tolist())


def interval_of(values: Sequence[float]) -> float | None:
    """Half the width of a mean's 95 % interval (Student's t).

    Args:
        values: Of which the mean is taken.

    Returns:
        It; None for one value.

    Example:
        >>> round(interval_of([1.0, 2.0, 3.0]), 3)
        2.484
    """
    from scipy.stats import t

    n = len(values)
    if n < 2:
        return None
    mean = math.fsum(values) / n
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return float(t.ppf(0.975, n - 1)) * deviation / math.sqrt(n)

"""The figures of the weight spectrum: of a weight as it is, and of its entries in random order."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from invertible.instruments._marchenko_pastur import Bulk, Values, kolmogorov_smirnov, mp_cdf, split_bulk
from invertible.instruments._power_law import PowerLaw, fit_power_law
from invertible.instruments._spectrum_rows import Histogram, Permuted, Spectrum, Unfolding, WeightLayer
from invertible.instruments._weights import Weight, filters, frequencies

MIN_VALUES = 8
"""Fewer singular values have no distribution to speak of."""
N_BINS, N_OUTLIERS_KEPT = 60, 20
LILLIEFORS = 0.886
"""Times 1 / sqrt n: the 95 % point of the distance where mean and deviation come from the sample (Lilliefors 1967)."""
ZERO = 1e-12
"""Eigenvalues below this share of the largest one are rounding."""


@dataclass(frozen=True)
class _Figures:
    """What is measured of an unfolding, permuted or not."""

    shorter: int
    longer: int
    values: Values
    bulk: Bulk
    ks: float
    ks_bulk: float
    power_law: PowerLaw | None

    @property
    def largest(self) -> float:
        return math.sqrt(self.values[-1] / self.bulk.edge) if self.bulk.edge else 0.0


class Measurement:
    """One weight, and as many permutations of it as there is time for.

    Args:
        weight: The weight.
        seed: Of the permutations.
    """

    def __init__(self, weight: Weight, seed: int) -> None:
        self.weight = weight
        self._generator = torch.Generator().manual_seed(seed)
        self._entries = _Entries.of(weight)
        self._own = _unfold(weight) if self._entries.is_usable else {}
        self._nulls: dict[Unfolding, list[_Figures]] = {unfolding: [] for unfolding in self._own}
        self.n_permutations = 0

    def permute(self) -> None:
        """Measure the entries in another random order."""
        self.n_permutations += 1
        if not self._own:
            return
        order = torch.randperm(self.weight.values.numel(), generator=self._generator)
        values = self.weight.values.reshape(-1)[order.to(self.weight.values.device)].view(self.weight.values.shape)
        for unfolding, found in _unfold(replace(self.weight, values=values)).items():
            self._nulls[unfolding].append(found)

    def layer(self) -> WeightLayer:
        """What was found so far.

        Returns:
            The layer.
        """
        spectra = tuple(_spectrum(name, found, self._nulls[name]) for name, found in self._own.items())
        weight, entries = self.weight, self._entries
        return WeightLayer(
            weight.name or "the network", weight.kind, tuple(weight.values.shape), entries.mean, entries.std,
            entries.zeros, entries.ks, LILLIEFORS / math.sqrt(max(entries.n, 1)), entries.kurtosis,
            math.sqrt(24 / max(entries.n, 1)), entries.histogram, spectra, entries.is_finite,
        )  # fmt: skip


@dataclass(frozen=True)
class _Entries:
    n: int
    mean: float
    std: float
    zeros: float
    ks: float
    kurtosis: float
    histogram: Histogram
    is_finite: bool

    @property
    def is_usable(self) -> bool:
        return self.is_finite and self.std > 0

    @classmethod
    def of(cls, weight: Weight) -> _Entries:
        x = weight.values.double().reshape(-1)
        n, zeros, nothing = x.numel(), (x == 0).double().mean().item() if x.numel() else 0.0, Histogram(-5, 5, (), 0)
        if not n or not bool(x.isfinite().all()):
            return cls(n, math.nan, math.nan, zeros, math.nan, math.nan, nothing, not n)
        mean, std = x.mean().item(), x.std(correction=0).item()
        if std <= 1e-12 * abs(mean):  # a constant, but for rounding
            return cls(n, mean, 0.0, zeros, math.nan, math.nan, nothing, True)
        scaled = ((x - mean) / std).sort().values
        kurtosis = scaled.pow(4).mean().item() - 3
        ks = kolmogorov_smirnov(torch.special.ndtr(scaled).cpu().numpy())
        return cls(n, mean, std, zeros, ks, kurtosis, _histogram(scaled.cpu().numpy(), -5.0, 5.0), True)


def _unfold(weight: Weight) -> dict[Unfolding, _Figures]:
    variance = weight.values.double().var(correction=0).item()
    found: dict[Unfolding, _Figures] = {}
    matrices = filters(weight)
    if min(matrices.shape[1:]) >= MIN_VALUES:
        found["filters"] = _figures(matrices, torch.ones(1, dtype=torch.long), variance)
    split = frequencies(weight)
    if split is not None and min(split[0].shape[1:]) * int(split[1].sum()) >= MIN_VALUES:
        found["frequencies"] = _figures(*split, variance)
    return found


def _figures(matrices: Tensor, times: Tensor, variance: float) -> _Figures:
    p, n = sorted(matrices.shape[1:])
    wide = matrices if matrices.shape[1] == p else matrices.mH
    eigenvalues = torch.linalg.eigvalsh(wide @ wide.mH).clamp(min=0).cpu()
    values = eigenvalues.repeat_interleave(times, dim=0).reshape(-1).sort().values.numpy()
    bulk = split_bulk(values, p, n, int(times.sum()))
    kept = values[: len(values) - bulk.n_outliers]
    ks = kolmogorov_smirnov(mp_cdf(values / (n * variance), p / n))
    ks_bulk = kolmogorov_smirnov(mp_cdf(kept / (bulk.n * bulk.variance), bulk.q)) if bulk.variance else 1.0
    return _Figures(p, n, values, bulk, ks, ks_bulk, fit_power_law(values))


def _spectrum(unfolding: Unfolding, found: _Figures, nulls: list[_Figures]) -> Spectrum:
    values, bulk = found.values, found.bulk
    top = values[len(values) - bulk.n_outliers :]
    ratios = np.sqrt(top[::-1][:N_OUTLIERS_KEPT] / bulk.edge) if bulk.edge else top[:0]
    scaled = np.sqrt(values / (bulk.n * bulk.variance)) if bulk.variance else values
    return Spectrum(
        unfolding=unfolding,
        shorter=found.shorter,
        longer=found.longer,
        n_values=len(values),
        rank=int((values > ZERO * values[-1]).sum()),
        ks=found.ks,
        ks_bulk=found.ks_bulk,
        edge=math.sqrt(bulk.edge),
        largest=found.largest,
        n_outliers=bulk.n_outliers,
        outlier_energy=float(top.sum() / values.sum()),
        outliers=tuple(map(float, ratios)),
        histogram=_histogram(scaled, 0.0, 1.25 * (1 + math.sqrt(bulk.q))),
        aspect=bulk.q,
        power_law=found.power_law,
        permuted=_null(found, nulls) if nulls else None,
    )


def _null(found: _Figures, nulls: list[_Figures]) -> Permuted:
    alphas = [null.power_law.alpha for null in nulls if null.power_law is not None]
    p_value = (1 + sum(null.ks >= found.ks for null in nulls)) / (1 + len(nulls))
    return Permuted(
        len(nulls),
        float(np.quantile([null.ks for null in nulls], 0.95)),
        float(np.quantile([null.largest for null in nulls], 0.95)),
        float(np.mean([null.bulk.n_outliers for null in nulls])),
        p_value,
        min(alphas, default=None),
        max(alphas, default=None),
    )


def _histogram(values: Values, low: float, high: float) -> Histogram:
    counts, _ = np.histogram(values, N_BINS, (low, high))
    return Histogram(low, high, tuple(map(int, counts)), len(values))

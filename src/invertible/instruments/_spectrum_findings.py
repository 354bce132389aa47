"""The weight spectrum in sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from invertible.instruments._spectrum_rows import MIN_ORDERS, Spectrum, WeightLayer
from invertible.instruments.result import Finding

HEAVY = 1.0
"""Excess kurtosis from which a few entries hold much of the energy."""
_UNIFORM = -1.2
_Row = tuple[int, WeightLayer, Spectrum]


def findings_of(layers: Sequence[WeightLayer], stopped: str) -> tuple[Finding, ...]:
    """Say what the figures mean.

    Args:
        layers: The weights.
        stopped: Why the measurement ended early.

    Returns:
        Findings; rows are those of the table.
    """
    starts = [sum(len(other.rows()) for other in layers[:i]) for i in range(len(layers))]
    rows = [(at + j, layer, s) for at, layer in zip(starts, layers, strict=True) for j, s in enumerate(layer.spectra)]
    found = [*_unusable(layers, starts), *_rank(rows), *_randomness(rows), *_outliers(rows), *_tails(rows)]
    found += [*_entries(layers, starts)]
    if stopped:
        found.append(Finding("note", f"Measured in part: {stopped}."))
    return tuple(found)


def _unusable(layers: Sequence[WeightLayer], starts: Sequence[int]) -> Iterator[Finding]:
    for layer, at in zip(layers, starts, strict=True):
        if not layer.is_finite:
            yield Finding("error", f"{layer.name} holds NaN or infinity.", at)
        elif layer.std == 0 and math.prod(layer.shape):
            value = f"{layer.mean:.3g}"
            yield Finding("warning", f"All entries of {layer.name} are {value}: it has no spectrum.", at)
    small = [layer.name for layer in layers if layer.is_finite and layer.std > 0 and not layer.spectra]
    if small:
        yield Finding("note", f"Too small for a spectrum: {_some(small)}. Only the entries were looked at.")


def _rank(rows: Sequence[_Row]) -> Iterator[Finding]:
    lost = [(row, layer, s) for row, layer, s in rows if s.rank < s.n_values and s.unfolding == "filters"]
    if lost:
        row, layer, s = min(lost, key=lambda item: item[2].rank / item[2].n_values)
        text = f"{len(lost)} of {len(rows)} weights have directions that are lost exactly"
        yield Finding("warning", f"{text}, most of all {layer.name}: rank {s.rank} of {s.n_values}.", row)


def _randomness(rows: Sequence[_Row]) -> Iterator[Finding]:
    told = [(row, layer, s) for row, layer, s in rows if s.is_random_like is not None]
    if not told:
        if rows:
            text = f"Without {MIN_ORDERS} permutations there is no telling which spectra are random-like"
            yield Finding("note", f"{text}; n_permutations={MIN_ORDERS} measures the null.")
        return
    structured = [item for item in told if not item[2].is_random_like]
    if len(structured) <= _by_chance(len(told)):
        text = (
            f"Random-like: {len(told) - len(structured)} of {len(told)} spectra cannot be told from those of the same"
        )
        yield Finding(
            "note", f"{text} entries in random order (one in 20 would be, by chance). Untrained, or nearly so?"
        )
        return
    row, layer, s = max(structured, key=lambda item: item[2].ks / max(_null_ks(item[2]), 1e-9))
    text = f"{len(structured)} of {len(told)} spectra are not those of random matrices; furthest is {layer.name}"
    figures = f"distance {s.ks:.3f} from Marchenko-Pastur, {_null_ks(s):.3f} for its entries in random order"
    yield Finding(
        "note", f"{text} ({s.unfolding}: {figures}; without its {s.n_outliers} outliers {s.ks_bulk:.3f}).", row
    )


def _outliers(rows: Sequence[_Row]) -> Iterator[Finding]:
    above = [item for item in rows if item[2].n_outliers and item[2].more_outliers]
    if above:
        row, layer, s = max(above, key=lambda item: item[2].outlier_energy)
        text = f"{len(above)} of {len(rows)} spectra have outliers above the bulk; most energy in {layer.name}"
        figures = f"{s.n_outliers} of {s.n_values} singular values hold {s.outlier_energy:.0%} of it"
        yield Finding("note", f"{text} ({s.unfolding}): {figures}, the largest {s.largest:.2f} times the edge.", row)
    kept = [(*item, item[2].permuted.n_outliers) for item in rows if item[2].permuted and not item[2].more_outliers]
    by_entries = [item for item in kept if item[2].n_outliers and item[3] >= 1]
    if by_entries:
        row, layer, s, in_random_order = max(by_entries, key=lambda item: item[2].n_outliers)
        text = f"Outliers of {len(by_entries)} spectra come from single large entries or a common mean"
        text = f"{text}, not from their arrangement: random order keeps them ({layer.name}: {s.n_outliers}"
        yield Finding("note", f"{text}, in random order {in_random_order:.1f}).", row)


def _tails(rows: Sequence[_Row]) -> Iterator[Finding]:
    fitted = [
        item for item in rows if item[2].power_law and item[2].permuted and item[2].permuted.alpha_low is not None
    ]
    apart = [item for item in fitted if _is_apart(item[2])]
    if not fitted:
        return
    if not apart:
        alphas = [s.power_law.alpha for _, _, s in fitted if s.power_law]
        text = f"Power-law exponents ({min(alphas):.1f} to {max(alphas):.1f}) say nothing here"
        yield Finding("note", f"{text}: the intervals overlap the exponents of the same entries in random order.")
        return
    row, layer, s = min(apart, key=lambda item: item[2].power_law.alpha if item[2].power_law else math.inf)
    law, null = s.power_law, s.permuted
    if law is not None and null is not None:
        text = f"The tails of {len(apart)} of {len(fitted)} spectra are heavier than in random order, most of all"
        interval = f"95 % interval {law.low:.2f} to {law.high:.2f}, {law.n_tail} values"
        text = f"{text} {layer.name} ({s.unfolding}): exponent {law.alpha:.2f}, {interval}"
        yield Finding("note", f"{text}; in random order {null.alpha_low:.2f} or more.", row)


def _is_apart(spectrum: Spectrum) -> bool:
    law, null = spectrum.power_law, spectrum.permuted
    return law is not None and null is not None and null.alpha_low is not None and law.high < null.alpha_low


def _entries(layers: Sequence[WeightLayer], starts: Sequence[int]) -> Iterator[Finding]:
    known = [(at, layer) for at, layer in zip(starts, layers, strict=True) if layer.std > 0]
    heavy = [item for item in known if item[1].kurtosis > max(HEAVY, 3 * item[1].kurtosis_error)]
    if heavy:
        at, layer = max(heavy, key=lambda item: item[1].kurtosis)
        text = f"Entries of {len(heavy)} of {len(known)} weights have heavier tails than a Gaussian, most of all"
        yield Finding("note", f"{text} {layer.name}: excess kurtosis {layer.kurtosis:.1f}.", at)
    flat = [at for at, layer in known if abs(layer.kurtosis - _UNIFORM) < max(3 * layer.kurtosis_error, 0.02)
            and layer.entry_ks > layer.entry_ks_null]  # fmt: skip
    if flat and len(flat) >= len(known) / 2:
        text = f"Entries of {len(flat)} of {len(known)} weights are spread as in a uniform distribution"
        yield Finding("note", f"{text} (excess kurtosis -1.2): PyTorch's default initialization.", flat[0])
    sparse = [(at, layer) for at, layer in known if layer.zeros > 0.05]
    if sparse:
        at, layer = max(sparse, key=lambda item: item[1].zeros)
        yield Finding("note", f"{layer.zeros:.0%} of the entries of {layer.name} are exactly zero.", at)


def _by_chance(n: int) -> int:
    # Of n layers at a level of 5 %: the mean and two standard deviations.
    return int(0.05 * n + 2 * math.sqrt(0.05 * 0.95 * n)) if n > 1 else 0


def _null_ks(spectrum: Spectrum) -> float:
    return spectrum.permuted.ks if spectrum.permuted else 0.0


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

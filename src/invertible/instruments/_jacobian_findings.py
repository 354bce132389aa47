"""Jacobian spectra in sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from invertible.instruments._jacobian_rows import Spectrum
from invertible.instruments.result import Finding

SHARE = 0.01
ISOMETRIC = 0.05


def findings_of(spectra: Sequence[Spectrum], tolerance: float, stopped: str) -> tuple[Finding, ...]:
    """Say what the figures mean.

    Args:
        spectra: One per place and example.
        tolerance: Of Lanczos.
        stopped: Why the measurement ended early.

    Returns:
        Findings; rows are those of the table.
    """
    found = list(_about_measuring(spectra, tolerance, stopped))
    for place in dict.fromkeys(spectrum.place for spectrum in spectra):
        found += _of_place([(i, spectrum) for i, spectrum in enumerate(spectra) if spectrum.place == place])
    return tuple(found)


def _of_place(spectra: Sequence[tuple[int, Spectrum]]) -> Iterator[Finding]:
    i, worst = max(spectra, key=lambda item: item[1].condition)
    smaller = min(worst.n_in, worst.n_out)
    if worst.values[0] == 0:
        yield Finding("error", f"At {worst.place} the Jacobian is zero: nothing of the input gets there.", i)
        return
    bound = "at least " if worst.is_lower_bound else ""
    text = f"Condition of d {worst.place} / d input: {bound}{worst.condition:.3g}, the worst of {len(spectra)} examples"
    if worst.rank is not None and worst.rank < smaller:
        lost = f"{smaller - worst.rank} of {smaller} directions are lost, or smaller than rounding"
        is_double = worst.residuals[0] < 1e-12 * worst.values[0]
        hint = "" if is_double else " Try: model.double(), which tells the two apart."
        yield Finding("warning", f"{text}; {lost}.{hint}", i)
    elif worst.values[0] / (worst.smallest or worst.values)[-1] < 1 + ISOMETRIC and not worst.is_lower_bound:
        yield Finding("note", f"{text}: distances are all scaled alike.", i)
    else:
        yield Finding("note", f"{text}.", i)
    yield from _dense_figures([item for item in spectra if item[1].method == "dense"])
    if worst.n_out < worst.n_in:
        text = f"{worst.place} has {worst.n_out} numbers to the input's {worst.n_in}"
        yield Finding("note", f"{text}: at least {worst.n_in - worst.n_out} directions cannot be seen there.", i)


def _dense_figures(spectra: Sequence[tuple[int, Spectrum]]) -> Iterator[Finding]:
    if not spectra:
        return
    i, one = spectra[0]
    counts = sorted(spectrum.n_above(SHARE) for _, spectrum in spectra)
    ranks = sorted(spectrum.effective_rank or 0.0 for _, spectrum in spectra)
    text = f"{_range(counts)} of {len(one.values)} singular values at {one.place} exceed 1 % of the largest"
    yield Finding("note", f"{text}; effective rank {_range([round(rank) for rank in ranks])}.", i)
    logs = [spectrum.log_abs_det for _, spectrum in spectra if spectrum.log_abs_det is not None]
    if logs:
        low, high = min(logs), max(logs)
        span = f"{low:.4g}" if math.isclose(low, high, rel_tol=1e-3, abs_tol=1e-3) else f"{low:.4g} to {high:.4g}"
        yield Finding("note", f"log|det| at {one.place}: {span} nats.", i)


def _range(values: Sequence[int]) -> str:
    return str(values[0]) if values[0] == values[-1] else f"{values[0]} to {values[-1]}"


def _about_measuring(spectra: Sequence[Spectrum], tolerance: float, stopped: str) -> Iterator[Finding]:
    if stopped:
        yield Finding("warning", f"The measurement stopped early: {stopped}.")
    for i, spectrum in enumerate(spectra):
        largest = spectrum.values[0]
        if spectrum.method == "dense" or not largest:
            continue
        n_bad = sum(residual > tolerance * largest for residual in spectrum.residuals)
        n_bad_small = sum(residual > tolerance * largest for residual in spectrum.smallest_residuals)
        if n_bad or n_bad_small:
            text = f"After {spectrum.n_steps} steps {n_bad} of the largest and {n_bad_small} of the smallest values"
            where = f"at {spectrum.place}, example {spectrum.example}, have not converged"
            yield Finding("warning", f"{text} {where}; look at their residuals. Try: more n_steps.", i)
            return

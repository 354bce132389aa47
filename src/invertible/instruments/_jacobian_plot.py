"""Jacobian spectra as a picture: figure 4 of i-RevNet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from invertible.instruments._jacobian_rows import Spectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(ax: Axes | None, spectra: Sequence[Spectrum], title: str) -> Axes:
    """Draw sorted singular values over the largest, one line per example, one colour per place.

    Args:
        ax: Where; None: on a new figure.
        spectra: One per place and example.
        title: Above it.

    Returns:
        The axes.
    """
    import matplotlib.pyplot as plt

    axes = plt.subplots(figsize=(7, 4.2), layout="constrained")[1] if ax is None else ax
    places = list(dict.fromkeys(spectrum.place for spectrum in spectra))
    for spectrum in spectra:
        number = places.index(spectrum.place)
        is_first = spectrum.place not in {other.place for other in spectra[: spectra.index(spectrum)]}
        _draw_one(axes, spectrum, f"C{number}", spectrum.place if is_first else None)
    axes.set(yscale="log", xlabel="number, sorted", ylabel="singular value / largest", title=title)
    floor = min(_positive(spectra), default=1.0)
    axes.set_ylim(max(floor / 2, 1e-10), 1.5)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    return axes


def _draw_one(axes: Axes, spectrum: Spectrum, colour: str, label: str | None) -> None:
    style = "-" if spectrum.method == "dense" else "o-"
    shown = [value if value > 0 else math.nan for value in spectrum.normalised]
    axes.plot(range(1, len(shown) + 1), shown, style, color=colour, alpha=0.7, markersize=3, label=label)
    if spectrum.smallest and spectrum.values[0]:
        end = min(spectrum.n_in, spectrum.n_out)
        numbers = range(end - len(spectrum.smallest) + 1, end + 1)
        low = [value / spectrum.values[0] if value > 0 else math.nan for value in spectrum.smallest]
        axes.plot(numbers, low, "v", color=colour, alpha=0.7, markersize=3)


def _positive(spectra: Sequence[Spectrum]) -> list[float]:
    found = [(spectrum.values[0], value) for spectrum in spectra for value in (*spectrum.values, *spectrum.smallest)]
    return [value / largest for largest, value in found if value > 0]

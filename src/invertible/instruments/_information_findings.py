"""Information planes in sentences. None speaks of what is lost unless all measurements agree."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from invertible.instruments._information_measure import interval_of
from invertible.instruments._information_rows import About, Fall, Phase, PlaceInformation
from invertible.instruments.result import Finding

MIN_FALL = 0.1
"""Bits below which a fall is none."""
_AT_CEILING = 0.99
_JITTERS = 3.0


def falls_of(
    epochs: Sequence[int], places: Sequence[str], about: About, raw: Mapping[int, Sequence[Tensor]]
) -> tuple[Fall, ...]:
    """How far information about the input fell from its peak to the end, per place and measurement.

    Args:
        epochs: Two or more.
        places: Their names.
        about: What was measured.
        raw: By epoch and place, shape (measurements, n_networks).

    Returns:
        Places first, then measurements.
    """
    return tuple(
        _fall(epochs, place, [raw[epoch][i][m].tolist() for epoch in epochs], about, m)
        for i, place in enumerate(places)
        for m in range(len(about.measurements))
    )


def _fall(epochs: Sequence[int], place: str, curves: Sequence[Sequence[float]], about: About, m: int) -> Fall:
    means = [math.fsum(values) / len(values) for values in curves]
    top = max(range(len(means)), key=means.__getitem__)
    steps = [abs(b - a) for a, b in zip(means[top:-1], means[top + 1 :], strict=True)]
    # Half of the snapshots rise and fall on the way: their typical size is what chance makes of a figure.
    jitter = statistics.median(steps) if len(steps) > 2 else 0.0
    falls = [peak - last for peak, last in zip(curves[top], curves[-1], strict=True)]
    interval = interval_of(falls)
    fall = means[top] - means[-1]
    least = max(MIN_FALL, _JITTERS * jitter, interval or 0.0)
    measurement = about.measurements[m]
    return Fall(place, measurement, epochs[top], means[top], means[-1], fall, interval, jitter, fall > least)


def moment_findings(
    about: About, places: Sequence[PlaceInformation], stopped: str, first_row: int = 0
) -> tuple[Finding, ...]:
    """Say what one moment's figures mean.

    Args:
        about: What was measured.
        places: Then.
        stopped: Why the measurement ended early.
        first_row: Of the table, of this moment.

    Returns:
        Findings.
    """
    found = [*_about_data(about, stopped), *_invertible(about, places, first_row)]
    found += [*_at_ceiling(about, places, first_row), *_null(about, places, first_row)]
    return (*found, _standing(about))


def trajectory_findings(
    about: About, last: Sequence[PlaceInformation], falls: Sequence[Fall], phases: Sequence[Phase], first_row: int
) -> tuple[Finding, ...]:
    """Say what a trajectory means.

    Args:
        about: What was measured.
        last: The places at the last epoch.
        falls: Per place and measurement.
        phases: Of gradients.
        first_row: Of the table, of the last epoch.

    Returns:
        Findings.
    """
    found = list(moment_findings(about, last, "", first_row))
    for i, place in enumerate(last):
        own = [fall for fall in falls if fall.place == place.place and place.place not in about.invertible]
        if own:
            found.append(_of_falls(about, place, own, first_row + i * len(about.measurements)))
    return (*found, *_of_invertible(about, falls), *_of_phases(phases))


def _of_invertible(about: About, falls: Sequence[Fall]) -> Iterator[Finding]:
    own = [fall for fall in falls if fall.place in about.invertible]
    if own:
        widest = max(own, key=lambda fall: fall.fall)
        text = f"Where the network is invertible, figures fall by up to {widest.fall:.2f} bits over the training"
        where = f"{widest.place}, under {widest.measurement.name}, after epoch {widest.peak_epoch}"
        yield Finding("note", f"{text} ({where}), and I(X; T) by none: what falls there is the measurement's.")


def _of_falls(about: About, place: PlaceInformation, falls: Sequence[Fall], row: int) -> Finding:
    clear = [fall for fall in falls if fall.is_clear]
    main = falls[about.number_of("binned fixed")]
    change = f"{main.peak:.2f} to {main.last:.2f} bits from epoch {main.peak_epoch} on under {main.measurement.name}"
    if not clear:
        text = f"At {place.place} the discretised entropy falls under none of the {len(falls)} measurements"
        return Finding("note", f"{text} by more than chance ({MIN_FALL} bits): {change}.", row)
    if len(clear) < len(falls):
        return Finding("note", _disagreement(place, clear, falls), row)
    text = (
        f"At {place.place} the discretised entropy under measurement M falls for every M of the sweep, bins and kernels"
    )
    spread = "" if main.interval is None else f" +- {main.interval:.2f} (95 %, {about.n_networks} networks)"
    if _is_null(about, place):
        hint = "I(T; Y) is not above that of shuffled labels, so that nothing is said about classes"
        return Finding("warning", f"{text} ({change}{spread}), but {hint}.", row)
    i = about.number_of("binned fixed")
    over = f"I(T; Y) ends at {place.labels[i]:.2f} bits, {place.shuffled[i]:.2f} with shuffled labels"
    return Finding("note", f"{text}: {change}{spread}; {over}.", row)


def _disagreement(place: PlaceInformation, clear: Sequence[Fall], falls: Sequence[Fall]) -> str:
    others = [fall for fall in falls if not fall.is_clear]
    text = f"At {place.place} the measurements disagree: the discretised entropy falls under {_names(clear)}"
    return f"{text}, and does not under {_names(others)}. That is about measuring: no conclusion on the network."


def _names(falls: Sequence[Fall]) -> str:
    return _some([fall.measurement.name for fall in falls])


def _of_phases(phases: Sequence[Phase]) -> Iterator[Finding]:
    turned = [f"{phase.layer} from epoch {phase.turn}" for phase in phases if phase.turn >= 0]
    if turned:
        text = "Gradients diffuse (deviation over batches above their mean) for good"
        yield Finding("note", f"{text}: {_some(turned, 8)}.")
    drifting = [phase.layer for phase in phases if phase.turn < 0]
    if drifting:
        yield Finding("note", f"Gradients still drift (mean above deviation) at the end: {_some(drifting, 8)}.")


def _some(names: Sequence[str], n: int = 3) -> str:
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")


def _about_data(about: About, stopped: str) -> Iterator[Finding]:
    if stopped:
        yield Finding("warning", f"The measurement stopped early: {stopped}.")
    if about.n_inputs < about.n_examples:
        text = f"{about.n_examples - about.n_inputs} of {about.n_examples} inputs come twice"
        yield Finding("note", f"{text}: H(X) of the data is {about.input_bits:.3f} bits.")
    if about.linear:
        some = ", ".join(about.linear[:3])
        text = f"{some}: heard before any nonlinearity, where units have no bounds. Try: layers=... of activations"
        yield Finding("note", f"{text}, if the network has them as modules.")


def _invertible(about: About, places: Sequence[PlaceInformation], first_row: int) -> Iterator[Finding]:
    n = len(about.measurements)
    inside = [(i, place) for i, place in enumerate(places) if place.place in about.invertible]
    if not inside:
        return
    i, place = inside[-1]
    whole = (
        "I(X; T) = H(X)"
        if about.keeps_input
        else "T tells all that enters the invertible part: I(X; T) = I(X; input of it)"
    )
    text = (
        f"Up to {place.place} the network is invertible, so that {whole} by construction, {about.input_bits:.3f} bits"
    )
    if not about.keeps_input:
        text = f"Up to {place.place} the network is invertible: {whole} by construction"
    yield Finding("note", f"{text}; any change of the figures is the measurement's.", first_row + i * n)
    for j, other in inside:
        if about.keeps_input and other.unmeasured < about.input_bits - 1e-9:
            lost = f"{about.input_bits - other.unmeasured:.3f} bits of the input are lost at {other.place}"
            text = f"In this precision {lost}: different inputs have equal activations, to the bit"
            yield Finding("warning", f"{text}. Try: model.double().", first_row + j * n)
            return


def _at_ceiling(about: About, places: Sequence[PlaceInformation], first_row: int) -> Iterator[Finding]:
    main = about.number_of("binned fixed")
    ceiling = about.ceiling_of(about.measurements[main])
    full = [(i, p) for i, p in enumerate(places) if p.inputs[main] > _AT_CEILING * ceiling]
    if full:
        names = _some([place.place for _, place in full], 4)
        text = f"{names}: almost every input has a pattern of its own ({ceiling:.2f} bits at most), so that"
        row = first_row + full[0][0] * len(about.measurements) + main
        hint = "Try: fewer bins, more examples, narrower places"
        yield Finding("warning", f"{text} {about.measurements[main].name} says nothing there. {hint}.", row)


def _null(about: About, places: Sequence[PlaceInformation], first_row: int) -> Iterator[Finding]:
    found = [(i, place.place) for i, place in enumerate(places) if _is_null(about, place)]
    if found:
        text = f"At {_some([name for _, name in found], 4)} I(T; Y) is not above that of shuffled labels"
        row = first_row + found[0][0] * len(about.measurements)
        yield Finding("warning", f"{text}: it says nothing about the label there.", row)


def _is_null(about: About, place: PlaceInformation) -> bool:
    # Both the main binned and the main kernel figure have to be above every shuffle.
    for number in (about.number_of("binned fixed"), about.number_of("KDE lower")):
        if place.labels[number] <= place.shuffled_high[number] + 1e-9:
            return True
    return False


def _standing(about: About) -> Finding:
    text = "The true I(X; T) of a network without noise is H(T), and H(X) unless it merges inputs"
    return Finding(
        "note", f"{text}: these are entropies of activations under a measurement, {about.ceiling:.2f} bits at most."
    )

"""Loss slices in sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from invertible.instruments._slice_rows import Slice
from invertible.instruments.result import Finding

if TYPE_CHECKING:
    from invertible.instruments.loss_slice import LossSlice

SMALL = 1e-6
"""Differences below this share of the loss are rounding."""


def findings_of(found: LossSlice, why_single: str, n_classes: int | None, stopped: str) -> tuple[Finding, ...]:
    """Say what the pictures show.

    Args:
        found: All but its findings.
        why_single: Why points were not computed together; "": they were, or it would not have paid.
        n_classes: Different labels in the data; None: they have none.
        stopped: Why the measurement ended early.

    Returns:
        Findings.
    """
    return (*_about_measuring(found, why_single, n_classes, stopped), *_about_slices(found))


def _about_measuring(found: LossSlice, why_single: str, n_classes: int | None, stopped: str) -> Iterator[Finding]:
    if stopped:
        yield Finding("warning", f"The measurement stopped early: {stopped}.")
    if n_classes == 1:
        text = "All labels are of one class: this is the loss of a network that need not tell anything apart"
        yield Finding("warning", f"{text}. Try: shuffled data.")
    if why_single:
        yield Finding("note", f"Points were computed one by one, which takes longer: {why_single}")
    losses = [loss for one in found.slices for loss in one.losses]
    bad = sum(not math.isfinite(loss) for loss in losses)
    if bad and not stopped:
        text = f"At {bad} of {len(losses)} points the loss is not finite: the pictures have gaps there"
        yield Finding("warning", f"{text}. Try: a smaller span.")


def _about_slices(found: LossSlice) -> Iterator[Finding]:
    for one in found.slices:
        if found.along == "models" and len(one.axes) == 1:
            yield _barrier(found, one)
        elif found.along == "path":
            yield from _path(found, one)
    if found.along in ("random", "eigenvectors", "directions"):
        yield from _around(found)
    if sum(one.shares == () for one in found.slices) == 1 and found.along == "random":
        yield Finding("note", "One slice is one view of many. Try: more n_slices, and along='eigenvectors'.")


def _barrier(found: LossSlice, one: Slice) -> Finding:
    height, at = barrier(one, found.loss)
    ends = f"{found.loss:.4g} and {one.marks[0].loss:.4g}"
    if height > SMALL * max(abs(found.loss), abs(one.marks[0].loss)):
        text = f"Between the networks the loss rises {height:.4g} above the line between their losses {ends}"
        return Finding(
            "note", f"{text}, at {at:.2f} of the way. Networks that only number their units alike may differ."
        )
    return Finding("note", f"No barrier: between the networks the loss stays below the line between {ends}.")


def barrier(one: Slice, loss: float) -> tuple[float, float]:
    """How far the loss rises above the straight line between two networks' losses.

    Args:
        one: The slice between them.
        loss: The first one's.

    Returns:
        The height, and where, as a share of the way.
    """
    inside = [(x, y) for x, y in zip(one.axes[0].at, one.losses, strict=True) if 0 <= x <= 1 and math.isfinite(y)]
    return max((y - (1 - x) * loss - x * one.marks[0].loss, x) for x, y in inside)


def _path(found: LossSlice, one: Slice) -> Iterator[Finding]:
    text = f"The slice has {sum(one.shares):.0%} of the path's variance"
    tail = "a random walk has most of its variance in few components too, so this says little about the loss"
    yield Finding("note", f"{text}; {tail}.")
    worst = max(one.marks, key=lambda mark: abs(mark.loss))
    yield Finding("note", f"Along the path the loss goes up to {worst.loss:.4g} ({worst.name}); points are projected.")


def _around(found: LossSlice) -> Iterator[Finding]:
    lower = [(one, *one.lowest) for one in found.slices]
    one, at, loss = min(lower, key=lambda item: item[2] if math.isfinite(item[2]) else math.inf)
    if loss < found.loss * (1 - SMALL) - 1e-12:
        where = ", ".join(f"{x:.3g}" for x in at)
        text = (
            f"The network is not the lowest point: {loss:.4g} at ({where}) along {one.name}, against {found.loss:.4g}"
        )
        yield Finding("note", f"{text}.")
    elif math.isfinite(loss):
        yield Finding("note", f"Nowhere in these slices is the loss lower than the network's {found.loss:.4g}.")
    several = [one for one in found.slices if one.n_minima > 1]
    if several:
        text = f"{len(several)} of {len(found.slices)} lines have more than one minimum: {several[0].name} has"
        yield Finding("note", f"{text} {several[0].n_minima}.")
    rises = found.rises
    if len(rises) > 1:
        text = f"At the ends of {len(rises)} lines the loss has risen by {min(rises):.3g} to {max(rises):.3g}"
        yield Finding("note", f"{text}: so much does one line differ from another.")

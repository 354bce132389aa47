"""What is found along a line between two representations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from invertible.instruments._pictures import Picture
from invertible.instruments.result import Finding, Row

LOOSE = 1e-2
"""Largest error of an end, over the range of the data, that is no reconstruction any more."""


@dataclass(frozen=True)
class Step:
    """One image on a line.

    Args:
        position: t, 0 to 1.
        from_pixels: Root mean square distance to the image on the line between pixels.
        from_ends: Root mean square distance to the nearer of both images.
        outside: Share of its numbers outside the range of both images.
        reconstruction: At the ends, the largest error against the image itself; None in between.
    """

    position: float
    from_pixels: float
    from_ends: float
    outside: float
    reconstruction: float | None

    def row(self, first: int, second: int) -> Row:
        """As a row of the table.

        Args:
            first: Number of the first example.
            second: Of the second.

        Returns:
            Plain values.
        """
        return {"first": first, "second": second, **vars(self)}


@dataclass(frozen=True)
class Line:
    """The line between two examples.

    Args:
        first: Number of the first in the data.
        second: Of the second.
        decoded: Images decoded from the line between representations.
        mixed: Images on the line between pixels.
        steps: Figures of each.
    """

    first: int
    second: int
    decoded: tuple[Picture, ...]
    mixed: tuple[Picture, ...]
    steps: tuple[Step, ...]


def findings_of(
    lines: Sequence[Line], part: str, is_from_input: bool, span: float, is_onto: bool, stopped: str
) -> tuple[Finding, ...]:
    """Say what the figures mean.

    Args:
        lines: One per pair.
        part: What was undone.
        is_from_input: Whether its input is the network's.
        span: Range of the data.
        is_onto: Whether every point between is a representation.
        stopped: Why it ended early.

    Returns:
        Findings; rows are those of the table.
    """
    return tuple(_find(lines, part, is_from_input, span, is_onto, stopped))


def _find(
    lines: Sequence[Line], part: str, is_from_input: bool, span: float, is_onto: bool, stopped: str
) -> Iterator[Finding]:
    if stopped:
        yield Finding("warning", f"The measurement stopped early: {stopped}.")
    if not is_from_input:
        yield Finding("warning", f"{part} starts inside the network: what is decoded is its input, not images.")
    if not is_onto:
        text = "The network is injective: between two representations there are points that are none"
        yield Finding("note", f"{text}; what came back in place of appended zeros was dropped.")
    steps = [(i, step) for i, step in enumerate(step for line in lines for step in line.steps)]
    i, worst = max(steps, key=lambda item: item[1].reconstruction or 0.0)
    error = worst.reconstruction or 0.0
    if error > LOOSE * span:
        hint = "`invertible.instruments.reversibility` tells where the inverse loses the input"
        yield Finding(
            "error", f"The ends do not come back: largest error {error:.2g} at a range of {span:.2g}. {hint}.", i
        )
    else:
        yield Finding("note", f"Both ends come back: largest error {error:.2g} at a range of {span:.2g}.", i)
    inner = [(i, step) for i, step in steps if step.reconstruction is None]
    if inner:
        i, far = max(inner, key=lambda item: item[1].from_pixels)
        text = f"Between them decoded images are up to {far.from_pixels:.2g} (rms) from the line between pixels"
        share = max(step.outside for _, step in inner)
        yield Finding("note", f"{text}; up to {share:.0%} of an image's numbers leave the range of its ends.", i)

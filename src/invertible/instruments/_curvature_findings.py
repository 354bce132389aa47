"""Curvature in sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from invertible.instruments.result import Finding

if TYPE_CHECKING:
    from invertible.instruments.curvature import Curvature

FLAT = 1e-3
"""A gradient shorter than this times the largest eigenvalue (a step of 0.001 undoes it) is as good as none."""
NOISY = 0.25
"""Standard error over batches, over the value."""


def findings_of(found: Curvature, tolerance: float, n_classes: int | None, stopped: str) -> tuple[Finding, ...]:
    """Say what the figures mean.

    Args:
        found: All but its findings.
        tolerance: Of residuals.
        n_classes: Different labels in the data; None: they have none.
        stopped: Why the measurement ended early.

    Returns:
        Findings; rows are those of the table.
    """
    return (*_about_measuring(found, tolerance, n_classes, stopped), *_about_ends(found), *_about_all(found))


def _about_measuring(found: Curvature, tolerance: float, n_classes: int | None, stopped: str) -> Iterator[Finding]:
    if stopped:
        yield Finding("warning", f"The measurement stopped early: {stopped}.")
    if n_classes == 1:
        text = "All labels are of one class: this is the loss of a network that need not tell anything apart"
        yield Finding("warning", f"{text}. Try: shuffled data.")
    radius = max(abs(pair.value) for pair in found.eigenvalues)
    bad = [i for i, pair in enumerate(found.eigenvalues) if pair.residual > tolerance * radius]
    if bad:
        text = f"{len(bad)} of {len(found.eigenvalues)} eigenvalues have not converged: look at their residuals"
        yield Finding(
            "warning", f'{text}. Try: dtype="float64", more n_steps, or fewer of them.', found.first_row + bad[0]
        )
    if found.n_frozen:
        text = f"{found.n_frozen:,} parameters do not require gradients and are held fixed"
        yield Finding("note", f"{text}: the matrix is that of the other {found.n_parameters:,}.")


def _about_ends(found: Curvature) -> Iterator[Finding]:
    top = found.eigenvalues[0]
    row = found.first_row
    if top.value > 0:
        text = (
            f"Largest eigenvalue {top.value:.4g}: plain gradient descent is stable up to a step of {2 / top.value:.3g}"
        )
        yield Finding("note", f"{text}. It depends on the scale of weights: compare it among equal networks.", row)
    if top.over_batches is not None and top.over_batches > NOISY * abs(top.value):
        text = f"The largest eigenvalue's standard error over batches is {top.over_batches / abs(top.value):.0%} of it"
        yield Finding("warning", f"{text}: other data would give another. Try: more examples.", row)
    low = next((pair for pair in found.eigenvalues if pair.end == "smallest"), None)
    if low is None:
        return
    place = row + found.eigenvalues.index(low)
    if low.value < -max(low.residual, found.threshold):
        if found.matrix == "gauss-newton":
            text = "The Gauss-Newton matrix has a negative eigenvalue: the loss is not convex in the network's output"
            yield Finding("note", f"{text}.", place)
        else:
            text = f"Smallest eigenvalue {low.value:.4g}, {abs(low.value / top.value):.1%} of the largest"
            yield Finding("note", f"{text}: there is a direction in which the loss bends down.", place)


def _about_all(found: Curvature) -> Iterator[Finding]:
    radius = max(abs(pair.value) for pair in found.eigenvalues)
    text = f"{found.index} of the eigenvalues are below {-found.threshold:.2g}"
    length = f"the gradient's norm is {found.gradient_norm:.3g}"
    if found.matrix == "hessian" and found.gradient_norm > FLAT * radius:
        text += f"; {length}, so this is no critical point, and no index of one"
    elif found.matrix == "hessian":
        text += f"; {length}: the index of what is close to a critical point"
    yield Finding("note", f"{text}.", found.row_of("negative share"))
    trace = found.trace
    mean = trace.value / found.n_parameters
    text = f"Trace {trace}: the mean eigenvalue is {mean:.3g}"
    if mean and radius / abs(mean) > 10:
        text += f", the largest {radius / abs(mean):,.0f} times that"
    yield Finding("note", f"{text}.", found.row_of("trace"))
    if not math.isnan(found.gradient_in_largest) and found.n_parameters > 10 * found.n_largest:
        where = f"in the {found.n_largest} largest directions of {found.n_parameters:,}"
        text = f"{found.gradient_in_largest:.0%} of the gradient (squared) lies {where}."
        yield Finding("note", text, found.row_of("gradient norm"))

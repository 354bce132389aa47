"""Spread of losses in sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from invertible.instruments._loss_spread_rows import Interval, Width, difference
from invertible.instruments.result import Finding

FEW = 100
SMALL_GRADIENT = 1e-3


def findings_of(widths: Sequence[Width], zero: float, stopped: str) -> tuple[Finding, ...]:
    """Say what the figures mean.

    Args:
        widths: Narrowest first.
        zero: Eigenvalues within it counted as zero.
        stopped: Why the measurement ended early.

    Returns:
        Findings; rows are those of the table.
    """
    found = list(_about_measuring(widths, stopped))
    if len(widths) > 1:
        found += [*_spread(widths[0], widths[-1]), *_rho(widths[0], widths[-1])]
    for i, width in enumerate(widths):
        found += list(_index(i, width, zero))
    return tuple(found)


def _about_measuring(widths: Sequence[Width], stopped: str) -> Iterator[Finding]:
    if stopped:
        yield Finding("warning", f"The measurement stopped early: {stopped}.")
    for i, width in enumerate(widths):
        n = len(width.test_losses)
        if n < FEW:
            text = f"{n} networks of width {width.width} tell little about a correlation"
            low, high = width.rho.low, width.rho.high
            yield Finding("warning", f"{text}: its 95 % interval is {low:.2f} to {high:.2f}. Try: n_networks=1000.", i)
            return


def _spread(narrow: Width, wide: Width) -> Iterator[Finding]:
    one, other = narrow.spread, wide.spread
    if math.isnan(one.value) or math.isnan(other.value):
        return
    text = f"Standard deviation of the test loss: {_with(one)} at width {narrow.width}, {_with(other)} at {wide.width}"
    change = difference(one, other)
    if change.low > 0:
        verdict = f"it narrows, {one.value / other.value:.3g}-fold"
    elif change.high < 0:
        verdict = "it widens, against the paper"
    else:
        verdict = "the intervals do not tell whether it narrows"
    yield Finding("note", f"{text}: {verdict}.")


def _rho(narrow: Width, wide: Width) -> Iterator[Finding]:
    one, other = narrow.rho, wide.rho
    if math.isnan(one.value) or math.isnan(other.value):
        return
    text = f"Correlation of train and test loss over networks: {_with(one)} at width {narrow.width}, {_with(other)} at"
    change = difference(one, other)
    if change.low > 0:
        verdict = "of wide networks, less of the rank in training carries over to the test"
    elif change.high < 0:
        verdict = "it rises with width, against the paper"
    else:
        verdict = "the intervals do not tell whether it changes"
    yield Finding("note", f"{text} {wide.width}: {verdict}.")


def _index(i: int, width: Width, zero: float) -> Iterator[Finding]:
    if not width.indices:
        return
    shares = [index.negative for index in width.indices]
    text = (
        f"Width {width.width}: {min(shares):.2%} to {max(shares):.2%} of the Hessian's eigenvalues are below -{zero:g}"
    )
    gradient = max(index.gradient_norm for index in width.indices)
    end = f"gradient norm up to {gradient:.1e}"
    if gradient > SMALL_GRADIENT:
        text = f"{text}, {end}: training had not come to rest, so this is no index of a critical point"
    else:
        text = f"{text}, {end}"
    yield Finding("note", f"{text} ({len(shares)} networks).", i)


def _with(figure: Interval) -> str:
    return f"{figure.value:.3g} ({figure.low:.3g} to {figure.high:.3g})"

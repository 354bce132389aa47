"""Several results on one axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from invertible.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from invertible.instruments.result import Result


@dataclass(frozen=True)
class Curve:
    """What one result adds to a comparison.

    Args:
        x: Positions.
        y: Values at them; NaN leaves a gap.
        x_label: What the positions are.
        y_label: What the values are, with their unit.
        log: Whether values are read on a logarithmic scale; those that are not positive leave gaps there.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    x_label: str
    y_label: str
    log: bool = False

    @property
    def shown(self) -> list[float]:
        """The values as they are drawn."""
        return [y if not self.log or y > 0 else math.nan for y in self.y]


def draw_compared(results: Sequence[Result], labels: Sequence[str] | None, curve: str | None, ax: Axes | None) -> Axes:
    """Draw one curve of each result.

    Args:
        results: All of one kind.
        labels: One per result; None: numbers.
        curve: Which; None: the first one's first.
        ax: Where; None: on a new figure.

    Returns:
        The axes.

    Raises:
        ConfigError: If the kinds differ, one has no such curve, or the labels do not fit.
    """
    kinds = [type(result).__name__ for result in results]
    if len(set(kinds)) > 1:
        raise ConfigError("only results of one kind can be compared", got=" and ".join(dict.fromkeys(kinds)))
    names = [str(i) for i in range(1, len(results) + 1)] if labels is None else list(labels)
    if len(names) != len(results):
        raise ConfigError("the labels do not fit", expected=f"{len(results)}, this result's first", got=len(names))
    axes = _new_axes() if ax is None else ax
    curves = [_curve_of(result, curve or next(iter(results[0].curves), "")) for result in results]
    for i, (name, found) in enumerate(zip(names, curves, strict=True)):
        axes.plot(found.x, found.shown, "o-", markersize=3, color=f"C{i}", label=name)
    return _finish(axes, curves[0])


def _curve_of(result: Result, name: str) -> Curve:
    curves = result.curves
    if name not in curves:
        kind = type(result).__name__
        expected = " or ".join(map(repr, curves)) or "an instrument that has curves"
        raise ConfigError(f"{kind} has no such curve to compare", expected=expected, got=repr(name))
    return curves[name]


def _finish(axes: Axes, curve: Curve) -> Axes:
    axes.set(xlabel=curve.x_label, ylabel=curve.y_label)
    if curve.log:
        axes.set_yscale("log")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return axes


def _new_axes() -> Axes:
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(7, 4.2), layout="constrained")[1]

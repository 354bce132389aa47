"""Errors of multiplying networks against the scale of their weights, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKS = {"one layer": "--", "tree": "-"}


class Drawn(Protocol):
    """What is drawn of a multiplier."""

    @property
    def n(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def neurons(self) -> int: ...
    @property
    def floor(self) -> float: ...
    @property
    def scales(self) -> tuple[float, ...]: ...
    @property
    def errors(self) -> tuple[float, ...]: ...


def draw(ax: Axes | None, found: Sequence[Drawn]) -> Axes:
    """Draw errors against the scale; on a new figure also neurons and smallest errors against the variables.

    Args:
        ax: Where; None: on a new figure.
        found: One per network.

    Returns:
        The axes of errors against the scale.
    """
    import matplotlib.pyplot as plt

    if ax is not None:
        return _errors(ax, found)
    _, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained", width_ratios=(1.5, 1, 1))
    for kind, style in MARKS.items():
        own = [multiplier for multiplier in found if multiplier.kind == kind]
        ns = [multiplier.n for multiplier in own]
        middle.plot(ns, [m.neurons for m in own], f"o{style}", color="0.2", markersize=4, label=kind)
        right.plot(ns, [m.floor for m in own], f"o{style}", color="0.2", markersize=4, label=kind)
    middle.set(yscale="log", xlabel="variables", ylabel="neurons", title="Cost of a product")
    right.set(yscale="log", xlabel="variables", ylabel="smallest relative error", title="Accuracy in float64")
    for axes in (middle, right):
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    return _errors(left, found)


def _errors(axes: Axes, found: Sequence[Drawn]) -> Axes:
    ns = sorted({multiplier.n for multiplier in found})
    for multiplier in found:
        colour, label = f"C{ns.index(multiplier.n)}", str(multiplier.n) if multiplier.kind == "tree" else None
        axes.plot(multiplier.scales, multiplier.errors, MARKS[multiplier.kind], color=colour, label=label)
    smallest = min(multiplier.floor for multiplier in found)
    axes.set(xscale="log", yscale="log", xlabel="scale of the weights", ylabel="largest relative error")
    axes.set_ylim(smallest / 3, 10)
    axes.set_title("Tree (solid) and one layer (dashed)")
    axes.grid(alpha=0.25)
    axes.legend(title="variables", frameon=False, loc="lower left")
    return axes

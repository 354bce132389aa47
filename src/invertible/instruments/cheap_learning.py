"""Why depth is cheap: multiplying with a few neurons, and how many it takes without depth (Lin et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from invertible.errors import ConfigError
from invertible.instruments._cheap_plot import draw
from invertible.instruments._compare_plot import Curve
from invertible.instruments._product_networks import (
    FUNCTIONS,
    MOST_VARIABLES,
    Neuron,
    Smooth,
    n_layers,
    n_neurons,
    one_layer,
    predicted,
    tree,
)
from invertible.instruments.provenance import Stopwatch, provenance
from invertible.instruments.result import Finding, Result, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = "cheap_learning"
MAKERS = {"one layer": one_layer, "tree": tree}
SCALES = tuple(float(scale) for scale in np.logspace(-6, 0, 49))
ABOVE_BEST, LARGEST_ERROR = 4.0, 1e-2
"""What tells the slope: scales so many times the best, where rounding no longer enters, and errors up to this size."""


@dataclass(frozen=True)
class Multiplier:
    """One network's error against the scale of its weights.

    Args:
        n: How many variables it multiplies.
        kind: "one layer" or "tree".
        neurons: Hidden units.
        layers: Hidden layers.
        scales: Of the weights, ascending.
        errors: Largest relative error over the inputs, per scale.
        predictions: The same to second order in the scale, in exact arithmetic.
    """

    n: int
    kind: str
    neurons: int
    layers: int
    scales: tuple[float, ...]
    errors: tuple[float, ...]
    predictions: tuple[float, ...]

    @property
    def floor(self) -> float:
        """The smallest error at any scale."""
        return min(self.errors)

    @property
    def best_scale(self) -> float:
        """Where it is reached."""
        return self.scales[self.errors.index(self.floor)]

    @property
    def slope(self) -> float:
        """Power of the scale with which the error falls, by least squares above the best scale; NaN: too few points.

        The theory has 2.
        """
        pairs = zip(self.scales, self.errors, strict=True)
        chosen = [pair for pair in pairs if pair[0] >= ABOVE_BEST * self.best_scale and 0 < pair[1] <= LARGEST_ERROR]
        if len(chosen) < 3:
            return math.nan
        x, y = np.log(np.array(chosen)).T
        return float(np.polyfit(x, y, 1)[0])

    def row(self) -> Row:
        """As a row of the table.

        Returns:
            Plain values.
        """
        return {
            "n": self.n,
            "kind": self.kind,
            "neurons": self.neurons,
            "layers": self.layers,
            "slope": self.slope,
            "smallest_error": self.floor,
            "best_scale": self.best_scale,
        }


@dataclass(frozen=True)
class CheapLearning(Result):
    """What `cheap_learning` found.

    Args:
        findings: Worst first.
        multipliers: Two per number of variables.
        activation: Of the neurons.
        shift: Their bias.
    """

    multipliers: tuple[Multiplier, ...]
    activation: str
    shift: float

    @property
    def table(self) -> list[Row]:
        """One row per network; `multipliers` has its error at each scale."""
        return [found.row() for found in self.multipliers]

    @property
    def curves(self) -> dict[str, Curve]:
        """Against the number of variables the neurons of either kind of network."""
        found = {}
        for kind in MAKERS:
            own = [multiplier for multiplier in self.multipliers if multiplier.kind == kind]
            x, y = tuple(float(m.n) for m in own), tuple(float(m.neurons) for m in own)
            found[kind] = Curve(x, y, "variables", "neurons", log=True)
        return found

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw errors against the scale and, on a new figure, neurons and smallest errors against the variables.

        Args:
            ax: Where, for the first alone; None: on a new figure with all.

        Returns:
            The axes of errors against the scale.
        """
        return draw(ax, self.multipliers)


def cheap_learning(
    n_variables: Sequence[int] = (2, 3, 4, 6, 8),
    *,
    activation: Smooth = "softplus",
    shift: float = 1.0,
    scales: Sequence[float] = SCALES,
    n_points: int = 256,
    seed: int = 0,
) -> CheapLearning:
    """Multiply n variables by networks whose weights are written down: 2^n neurons side by side, or a tree of gates.

    Nothing is trained. The error falls with the square of the weights' scale, until rounding, divided by a power of the
    scale, takes over: the power is 2 for gates and n for the single layer, which therefore never gets as accurate.

    Args:
        n_variables: How many, each from 2 to 12.
        activation: "softplus", "sigmoid", "tanh" or "exp": smooth, and with the derivatives that are needed.
        shift: Bias of all hidden units, where the activation is expanded.
        scales: Of the weights, above 0.
        n_points: Inputs, sizes uniform in [1/2, 1] with random signs; errors are relative, the largest counts.
        seed: Of the inputs.

    Returns:
        Errors per network and scale, with findings.

    Raises:
        ConfigError: If an option is out of its range, or a derivative that is needed vanishes at the shift.

    Source: Lin, Tegmark and Rolnick 2017, "Why does deep and cheap learning work so well?", section II.D, appendix A.

    Example:
        >>> found = cheap_learning((2, 4), n_points=16)
        >>> [(row["kind"], row["neurons"], row["layers"], round(row["slope"], 1)) for row in found.table[2:]]
        [('one layer', 16, 1, 2.0), ('tree', 12, 2, 2.0)]
    """
    _check(n_variables, activation, shift, scales, n_points)
    watch, neuron = Stopwatch(), Neuron(activation, shift)
    steps = sorted(map(float, scales))
    found = tuple(
        _multiplier(kind, _inputs(n, n_points, seed), neuron, steps)
        for n in sorted(n_variables)
        for kind in MAKERS
    )  # fmt: skip
    origin = provenance(nn.Identity(), watch, seed=seed, n_examples=n_points)
    return CheapLearning(tuple(_findings(found)), found, activation, float(shift), provenance=origin)


@torch.no_grad()
def _multiplier(kind: str, x: Tensor, neuron: Neuron, scales: Sequence[float]) -> Multiplier:
    n, product = x.shape[1], x.prod(1)
    network = MAKERS[kind](n, neuron, 1.0)
    errors, predictions = [], []
    for scale in scales:
        output = MAKERS[kind](n, neuron, scale)(x).squeeze(1)
        errors.append((output / product - 1).abs().max().item())
        predictions.append(predicted(kind, x, neuron, scale).abs().max().item())
    sizes = n_neurons(network), n_layers(network)
    return Multiplier(n, kind, *sizes, tuple(scales), tuple(errors), tuple(predictions))


def _inputs(n: int, n_points: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    size = 0.5 + 0.5 * torch.rand(n_points, n, generator=random, dtype=torch.float64)
    signs = 2 * torch.randint(2, (n_points, n), generator=random) - 1
    return size * signs


def _findings(found: Sequence[Multiplier]) -> Iterator[Finding]:
    for i in range(0, len(found), 2):
        wide, deep = found[i], found[i + 1]
        text = f"{wide.n} variables: {wide.neurons} neurons in one layer, {deep.neurons} in {deep.layers}"
        text = f"{text}; smallest relative errors {wide.floor:.1e} and {deep.floor:.1e}"
        yield Finding("note", f"{text}, at weights of scale {wide.best_scale:.1e} and {deep.best_scale:.1e}.", i)
    slopes = [multiplier.slope for multiplier in found if not math.isnan(multiplier.slope)]
    if slopes:
        text = f"Errors fall with the scale to the power {min(slopes):.3f} to {max(slopes):.3f}; the theory has 2"
        yield Finding("note", f"{text}. Below the best scale rounding takes over.")
    else:
        yield Finding("warning", "No range of scales shows the power of the error. Try: scales from 1e-6 to 1.")


def _check(n_variables: Sequence[int], activation: str, shift: float, scales: Sequence[float], n_points: int) -> None:
    if not n_variables or min(n_variables) < 2 or max(n_variables) > MOST_VARIABLES:
        expected = f"numbers from 2 to {MOST_VARIABLES}"
        raise ConfigError(f"{NAME} has bad n_variables", expected=expected, got=tuple(n_variables))
    if activation not in FUNCTIONS:
        raise ConfigError(f"{NAME} has no such activation", expected=" or ".join(FUNCTIONS), got=repr(activation))
    if not math.isfinite(shift) or abs(shift) > 30:
        raise ConfigError(f"{NAME} has a bad shift", expected="-30 to 30", got=shift)
    if not scales or not all(0 < scale < math.inf for scale in scales):
        raise ConfigError(f"{NAME} has bad scales", expected="numbers above 0", got=_few(scales))
    if n_points < 1:
        raise ConfigError(f"{NAME} has bad n_points", expected="1 or more", got=n_points)


def _few(values: Sequence[float]) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:5])
    return f"({shown}{', ...' if len(values) > 5 else ''})"

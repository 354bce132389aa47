"""What a small change of the input becomes: singular values of d representation / d input (i-RevNet, figure 4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from invertible.chain import Chain
from invertible.instruments._compare_plot import Curve
from invertible.instruments._jacobian_findings import findings_of
from invertible.instruments._jacobian_measure import Options, spectrum
from invertible.instruments._jacobian_plot import draw
from invertible.instruments._jacobian_rows import Spectrum
from invertible.instruments.feeding import Feed
from invertible.instruments.result import Result, Row
from invertible.instruments.taps import Layers, Tap, find_taps
from invertible.instruments.untouched import Mode, measuring

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = "jacobian_spectrum"


@dataclass(frozen=True)
class JacobianSpectrum(Result):
    """What `jacobian_spectrum` found.

    Args:
        findings: Worst first.
        spectra: One per place and example, examples first.
        model: The network's class.
        window: Side of the square of the input that was looked at; None: all of it.
    """

    spectra: tuple[Spectrum, ...]
    model: str
    window: int | None

    @property
    def table(self) -> list[Row]:
        """One row per place and example: the figures; `spectra` has the singular values."""
        return [found.row() for found in self.spectra]

    @property
    def curves(self) -> dict[str, Curve]:
        """At the last place "singular values" over the largest, geometric mean over the examples (figure 4)."""
        last = [found for found in self.spectra if found.place == self.spectra[-1].place]
        n = min(len(found.values) for found in last)
        means = tuple(_geometric_mean([found.normalised[i] for found in last]) for i in range(n))
        numbers = tuple(float(i + 1) for i in range(n))
        return {"singular values": Curve(numbers, means, "number, sorted", "singular value / largest", log=True)}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw sorted singular values over the largest: figure 4.

        Args:
            ax: Where; None: on a new figure.

        Returns:
            The axes, with a logarithmic scale.
        """
        window = "" if self.window is None else f", window {self.window} x {self.window}"
        return draw(ax, self.spectra, f"d representation / d input: {self.model}{window}")


def jacobian_spectrum(
    model: nn.Module,
    data: Any,
    *,
    layers: Layers = "",
    n_examples: int = 2,
    dense_up_to: int = 1024,
    n_extreme: int = 8,
    n_steps: int = 100,
    tolerance: float = 1e-4,
    window: int | None = None,
    mode: Mode = "eval",
    batch_fn: Callable[[Any], Any] | None = None,
    batches: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> JacobianSpectrum:
    """Measure singular values of the Jacobian of a representation with respect to the input, at data points.

    Up to a size the Jacobian is built and all its singular values are exact, to the precision of the network (give it
    float64 for small ones). Beyond, Lanczos bidiagonalisation finds those at both ends, each with a residual: a
    distance within which there is a singular value. Those at the lower end converge slowly; where they have not, the
    condition is a lower bound and is marked so.

    Args:
        model: Any module whose examples do not depend on each other. It is left as it is, to the bit.
        data: Whatever `feeding.Feed` takes; the Jacobian is with respect to the first tensor of real numbers.
        layers: At which places, as in `find_taps`; "": the network's own output.
        n_examples: At how many examples.
        dense_up_to: Build the Jacobian where its smaller side has at most so many numbers.
        n_extreme: Beyond: how many values at each end.
        n_steps: Beyond: at most so many steps, each a product with the Jacobian and one with its transpose.
        tolerance: Beyond: residual, over the largest value, at which one counts as converged.
        window: Side of a central square of images that the input is restricted to; None: all of it.
        mode: "eval", "train" or "as is".
        batch_fn: Makes of each batch what the network takes.
        batches: At most so many.
        seconds: Stop after the Jacobian during which so much time ran out.
        seed: Of noise, shuffling and Lanczos' first vector.
        quiet: Show no progress.

    Returns:
        A spectrum per place and example, with findings; see `JacobianSpectrum` and its `spectra`.

    Raises:
        ConfigError: If a place has no derivative by the input, examples depend on each other, the network is random, or
            an option is wrong.
        DtypeError: If model or data are of an unknown kind.
        ShapeError: If a batch is empty, a place returns nothing, or the window does not fit.
        NonFiniteError: If data, representations or derivatives hold NaN or infinity.
        DataError: If there are no data.

    Source: Jacobsen, Smeulders and Oyallon 2018, "i-RevNet: deep invertible networks", section 4.2 and figure 4.

    Example:
        >>> network = nn.Linear(3, 3, bias=False)
        >>> with torch.no_grad():
        ...     _ = network.weight.copy_(torch.diag(torch.tensor([4.0, 2.0, 0.5])))
        >>> found = jacobian_spectrum(network, (1, 3)).spectra[0]
        >>> found.values, round(found.condition, 4), round(found.log_abs_det, 4)
        ((4.0, 2.0, 0.5), 8.0, 1.3863)
    """
    options = Options(n_examples, dense_up_to, n_extreme, n_steps, tolerance, window, seed)
    options.check()
    with torch.inference_mode(False), measuring(model, mode) as network:
        for module in network.modules():
            if isinstance(module, Chain):
                module.memory = "store"  # its graph is differentiated twice
        feed = Feed(
            NAME, network, data, batch_fn=batch_fn, batches=batches, seconds=seconds, seed=seed, quiet=quiet
        )  # fmt: skip
        spectra = _measure(network, feed, find_taps(network, layers), options, seconds)
        origin = feed.provenance(network)
    findings = findings_of(spectra, tolerance, feed.stopped)
    return JacobianSpectrum(findings, tuple(spectra), type(network).__name__, window, provenance=origin)


def _measure(
    network: nn.Module, feed: Feed, taps: Sequence[Tap], options: Options, seconds: float | None
) -> list[Spectrum]:
    found: list[Spectrum] = []
    n, total = 0, options.n_examples * len(taps)
    for batch in feed:
        for row in range(min(batch.n_examples, options.n_examples - n)):
            for tap in taps:
                found.append(spectrum(network, tap, batch, row, n + row, options))
                if seconds is not None and feed.watch.seconds >= seconds and len(found) < total:
                    feed.stopped = f"seconds={seconds:g}, after {len(found)} of {total} Jacobians"
                    return found
        n += batch.n_examples
        if n >= options.n_examples:
            break
    return found


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(math.fsum(map(math.log, values)) / len(values)) if min(values) > 0 else 0.0

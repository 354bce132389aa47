"""Transposed reconstruction: what a layer's transpose gives back of its input (Arora, Liang and Ma 2015)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from invertible.errors import ConfigError
from invertible.instruments._batch import Batch
from invertible.instruments._compare_plot import Curve
from invertible.instruments._relu_layers import ReluLayer, find_relu_layers
from invertible.instruments._transposed_findings import findings_of, ratio
from invertible.instruments._transposed_measure import LayerSums
from invertible.instruments._transposed_plot import draw
from invertible.instruments._transposed_rows import TransposedLayer
from invertible.instruments.feeding import Feed
from invertible.instruments.result import Result, Row
from invertible.instruments.taps import Heard, Layers, Tap, find_taps, listen
from invertible.instruments.untouched import Mode, measuring

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = "transposed_reconstruction"


@dataclass(frozen=True)
class TransposedReconstruction(Result):
    """What `transposed_reconstruction` found.

    Args:
        findings: Worst first.
        layers: The layers, in the order of `named_modules`.
        model: The network's class.
        threshold: b, in standard deviations of the predicted noise.
        n_controls: Draws of each control.
    """

    layers: tuple[TransposedLayer, ...]
    model: str
    threshold: float
    n_controls: int

    @property
    def table(self) -> list[Row]:
        """One row per layer and share of outputs kept: the layer's fields, then the reconstruction's."""
        return [row for layer in self.layers for row in layer.rows()]

    @property
    def curves(self) -> dict[str, Curve]:
        """Against the number of the layer: "error" at the best scale, and "ratio" of that to Gaussian weights'."""
        x = tuple(map(float, range(len(self.layers))))
        errors = tuple(layer.whole.scaled for layer in self.layers)
        ratios = tuple(ratio(layer) for layer in self.layers)
        return {
            "error": Curve(x, errors, "layer", "relative squared error, best scale"),
            "ratio": Curve(x, ratios, "layer", "error / error of Gaussian weights", log=True),
        }

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw each layer's error beside those of random weights and of theory.

        Args:
            ax: Where; None: on a new figure.

        Returns:
            The axes.
        """
        return draw(ax, self.layers, f"Inputs from transposed weights: {self.model}")


def transposed_reconstruction(
    model: nn.Module,
    data: Any,
    *,
    layers: Layers = "auto",
    keep: Sequence[float] = (1.0, 0.5),
    threshold: float = 0.0,
    n_controls: int = 3,
    mode: Mode = "as is",
    batch_fn: Callable[[Any], Any] | None = None,
    batches: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> TransposedReconstruction:
    """Give each layer's input back from its output y by the layer's own transposed weights, as relu(W^T y + b).

    For random weights a theorem says how well that works: a layer y = relu(W h) with n outputs and a k-sparse input
    h >= 0 of size m gives it back with relative squared error about (m - k) / (rho n) + 2 k / (rho n), where a share
    rho of the outputs is kept; the second term is the error on the k inputs that are active. Here the same is measured
    in the layer as it is, and with Gaussian weights and with permuted ones in its place; and predicted, for the actual
    inputs, biases and geometry. A layer whose error is that of random weights is "random-like" in the paper's sense;
    one with a smaller error has learned to keep its inputs, one with a larger one drops part of them.

    Linear layers and convolutions count whose output goes into a ReLU (also ReLU6, taken for one), at once or after a
    BatchNorm, which is counted to the weights. They are found by watching one small forward pass.

    Args:
        model: Any module. It is left as it is, to the bit.
        data: As `feeding.Feed` takes them.
        layers: Which layers: "auto" (all of that kind), names, patterns, types; modules inside them count.
        keep: Shares rho of the outputs that are kept; one reconstruction each.
        threshold: b = -threshold times the standard deviation of the predicted noise; the paper's -delta |h|.
        n_controls: Draws of Gaussian and of permuted weights, at least 1.
        mode: "train", "eval" or "as is".
        batch_fn: Makes of each batch what the network takes.
        batches: At most so many.
        seconds: Stop after the batch in which so much time ran out.
        seed: Of draws, masks, noise and shuffling.
        quiet: Show no progress.

    Returns:
        Figures per layer, with findings; see `TransposedReconstruction` and its `layers`.

    Raises:
        ConfigError: If a layer that was asked for has no ReLU behind it, or an option is wrong.
        DtypeError: If model or data are of an unknown kind.
        ShapeError: If a batch is empty.
        NonFiniteError: If the data hold NaN or infinity.
        DataError: If there are no data.

    Source: Arora, Liang and Ma 2015, "Why are deep nets reversible: a simple theory, with implications for training",
    theorem 1 and its proof, with the biases of actual layers (`_transposed_theory`).

    Example:
        >>> h = torch.rand(64, 200) * (torch.rand(64, 200) < 0.05)
        >>> found = transposed_reconstruction(nn.Sequential(nn.Linear(200, 1000, bias=False), nn.ReLU()), h)
        >>> whole = found.layers[0].whole
        >>> abs(whole.error / whole.predicted - 1) < 0.1
        True
    """
    _check(keep, threshold, n_controls)
    with measuring(model, mode) as network:
        feed = Feed(
            NAME, network, data, batch_fn=batch_fn, batches=batches, seconds=seconds, seed=seed, quiet=quiet
        )  # fmt: skip
        chosen = _chosen(network, layers, feed.first)
        sums = [LayerSums(found, keep, threshold, n_controls, seed + 100 * i) for i, found in enumerate(chosen)]
        _hear(network, feed, sums)
        origin = feed.provenance(network)
    skipped = [each.found.layer.name for each in sums if not each.is_usable]
    found = tuple(each.layer() for each in sums if each.is_usable)
    told = findings_of(found, skipped, feed.stopped)
    return TransposedReconstruction(told, found, type(network).__name__, threshold, n_controls, provenance=origin)


def _chosen(network: nn.Module, layers: Layers, first: Batch) -> tuple[ReluLayer, ...]:
    found = _watch(network, first)
    if layers == "auto":
        return found
    tops = find_taps(network, layers)
    inside = {id(module) for tap in tops for module in tap.module.modules()}
    chosen = tuple(each for each in found if id(each.layer.module) in inside)
    if not chosen:
        expected = "a linear layer or convolution with a ReLU right behind it"
        got, hint = ", ".join(tap.name for tap in tops[:3]), ", ".join(each.layer.name for each in found[:3])
        raise ConfigError("nothing to reconstruct here", expected=expected, got=got, hint=hint)
    return chosen


def _watch(network: nn.Module, first: Batch) -> tuple[ReluLayer, ...]:
    try:
        return find_relu_layers(network, lambda: first.few(2).run(network))
    except (RuntimeError, TypeError, ValueError, IndexError):  # it may want the batch whole, or fail on that too
        return find_relu_layers(network, lambda: first.run(network))


def _hear(network: nn.Module, feed: Feed, sums: Sequence[LayerSums]) -> None:
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    by_layer = {each.found.layer.name: each for each in sums}
    by_end = {each.found.end.name: each for each in sums}

    def hear(heard: Heard) -> None:
        name, side = heard.tap.name, heard.tap.side
        if side == "input":
            inputs[name] = heard.tensor.clone()  # something may write to it in place
            return
        if name in by_layer:
            outputs[name] = heard.tensor.clone()
        if name in by_end:
            layer = by_end[name].found.layer.name
            with torch.inference_mode(False), torch.no_grad():
                by_end[name].add(inputs.pop(layer), outputs.pop(layer), heard.tensor)

    taps = [tap for each in sums for tap in (Tap(each.found.layer.name, each.found.layer.module, "input"),
                                             each.found.layer, each.found.end)]  # fmt: skip
    unique = {(tap.name, tap.side): tap for tap in taps}
    with listen(network, unique.values(), hear):
        for batch in feed:
            with parametrize.cached():  # what is measured is what the network has just computed with
                batch.run(network)


def _check(keep: Sequence[float], threshold: float, n_controls: int) -> None:
    if not keep or not all(0 < share <= 1 for share in keep) or len(set(keep)) < len(keep):
        raise ConfigError(f"{NAME} keeps outputs", expected="shares in (0, 1], each once", got=repr(keep))
    if not math.isfinite(threshold) or threshold < 0:
        raise ConfigError(f"{NAME} has a bad threshold", expected="threshold >= 0", got=repr(threshold))
    if isinstance(n_controls, bool) or not isinstance(n_controls, int) or n_controls < 1:
        raise ConfigError(f"{NAME} needs controls", expected="n_controls >= 1, a whole number", got=repr(n_controls))

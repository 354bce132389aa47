"""The transposed reconstruction in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from invertible.instruments._transposed_rows import TransposedLayer
from invertible.instruments.result import Finding

LIKE = 0.1
"""Relative difference from random weights that is called the same, beyond the spread of the draws."""


def findings_of(layers: Sequence[TransposedLayer], skipped: Sequence[str], stopped: str) -> tuple[Finding, ...]:
    """Say what the figures mean.

    Args:
        layers: The layers.
        skipped: Names of those that are no affine maps.
        stopped: Why the measurement ended early.

    Returns:
        Findings; rows are those of the table.
    """
    found: list[Finding] = []
    if not layers:
        text = "No linear layer or convolution has a ReLU right behind it (or behind its BatchNorm): nothing measured."
        found.append(Finding("warning", text))
    starts = [sum(len(other.reconstructions) for other in layers[:i]) for i in range(len(layers))]
    sound = [(at, layer) for at, layer in zip(starts, layers, strict=True) if math.isfinite(layer.whole.scaled)]
    for at, layer in zip(starts, layers, strict=True):
        if not math.isfinite(layer.whole.scaled):
            found.append(
                Finding("error", f"{layer.name}: its inputs are all zero, or something there is NaN or infinite.", at)
            )
    if sound:
        found += [_against_random(sound), _against_the_mean(sound), _theory(sound), *_dropout(sound)]
    if skipped:
        text = f"Left out, as they or the norm behind them are no affine maps: {', '.join(skipped[:3])}"
        found.append(Finding("note", text + (f" and {len(skipped) - 3} more." if len(skipped) > 3 else ".")))
    if stopped:
        found.append(Finding("note", f"Measured on part of the data: {stopped}."))
    return tuple(found)


def _against_random(layers: Sequence[tuple[int, TransposedLayer]]) -> Finding:
    like = [layer for _, layer in layers if is_like(layer)]
    at, furthest = max(layers, key=lambda item: abs(math.log(max(ratio(item[1]), 1e-9))))
    text = f"{len(like)} of {len(layers)} layers give their input back as random weights would (within {LIKE:.0%})"
    figures = f"error {furthest.whole.scaled:.3f}, Gaussian weights {furthest.whole.gaussian.scaled:.3f}"
    word = "better" if ratio(furthest) < 1 else "worse"
    end = f"; furthest is {furthest.name}, {word}: {figures}" if len(like) < len(layers) else ""
    return Finding("note", f"{text}{end}.", at)


def _against_the_mean(layers: Sequence[tuple[int, TransposedLayer]]) -> Finding:
    useful = [layer for _, layer in layers if layer.mean_error is not None and layer.whole.scaled < layer.mean_error]
    at, best = min(layers, key=lambda item: item[1].whole.scaled)
    text = f"The transpose tells more of the input than its mean does in {len(useful)} of {len(layers)} layers"
    return Finding("note", f"{text}; the smallest error is {best.whole.scaled:.3f}, of {best.name}.", at)


def _theory(layers: Sequence[tuple[int, TransposedLayer]]) -> Finding:
    at, worst = max(layers, key=lambda item: _off(item[1]))
    text = f"For random weights the prediction is within {_off(worst):.1%} of what was measured with them"
    return Finding("note", f"{text}, or better (worst: {worst.name}).", at)


def _dropout(layers: Sequence[tuple[int, TransposedLayer]]) -> list[Finding]:
    at, layer = layers[0]
    least = min(layer.reconstructions, key=lambda found: found.keep)
    if least.keep == layer.whole.keep:
        return []
    ratios = [
        min(other.reconstructions, key=lambda found: found.keep).scaled / max(other.whole.scaled, 1e-12)
        for _, other in layers
    ]
    text = f"With {1 - least.keep:.0%} of the outputs dropped the error is {min(ratios):.2f} to {max(ratios):.2f} times"
    return [Finding("note", f"{text} as large.", at)]


def ratio(layer: TransposedLayer) -> float:
    """A layer's error against that of Gaussian weights.

    Args:
        layer: The layer.

    Returns:
        1 where they are the same; less where it is better.
    """
    return layer.whole.scaled / max(layer.whole.gaussian.scaled, 1e-12)


def is_like(layer: TransposedLayer) -> bool:
    """Whether a layer gives its input back as Gaussian weights do.

    Args:
        layer: The layer.

    Returns:
        Whether its error is within a tenth of the range of the draws.
    """
    null = layer.whole.gaussian
    return (1 - LIKE) * null.scaled_low <= layer.whole.scaled <= (1 + LIKE) * null.scaled_high


def _off(layer: TransposedLayer) -> float:
    return abs(layer.whole.predicted_scaled / max(layer.whole.gaussian.scaled, 1e-12) - 1)

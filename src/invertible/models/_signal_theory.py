"""Mean and variance from block to block in infinitely wide residual networks, at the start of training.

The second moment of a channel at one pixel is q. The product of two pixels far apart, or of two images, is c q on
average: what all of them have in common, the squared mean of the channel. ReLU and a random convolution with variance
2 / fan-in keep q and turn c into f(c), which is larger: independent inputs (c = 0) come out with c = 1 / pi. That is
the mean shift.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Layer = Literal["bn-relu", "relu", "normalised", "linear"]


@dataclass(frozen=True)
class Expected:
    """What theory expects at one block.

    Args:
        squared_mean: Average over the channels of the squared mean of its output.
        variance: Average over the channels of the variance of its output.
        residual_squared_mean: The same of the residual branch's end.
        residual_variance: The same of the residual branch's end.
    """

    squared_mean: float
    variance: float
    residual_squared_mean: float
    residual_variance: float


@dataclass(frozen=True)
class _Moments:
    squared_mean: float
    variance: float

    def __rmul__(self, factor: float) -> _Moments:
        return _Moments(factor * self.squared_mean, factor * self.variance)

    def __add__(self, other: _Moments) -> _Moments:
        return _Moments(self.squared_mean + other.squared_mean, self.variance + other.variance)


def relu_correlation(c: float) -> float:
    """Correlation behind ReLU and a random convolution, of inputs with correlation c; both about zero.

    Args:
        c: From -1 to 1.

    Returns:
        (sqrt(1 - c^2) + (pi - arccos c) c) / pi.

    Source: Cho and Saul 2009, equation 6, the arc-cosine kernel of degree one.

    Example:
        >>> round(relu_correlation(0.0), 6), relu_correlation(1.0)
        (0.31831, 1.0)
    """
    c = min(max(c, -1.0), 1.0)
    return (math.sqrt(1 - c * c) + (math.pi - math.acos(c)) * c) / math.pi


def expected_signal(layer: Layer, n_blocks: Sequence[int], alpha: float | None = None) -> list[Expected]:
    """Follow the signal through the blocks, of three layers each, from an input of mean 0 and variance 1.

    Args:
        layer: What one convolution is together with what precedes it: "bn-relu" (BatchNorm, ReLU, weights of variance
            2 / fan-in), "relu" (the same without BatchNorm), "normalised" (BatchNorm right before the convolution,
            weights of variance 1 / fan-in), "linear" (such weights alone; a scaled activation with standardised weights
            keeps mean 0 and variance alike).
        n_blocks: In each stage. The first block of each has a convolution for a shortcut, fed as its branch is.
        alpha: Of a normalizer-free network, which also divides its blocks' inputs by beta; None: neither.

    Returns:
        One entry per block.

    Example:
        >>> [round(e.residual_variance, 2) for e in expected_signal("bn-relu", (2, 1))]
        [0.68, 0.68, 0.68]
        >>> [round(e.variance, 2) for e in expected_signal("linear", (3, 1), alpha=0.2)]
        [1.04, 1.08, 1.12, 1.04]
    """
    apply, scale = _LAYERS[layer], 1.0 if alpha is None else alpha**2
    x, found = _Moments(0.0, 1.0), []
    for resets, beta in _betas(n_blocks, alpha):
        inside = (1 / beta**2) * x
        first = apply(inside)
        end = apply(apply(first))
        x = (first if resets else x) + scale * end
        found.append(Expected(x.squared_mean, x.variance, end.squared_mean, end.variance))
    return found


def _betas(n_blocks: Sequence[int], alpha: float | None) -> Iterator[tuple[bool, float]]:
    # Whether the block resets the signal, and what it divides by.
    squared = 1.0
    for n in n_blocks:
        for i in range(n):
            yield i == 0, 1.0 if alpha is None else math.sqrt(squared)
            squared = (1.0 if i == 0 else squared) + (alpha or 0.0) ** 2


def _relu(x: _Moments) -> _Moments:
    q = x.squared_mean + x.variance
    shared = q * relu_correlation(x.squared_mean / q)
    return _Moments(shared, q - shared)


_LAYERS: dict[Layer, Callable[[_Moments], _Moments]] = {
    "bn-relu": lambda _: _relu(_Moments(0.0, 1.0)),
    "relu": _relu,
    "normalised": lambda _: _Moments(0.0, 1.0),
    "linear": lambda x: x,
}

"""The certified norm of a linear layer as an operator on images of a size, with its derivative."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from invertible._checks import check_finite
from invertible.layers._norm_certify import Leading, largest, leading
from invertible.layers._norm_geometry import Geometry, Grid, Size
from invertible.layers._norm_gram import GramFamily, Taps, Waves
from invertible.layers._norm_squares import LARGEST, norm_by_squaring

_CONVS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_WHOLE = 256
"""Operators with so few inputs or outputs are taken whole."""
_WORTH = 0.1
"""By how much another grid must promise to lower the squared norm to be tried."""


class Norm(NamedTuple):
    """A bound of an operator norm.

    Attributes:
        value: The bound, a scalar.
        gradient: Its derivative by the weight: u v^T, brought into the weight's shape.
    """

    value: Tensor
    gradient: Tensor


def operator_norm(weight: Tensor, geometry: Geometry, size: Size | None) -> Norm:
    """An upper bound of the l2 operator norm, proven for this weight. A pure function.

    Args:
        weight: Shape (n_out, n_in / groups, *kernel).
        geometry: Of the layer.
        size: Of the input's axes, as (height, width); None: a bound for images of all sizes.

    Returns:
        The bound, in float32 or float64.

    Raises:
        NonFiniteError: If the weight has NaN or infinity.
    """
    with _full_precision(weight):
        weight = weight.detach().to(torch.float64 if weight.dtype == torch.float64 else torch.float32)
        scale = float(weight.abs().amax()) if weight.numel() else 0.0
        if not math.isfinite(scale):
            check_finite(weight, "the weight of a constrained layer")
        if scale == 0:
            return Norm(weight.new_zeros(()), torch.zeros_like(weight))
        if _is_small_matrix(weight, geometry):
            bound, gradient = norm_by_squaring((weight / scale).flatten(1))
            return Norm(bound * scale, gradient.reshape(weight.shape))
        value, gradient = _norm(weight / scale, geometry, size)
        return Norm(weight.new_tensor(value * scale), gradient)


def _is_small_matrix(weight: Tensor, geometry: Geometry) -> bool:
    is_matrix = geometry.groups == 1 and all(n == 1 for n in geometry.kernel) and geometry.mode == "zeros"
    return is_matrix and min(weight.shape[:2]) <= LARGEST


def _norm(weight: Tensor, geometry: Geometry, size: Size | None) -> tuple[float, Tensor]:
    grid = geometry.grid(size)
    if size is not None and _fits(weight, geometry, size, grid):
        return _whole(weight, geometry, size)
    seen = replace(geometry, stride=grid.strides)
    waves = Waves(Taps.of(weight, seen))
    family, found = _laid(waves, grid)
    return _root(family, found, grid.factor)


def _root(family: GramFamily, found: Leading, factor: float) -> tuple[float, Tensor]:
    bound, found = largest(family, found)
    sigma, gradient = family.norm_and_gradient(found.index, found.vector)
    value = max(math.sqrt(bound), float(sigma)) * factor
    return value, gradient * (value / float(sigma))


def _laid(waves: Waves, grid: Grid) -> tuple[GramFamily, Leading]:
    # The grid laid so that the symbol's peak falls between its points: a smaller bound, as sound as any. At first by
    # half a cell along all axes, as most peaks are at frequency zero.
    shifts = grid.shifts()[::-1]
    family = GramFamily(waves, grid, shifts[0])
    found = leading(family)
    if waves.is_real:
        return family, found
    group = found.index % family.groups
    quotients = waves.quotients(found.vector, group)
    peaks = [float((waves.coefficients(grid, shift) @ quotients).max()) for shift in shifts]
    lowest = min(range(len(shifts)), key=peaks.__getitem__)
    if peaks[lowest] < (1 - _WORTH) * found.value:
        other = GramFamily(waves, grid, shifts[lowest])
        again = leading(other)
        if again.value < found.value:
            return other, again
    return family, found


def _fits(weight: Tensor, geometry: Geometry, size: Size, grid: Grid) -> bool:
    if not size or all(n == 1 for n in grid.points) or min(geometry.out_size(size)) < 1:
        return False
    n_in = weight.shape[1] * geometry.groups * math.prod(size)
    n_out = weight.shape[0] * math.prod(geometry.out_size(size))
    is_exact_already = geometry.mode == "circular" and grid.factor == 1
    return not is_exact_already and min(n_in, n_out) <= _WHOLE and n_in * n_out <= 4 * _WHOLE**2


def _whole(weight: Tensor, geometry: Geometry, size: Size) -> tuple[float, Tensor]:
    n_channels = weight.shape[1] * geometry.groups
    pixels = torch.eye(n_channels * math.prod(size), dtype=weight.dtype, device=weight.device)
    pixels = padded(pixels.reshape(-1, n_channels, *size), geometry)
    columns = convolve(pixels, weight, geometry)
    family = GramFamily(Waves(Taps.of(columns.flatten(1), Geometry())), Grid((), 1.0, ()))
    value, direction = _root(family, leading(family), 1.0)
    zero = [0] * len(size)
    # Without autograd, as this may run inside of a transform of `torch.func`.
    _, gradient, _ = torch.ops.aten.convolution_backward(
        direction.view_as(columns), pixels, weight, None, geometry.stride, zero, geometry.dilation, False, zero,
        geometry.groups, [False, True, False])  # fmt: skip
    return value, gradient


def apply(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """The layer without its bias.

    Args:
        x: Shape (batch, n_in, *size), or (batch, n_in) for a matrix.
        weight: Shape (n_out, n_in / groups, *kernel).
        geometry: Of the layer.

    Returns:
        Shape (batch, n_out, *out_size).
    """
    if not geometry.kernel:
        return functional.linear(x, weight)
    return convolve(padded(x, geometry), weight, geometry)


def padded(x: Tensor, geometry: Geometry) -> Tensor:
    """The image with its margins.

    Args:
        x: Shape (batch, n_in, *size).
        geometry: Of the layer.

    Returns:
        Shape (batch, n_in, *larger).
    """
    flat = [p for pair in reversed(geometry.padding) for p in pair]
    return functional.pad(x, flat, mode="constant" if geometry.mode == "zeros" else geometry.mode)


def convolve(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """The convolution of an image that has its margins.

    Args:
        x: Shape (batch, n_in, *larger).
        weight: Shape (n_out, n_in / groups, *kernel).
        geometry: Of the layer.

    Returns:
        Shape (batch, n_out, *out_size).
    """
    conv = _CONVS[len(geometry.kernel)]
    return conv(x, weight, None, geometry.stride, 0, geometry.dilation, geometry.groups)


@contextlib.contextmanager
def _full_precision(weight: Tensor) -> Iterator[None]:
    kind = weight.device.type
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(kind, enabled=False):
        if kind != "cuda":
            yield
            return
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)

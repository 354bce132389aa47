"""The Gram matrices K(theta) K(theta)^* of a convolution's symbol, from the autocorrelation of its kernel."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import cast

import torch
from torch import Tensor

from invertible.layers._norm_geometry import Geometry, Grid, Size

_HELD = 2**22
"""Numbers of Gram matrices that are held at a time, at most."""
_NEAR = 2**18
"""Numbers that stay near the processor."""
_N_TOGETHER = 32
"""Matrices that are worth a call, if they can be held."""


@dataclass(frozen=True)
class Taps:
    """A weight as one matrix per tap, turned so that the side of the Gram matrices comes first.

    Attributes:
        matrices: Shape (groups, n_taps, n, m); Gram matrices are n x n.
        geometry: Of the layer.
        is_turned: Whether n counts input channels.
    """

    matrices: Tensor
    geometry: Geometry
    is_turned: bool

    @classmethod
    def of(cls, weight: Tensor, geometry: Geometry) -> Taps:
        """Sort a weight.

        Args:
            weight: Shape (n_out, n_in / groups, *kernel), float32 or float64.
            geometry: Of the layer.

        Returns:
            The taps.
        """
        groups, n_out, n_in = geometry.groups, weight.shape[0] // geometry.groups, weight.shape[1]
        by_tap = weight.reshape(groups, n_out, n_in, -1).permute(0, 3, 1, 2)
        # A stride mixes the frequencies of the input: only the output's side is small.
        is_turned = n_in < n_out and all(s == 1 for s in geometry.stride)
        return cls((by_tap.mT if is_turned else by_tap).contiguous(), geometry, is_turned)

    @property
    def n_summands(self) -> int:
        """In each entry of a Gram matrix."""
        return self.matrices.shape[1] * self.matrices.shape[3]

    def weight(self, by_tap: Tensor) -> Tensor:
        """Back to the layout of the layer's weight.

        Args:
            by_tap: Shape of `matrices`.

        Returns:
            Shape of the weight.
        """
        by_tap = by_tap.mT if self.is_turned else by_tap
        groups, _, n_out, n_in = by_tap.shape
        return by_tap.permute(0, 2, 3, 1).reshape(groups * n_out, n_in, *self.geometry.kernel)


class Waves:
    """G(phi) as a sum of cosines and sines, whose coefficients are the kernel's correlations.

    Args:
        taps: The weight.

    Attributes:
        is_real: Whether G does not depend on the frequency at all, and so is real.
    """

    def __init__(self, taps: Taps) -> None:
        self.taps = taps
        lags, found = _autocorrelation(taps)
        self.lags = tuple(lags)
        self.is_real = len(lags) == 1
        _, self.groups, self.n, _ = found.shape
        self._even, self._odd = found + found.mT, found[1:] - found[1:].mT
        self._even[0] = found[0]

    def coefficients(self, grid: Grid, shift: Size | None) -> Tensor:
        """How much of each wave there is.

        Args:
            grid: The frequencies.
            shift: Of the grid, in half cells.

        Returns:
            Shape (n_frequencies, n_waves).
        """
        return _coefficients(self.lags, grid, shift).to(self._even)

    def sum(self, coefficients: Tensor) -> Tensor:
        """The Gram matrices.

        Args:
            coefficients: Shape (n_frequencies, n_waves).

        Returns:
            Shape (n_frequencies * groups, n, n).
        """
        if self.is_real:
            return self._even[0]
        cosines, sines = coefficients.split([len(self._even), len(self._odd)], 1)
        real, imaginary = cosines @ self._even.flatten(1), sines @ self._odd.flatten(1)
        return torch.complex(real, imaginary).reshape(-1, self.n, self.n)

    def sizes(self, coefficients: Tensor) -> Tensor:
        """Frobenius norms of the Gram matrices, from those of the waves. Only as exact as the largest of them.

        Args:
            coefficients: Shape (n_frequencies, n_waves).

        Returns:
            Shape (n_frequencies * groups,).
        """
        parts = [self._even] if self.is_real else [self._even, self._odd]
        weights = coefficients.split([len(part) for part in parts], 1)
        squares = sum(_squares(part, weight) for part, weight in zip(parts, weights, strict=True))
        return cast(Tensor, squares).clamp(min=0).sqrt().flatten()

    def quotients(self, vector: Tensor, group: int) -> Tensor:
        """Rayleigh quotients of the waves; those of the Gram matrices are their sums.

        Args:
            vector: Shape (n,).
            group: Which group of channels it belongs to.

        Returns:
            Shape (n_waves,).
        """
        parts = torch.view_as_real(vector) if vector.is_complex() else vector[:, None]
        cosines = (parts * (self._even[:, group] @ parts)).sum((1, 2))
        if self.is_real:
            return cosines
        real, imaginary = parts.unbind(1)
        return torch.cat([cosines, 2 * ((self._odd[:, group] @ real) @ imaginary)])


class GramFamily:
    """One Hermitian matrix for each frequency and group; its largest eigenvalue is a squared norm of the symbol.

    The matrix of frequency f and group g has index f * groups + g.

    Args:
        waves: The kernel's correlations.
        grid: The frequencies.
        shift: Of the grid, in half cells.
    """

    def __init__(self, waves: Waves, grid: Grid, shift: Size | None = None) -> None:
        self.waves, self.grid, self.shift = waves, grid, shift
        self.angles = grid.angles(shift)[: 1 if waves.is_real else None]
        self.coefficients = waves.coefficients(grid, shift)[: len(self.angles)]
        self.n, self.groups, self.dtype = waves.n, waves.groups, waves.taps.matrices.dtype
        self.rounding = 8 * torch.finfo(self.dtype).eps * (math.sqrt(waves.taps.n_summands) + self.n)

    def __len__(self) -> int:
        return len(self.angles) * self.groups

    def stretches(self, which: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """The matrices, as many at a time as memory should hold.

        Args:
            which: Indices; None: all. Where there are groups, all of a frequency come together.

        Yields:
            Indices, and the matrices, shape (n_matrices, n, n), real if all are, else complex.
        """
        frequencies = torch.arange(len(self.angles)) if which is None else (which // self.groups).unique()
        n_numbers = self.groups * self.n**2
        step = max(1, min(max(_NEAR // n_numbers, _N_TOGETHER), _HELD // n_numbers))
        for part in frequencies.split(step):
            indices = (part[:, None] * self.groups + torch.arange(self.groups)).flatten()
            yield indices, self.waves.sum(self.coefficients[part.to(self.coefficients.device)])

    @cached_property
    def sizes(self) -> Tensor:
        """Frobenius norms, upper bounds of the largest eigenvalues. Shape (n_matrices,)."""
        return self.waves.sizes(self.coefficients)

    def pick(self, indices: list[int]) -> Tensor:
        """Some of the matrices.

        Args:
            indices: Which.

        Returns:
            Shape (len(indices), n, n).
        """
        if self.waves.is_real:
            return self.waves.sum(self.coefficients)[indices]
        frequencies, groups = zip(*(divmod(index, self.groups) for index in indices), strict=True)
        found = self.waves.sum(self.coefficients[list(frequencies)])
        return found.reshape(len(indices), self.groups, self.n, self.n)[range(len(indices)), list(groups)]

    def norm_and_gradient(self, index: int, vector: Tensor) -> tuple[Tensor, Tensor]:
        """The symbol's gain at a vector, and its derivative by the weight.

        Args:
            index: Which matrix.
            vector: A unit vector, shape (n,), best the leading eigenvector.

        Returns:
            sigma = |K^* vector|, a scalar, and d sigma / d weight (u v^T where the vector is an eigenvector), in the
            shape of the weight.
        """
        frequency, group = divmod(index, self.groups)
        quotients, classes, n_classes = _polyphase(self.waves.taps.geometry)
        phase = self.angles[frequency] @ torch.tensor(quotients, dtype=torch.float64).reshape(len(quotients), -1).T
        turn = torch.polar(torch.ones_like(phase), phase).to(vector.device, _complex(self.waves.taps.matrices.dtype))
        vector = vector.to(turn.dtype)
        parts = self.waves.taps.matrices[group].mT @ torch.view_as_real(vector)
        each = torch.view_as_complex(parts) * turn.conj()[:, None]
        which = torch.tensor(classes, device=vector.device)
        pulled = each.new_zeros(n_classes, each.shape[1]).index_add_(0, which, each)
        sigma = torch.linalg.vector_norm(pulled)
        turned = pulled[which] * (turn[:, None] / sigma.clamp(min=torch.finfo(sigma.dtype).tiny))
        gradient = torch.zeros_like(self.waves.taps.matrices)
        # The real part of conj(vector) turned^T, tap by tap.
        gradient[group] = torch.view_as_real(vector) @ torch.view_as_real(turned).mT
        return sigma, self.waves.taps.weight(gradient)


def _complex(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype == torch.float64 else torch.complex64


@lru_cache(maxsize=32)
def _coefficients(lags: tuple[Size, ...], grid: Grid, shift: Size | None) -> Tensor:
    phases = grid.angles(shift) @ torch.tensor(lags, dtype=torch.float64).reshape(len(lags), -1).T
    return torch.cat([phases.cos(), phases[:, 1:].sin()], 1)


def _squares(part: Tensor, weights: Tensor) -> Tensor:
    # Squared Frobenius norms of weighted sums, for each row of weights and each group.
    flat = part.flatten(2).transpose(0, 1)
    products = (flat @ flat.mT).double()
    weights = weights.double()
    return ((weights @ products) * weights).sum(2).T


def _autocorrelation(taps: Taps) -> tuple[list[Size], Tensor]:
    # Lags after striding; only half of them, as the other half is transposed.
    lags, rows = _lags(taps.geometry)
    groups, n_taps, n, m = taps.matrices.shape
    found = taps.matrices.new_zeros(len(lags), groups, n, n)
    flat = taps.matrices.reshape(groups, n_taps * n, m)
    for t, row in enumerate(rows):
        partners = [s for s, lag in enumerate(row) if lag is not None]
        if not partners:
            continue
        first, last = partners[0], partners[-1] + 1
        products = flat[:, first * n : last * n] @ taps.matrices[:, t].mT
        products = products.reshape(groups, last - first, n, n)
        which = torch.tensor([row[s] for s in partners], device=found.device)
        if len(partners) < last - first:
            products = products[:, [s - first for s in partners]]
        found.index_add_(0, which, products.transpose(0, 1))
    return lags, found


@lru_cache(maxsize=64)
def _lags(geometry: Geometry) -> tuple[list[Size], list[list[int | None]]]:
    # The half of the lags that survive the stride (zero first), and for taps t, s which of them s - t is.
    offsets, number = geometry.offsets(), {(0,) * len(geometry.kernel): 0}
    rows: list[list[int | None]] = []
    for t in offsets:
        row: list[int | None] = []
        for s in offsets:
            lag = tuple(b - a for a, b in zip(t, s, strict=True))
            is_kept = lag >= (0,) * len(lag) and not any(x % y for x, y in zip(lag, geometry.stride, strict=True))
            strided = tuple(x // y for x, y in zip(lag, geometry.stride, strict=True))
            row.append(number.setdefault(strided, len(number)) if is_kept else None)
        rows.append(row)
    return list(number), rows


@lru_cache(maxsize=64)
def _polyphase(geometry: Geometry) -> tuple[list[Size], list[int], int]:
    # Per tap: its offset in output pixels, and which of the stride's interleaved images it reads.
    number: dict[Size, int] = {}
    quotients, classes = [], []
    for offset in geometry.offsets():
        pairs = [divmod(x, s) for x, s in zip(offset, geometry.stride, strict=True)]
        quotients.append(tuple(q for q, _ in pairs))
        classes.append(number.setdefault(tuple(r for _, r in pairs), len(number)))
    return quotients, classes, len(number)

"""The Gram matrices K(theta) K(theta)^* of a convolution's symbol, from the autocorrelation of its kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from invertible.layers._norm_geometry import Geometry, Size


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


class GramFamily:
    """One Hermitian matrix for each frequency and group; its largest eigenvalue is a squared norm of the symbol.

    The matrix of frequency f and group g has index f * groups + g. They are made on demand: all of them may not fit.

    Args:
        taps: The weight.
        angles: Shape (n_frequencies, n_axes), radians per output pixel.
    """

    def __init__(self, taps: Taps, angles: Tensor) -> None:
        self.taps, self.angles = taps, angles
        self.lags, self.correlations = _autocorrelation(taps)
        self.groups, self.n = taps.matrices.shape[0], taps.matrices.shape[2]
        self.dtype = taps.matrices.dtype
        n_summands = taps.matrices.shape[1] * taps.matrices.shape[3]
        self.rounding = 8 * torch.finfo(self.dtype).eps * (math.sqrt(n_summands) + self.n)
        self.is_real = not any(map(any, self.lags))
        if self.is_real:
            self.angles = angles[:1]
        phases = self.angles @ torch.tensor(self.lags, dtype=torch.float64).reshape(len(self.lags), -1).T
        like = taps.matrices
        self.cos, self.sin = phases.cos().to(like), phases.sin().to(like)

    def __len__(self) -> int:
        return len(self.angles) * self.groups

    def block(self, start: int, stop: int) -> Tensor:
        """The matrices of some frequencies.

        Args:
            start: The first frequency.
            stop: The one after the last.

        Returns:
            Shape ((stop - start) * groups, n, n), real if all are, else complex.
        """
        flat = self.correlations.flatten(1)
        if self.is_real:
            return self.correlations[0]
        half = self.cos[start:stop] @ flat, self.sin[start:stop] @ flat
        shape = (-1, self.n, self.n)
        # Lag zero stands in with half of its weight: the sum with its own transpose makes it whole.
        real, imaginary = half[0].reshape(shape), half[1].reshape(shape)
        return torch.complex(real + real.mT, imaginary - imaginary.mT)

    def pick(self, indices: list[int]) -> Tensor:
        """Some matrices.

        Args:
            indices: Which.

        Returns:
            Shape (len(indices), n, n).
        """
        if self.is_real:
            return self.correlations[0][indices]
        frequencies, groups = zip(*(divmod(index, self.groups) for index in indices), strict=True)
        part = self.correlations[:, list(groups)].flatten(2)
        shape = (len(indices), self.n, self.n)
        real = torch.einsum("il,lin->in", self.cos[list(frequencies)], part).reshape(shape)
        imaginary = torch.einsum("il,lin->in", self.sin[list(frequencies)], part).reshape(shape)
        return torch.complex(real + real.mT, imaginary - imaginary.mT)

    def along(self, vector: Tensor, group: int, angles: Tensor) -> float:
        """The largest Rayleigh quotient of one vector, at other frequencies than the family's own.

        Args:
            vector: A unit vector, shape (n,).
            group: Which group of channels it belongs to.
            angles: Shape (n_frequencies, n_axes).

        Returns:
            The maximum over these frequencies.
        """
        part = self.correlations[:, group].to(vector.dtype)
        each = torch.einsum("i,lij,j->l", vector.conj(), part, vector).cpu().to(torch.complex128)
        phases = angles @ torch.tensor(self.lags, dtype=torch.float64).reshape(len(self.lags), -1).T
        return float((torch.polar(torch.ones_like(phases), phases) @ each).real.amax())

    def blocks(self, n_numbers: int = 2**23) -> list[tuple[int, int]]:
        """Stretches of frequencies whose matrices fit into memory.

        Args:
            n_numbers: How many complex numbers may be held at a time.

        Returns:
            (start, stop) of each.
        """
        step = max(1, n_numbers // (self.groups * self.n**2))
        return [(i, min(i + step, len(self.angles))) for i in range(0, len(self.angles), step)]

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
        quotients, classes, n_classes = _polyphase(self.taps.geometry)
        phase = self.angles[frequency] @ torch.tensor(quotients, dtype=torch.float64).reshape(len(quotients), -1).T
        turn = torch.polar(torch.ones_like(phase), phase).to(vector.device, _complex(self.taps.matrices.dtype))
        vector = vector.to(turn.dtype)
        each = (self.taps.matrices[group].mT.to(turn.dtype) @ vector) * turn.conj()[:, None]
        which = torch.tensor(classes, device=vector.device)
        pulled = each.new_zeros(n_classes, each.shape[1]).index_add_(0, which, each)
        sigma = torch.linalg.vector_norm(pulled)
        outer = vector.conj()[:, None] * (pulled[which] * turn[:, None])[:, None, :]
        gradient = torch.zeros_like(self.taps.matrices)
        gradient[group] = outer.real / sigma.clamp(min=torch.finfo(sigma.dtype).tiny)
        return sigma, self.taps.weight(gradient)


def _complex(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype == torch.float64 else torch.complex64


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
        chosen = torch.tensor(partners, device=found.device) - first
        found.index_add_(0, which, products.index_select(1, chosen).transpose(0, 1))
    if any(map(any, lags)):
        found[0] /= 2
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

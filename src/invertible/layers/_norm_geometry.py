"""A convolution as arithmetic: which input pixel each tap reads, and on which circle the image can be laid."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

Size = tuple[int, ...]


@dataclass(frozen=True)
class Grid:
    """Frequencies at which the symbol of a convolution is looked at, and what that leaves open.

    Attributes:
        points: Shape of the grid, in output pixels.
        factor: Largest operator norm over the largest norm on the grid.
        strides: Of the convolution that is looked at.
        can_shift: Whether the grid may be moved by half a cell along any axis.
    """

    points: Size
    factor: float
    strides: Size
    can_shift: bool = False

    def shifts(self) -> list[Size]:
        """The moves that leave the bound sound.

        Where padding is zero, any phase may be gained on the way round the circle: what comes round meets no pixel.

        Returns:
            One or several tuples of zeros and ones, in half cells.
        """
        choices = [(0, 1) if self.can_shift and n > 1 else (0,) for n in self.points]
        return list(product(*choices))

    def angles(self, shift: Size | None = None) -> Tensor:
        """Half of the frequencies; a real kernel's symbol at the other half is the complex conjugate.

        Args:
            shift: In half cells, per axis; None: none.

        Returns:
            Shape (n, n_axes), float64, radians for each output pixel.
        """
        return _angles(self.points, shift or (0,) * len(self.points))


@dataclass(frozen=True)
class Geometry:
    """All about a linear layer but its weight. A matrix is a convolution without axes.

    Attributes:
        kernel: Taps per axis.
        stride: Per axis.
        dilation: Per axis.
        padding: Pixels added before and after, per axis.
        mode: "zeros", "circular", "reflect" or "replicate".
        groups: How many.
    """

    kernel: Size = ()
    stride: Size = ()
    dilation: Size = ()
    padding: tuple[tuple[int, int], ...] = ()
    mode: str = "zeros"
    groups: int = 1

    @classmethod
    def of(cls, layer: nn.Module) -> Geometry:
        """Read it off a layer.

        Args:
            layer: An `nn.Linear` or a convolution.

        Returns:
            Its geometry.
        """
        if isinstance(layer, nn.Linear):
            return cls()
        conv: Any = layer
        padding = _padding(conv.padding, conv.kernel_size, conv.dilation)
        mode = conv.padding_mode if any(map(sum, padding)) else "zeros"
        return cls(conv.kernel_size, conv.stride, conv.dilation, padding, mode, conv.groups)

    @property
    def spans(self) -> Size:
        """Pixels from the first to the last tap, per axis."""
        return tuple(d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True))

    @property
    def is_patchwise(self) -> bool:
        """Whether no two output pixels read the same input pixel, so that the size does not matter."""
        return self.mode == "zeros" and all(span < s for span, s in zip(self.spans, self.stride, strict=True))

    def offsets(self) -> list[Size]:
        """The pixel that each tap reads, counted from the first.

        Returns:
            One tuple per tap, in the order of the weight.
        """
        return [tuple(d * j for d, j in zip(self.dilation, tap, strict=True)) for tap in self._taps()]

    def out_size(self, size: Size) -> Size:
        """How large the output is.

        Args:
            size: Of the input, per axis.

        Returns:
            Of the output, per axis; below 1 if the kernel does not fit.
        """
        rows = zip(size, self.padding, self.spans, self.stride, strict=True)
        return tuple((h + before + after - span - 1) // s + 1 for h, (before, after), span, s in rows)

    def grid(self, size: Size | None) -> Grid:
        """Frequencies that bound the operator.

        Zero padding: the image is laid on a circle so large that what hangs over meets zeros only; the operator is a
        part of the circular one, whichever phase is gained on the way round. Circular padding: the image's own
        frequencies. Any size: a trigonometric polynomial of degree d is below its maximum on n points divided by
        cos(pi d / n) (Ehlich and Zeller 1964).

        Args:
            size: Of the input, per axis; None: any.

        Returns:
            The grid.
        """
        copies = self._copies(size)
        if size is None:
            unstrided = replace(self, stride=(1,) * len(self.kernel))
            return (unstrided if self.mode == "circular" else self)._coarse(copies)
        if self.mode == "circular":
            return self._circular(size, copies)
        padded = size if self.mode == "zeros" else tuple(h + sum(p) for h, p in zip(size, self.padding, strict=True))
        inner = self if self.mode == "zeros" else replace(self, padding=((0, 0),) * len(size), mode="zeros")
        exact = tuple(map(_circle, padded, inner.out_size(padded), inner.padding, self.spans, self.stride))
        coarse = self._coarse(copies)
        return Grid(exact, copies, self.stride, True) if math.prod(exact) <= math.prod(coarse.points) else coarse

    def most_copies(self, size: Size | None) -> int:
        """How often a pixel appears in the padded image, at most.

        Args:
            size: Of the input, per axis; None: any.

        Returns:
            A count; 1 where the layer is a part of a larger circular one.
        """
        if self.mode != "circular":
            return round(self._copies(size) ** 2)
        is_plain = size is not None and all(h > span for h, span in zip(size, self.spans, strict=True))
        if is_plain and all(sum(p) <= span for p, span in zip(self.padding, self.spans, strict=True)):
            return 1
        return math.prod(1 + (before > 0) + (after > 0) for before, after in self.padding)

    def _circular(self, size: Size, copies: float) -> Grid:
        if any(h % s for h, s in zip(size, self.stride, strict=True)):
            # Round the seam pixels are read more densely than anywhere else; without the stride they all are.
            return replace(self, stride=(1,) * len(size))._circular(size, copies)
        points = tuple(h // s for h, s in zip(size, self.stride, strict=True))
        coarse = self._coarse(copies)
        return Grid(points, copies, self.stride) if math.prod(points) <= math.prod(coarse.points) else coarse

    def _coarse(self, copies: float) -> Grid:
        points, factor = self._any_size()
        return Grid(points, factor * copies, self.stride)

    def _any_size(self) -> tuple[Size, float]:
        degrees = [span // s / 2 for span, s in zip(self.spans, self.stride, strict=True)]
        cells = {1: 64}.get(len(degrees), 24)
        points = tuple(1 if d == 0 else max(cells, math.ceil(cells * d)) for d in degrees)
        return points, math.prod(1 / math.cos(math.pi * d / n) for d, n in zip(degrees, points, strict=True))

    def _copies(self, size: Size | None) -> float:
        # Norm of the padding, and of reading a circle more than once.
        if self.mode == "zeros":
            return 1.0
        sizes: Any = size or (None,) * len(self.kernel)
        if self.mode == "circular":
            rounds = map(_rounds, sizes, self.padding, self.spans)
            return math.sqrt(math.prod(rounds))
        return math.sqrt(math.prod(_most_copies(h, *p, self.mode) for h, p in zip(sizes, self.padding, strict=True)))

    def _taps(self) -> list[Size]:
        return list(product(*map(range, self.kernel)))


def _padding(padding: Any, kernel: Size, dilation: Size) -> tuple[tuple[int, int], ...]:
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    return tuple((p, p) for p in padding)


def _circle(h: int, out: int, padding: tuple[int, int], span: int, stride: int) -> int:
    # In output pixels. What is read before 0 must not come round to the image, nor what is read after its end.
    before = padding[0]
    n = max(h + before, stride * (out - 1) - before + span + 1, stride * out, 1)
    return 1 if span < stride else -(-n // stride)


def _rounds(h: int | None, padding: tuple[int, int], span: int) -> int:
    # How often an output pixel of the circle appears.
    extra = sum(padding) - span
    if extra <= 0:
        return 1
    smallest = max(padding) if h is None else h
    return -(-(smallest + extra) // max(smallest, 1))


def _most_copies(h: int | None, before: int, after: int, mode: str) -> int:
    if h is None:
        both = (before > 0) + (after > 0)
        return 1 + (both if mode == "reflect" else before + after)
    if mode == "replicate":
        return 1 + (before + after if h == 1 else max(before, after))
    counts = torch.ones(h, dtype=torch.long)
    counts[1 : before + 1] += 1
    counts[h - 1 - after : h - 1] += 1
    return int(counts.max())


@lru_cache(maxsize=256)
def _angles(points: Size, shift: Size) -> Tensor:
    if not points:
        return torch.zeros(1, 0, dtype=torch.float64)
    grid = torch.cartesian_prod(*(torch.arange(n) for n in points)).reshape(-1, len(points))
    sizes, moved = torch.tensor(points), torch.tensor(shift)
    conjugate = (-grid - moved) % sizes
    weights = torch.tensor([math.prod(points[i + 1 :]) for i in range(len(points))])
    is_first = (grid * weights).sum(1) <= (conjugate * weights).sum(1)
    return 2 * math.pi * (grid[is_first].double() + moved / 2) / sizes

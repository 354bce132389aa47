"""Points where g was evaluated, and what is kept of the last one of each sample.

What is one number per sample lives on the host, as NumPy arrays in float64: dozens of operations on a few numbers cost
more as kernels than the rest of a step, and to know who is done the host must wait for the device anyway.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def norms(*vectors: Tensor) -> Floats:
    """Euclidean norms, in one transfer to the host.

    Args:
        vectors: Each of shape (batch, size).

    Returns:
        Shape (number of vectors, batch).
    """
    return torch.stack([torch.linalg.vector_norm(x, dim=1) for x in vectors]).cpu().numpy().astype(np.float64)


class Point(NamedTuple):
    """Where g was evaluated.

    Args:
        x: The point, shape (batch, size).
        z: y - g(x).
        r: The residual, z - x.
        size: |r|, shape (batch,).
    """

    x: Tensor
    z: Tensor
    r: Tensor
    size: Floats

    def keep(self, kept: Ints) -> Point:
        """Go on with some rows.

        Args:
            kept: Their indices.

        Returns:
            The point for these.
        """
        rows = torch.from_numpy(kept).to(self.x.device)
        x, z, r = (part.index_select(0, rows) for part in self[:3])
        return Point(x, z, r, self.size[kept])

    def where(self, mask: Bools, other: Point) -> Point:
        """Replace some rows.

        Args:
            mask: Which keep this point's.
            other: What the rest gets.

        Returns:
            The mixture.
        """
        column = torch.from_numpy(mask).to(self.x.device).unsqueeze(1)
        x, z, r = (torch.where(column, a, b) for a, b in zip(self[:3], other[:3], strict=True))
        return Point(x, z, r, np.where(mask, self.size, other.size))


class Outcome(NamedTuple):
    """What a solve gives, for all rows.

    Args:
        x: The solution, shape (batch, size).
        evaluations: Until a row was done, shape (batch,).
        residual: |r|.
        error: Its bound.
        scale: What errors are compared with.
    """

    x: Tensor
    evaluations: Ints
    residual: Floats
    error: Floats
    scale: Floats

    @classmethod
    def like(cls, y: Tensor) -> Outcome:
        """Room for an outcome.

        Args:
            y: The right side, shape (batch, size).

        Returns:
            The outcome of no solve.
        """
        n = len(y)
        return cls(torch.empty_like(y), np.zeros(n, np.int64), np.zeros(n), np.zeros(n), np.zeros(n))

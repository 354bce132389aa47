"""Anderson acceleration, each sample by itself, in a form that needs no least squares and loses no digits.

With r = y - g(x) - x and z = x + r, Anderson's next point is z - sum_j gamma_j dz_j, where gamma minimises
|r - sum_j gamma_j dr_j| over the last differences. Here each new dr is made orthogonal to those kept (and dz combined
likewise), so that gamma_j is a scalar product. Nothing is squared, as it is in the normal equations; and for symmetric
Jacobians dropping old directions costs nothing, as in the method of conjugate residuals.

Source: Tang, Xu, He, Saad and Xi 2024, "Anderson acceleration with truncated Gram-Schmidt" (AATGS).
"""

from __future__ import annotations

import torch
from torch import Tensor

_DEPENDENT = 1e-3
"""Below this part of a difference being new, it is rounding that would be scaled up."""


class Anderson:
    """The directions kept.

    Args:
        like: Shape (batch, size).
        memory: How many to keep.

    Attributes:
        growth: A step that makes the residual grow by more is to be taken back.
    """

    growth = 1.0

    def __init__(self, like: Tensor, memory: int) -> None:
        n, size = like.shape
        self._residuals = like.new_empty(n, memory, size)  # orthonormal for each sample, or zero
        self._points = like.new_empty(n, memory, size)
        self._newest, self._n_kept = -1, 0
        self._step: tuple[Tensor, Tensor] | None = None

    def learn(self, dx: Tensor, dz: Tensor) -> None:
        """Take in a step.

        Args:
            dx: Difference of two points, shape (batch, size).
            dz: Difference of their z.
        """
        self._step = dx, dz

    def propose(self, z: Tensor, r: Tensor) -> Tensor:
        """The next point.

        What is new and where to go need the same products with what is kept: one pass over it serves both, which is
        most of the time where g is small.

        Args:
            z: The plain iteration's next point, shape (batch, size).
            r: The residual.

        Returns:
            Where to go instead; z itself for samples of which nothing is kept.
        """
        if self._step is None:
            return z
        (dx, dz), memory = self._step, self._residuals.shape[1]
        self._newest = (self._newest + 1) % memory
        if self._n_kept == memory:  # the oldest makes room first, else the new one is made orthogonal to it in vain
            self._residuals[:, self._newest] = 0
        residuals, points = torch.stack([dz - dx, r], dim=1), torch.stack([dz, z], dim=1)
        size = torch.linalg.vector_norm(residuals[:, 0], dim=1)
        if self._n_kept:
            old = self._residuals[:, : self._n_kept]
            shares = residuals @ old.mT
            residuals[:, :1].baddbmm_(shares[:, :1], old, alpha=-1)
            points.baddbmm_(shares, self._points[:, : self._n_kept], alpha=-1)
        self._n_kept = min(self._n_kept + 1, memory)
        return self._add(residuals, points, size)

    def _add(self, residuals: Tensor, points: Tensor, size: Tensor) -> Tensor:
        new = torch.linalg.vector_norm(residuals[:, 0], dim=1)
        factor = torch.where(new > _DEPENDENT * size, 1 / new, 0.0).unsqueeze(1)
        direction = torch.mul(residuals[:, 0], factor, out=self._residuals[:, self._newest])
        point = torch.mul(points[:, 0], factor, out=self._points[:, self._newest])
        gamma = torch.linalg.vecdot(residuals[:, 1], direction).unsqueeze(1)
        return torch.addcmul(points[:, 1], gamma, point, value=-1)

    def forget(self, rows: Tensor) -> None:
        """Drop what is kept of some samples.

        Args:
            rows: Which, boolean, shape (batch,).
        """
        self._residuals[rows] = 0
        self._points[rows] = 0
        if self._step is not None:
            self._step = self._step[0].clone(), self._step[1].clone()
            self._step[0][rows], self._step[1][rows] = 0, 0

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the samples only.

        Args:
            rows: Their indices.
        """
        self._residuals = self._residuals.index_select(0, rows)
        self._points = self._points.index_select(0, rows)
        if self._step is not None:
            self._step = self._step[0].index_select(0, rows), self._step[1].index_select(0, rows)

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
        self._residuals = like.new_zeros(n, memory, size)  # orthonormal for each sample, or zero
        self._points = like.new_zeros(n, memory, size)
        self._newest, self._n_kept = -1, 0

    def learn(self, dx: Tensor, dz: Tensor) -> None:
        """Take in a step.

        Args:
            dx: Difference of two points, shape (batch, size).
            dz: Difference of their z; is overwritten.
        """
        memory, dr = self._residuals.shape[1], dz - dx
        self._newest = (self._newest + 1) % memory
        if self._n_kept == memory:  # the oldest makes room first, else the new one is made orthogonal to it in vain
            self._residuals[:, self._newest] = 0
        size = torch.linalg.vector_norm(dr, dim=1)
        if self._n_kept:
            old = self._residuals[:, : self._n_kept]
            share = dr.unsqueeze(1) @ old.mT
            dr.unsqueeze(1).baddbmm_(share, old, alpha=-1)
            dz.unsqueeze(1).baddbmm_(share, self._points[:, : self._n_kept], alpha=-1)
        new = torch.linalg.vector_norm(dr, dim=1)
        factor = torch.where(new > _DEPENDENT * size, 1 / new, 0.0).unsqueeze(1)
        torch.mul(dr, factor, out=self._residuals[:, self._newest])
        torch.mul(dz, factor, out=self._points[:, self._newest])
        self._n_kept = min(self._n_kept + 1, memory)

    def propose(self, z: Tensor, r: Tensor) -> Tensor:
        """The next point.

        Args:
            z: The plain iteration's next point, shape (batch, size).
            r: The residual.

        Returns:
            Where to go instead; z itself for samples of which nothing is kept.
        """
        if not self._n_kept:
            return z
        gamma = r.unsqueeze(1) @ self._residuals[:, : self._n_kept].mT
        return torch.baddbmm(z.unsqueeze(1), gamma, self._points[:, : self._n_kept], alpha=-1).squeeze(1)

    def forget(self, rows: Tensor) -> None:
        """Drop what is kept of some samples.

        Args:
            rows: Which, boolean, shape (batch,).
        """
        self._residuals[rows] = 0
        self._points[rows] = 0

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the samples only.

        Args:
            rows: Their indices.
        """
        self._residuals = self._residuals.index_select(0, rows)
        self._points = self._points.index_select(0, rows)

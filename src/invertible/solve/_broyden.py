"""Broyden's good method, each sample by itself: the residual's inverse Jacobian as minus one plus few outer products.

Source: Broyden 1965; the form with outer products as in Bai, Kolter and Koltun 2019 (deep equilibrium models).
"""

from __future__ import annotations

import torch
from torch import Tensor

_MEMORY = 5


class Broyden:
    """The estimate -1 + sum_j u_j v_j^T of the inverse Jacobian of r = y - g(x) - x.

    Args:
        like: Shape (batch, size).
        memory: How many outer products to keep; the newest takes the place of the oldest. None: 5.

    Attributes:
        growth: A step that makes the residual grow by more is to be taken back; this method's residuals go up and down.
    """

    growth = 2.0

    def __init__(self, like: Tensor, memory: int | None) -> None:
        (n, size), memory = like.shape, memory or _MEMORY
        self._u, self._v = like.new_empty(n, memory, size), like.new_empty(n, memory, size)
        self._n_kept = 0
        self._newest = -1

    def learn(self, dx: Tensor, dz: Tensor) -> None:
        """Take in a step: the smallest change of the estimate that maps dr to dx.

        Args:
            dx: Difference of two points, shape (batch, size).
            dz: Difference of their z.
        """
        dr = dz - dx
        u, v = self._u[:, : self._n_kept], self._v[:, : self._n_kept]
        row = torch.baddbmm(-dx.unsqueeze(1), dx.unsqueeze(1) @ u.mT, v).squeeze(1)  # dx^T H
        column = torch.baddbmm(-dr.unsqueeze(1), dr.unsqueeze(1) @ v.mT, u).squeeze(1)  # H dr
        product = (row * dr).sum(dim=1)
        length = dx.square().sum(dim=1)
        usable = product.abs() > 1e-3 * length
        factor = torch.where(usable, 1 / product, 0.0).unsqueeze(1)
        self._newest = (self._newest + 1) % self._u.shape[1]
        torch.mul(dx - column, factor * length.sqrt().unsqueeze(1), out=self._u[:, self._newest])
        torch.div(row, length.sqrt().clamp_min(torch.finfo(row.dtype).tiny).unsqueeze(1), out=self._v[:, self._newest])
        self._n_kept = min(self._n_kept + 1, self._u.shape[1])

    def propose(self, z: Tensor, r: Tensor) -> Tensor:
        """The next point, x - H r.

        Args:
            z: The plain iteration's next point, x + r, shape (batch, size).
            r: The residual.

        Returns:
            Where to go instead.
        """
        if not self._n_kept:
            return z
        u, v = self._u[:, : self._n_kept], self._v[:, : self._n_kept]
        return torch.baddbmm(z.unsqueeze(1), r.unsqueeze(1) @ v.mT, u, alpha=-1).squeeze(1)

    def forget(self, rows: Tensor) -> None:
        """Drop what is kept of some samples.

        Args:
            rows: Which, boolean, shape (batch,).
        """
        self._u[rows] = 0
        self._v[rows] = 0

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the samples only.

        Args:
            rows: Their indices.
        """
        self._u, self._v = self._u.index_select(0, rows), self._v.index_select(0, rows)

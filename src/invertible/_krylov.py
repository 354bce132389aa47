"""Quadrature of u^T log(I + J) u in Krylov spaces (Arnoldi), batched over probes and samples."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from invertible._checks import can_look
from invertible._linearised import Linearised
from invertible.errors import RangeError

_N_NODES = 40


class Level(NamedTuple):
    """What the probes that make at least a number of steps know after that many."""

    value: Tensor  # |u|^2 [log(I + H)]_11, shape (n, batch)
    solution: Tensor  # |u| Q (I + H)^-1 e_1, which is near (I + J)^-T u; shape (n, batch, dimension), no graph
    power: Tensor  # |J^T^m u|, shape (n, batch)


def arnoldi(at: Linearised, u: Tensor, counts: tuple[int, ...], keep_graph: bool) -> list[Level]:
    """Run Arnoldi's iteration on J^T from each probe, some probes further than others.

    A Krylov space that is exhausted (J u = 0, dimension 1, ...) goes on with zero vectors: they leave the result exact,
    and, as they carry the gradient of the remainder that has become zero, its derivative too (to terms of degree m).

    Args:
        at: The function at its point.
        u: Probes, shape (n, batch, dimension).
        counts: How many of them, the first ones, make 1, 2, ... steps; does not increase.
        keep_graph: Whether the values shall be differentiable through every product.

    Returns:
        One level per step.
    """
    length = _norm(u)
    basis, columns = [u / length[..., None]], []
    for n in counts:
        pulled = at.pull(basis[-1][:n], create_graph=keep_graph)
        column, following = _orthogonalise(pulled, torch.stack([q[:n] for q in basis], dim=-2))
        basis.append(following)
        columns.append(column)
    return [_level(length, basis, columns[: m + 1], n) for m, n in enumerate(counts)]


def _orthogonalise(v: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    # v's coordinates in the basis and, as the last one, its remainder's length; then the remainder's direction
    remainder, column = v, torch.zeros_like(basis[..., 0])
    for _ in range(2):  # once is not orthogonal to rounding, twice is
        part = (basis @ remainder[..., None])[..., 0]
        column, remainder = column + part, remainder - (part[..., None, :] @ basis)[..., 0, :]
    left = _norm(remainder)
    smallest = 30 * torch.finfo(v.dtype).eps * _norm(v.detach())
    is_new = (left.detach() > smallest) & (left.detach() > torch.finfo(v.dtype).tiny ** 0.5)
    left = torch.where(is_new, left, 1)
    nothing = remainder - remainder.detach()
    following = torch.where(is_new[..., None], remainder, nothing) / left[..., None]
    return torch.cat([column, left[..., None]], dim=-1), following


def _norm(v: Tensor) -> Tensor:
    # torch's own norm has no gradient at zero
    square = v.square().sum(dim=-1)
    is_zero = square == 0
    return torch.where(is_zero, 0, torch.where(is_zero, 1, square).sqrt())


def _level(length: Tensor, basis: list[Tensor], columns: list[Tensor], n: int) -> Level:
    m = len(columns)
    length = length[:n]
    extended = torch.stack([pad(c[:n], (0, m + 1 - c.shape[-1])) for c in columns], dim=-1)  # (n, batch, m + 1, m)
    extended = extended if extended.device.type == "mps" else extended.double()
    h, first = extended[..., :m, :], torch.eye(m, 1, dtype=extended.dtype, device=extended.device)
    value = length.square() * log1p_corner(h).to(length.dtype)
    with torch.no_grad():
        y = torch.linalg.solve_ex(torch.eye(m).to(h) + h, first.expand(*h.shape[:-1], 1))[0].to(length.dtype)
        spanned = torch.stack([q[:n] for q in basis[: m + 1]], dim=-2)
        solution = length[..., None] * (y.mT @ spanned[..., :m, :])[..., 0, :]
        power = first
        for _ in range(m - 1):
            power = h @ power
        power = (extended @ power).to(length.dtype).mT @ spanned
    return Level(value, solution, length * _norm(power[..., 0, :]))


def log1p_corner(h: Tensor) -> Tensor:
    """The first entry of log(I + H), by quadrature: log(I + H) = integral over t in [0, 1] of (I + tH)^-1 H.

    No eigenvectors are needed, so defective matrices do no harm; exact to rounding for eigenvalues > -0.999.

    Args:
        h: Matrices, shape (..., m, m), with no eigenvalue <= -1.

    Returns:
        Shape (...).

    Raises:
        RangeError: If I + tH is singular on the way.

    Example:
        >>> h = torch.tensor([[0.5, 1.0], [0.0, 0.5]], dtype=torch.float64)
        >>> round(log1p_corner(h).exp().item(), 12)
        1.5
    """
    nodes, weights = (torch.as_tensor(a, dtype=h.dtype, device=h.device) for a in _nodes())
    m = h.shape[-1]
    matrices = torch.eye(m, dtype=h.dtype, device=h.device) + nodes.reshape(-1, *[1] * h.ndim) * h
    _check_regular(matrices.detach(), h.detach())
    solved = torch.linalg.solve_ex(matrices, h[..., :, :1].expand_as(matrices[..., :1]))[0][..., 0, 0]
    return torch.tensordot(weights, solved, dims=1)


@cache
def _nodes() -> tuple[np.ndarray, np.ndarray]:
    # Gauss-Legendre in s, t = 1 - s^2: this crowds the nodes where eigenvalues near -1 make a pole
    s, weights = np.polynomial.legendre.leggauss(_N_NODES)
    s, weights = (s + 1) / 2, weights / 2
    return 1 - s**2, 2 * s * weights


def _check_regular(matrices: Tensor, h: Tensor) -> None:
    if not can_look(matrices):
        return
    last = torch.eye(h.shape[-1], dtype=h.dtype, device=h.device) + h
    least = torch.linalg.det(torch.cat([matrices, last[None]])).min().item()
    if least <= 0:  # from t = 0, where it is 1, the determinant goes through 0
        raise RangeError(
            "I + dg/dx is not invertible as a contraction's would be",
            expected="|dg/dx| < 1",
            got="an eigenvalue of a Krylov space below -1",
            hint="constrain g's layers, or ExactLogDet(), which needs no contraction",
        )

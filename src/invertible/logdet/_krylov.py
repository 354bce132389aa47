"""Quadrature of u^T log(I + J) u in Krylov spaces (Arnoldi), batched over probes and samples."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from invertible._checks import can_look
from invertible.errors import RangeError
from invertible.logdet._linearised import Linearised

_N_NODES = 40


class Level(NamedTuple):
    """What the probes that make at least a number of steps know after that many."""

    value: Tensor  # |u|^2 [log(I + H)]_11, shape (n, batch)
    solution: Tensor | None  # |u| Q (I + H)^-1 e_1, which is near (I + J)^-T u; shape (n, batch, dimension), no graph


class Quadrature(NamedTuple):
    """The levels after which probes stop, and |J^T^m u| of the probes that make all m steps, shape (n, batch)."""

    levels: list[Level]
    power: Tensor


def arnoldi(at: Linearised, u: Tensor, counts: tuple[int, ...], keep_graph: bool) -> Quadrature:
    """Run Arnoldi's iteration on J^T from each probe, some probes further than others.

    A Krylov space that is exhausted (J u = 0, dimension 1, ...) goes on with zero vectors: they leave the result exact,
    and, as they carry the gradient of the remainder that has become zero, its derivative too (to terms of degree m).

    Args:
        at: The function at its point.
        u: Probes, shape (n, batch, dimension).
        counts: How many of them, the first ones, make 1, 2, ... steps; does not increase.
        keep_graph: Whether the values shall be differentiable through every product; their levels have no solutions.

    Returns:
        What is known at the end of each probe.
    """
    length, levels = _norm(u), []
    power = torch.zeros_like(length.detach())
    basis, columns = [u / length[..., None]], []
    for n, n_next in pairwise((*counts, 0)):
        pulled = at.pull(basis[-1][:n], create_graph=keep_graph)
        spanned = torch.stack([q[:n] for q in basis], dim=-2)
        column = _coordinates(pulled, spanned)
        if n_next < n:
            needs_solution = at.has_graph and not keep_graph
            levels.append(_level(length[:n], spanned, _hessenberg([*columns, column], n), needs_solution))
        if n_next:
            column, following = _orthogonalise(pulled[:n_next], spanned[:n_next], column[:n_next])
            columns.append(column)
            basis.append(following)
        else:
            h = _hessenberg([*columns, column], n).detach()
            power = length[:n].detach() * _power(spanned.detach(), pulled.detach(), h)
    return Quadrature(levels, power)


def _orthogonalise(v: Tensor, basis: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    # v's coordinates in the basis and, as the last one, its remainder's length; then the remainder's direction
    remainder = v - _combination(column, basis)
    part = _coordinates(remainder, basis)  # once is not orthogonal to rounding, twice is
    column, remainder = column + part, remainder - _combination(part, basis)
    left = _norm(remainder)
    smallest = 30 * torch.finfo(v.dtype).eps * _norm(v.detach())
    is_new = (left.detach() > smallest) & (left.detach() > torch.finfo(v.dtype).tiny ** 0.5)
    left = torch.where(is_new, left, 1)
    nothing = remainder - remainder.detach()
    following = torch.where(is_new[..., None], remainder, nothing) / left[..., None]
    return torch.cat([column, left[..., None]], dim=-1), following


# Products of so small matrices cost more than they multiply: sums of products of numbers are several times as fast.


def _coordinates(v: Tensor, basis: Tensor) -> Tensor:
    return (basis * v[..., None, :]).sum(dim=-1)


def _combination(column: Tensor, basis: Tensor) -> Tensor:
    return (column[..., None] * basis).sum(dim=-2)


def _norm(v: Tensor) -> Tensor:
    # torch's own norm has no gradient at zero
    square = v.square().sum(dim=-1)
    is_zero = square == 0
    return torch.where(is_zero, 0, torch.where(is_zero, 1, square).sqrt())


def _hessenberg(columns: list[Tensor], n: int) -> Tensor:
    m = len(columns)
    h = torch.stack([pad(c[:n], (0, m - c.shape[-1])) for c in columns], dim=-1)
    return h if h.device.type == "mps" else h.double()


def _level(length: Tensor, basis: Tensor, h: Tensor, needs_solution: bool) -> Level:
    value = length.square() * log1p_corner(h).to(length.dtype)
    if not needs_solution:
        return Level(value, None)
    m = h.shape[-1]
    first = torch.eye(m, 1, dtype=h.dtype, device=h.device).expand(*h.shape[:-1], 1)
    y = torch.linalg.solve_ex(torch.eye(m, dtype=h.dtype, device=h.device) + h, first)[0].to(length.dtype)
    return Level(value, length[..., None] * _combination(y[..., 0], basis))


def _power(basis: Tensor, last: Tensor, h: Tensor) -> Tensor:
    m = h.shape[-1]
    power = torch.eye(m, 1, dtype=h.dtype, device=h.device)[:, 0].expand(h.shape[:-1])
    for _ in range(m - 1):
        power = _coordinates(power, h)
    inside = _coordinates(power[..., :-1], h[..., :-1]).to(basis.dtype)
    return _norm(_combination(inside, basis) + power[..., -1:].to(basis.dtype) * last)


def log1p_corner(h: Tensor) -> Tensor:
    """The first entry of log(I + H), by quadrature: log(I + H) = integral over t in [0, 1] of (I + tH)^-1 H.

    No eigenvectors are needed, so defective matrices do no harm; exact to 1e-13 for eigenvalues > -0.99, to 1e-8 for
    > -0.999. The entry of the inverse is a ratio of determinants, for which Hessenberg matrices have a recursion.

    Args:
        h: Hessenberg matrices (nothing below the first subdiagonal), shape (..., m, m), with no eigenvalue <= -1.

    Returns:
        Shape (...).

    Raises:
        RangeError: If I + tH is singular on the way.

    Example:
        >>> h = torch.tensor([[0.5, 1.0], [0.0, 0.5]], dtype=torch.float64)
        >>> round(log1p_corner(h).exp().item(), 12)
        1.5
    """
    if h.shape[-1] == 1:  # most probes end here
        _check_regular(1 + h.detach())
        return h[..., 0, 0].log1p()
    nodes, weights = (torch.as_tensor(a, dtype=h.dtype, device=h.device) for a in _nodes())
    t = nodes.reshape(-1, *[1] * (h.ndim - 2))
    dets, gain = [torch.ones_like(t)], t
    for row in reversed(range(h.shape[-1])):
        gain = _expand(h, t, row, dets)
        dets = [dets[0] + t * gain, *dets]
    _check_regular(dets[0].detach())
    return torch.tensordot(weights, gain / dets[0], dims=1)


def _expand(h: Tensor, t: Tensor, row: int, dets: list[Tensor]) -> Tensor:
    # det(I + tH) from this row and column on is t times this more than that from the next on; dets[i] is that from
    # row + 1 + i on
    total, product = torch.zeros_like(t), torch.ones_like(t)
    for column, det in enumerate(dets, start=row):
        total = total + h[..., row, column] * product * det
        if det is not dets[-1]:
            product = -product * t * h[..., column + 1, column]
    return total


@cache
def _nodes() -> tuple[np.ndarray, np.ndarray]:
    # Gauss-Legendre in s, t = 1 - s^2: this crowds the nodes where eigenvalues near -1 make a pole
    s, weights = np.polynomial.legendre.leggauss(_N_NODES)
    s, weights = (s + 1) / 2, weights / 2
    return np.append(1 - s**2, 1.0), np.append(2 * s * weights, 0.0)  # and the end, where nothing may be singular


def _check_regular(dets: Tensor) -> None:
    if not can_look(dets):
        return
    least = dets.min().item()
    if least <= 0:  # from t = 0, where it is 1, the determinant goes through 0
        raise RangeError(
            "I + dg/dx is not invertible as a contraction's would be",
            expected="|dg/dx| < 1",
            got="an eigenvalue of a Krylov space at -1 or below",
            hint="constrain g's layers, or ExactLogDet(), which needs no contraction",
        )

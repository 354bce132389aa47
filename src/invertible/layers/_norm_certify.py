"""The largest eigenvalue of many Hermitian matrices: an estimate, and then a proof that none is larger."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from invertible.layers._norm_gram import GramFamily

MARGIN = 0.01
"""How far above the estimated eigenvalue the proof is tried; the norm is its root, so half of that."""
_SMALL = 64
"""Matrices up to this size are diagonalised."""
_N_CANDIDATES = 8
_N_STEPS = 6
_N_STARTS = 2
_BLOCK = 16
_N_REFINEMENTS = 4
_MAX_ROUNDS = 8
_CLEAR = 0.98
"""Frobenius norms below so much of the bound prove themselves, their own rounding included."""


@dataclass(frozen=True)
class Leading:
    """The best that an iteration found.

    Attributes:
        value: A Rayleigh quotient, so never above the largest eigenvalue but for rounding.
        index: Of the matrix.
        vector: A unit vector, shape (n,).
    """

    value: float
    index: int
    vector: Tensor


def largest(family: GramFamily, found: Leading | None = None) -> tuple[float, Leading]:
    """A bound of the largest eigenvalue that holds whatever the iteration found: bound * I - G has a Cholesky factor.

    Rounding is allowed for as it adds up in practice, like the root of the number of operations (Higham and Mary 2019).
    All is deterministic.

    Args:
        family: The matrices.
        found: What `leading` found.

    Returns:
        The bound, and the pair of eigenvalue and eigenvector that it is made of.
    """
    found = found or leading(family)
    if family.n == 1 or (family.waves.is_real and family.n <= _SMALL):
        return found.value * (1 + family.rounding), found
    bound = found.value * (1 + MARGIN) + torch.finfo(family.dtype).tiny
    left, last = _unproven(family, bound), []
    for _ in range(_MAX_ROUNDS):
        if not left:
            break
        if len(left) > _N_CANDIDATES:  # the guess was bad: a better one takes less time than many small steps
            found = max(found, _lanczos(family, left[:_N_CANDIDATES]), key=_value)
        bound = max(bound, found.value) * (1 + MARGIN)
        left, last = [left[i] for i in _fails(family.pick(left), bound)], left
    if last:  # the largest is among those that failed last
        found = max(found, _exact(family, left) if left else _lanczos(family, last[:_N_CANDIDATES]), key=_value)
    found = max(found, _converged(family, found, max(bound, found.value * (1 + MARGIN))), key=_value)
    return max(bound, found.value * (1 + MARGIN)) * (1 + family.rounding), found


def leading(family: GramFamily) -> Leading:
    """The largest eigenvalue as an iteration finds it.

    Args:
        family: The matrices.

    Returns:
        Its best guess; exact if the matrices are small.
    """
    if family.n == 1:
        values = torch.cat([matrices.real.flatten() for _, matrices in family.stretches()])
        index = int(values.argmax())
        return Leading(float(values[index]), index, family.pick([index])[0, 0] * 0 + 1)
    if family.waves.is_real and family.n <= _SMALL:
        return _exact(family, list(range(len(family))))
    largest_sizes = family.sizes.topk(min(_N_CANDIDATES, len(family)))
    return _lanczos(family, largest_sizes.indices.tolist())


def _value(found: Leading) -> float:
    return found.value


@lru_cache(maxsize=32)
def _start(n: int) -> Tensor:
    return torch.randn(n, _N_STARTS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _unit(vectors: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(vectors, dim=-2, keepdim=True)
    return vectors / norms.clamp(min=torch.finfo(norms.dtype).tiny)


def _lanczos(family: GramFamily, indices: list[int]) -> Leading:
    # The largest Ritz value from the Krylov space; a basis made at the end takes a fraction of the calls of one made
    # step by step, and what rounding does to it only makes the guess a little worse.
    if family.n <= 2 * _BLOCK:
        return _exact(family, indices)
    matrices = family.pick(indices)
    vectors = _start(family.n).to(matrices).expand(len(indices), -1, -1)
    powers = []
    for _ in range(_N_STEPS):
        vectors = _unit(matrices @ vectors)
        powers.append(vectors)
    basis, _ = torch.linalg.qr(torch.cat(powers, dim=-1))
    small = basis.mH @ (matrices @ basis)
    _, mix = torch.linalg.eigh((small + small.mH) / 2)
    found = _unit(basis @ mix[..., -1:])
    values = (found.conj() * (matrices @ found)).sum((-2, -1)).real
    best = int(values.argmax())
    return Leading(float(values[best]), indices[best], found[best, :, 0])


def _converged(family: GramFamily, found: Leading, bound: float) -> Leading:
    # The derivative needs the vector itself: inverse iteration, shifted to just above the eigenvalue.
    if family.dtype == torch.float64:
        return _exact(family, [found.index])
    (matrix,) = family.pick([found.index])
    shifted = torch.linalg.cholesky(_gap(matrix, bound))
    vector = found.vector[:, None]
    for _ in range(_N_REFINEMENTS):
        vector = _unit(torch.cholesky_solve(vector, shifted))
    return Leading(float((vector.mH @ matrix @ vector).real), found.index, vector[:, 0])


def _exact(family: GramFamily, indices: list[int]) -> Leading:
    values, vectors = torch.linalg.eigh(family.pick(indices))
    best = int(values[:, -1].argmax())
    return Leading(float(values[best, -1]), indices[best], vectors[best, :, -1])


def _unproven(family: GramFamily, bound: float) -> list[int]:
    # The matrices G for which bound * I - G has no Cholesky factor. Small Frobenius norms prove themselves.
    is_open = (family.sizes >= _CLEAR * bound).cpu()
    found: list[int] = []
    for indices, matrices in family.stretches(is_open.nonzero().flatten()):
        found += indices[_fails(matrices, bound)].tolist()
    return found


def _fails(matrices: Tensor, bound: float) -> list[int]:
    return (~is_below(matrices, bound)).nonzero().flatten().tolist()


def is_below(matrices: Tensor, bound: float) -> Tensor:
    """Which Hermitian matrices G are so that bound * I - G is positive definite: it has a Cholesky factor.

    For many matrices of some size block after block is eliminated, all matrices at a time, as LAPACK takes each of them
    alone and slowly. What is carried along is G plus what the elimination adds, so that nothing is copied at first.

    Args:
        matrices: Shape (n_matrices, n, n).
        bound: Of their eigenvalues.

    Returns:
        Shape (n_matrices,), booleans; NaN is not below.
    """
    good = torch.ones(len(matrices), dtype=torch.bool, device=matrices.device)
    while matrices.shape[-1] > 2 * _BLOCK and len(matrices) > 1:
        n_rows = matrices.shape[-1] // 2
        side, is_good = _eliminated(matrices[:, :n_rows], bound)
        good &= is_good
        matrices = torch.baddbmm(matrices[:, n_rows:, n_rows:], side.mH, side)
    factor, failed = torch.linalg.cholesky_ex(_gap(matrices, bound))
    return good & (failed == 0) & factor.diagonal(dim1=-2, dim2=-1).real.isfinite().all(-1)


def _eliminated(rows: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    # For the top rows [G11, G12]: inverse(L) G12, with L L^* = bound * I - G11, and which of them exist.
    n = rows.shape[1]
    if n <= _BLOCK:
        factor, failed = torch.linalg.cholesky_ex(_gap(rows[:, :, :n], bound))
        inverse = torch.linalg.solve_triangular(factor, _eye(factor), upper=False)
        return inverse @ rows[:, :, n:], failed == 0
    half = n // 2
    first, is_good = _eliminated(rows[:, :half], bound)
    below = torch.baddbmm(rows[:, half:, half:], first[:, :, : n - half].mH, first)
    second, is_also_good = _eliminated(below, bound)
    return torch.cat([first[:, :, n - half :], second], dim=1), is_good & is_also_good


def _gap(matrices: Tensor, bound: float) -> Tensor:
    return bound * _eye(matrices) - matrices


def _eye(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device).expand_as(like)

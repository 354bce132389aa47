"""The largest eigenvalue of many Hermitian matrices: an estimate, and then a proof that none is larger."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from invertible.layers._norm_gram import GramFamily

MARGIN = 0.006
"""How far above the estimated eigenvalue the proof is tried; the norm is its root, so half of that."""
_SMALL = 64
"""Matrices up to this size are diagonalised."""
_N_STARTS = 4
_N_CANDIDATES = 6
_N_STEPS = 14
_N_REFINEMENTS = 4
_MAX_ROUNDS = 8


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


def largest(family: GramFamily) -> tuple[float, Leading]:
    """A bound of the largest eigenvalue that holds whatever the iteration found: bound * I - G has a Cholesky factor.

    Rounding is allowed for as it adds up in practice, like the root of the number of operations (Higham and Mary 2019).
    All is deterministic.

    Args:
        family: The matrices.

    Returns:
        The bound, and what was found.
    """
    if family.n == 1:
        found = _single(family)
        return found.value * (1 + family.rounding), found
    if family.is_real and family.n <= _SMALL:
        found = _exact(family, list(range(len(family))))
        return found.value * (1 + family.rounding), found
    found = leading(family)
    left = None
    for _ in range(_MAX_ROUNDS):
        bound = found.value * (1 + MARGIN) + torch.finfo(family.dtype).tiny
        left = _unproven(family, bound, left)
        if not left:
            found = max(found, _converged(family, found, bound), key=_value)
            return found.value * (1 + MARGIN) * (1 + family.rounding), found
        found = max(found, _lanczos(family, left[: 4 * _N_CANDIDATES]), key=_value)
    found = max(found, _exact(family, left or []), key=_value)
    return found.value * (1 + MARGIN) * (1 + family.rounding), found


def leading(family: GramFamily) -> Leading:
    """The largest eigenvalue as an iteration finds it.

    Args:
        family: The matrices.

    Returns:
        Its best guess.
    """
    return _single(family) if family.n == 1 else _lanczos(family, _promising(family))


def _value(found: Leading) -> float:
    return found.value


def _single(family: GramFamily) -> Leading:
    values = torch.cat([family.block(*stretch).real.flatten() for stretch in family.blocks()])
    index = int(values.argmax())
    return Leading(float(values[index]), index, torch.ones_like(values[:1]))


@lru_cache(maxsize=32)
def _starts(n: int, n_starts: int) -> Tensor:
    return torch.randn(n, n_starts, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _promising(family: GramFamily) -> list[int]:
    # Rayleigh quotients after a few steps of a power iteration with several starts.
    scores = []
    for stretch in family.blocks():
        matrices = family.block(*stretch)
        before = matrices @ _starts(family.n, _N_STARTS).to(matrices)
        before = _unit(matrices @ _unit(before))
        scores.append((before.conj() * (matrices @ before)).sum(-2).real.amax(-1))
    return torch.cat(scores).topk(min(_N_CANDIDATES, len(family))).indices.tolist()


def _unit(vectors: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(vectors, dim=-2, keepdim=True)
    return vectors / norms.clamp(min=torch.finfo(norms.dtype).tiny)


def _lanczos(family: GramFamily, indices: list[int]) -> Leading:
    # The largest Ritz value, from a Krylov space with full orthogonalisation.
    matrices = family.pick(indices)
    vector = _unit(matrices @ (matrices @ _starts(family.n, 1).to(matrices)))
    basis, images = vector.new_zeros(0), vector.new_zeros(0)
    for step in range(min(_N_STEPS, family.n)):
        image = matrices @ vector
        basis, images = (
            (vector, image) if step == 0 else (torch.cat([basis, vector], -1), torch.cat([images, image], -1))
        )
        for _ in range(2):
            image = image - basis @ (basis.mH @ image)
        vector = _unit(image)
    small = basis.mH @ images
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
    shifted = torch.linalg.cholesky(bound * torch.eye(family.n, dtype=matrix.dtype, device=matrix.device) - matrix)
    vector = found.vector[:, None]
    for _ in range(_N_REFINEMENTS):
        vector = _unit(torch.cholesky_solve(vector, shifted))
    return Leading(float((vector.mH @ matrix @ vector).real), found.index, vector[:, 0])


def _exact(family: GramFamily, indices: list[int]) -> Leading:
    values, vectors = torch.linalg.eigh(family.pick(indices))
    best = int(values[:, -1].argmax())
    return Leading(float(values[best, -1]), indices[best], vectors[best, :, -1])


def _unproven(family: GramFamily, bound: float, among: list[int] | None) -> list[int]:
    # The matrices G for which bound * I - G has no Cholesky factor.
    if among is not None:
        return [index for index, failed in zip(among, _fails(family.pick(among), bound), strict=True) if failed]
    found: list[int] = []
    for start, stop in family.blocks():
        failed = _fails(family.block(start, stop), bound)
        found += (failed.nonzero().flatten() + start * family.groups).tolist()
    return found


def _fails(matrices: Tensor, bound: float) -> Tensor:
    below = matrices.neg()
    below.diagonal(dim1=-2, dim2=-1).add_(bound)
    factor, info = torch.linalg.cholesky_ex(below)
    return (info != 0) | ~factor.diagonal(dim1=-2, dim2=-1).real.isfinite().all(-1)

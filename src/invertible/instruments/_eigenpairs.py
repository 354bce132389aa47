"""Eigenpairs at both ends of the spectrum, from products alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from invertible.instruments._hessian import Curved
from invertible.instruments._krylov import Pairs, lanczos, rayleigh_ritz, ritz_pairs, tridiagonal_eigh

DOUBLE_UP_TO = 2**21
"""Parameters up to which vectors are kept in float64."""
BASIS_BYTES = 2**31
MOST_STEPS = 200
CHECKED_EVERY = 5
MORE = 20
"""Vectors that ARPACK keeps beyond twice the eigenvalues that are wanted: with fewer it restarts more often."""
RESTARTS = 50


class _TimeIsUp(Exception):
    pass


def never() -> bool:
    """Time does not run out.

    Returns:
        False.
    """
    return False


@dataclass(frozen=True, eq=False)
class Assessed:
    """Eigenpairs, looked at with one more product each; all in ascending order.

    Args:
        values: v^T A v, shape (k,).
        residuals: |A v - value v|.
        over_batches: Standard errors of the values over batches; None: one batch.
        vectors: Unit rows, shape (k, n).
        images: A v, shape (k, n).
    """

    values: list[float]
    residuals: list[float]
    over_batches: list[float] | None
    vectors: Tensor
    images: Tensor

    @property
    def radius(self) -> float:
        """The largest absolute value."""
        return max(map(abs, self.values))


def assess(matrix: Curved, pairs: Pairs) -> Assessed:
    """Find out how good eigenpairs are.

    Args:
        matrix: The matrix.
        pairs: Ascending.

    Returns:
        Them, with Rayleigh quotients and true residuals.
    """
    vectors = pairs.vectors
    images, values, weights = torch.zeros_like(vectors), [], []
    for weight, part in matrix.parts(vectors):
        images.add_(part.to(vectors), alpha=weight)
        values.append((part.to(vectors) * vectors).sum(1))
        weights.append(weight)
    quotients = (images * vectors).sum(1)
    residuals = (images - quotients.unsqueeze(1) * vectors).norm(dim=1)
    errors = _over_batches(torch.stack(values).double(), quotients.new_tensor(weights).double())
    return Assessed(quotients.tolist(), residuals.tolist(), errors, vectors, images)


def _over_batches(values: Tensor, weights: Tensor) -> list[float] | None:
    n = len(values)
    if n < 2:
        return None
    deviations = values - weights @ values
    # Batches of unequal size: their variances add up by the squares of their shares.
    return (weights.square() @ deviations.square() * n / (n - 1)).sqrt().tolist()


def extremes(
    matrix: Curved,
    n_smallest: int,
    n_largest: int,
    tolerance: float,
    seed: int = 0,
    is_over: Callable[[], bool] = never,
) -> Assessed:
    """Find eigenpairs at both ends: Lanczos while its basis fits, then ARPACK from what that found.

    Args:
        matrix: The matrix.
        n_smallest: How many at the lower end.
        n_largest: How many at the upper.
        tolerance: Residual wanted, over the largest absolute eigenvalue.
        seed: Of the first vector.
        is_over: Whether time has run out.

    Returns:
        Them; what has not converged is among them, as residuals tell.
    """
    wanted = n_smallest + n_largest
    room = BASIS_BYTES // (8 * matrix.n)
    n_steps = max(min(MOST_STEPS, room), 2 * wanted + MORE)

    done = Convergence(n_smallest, n_largest, tolerance, 100 * torch.finfo(matrix.view.dtype).eps)
    runs = lanczos(matrix.products, first_vectors(matrix, 1, seed), n_steps, lambda t: is_over() or done(t[:, 0]))
    found = assess(matrix, ritz_pairs(runs, n_smallest, n_largest, matrix.view.dtype))
    return refined(matrix, found, n_smallest, n_largest, tolerance, is_over)


@dataclass
class Convergence:
    """Tells from Lanczos' tridiagonal matrix whether its extreme eigenvalues have converged.

    Small residuals alone can deceive: an eigenvalue of which the first vector holds little comes late. So each residual
    must be small against its own eigenvalue, a basis must be as large as ARPACK would make it, and nothing may have
    changed since the last look.

    Args:
        n_smallest: How many at the lower end.
        n_largest: How many at the upper.
        tolerance: Residual wanted, over the eigenvalue.
        rounding: Residuals below this, over the largest absolute eigenvalue, count as none.
    """

    n_smallest: int
    n_largest: int
    tolerance: float
    rounding: float
    before: Tensor | None = None

    def __call__(self, t: Tensor) -> bool:
        """Look.

        Args:
            t: As in `tridiagonal_eigh`; the last number beside the diagonal is the norm of the rest.

        Returns:
            Whether all have converged.
        """
        m, wanted = t.shape[1], self.n_smallest + self.n_largest
        if m < 2 * wanted + MORE or m % CHECKED_EVERY:
            return False
        nodes, vectors = tridiagonal_eigh(t)
        chosen = [*range(self.n_smallest), *range(m - self.n_largest, m)]
        allowed = (self.tolerance * nodes[chosen].abs()).clamp_min(self.rounding * nodes.abs().max().item())
        ends, before, self.before = nodes[chosen], self.before, nodes[chosen]
        if bool((t[1, -1].item() * vectors[-1, chosen].abs() > allowed).any()) or before is None:
            return False
        return bool(((ends - before).abs() <= allowed).all())


def first_vectors(matrix: Curved, k: int, seed: int) -> Tensor:
    """Random signs: probes z with E[z z^T] = 1, whose z^T A z vary least.

    Args:
        matrix: For size and device.
        k: How many.
        seed: Of the draw.

    Returns:
        Shape (k, n), float64 for networks that are not large.
    """
    dtype = torch.float64 if matrix.n <= DOUBLE_UP_TO else matrix.view.dtype
    drawn = torch.randint(0, 2, (k, matrix.n), generator=torch.Generator().manual_seed(seed), dtype=torch.int8)
    return (2 * drawn - 1).to(matrix.view.device, dtype)


def refined(
    matrix: Curved,
    near: Assessed,
    n_smallest: int,
    n_largest: int,
    tolerance: float,
    is_over: Callable[[], bool] = never,
) -> Assessed:
    """Go on with ARPACK where residuals are larger than wanted.

    Args:
        matrix: The matrix.
        near: Eigenpairs so far.
        n_smallest: How many are wanted at the lower end.
        n_largest: How many at the upper.
        tolerance: Residual wanted, over the largest absolute eigenvalue.
        is_over: Whether time has run out; then the old ones are given back.

    Returns:
        Better ones, or the same.
    """
    k = len(near.values)
    is_good = max(near.residuals) <= tolerance * near.radius
    if (is_good and k == min(n_smallest + n_largest, matrix.n)) or is_over():
        return near
    n_low = max(k - n_largest, 0)
    found = []
    try:
        for sign, wanted, old in ((-1, n_smallest, slice(0, n_low)), (1, n_largest, slice(n_low, k))):
            known = near.vectors[old]
            if wanted and (len(known) < wanted or max(near.residuals[old]) > tolerance * near.radius):
                known = _arpack(matrix, wanted, near, tolerance, sign, is_over).to(near.vectors)
            found.append(known)
    except _TimeIsUp:
        return near
    vectors = torch.cat(found)
    if not len(vectors):
        return near
    better = rayleigh_ritz(vectors, matrix.products(vectors), matrix.view.dtype).ends(n_smallest, n_largest)
    return assess(matrix, better)


def _arpack(matrix: Curved, k: int, near: Assessed, tolerance: float, sign: int, is_over: Callable[[], bool]) -> Tensor:
    # Of sign * A + radius: all its eigenvalues at that end are as large as the radius, on which ARPACK's tolerance,
    # which is relative to each, then rests. The Krylov space is the same.
    from numpy import ascontiguousarray, float64, ndarray
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    def act(v: ndarray) -> ndarray:
        if is_over():
            raise _TimeIsUp
        inside = torch.from_numpy(ascontiguousarray(v.reshape(-1), dtype=float64))
        return (sign * matrix.product(inside) + near.radius * inside).numpy()

    k = min(k, matrix.n - 1)
    start = near.vectors.double().sum(0).cpu().numpy()
    operator = LinearOperator((matrix.n, matrix.n), matvec=act, dtype=float64)  # pyright: ignore[reportCallIssue]
    ncv = min(matrix.n, 2 * k + MORE)
    try:
        settings: dict[str, Any] = {"tol": tolerance / 2, "ncv": ncv, "maxiter": RESTARTS}
        _, vectors = eigsh(operator, k=k, which="LA", v0=start, **settings)
    except ArpackNoConvergence as error:
        vectors = error.eigenvectors
    return torch.from_numpy(ascontiguousarray(vectors.T))

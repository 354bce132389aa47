"""Lanczos runs of several vectors side by side: spectral densities, and extreme eigenvectors out of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Products = Callable[[Tensor], Tensor]
GRID = 2000
SAME = {torch.float64: 1e-12, torch.float32: 1e-6}
"""Directions of which less than this is new, squared, are the same: rounding of products in that dtype drowns it."""


@dataclass(frozen=True, eq=False)
class Run:
    """One Lanczos run: A Q^T = Q^T T + r e_m^T.

    Args:
        basis: Q, orthonormal rows, shape (m, n).
        rest: r, shape (n,); zero if the basis spans an invariant subspace.
        nodes: Eigenvalues of T (Ritz values), ascending.
        vectors: Its eigenvectors, columns.
    """

    basis: Tensor
    rest: Tensor
    nodes: Tensor
    vectors: Tensor

    @property
    def weights(self) -> Tensor:
        """Of the nodes, in Gauss quadrature of the spectrum as the run's first vector sees it; their sum is 1."""
        return self.vectors[0].square()

    @property
    def images(self) -> Tensor:
        """A times each vector of the basis, shape (m, n), as the run's own relation has it: no further products."""
        t = (self.vectors * self.nodes) @ self.vectors.T
        found = t.to(self.basis) @ self.basis
        found[-1] += self.rest
        return found

    def below(self, level: float) -> tuple[float, float, float]:
        """Share of the spectrum below a level, as the first vector sees it, with bounds.

        What quadrature leaves open is little where nothing is near the level, or where all there has converged: the
        part of a Ritz vector beyond the level is bounded by its residual over the distance.

        Args:
            level: Anything.

        Returns:
            The share, the least and the most it can be.

        Source: the Chebyshev-Markov-Stieltjes inequalities; residuals (A - node_k) y_k all point along the rest.
        """
        weights, under = self.weights, self.nodes < level
        total, k = weights[under].sum().item(), int(under.sum())
        low = weights[: max(k - 1, 0)].sum().item()
        high = weights[: k + 1].sum().item()
        end, other = self.nodes[0].item(), self.nodes[-1].item()
        up = self._beyond(~under, torch.linspace(min(end, level), level, GRID, dtype=torch.float64))
        down = self._beyond(under, torch.linspace(level, max(other, level), GRID, dtype=torch.float64))
        least = max(max(total - down**2, 0.0) ** 0.5 - up, 0.0) ** 2
        return total, min(max(low, least), total), max(min(high, (total**0.5 + up) ** 2, 1.0), total)

    def _beyond(self, nodes: Tensor, at: Tensor) -> float:
        # Norm of that part of the sum of some Ritz vectors which lies on the other side of the level.
        if not bool(nodes.any()):
            return 0.0
        rests = self.rest.norm().item() * self.vectors[-1, nodes]
        distances = at.unsqueeze(1) - self.nodes[nodes]
        found = (self.vectors[0, nodes] * rests / distances.where(distances != 0, 1e-300)).sum(1)
        return min(found.abs().max().item(), 1.0)


def lanczos(
    products: Products, start: Tensor, n_steps: int, is_done: Callable[[Tensor], bool] = lambda t: False
) -> list[Run]:
    """Run Lanczos from several vectors at once, each against its own basis, with full reorthogonalisation.

    Args:
        products: Multiplies rows, shape (k, n), by the symmetric matrix A.
        start: First vectors, shape (k, n); float32 or float64, in which all is done.
        n_steps: At most so many.
        is_done: Asked after each step but the first: it gets diagonals and off-diagonals so far, shape (2, k, steps),
            the last off-diagonal being the norm of the rest; True ends the runs.

    Returns:
        A run per vector; one whose basis became invariant is shorter, and exact.

    Source: Lanczos 1950; Golub and Meurant 1994 for the quadrature.

    Example:
        >>> found = lanczos(lambda v: v * torch.tensor([1.0, 2.0, 5.0]), torch.ones(1, 3), 10)[0]
        >>> [round(node, 4) for node in found.nodes.tolist()], [round(w, 4) for w in found.weights.tolist()]
        ([1.0, 2.0, 5.0], [0.3333, 0.3333, 0.3333])
    """
    k, n = start.shape
    n_steps = min(n_steps, n)
    basis, t = start.new_zeros(k, n_steps, n), start.new_zeros(2, k, n_steps)
    q = start / start.norm(dim=1, keepdim=True)
    lengths, w = [0] * k, q
    for j in range(n_steps):
        basis[:, j] = q
        w = products(q)
        t[0, :, j] = (w * q).sum(1)
        w = _cleared(w, basis[:, : j + 1])
        t[1, :, j] = w.norm(dim=1)
        alive = t[1, :, j] > _rounding(t[:, :, : j + 1])
        lengths = [j + 1 if is_on else n for is_on, n in zip(q.any(1).tolist(), lengths, strict=True)]
        w = w * alive.unsqueeze(1)
        q = w / t[1, :, j : j + 1].clamp_min(torch.finfo(w.dtype).tiny)
        if not bool(alive.any()) or (j > 0 and is_done(t[:, :, : j + 1])):
            break
    return [_run(t[:, i, : lengths[i]], basis[i, : lengths[i]], w[i]) for i in range(k)]


def _cleared(w: Tensor, basis: Tensor) -> Tensor:
    for _ in range(2):  # twice is enough (Kahan; Parlett 1980)
        w = w - (w.unsqueeze(1) @ basis.mT @ basis).squeeze(1)
    return w


def _rounding(t: Tensor) -> Tensor:
    return 64 * torch.finfo(t.dtype).eps * t.abs().amax((0, 2))


def _run(t: Tensor, basis: Tensor, rest: Tensor) -> Run:
    nodes, vectors = tridiagonal_eigh(t)
    return Run(basis, rest, nodes, vectors)


def tridiagonal_eigh(t: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of a symmetric tridiagonal matrix.

    Args:
        t: Its diagonal and what is beside it (one number too many), shape (2, m).

    Returns:
        Values, ascending, and vectors as columns; float64 on the CPU.

    Example:
        >>> tridiagonal_eigh(torch.tensor([[1.0, 1.0], [2.0, 0.0]]))[0]
        tensor([-1.,  3.], dtype=torch.float64)
    """
    from scipy.linalg import eigh_tridiagonal

    diagonal, beside = t.double().cpu().numpy()
    nodes, vectors = eigh_tridiagonal(diagonal, beside[:-1])
    return torch.from_numpy(nodes), torch.from_numpy(vectors)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Approximate eigenpairs.

    Args:
        values: Shape (k,), ascending, float64.
        vectors: Unit rows, shape (k, n).
    """

    values: Tensor
    vectors: Tensor

    def ends(self, n_smallest: int, n_largest: int) -> Pairs:
        """Those at both ends.

        Args:
            n_smallest: How many at the lower end.
            n_largest: How many at the upper.

        Returns:
            Ascending; all, if there are no more.
        """
        k = len(self.values)
        n_largest = min(n_largest, k)
        n_smallest = min(n_smallest, k - n_largest)
        chosen = [*range(n_smallest), *range(k - n_largest, k)]
        return Pairs(self.values[chosen], self.vectors[chosen])


def ritz_pairs(runs: list[Run], n_smallest: int, n_largest: int, dtype: torch.dtype = torch.float64) -> Pairs:
    """Eigenpairs at both ends from the span of what all runs found: no further products.

    A single run sees one vector of each eigenspace; several runs see as many as they are.

    Args:
        runs: Of one matrix.
        n_smallest: How many at the lower end.
        n_largest: How many at the upper.
        dtype: In which products were computed.

    Returns:
        At most so many.
    """
    found, images = [], []
    for run in runs:
        m = len(run.nodes)
        chosen = [i for i in range(m) if i < n_smallest or i >= m - n_largest]
        s, nodes = run.vectors[:, chosen].to(run.basis), run.nodes[chosen].to(run.basis)
        vectors = s.T @ run.basis
        found.append(vectors)
        images.append(nodes.unsqueeze(1) * vectors + s[-1].unsqueeze(1) * run.rest)
    return rayleigh_ritz(torch.cat(found), torch.cat(images), dtype).ends(n_smallest, n_largest)


def rayleigh_ritz(vectors: Tensor, images: Tensor, dtype: torch.dtype = torch.float64) -> Pairs:
    """The best eigenpairs in a span.

    Args:
        vectors: Rows, shape (k, n); they need not be independent.
        images: A times each, shape (k, n).
        dtype: In which they were computed.

    Returns:
        As many pairs as the span has dimensions.
    """
    y, ay = independent(vectors.double(), images.double(), dtype)
    small = y @ ay.T
    values, z = torch.linalg.eigh((small + small.T) / 2)
    found = z.T @ y
    return Pairs(values.cpu(), found / found.norm(dim=1, keepdim=True))


def independent(vectors: Tensor, images: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """An orthonormal basis of a span.

    Args:
        vectors: Rows, shape (k, n).
        images: A times each, shape (k, n).
        dtype: In which they were computed: directions that drown in its rounding are left out.

    Returns:
        The basis as rows, and A times each.
    """
    gram, basis = torch.linalg.eigh((vectors @ vectors.T).double())
    kept = gram > SAME[dtype] * gram[-1]
    w = (basis[:, kept] / gram[kept].sqrt()).T.to(vectors)
    return w @ vectors, w @ images

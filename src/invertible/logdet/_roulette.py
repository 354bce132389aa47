"""The power series of log(I + J), whole up to a term or continued at random (Russian roulette)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from invertible.errors import RangeError
from invertible.logdet._linearised import Linearised

Lengths = Literal["geometric", "poisson"]


def tail(c: float, n: int) -> float:
    """What the power series of -log(1 - c) has beyond term n, in units of c^n.

    Args:
        c: In [0, 1).
        n: How many terms are taken.

    Returns:
        sum over k > n of c^(k - n) / k.

    Example:
        >>> round(tail(0.5, 0), 4), round(tail(0.5, 1), 4)
        (0.6931, 0.3863)
    """
    total, power, j = 0.0, c, 1
    while power > 1e-17 * total:
        total, power, j = total + power / (n + j), power * c, j + 1
    return total


def survival(kind: Lengths, parameter: float, n: int) -> Tensor:
    """The probability of each number of random terms, or more.

    Args:
        kind: "geometric": P(N >= j) = (1 - p)^(j - 1) for j >= 1; "poisson": of that mean, 0 included.
        parameter: p, or the mean.
        n: How many to tell.

    Returns:
        P(N >= j) for j = 1 ... n, float64.
    """
    j = torch.arange(1, n + 1, dtype=torch.float64)
    return (1 - parameter) ** (j - 1) if kind == "geometric" else torch.special.gammainc(j, torch.tensor(parameter))


def draw_lengths(kind: Lengths, parameter: float, n: int, generator: torch.Generator | None) -> list[int]:
    """Draw how many random terms each probe takes.

    Args:
        kind: As in `survival`.
        parameter: As in `survival`.
        n: How many to draw.
        generator: Where the randomness comes from; None: the global state.

    Returns:
        The numbers, the largest first.
    """
    device = "cpu" if generator is None else generator.device
    uniform = torch.rand(n, generator=generator, dtype=torch.float64, device=device).cpu()
    reach = survival(kind, parameter, 256)  # P(N > 256) < 1e-17 for the parameters that are allowed
    return sorted(((reach[None] > uniform[:, None]).sum(dim=1)).tolist(), reverse=True)


def series(at: Linearised, u: Tensor, weights: Tensor, keep_graph: bool) -> tuple[Tensor, Tensor]:
    """Sum the power series of u^T log(I + J) u with weighted terms, and that of (I + J)^-T u.

    Args:
        at: The function at its point.
        u: Probes, shape (n, batch, dimension).
        weights: One per probe and term, shape (n, terms); zeros at the end of a row stop it. The longest row first.
        keep_graph: Whether the sum shall be differentiable through every product.

    Returns:
        The sums, shape (n, batch), and the vectors, detached, shape (n, batch, dimension).

    Raises:
        RangeError: If the products grow: no contraction.
    """
    v, total, w = u, torch.zeros_like(u[..., 0]), u.clone()
    weights = weights.to(u)
    for k in range(1, weights.shape[1] + 1):
        n = int((weights[:, k - 1] != 0).sum())
        v = at.pull(v[:n], create_graph=keep_graph)
        a = weights[:n, k - 1, None] * (-1) ** k
        longer = total[:n] - a / k * (v * u[:n]).sum(dim=-1)
        total = torch.cat([longer, total[n:]]) if n < len(total) else longer
        w[:n] += a[..., None] * v.detach()
    _check_growth(v, u, weights.shape[1])
    return total, w


def _check_growth(v: Tensor, u: Tensor, n_terms: int) -> None:
    if n_terms < 3 or not v.numel():
        return
    ratio = (v.detach().square().sum(dim=-1) / u[: len(v)].square().sum(dim=-1)).mean(dim=0).max().sqrt().item()
    if ratio >= 1:
        raise RangeError(
            "the power series of log|det(I + dg/dx)| diverges",
            expected="a contraction, |dg/dx| < 1",
            got=f"a vector that {n_terms} products with the Jacobian made {ratio:.3g} times as long",
            hint="constrain g's layers, or ExactLogDet(), which needs no contraction",
        )

"""Random vectors whose quadratic forms estimate a trace: E[u^T A u] = tr A."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Probe = Literal["gaussian", "rademacher", "orthogonal"]
PROBES: tuple[Probe, ...] = ("gaussian", "rademacher", "orthogonal")


def draw(kind: Probe, n: int, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw probes with mean 0 and covariance I.

    Args:
        kind: "gaussian"; "rademacher", random signs; "orthogonal", random signs that are orthogonal to one another.
        n: How many per sample.
        like: Shape (batch, dimension); tells dtype and device too.
        generator: Where the randomness comes from; None: the global state.

    Returns:
        Shape (n, batch, dimension).

    Example:
        >>> u = draw("orthogonal", 4, torch.empty(2, 4))
        >>> torch.equal((u[:, 0] @ u[:, 0].T).abs(), 4 * torch.eye(4))
        True
    """
    shape = (n, *like.shape)
    device = like.device if generator is None else generator.device
    if kind == "gaussian":
        return torch.randn(shape, generator=generator, dtype=like.dtype, device=device).to(like.device)
    if kind == "rademacher":
        return _signs(shape, device, generator).to(like)
    order = hadamard_order(like.shape[1])
    blocks = [_block(min(order, n - i), like, device, generator) for i in range(0, n, order)]
    return torch.cat(blocks).to(like)


def hadamard_order(dimension: int) -> int:
    """How many orthogonal sign vectors there are in the next power of two: after that many the trace is exact.

    Args:
        dimension: Of the probes.

    Returns:
        The smallest power of two that is not below the dimension.

    Example:
        >>> hadamard_order(48), hadamard_order(64)
        (64, 64)
    """
    return 1 << (dimension - 1).bit_length()


def _block(n: int, like: Tensor, device: torch.device, generator: torch.Generator | None) -> Tensor:
    # Rows of a Hadamard matrix, drawn without replacement, with random signs of the columns for each sample. Each row
    # is a uniformly random sign vector by itself; n of N leave (N - n) / (N - 1) of the variance of independent ones.
    # Shuffled columns keep that from depending on which rows were drawn: neighbours have much to do with each other.
    batch, dimension = like.shape
    order = hadamard_order(dimension)
    rows = torch.randperm(order, generator=generator, device=device)[:n]
    columns = torch.randperm(order, generator=generator, device=device)[:dimension]
    walsh = 1 - 2 * _parity(rows[:, None] & columns[None])
    return walsh[:, None].to(torch.int8) * _signs((batch, dimension), device, generator)


def _signs(shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None) -> Tensor:
    return torch.randint(0, 2, shape, generator=generator, dtype=torch.int8, device=device) * 2 - 1


def _parity(bits: Tensor) -> Tensor:
    for shift in (32, 16, 8, 4, 2, 1):
        bits = bits ^ (bits >> shift)
    return bits & 1

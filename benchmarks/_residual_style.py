"""Residual Flow's mechanism, written from the paper: a peer that is no package.

Weights are divided by an estimate of their norm from below, a power iteration that goes on after each step until
its vectors change by less than a tolerance. The log-determinant is a power series of random length with one Gaussian
probe: two exact terms and a geometric number more in training, with the Neumann gradient; twenty exact terms in
evaluation. The inverse repeats x <- y - g(x) until no number changes by more than the root of its tolerance.

Source: Chen et al. 2019 (Residual Flows), equations 6 and 8, appendix B and D.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize, softplus

STOP_AT, TOLERANCE = 0.5, 1e-3
N_TRAINING, N_EVALUATION = 2, 20


class Swish(nn.Module):
    """x sigmoid(beta x) / 1.1."""

    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x * softplus(self.beta)) / 1.1


class InducedLinear(nn.Linear):
    """A linear layer divided by its estimated norm over c where that is above 1."""

    u: Tensor
    v: Tensor

    def __init__(self, n_in: int, n_out: int, c: float) -> None:
        super().__init__(n_in, n_out)
        self.c = c
        self.register_buffer("u", normalize(torch.randn(n_out), dim=0))
        self.register_buffer("v", normalize(torch.randn(n_in), dim=0))
        self.iterate(0.0)

    @torch.no_grad()
    def iterate(self, tolerance: float = TOLERANCE, most: int = 200) -> None:
        """Bring the vectors up to date with the weight."""
        for _ in range(most):
            before_u, before_v = self.u.clone(), self.v.clone()
            self.u.copy_(normalize(self.weight @ self.v, dim=0))
            self.v.copy_(normalize(self.weight.T @ self.u, dim=0))
            changes = ((self.u, before_u), (self.v, before_v))
            if all((a - b).norm() / len(a) ** 0.5 < tolerance * (1 + a.max()) for a, b in changes):
                return

    def forward(self, input: Tensor) -> Tensor:
        norm = self.u @ (self.weight @ self.v)
        return linear(input, self.weight / (norm / self.c).clamp(min=1), self.bias)


class Block(nn.Module):
    """y = x + g(x) and its log-determinant."""

    def __init__(self, sizes: list[int], c: float) -> None:
        super().__init__()
        self.g = nn.Sequential(*(part for n, m in pairwise(sizes) for part in (Swish(), InducedLinear(n, m, c))))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            g_x, probe = self.g(x), torch.randn_like(x)
            logdet = self._neumann(g_x, x, probe) if self.training else self._series(g_x, x, probe)
        return x + g_x, logdet

    def inverse(self, y: Tensor) -> Tensor:
        """The solution of x + g(x) = y, by the plain iteration."""
        x, before, allowed = y - self.g(y), y, 1e-5 + 1e-5 * y.abs()
        for _ in range(1000):
            if bool(((x - before).square() < allowed).all()):
                break
            x, before = y - self.g(x), x
        return x

    def _series(self, g_x: Tensor, x: Tensor, probe: Tensor) -> Tensor:
        v, total = probe, torch.zeros_like(x[:, 0])
        for k, weight in enumerate(_weights(N_EVALUATION), start=1):
            (v,) = torch.autograd.grad(g_x, x, v, retain_graph=True)
            total = total - (-1) ** k * weight / k * (v * probe).sum(1)
        return total

    def _neumann(self, g_x: Tensor, x: Tensor, probe: Tensor) -> Tensor:
        # The gradient is that of the log-determinant, the value is not.
        v, w = probe, probe
        for k, weight in enumerate(_weights(N_TRAINING), start=1):
            (v,) = torch.autograd.grad(g_x, x, v, retain_graph=True)
            w = w + (-1) ** k * weight * v
        (pulled,) = torch.autograd.grad(g_x, x, w, create_graph=True)
        return (pulled * probe).sum(1)


def _weights(n_exact: int) -> list[float]:
    # Term n_exact + j is taken with probability (1 - p)^(j - 1), j = 1, 2, ...
    n_more = 1
    while torch.rand(()) > STOP_AT:
        n_more += 1
    return [1.0] * n_exact + [(1 - STOP_AT) ** -j for j in range(n_more)]

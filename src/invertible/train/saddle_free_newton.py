"""Saddle-free Newton as an optimiser: curvature in a Krylov subspace, with its negative part turned round."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from invertible._checks import describe
from invertible.errors import ConfigError, DtypeError, NonFiniteError

Closure = Callable[[], Tensor]

SMALLEST_DAMPING = 1e-12
_BREAKDOWN = 1e-6
_MOST_TRIALS = 20


class SaddleFreeNewton(torch.optim.Optimizer):
    """Steps -V (|V^T H V| + damping)^-1 V^T g, with V an orthonormal basis of the Krylov space of H and g.

    |A| has the eigenvectors of A, and its eigenvalues without their signs. Along directions of negative curvature, by
    which Newton's method is drawn to saddles and gradient descent leaves them slowly, it goes downhill with a step as
    long as the curvature allows. The damping adapts: of a tenth of it, itself and ten times it, the one with the lowest
    loss is taken, and if none lowers the loss it grows until one does. So a step never raises the loss of its batch.

    One step takes `rank` products with the Hessian (each about two gradients) and three or more losses. The basis takes
    `rank` times the memory of the parameters.

    Args:
        params: Parameters, in one group; those that require no gradient are left alone.
        rank: Size of the subspace.
        damping: At the beginning, over the largest curvature that the first step finds.
        lr: Factor on each step before it is tried; 1 is Newton's.

    Raises:
        ConfigError: If a number is out of its range, there are several groups, or nothing to train.
        DtypeError: If parameters are of fewer than 32 bits.

    Source: Dauphin et al. 2014, "Identifying and attacking the saddle point problem in high-dimensional non-convex
    optimization", algorithm 1.

    Example:
        >>> xy = torch.nn.Parameter(torch.tensor([1.0, 1e-4], dtype=torch.float64))
        >>> optimizer = SaddleFreeNewton([xy], rank=2)
        >>> def closure():  # a saddle at 0, minima at (0, 1) and (0, -1); no backward() in it
        ...     return xy[0] ** 2 - xy[1] ** 2 / 2 + xy[1] ** 4 / 4
        >>> for _ in range(25):
        ...     loss = optimizer.step(closure)
        >>> round(loss.item(), 6), round(abs(xy[1].item()), 4)
        (-0.25, 1.0)
    """

    def __init__(
        self, params: Iterable[Any], *, rank: int = 20, damping: float = 0.01, lr: float = 1.0
    ) -> None:  # fmt: skip
        for name, value in {"rank": rank, "damping": damping, "lr": lr}.items():
            if not value > 0 or not math.isfinite(value):
                raise ConfigError(f"SaddleFreeNewton has a bad {name}", expected="above 0", got=value)
        super().__init__(params, {"rank": int(rank), "damping": damping, "lr": lr, "scale": None})
        if len(self.param_groups) != 1:
            got = f"{len(self.param_groups)} groups"
            raise ConfigError("SaddleFreeNewton has one curvature for all", expected="one group", got=got)
        if not self._moving:
            raise ConfigError("SaddleFreeNewton has nothing to train", expected="parameters with requires_grad")
        for parameter in self._moving:
            if parameter.dtype not in (torch.float32, torch.float64):
                expected, hint = "float32 or float64", "model.float(), with autocast inside the closure"
                raise DtypeError("curvature needs digits", expected=expected, got=describe(parameter), hint=hint)

    @property
    def _moving(self) -> list[Tensor]:
        return [p for p in self.param_groups[0]["params"] if p.requires_grad]

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Make one step.

        Args:
            closure: Computes the loss of a batch and returns it with its graph; without `backward()`. It is called
                several times and must give the same each time: the same batch, no dropout.

        Returns:
            The loss before the step, without graph.

        Raises:
            ConfigError: If there is no closure, or it returns no loss that can be differentiated twice.
            NonFiniteError: If loss or derivatives are NaN or infinite.
        """
        if closure is None:
            hint = "optimizer.step(lambda: loss_fn(model(x), y))"
            raise ConfigError("SaddleFreeNewton.step needs a closure", expected="a function", got="none", hint=hint)
        group, parameters = self.param_groups[0], self._moving
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            loss = _loss_of(closure)
            gradient, graph = _gradient(loss, parameters)
            basis, matrix = lanczos(lambda v: _product(graph, parameters, v), gradient, group["rank"])
        if len(basis):
            values, vectors = torch.linalg.eigh(matrix)
            if group["scale"] is None:
                # A loss without curvature, or a network at zero, gives no scale but its slope.
                group["scale"] = values.abs().max().item() or gradient.double().norm().item()
            weights = gradient.double().norm() * vectors[0]  # the gradient is the first of the basis
            self._move(closure, loss.item(), lambda damping: vectors @ (weights / (values.abs() + damping)), basis)
        return loss.detach()

    def _move(self, closure: Closure, loss: float, step: Callable[[float], Tensor], basis: Tensor) -> None:
        # Trials start from a copy: adding and taking away a step does not give back the same bits.
        group, parameters = self.param_groups[0], self._moving
        origin = [p.clone() for p in parameters]
        found = {d: self._tried(closure, origin, step(d * group["scale"]), basis) for d in _near(group["damping"])}
        best = min(found, key=lambda damping: found[damping])
        for _ in range(_MOST_TRIALS):
            if found[best] < loss:
                group["damping"] = max(best, SMALLEST_DAMPING)
                self._tried(None, origin, step(best * group["scale"]), basis)
                return
            best = 10 * max(found)
            found[best] = self._tried(closure, origin, step(best * group["scale"]), basis)
        for parameter, start in zip(parameters, origin, strict=True):  # as low as rounding allows
            parameter.copy_(start)

    def _tried(self, closure: Closure | None, origin: list[Tensor], weights: Tensor, basis: Tensor) -> float:
        move = (weights.to(basis) @ basis).mul_(-self.param_groups[0]["lr"])
        parts = move.split([p.numel() for p in origin])
        for parameter, start, part in zip(self._moving, origin, parts, strict=True):
            parameter.copy_(start + part.view_as(start))
        if closure is None:
            return math.nan
        value = closure().item()
        return value if math.isfinite(value) else math.inf


def lanczos(product: Callable[[Tensor], Tensor], start: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """An orthonormal basis of the space of v, A v, A^2 v, ..., and A within it.

    Args:
        product: Multiplies a vector by a symmetric matrix A.
        start: v, shape (n,).
        rank: Size of the space; smaller where the space is exhausted.

    Returns:
        The basis as rows, shape (k, n), v / |v| first; the tridiagonal k x k matrix, float64. k is 0 if v is 0.

    Example:
        >>> matrix = torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
        >>> basis, inside = lanczos(lambda v: matrix @ v, torch.ones(3, dtype=torch.float64), 9)
        >>> basis.shape, [round(value, 6) for value in torch.linalg.eigvalsh(inside).tolist()]
        (torch.Size([3, 3]), [1.0, 2.0, 3.0])
    """
    norm = torch.linalg.vector_norm(start, dtype=torch.float64)
    rank = min(rank, start.numel()) if norm > 0 else 0
    basis = start.new_zeros(rank, start.numel())
    matrix = torch.zeros(rank, rank, dtype=torch.float64)
    for i in range(rank):
        basis[i] = start / norm
        image = product(basis[i]).detach()
        scale = torch.linalg.vector_norm(image, dtype=torch.float64)
        matrix[i, i] = torch.dot(image, basis[i]).item()
        for _ in range(2):  # twice is enough for orthogonality to rounding
            image -= (basis[: i + 1] @ image) @ basis[: i + 1]
        start, norm = image, torch.linalg.vector_norm(image, dtype=torch.float64)
        if i + 1 == rank or norm <= _BREAKDOWN * scale:
            return basis[: i + 1], matrix[: i + 1, : i + 1]
        matrix[i, i + 1] = matrix[i + 1, i] = norm.item()
    return basis, matrix


def _near(damping: float) -> tuple[float, float, float]:
    return damping / 10, damping, 10 * damping


def _loss_of(closure: Closure) -> Tensor:
    loss = closure()
    if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.grad_fn is None:
        expected = "a loss of one number with its graph"
        hint = "a closure that returns loss, without backward(), item() or detach()"
        raise ConfigError("the closure returns no loss", expected=expected, got=describe(loss), hint=hint)
    if not math.isfinite(loss.item()):
        raise NonFiniteError("the loss must be finite", expected="a finite loss", got=loss.item(), hint="smaller data")
    return loss.reshape(())


def _gradient(loss: Tensor, parameters: list[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    try:
        graph = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
    except RuntimeError as error:
        hint = "a closure without backward(): it only returns the loss"
        got = str(error).splitlines()[0]
        raise ConfigError("the closure's loss cannot be differentiated", got=got, hint=hint) from error
    flat = torch.cat([part.detach().reshape(-1) for part in graph])
    if not bool(flat.isfinite().all()):
        raise NonFiniteError("the gradient must be finite", got="NaN or infinity", hint="a loss without kinks")
    return flat, graph


def _product(graph: tuple[Tensor, ...], parameters: list[Tensor], v: Tensor) -> Tensor:
    moving = [(g, part.view_as(g)) for g, part in zip(graph, v.split([g.numel() for g in graph]), strict=True)]
    moving = [(g, part) for g, part in moving if g.requires_grad]
    if not moving:
        return torch.zeros_like(v)  # a loss that is linear in all parameters
    sources, parts = zip(*moving, strict=True)
    found = torch.autograd.grad(sources, parameters, parts, retain_graph=True, materialize_grads=True)
    flat = torch.cat([part.reshape(-1) for part in found])
    if not bool(flat.isfinite().all()):
        raise NonFiniteError("second derivatives must be finite", got="NaN or infinity", hint="a loss without kinks")
    return flat

"""How much a map stretches small differences at a point: its Jacobian's largest singular value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from invertible.instruments._flat import flatten, unflatten
from invertible.streams import Streams

MIN_ITERATIONS = 10


class Linearised:
    """A map's Jacobian J at a point, as products with it. The map runs once, so that all products are of one J.

    Args:
        function: From streams to streams; every operation in it can be differentiated twice.
        point: Where; the batch comes first.

    Raises:
        RuntimeError: If an operation cannot be differentiated twice.
    """

    def __init__(self, function: Callable[[Streams], Streams], point: Streams) -> None:
        shapes = [stream.shape for stream in point]
        # Only the plain attention kernel can be differentiated twice.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            self._x = flatten(point).detach().requires_grad_()
            self._y = flatten(function(unflatten(self._x, shapes)))
            self._u = torch.zeros_like(self._y, requires_grad=True)
            # J^T u is linear in u: its derivative gives the products J v.
            (self._pulled,) = torch.autograd.grad(
                self._y, self._x, self._u, create_graph=True, allow_unused=True, materialize_grads=True
            )
        self._check_adjoint()

    def _check_adjoint(self) -> None:
        # An operation that can be differentiated once drops out of J v without a word.
        generator = torch.Generator().manual_seed(0)
        v, u = self._random(self._x, generator), self._random(self._y, generator)
        pushed, pulled = self.push(v), self.pull(u)
        scale = u.norm() * pushed.norm() + pulled.norm() * v.norm()
        if not abs(float((u * pushed).sum() - (pulled * v).sum())) <= 1e-9 * float(scale):
            raise RuntimeError("an operation in it cannot be differentiated twice, or gives NaN")

    @staticmethod
    def _random(like: Tensor, generator: torch.Generator) -> Tensor:
        return torch.randn(like.shape, dtype=like.dtype, generator=generator).to(like.device)

    def random_input(self, generator: torch.Generator) -> Tensor:
        """Draw a normal vector.

        Args:
            generator: On the CPU.

        Returns:
            Shape (batch, n) of the flattened input.
        """
        return self._random(self._x, generator)

    def push(self, v: Tensor) -> Tensor:
        """Multiply by J.

        Args:
            v: Shape (batch, n) of the flattened input.

        Returns:
            J v, shape (batch, m) of the flattened output.
        """
        return self._grad(self._pulled, self._u, v)

    def pull(self, u: Tensor) -> Tensor:
        """Multiply by the transpose.

        Args:
            u: Shape (batch, m).

        Returns:
            J^T u, shape (batch, n).
        """
        return self._grad(self._y, self._x, u)

    @staticmethod
    def _grad(out: Tensor, of: Tensor, v: Tensor) -> Tensor:
        options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
        return torch.autograd.grad(out, of, v, **options)[0]

    def ties_examples(self) -> bool:
        """Look whether an example's output depends on another's input, as under BatchNorm in training mode.

        Returns:
            Whether J has entries outside the blocks on its diagonal.
        """
        n = len(self._y)
        index = torch.arange(n, device=self._y.device)
        probe = self._random(self._y, torch.Generator().manual_seed(0))
        # Any two examples differ in some bit of their index, so that some cut separates them.
        for bit in range((n - 1).bit_length()):
            cut = (index >> bit & 1).bool()
            for side in (cut, ~cut):
                if self.pull(probe * side[:, None])[~side].any():
                    return True
        return False


@dataclass(frozen=True)
class Stretch:
    """Estimates of largest singular values.

    Args:
        values: Shape (batch,), or (1,) if the batch counts as one.
        residual: |J^T J v - s^2 v| / s^2 of the last iteration, the worst of the batch.
        n_iterations: How many there were.
    """

    values: Tensor
    residual: float
    n_iterations: int


def stretch(
    jacobian: Linearised, as_one: bool, n_iterations: int, tolerance: float, generator: torch.Generator
) -> Stretch:
    """Power iteration on J^T J from a random start. Its values approach the largest singular values from below.

    A random start has little of the leading vector in it, so that residuals may be small at first for the wrong
    reason: at least `MIN_ITERATIONS` are made.

    Args:
        jacobian: J.
        as_one: Whether the batch is one point, rather than each example by itself.
        n_iterations: At most so many.
        tolerance: Residual to stop at; the singular values are then good to about half of it.
        generator: Draws the start, on the CPU.

    Returns:
        The estimates.
    """
    v, _ = _normalise(jacobian.random_input(generator), as_one)
    values, residual, i = v.new_zeros(1), float("inf"), 0
    for i in range(1, n_iterations + 1):
        u = jacobian.push(v)
        w = jacobian.pull(u)
        squared = _norm(u, as_one) ** 2
        residual = float((_norm(w - squared * v, as_one) / squared).max())
        v, size = _normalise(w, as_one)
        values = size.sqrt()
        if residual <= tolerance and i >= MIN_ITERATIONS:
            break
    return Stretch(values.flatten(), residual, i)


def _norm(x: Tensor, as_one: bool) -> Tensor:
    return x.norm().reshape(1, 1) if as_one else x.norm(dim=1, keepdim=True)


def _normalise(x: Tensor, as_one: bool) -> tuple[Tensor, Tensor]:
    size = _norm(x, as_one)
    return x / size.clamp_min(torch.finfo(x.dtype).tiny), size

"""A function that is known layer by layer, at a point: products with its Jacobian without a graph.

Autograd's product with a Jacobian goes through every operation that made the value, six for a LipSwish. Where the
layers are known to be matrices and functions of single numbers, it is one product of matrices, or one of numbers, each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from invertible.logdet._linearised import Function, Linearised

_CHUNK = 2**16  # numbers whose products on a CPU stay in its caches; measured


@dataclass(frozen=True)
class Matrix:
    """The derivative of a linear layer.

    Args:
        weight: Shape (n_out, n_in).
    """

    weight: Tensor

    def pull(self, v: Tensor) -> Tensor:
        """Multiply from the left.

        Args:
            v: Shape (..., n_out).

        Returns:
            Shape (..., n_in).
        """
        return v @ self.weight


@dataclass(frozen=True)
class Slopes:
    """The derivative of a function of single numbers.

    Args:
        slopes: Of each number, shape (batch, n).
    """

    slopes: Tensor

    def pull(self, v: Tensor) -> Tensor:
        """Multiply.

        Args:
            v: Shape (..., batch, n).

        Returns:
            The same shape.
        """
        return v * self.slopes


Factor = Matrix | Slopes
Layer = Callable[[Tensor], tuple[Tensor, Factor]]
"""From its input, shape (batch, n_in), to its output and its derivative there."""


@dataclass(frozen=True)
class Layered:
    """A function that is a sequence of layers.

    Args:
        layers: In the order of the computation.

    Example:
        >>> weight = torch.tensor([[0.0, 2.0], [1.0, 0.0]])
        >>> g = Layered([lambda x: (x @ weight.T, Matrix(weight)), lambda x: (x.exp(), Slopes(x.exp()))])
        >>> at = linearised(g, torch.zeros(1, 2))
        >>> at.value.tolist(), at.pull(torch.tensor([[[1.0, 1.0]]])).tolist()
        ([[1.0, 1.0]], [[[1.0, 2.0]]])
    """

    layers: Sequence[Layer]

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate it.

        Args:
            x: Shape (batch, n).

        Returns:
            Shape (batch, n).
        """
        return self.factored(x)[0]

    def factored(self, x: Tensor) -> tuple[Tensor, list[Factor]]:
        """Evaluate it, and its derivative.

        Args:
            x: Shape (batch, n).

        Returns:
            The value, shape (batch, n), and the derivatives of the layers.
        """
        factors = []
        for layer in self.layers:
            x, factor = layer(x)
            factors.append(factor)
        return x, factors


class LinearisedLayers(Linearised):
    """A `Layered` at a point. As `Linearised`, but for how it multiplies.

    Args:
        g: The function.
        x: The point, shape (batch, n).

    Attributes:
        factors: The derivatives of the layers, in the order of the computation.
    """

    def __init__(self, g: Layered, x: Tensor) -> None:
        with torch.autocast(x.device.type, enabled=False):
            self.value, self.factors = g.factored(x.clone() if x.is_inference() else x)
        self.has_graph = torch.is_grad_enabled() and self.value.requires_grad
        self.like = x.detach()
        self.n_products = 0

    def pull(self, v: Tensor, create_graph: bool = False) -> Tensor:
        """Multiply vectors with the Jacobian from the left.

        Args:
            v: Shape (n, batch, dimension).
            create_graph: Whether the result shall be differentiable.

        Returns:
            v^T J, the same shape.
        """
        self.n_products += len(v)
        with torch.set_grad_enabled(create_graph):
            n = n_at_once(v)
            if create_graph or n >= len(v):
                return self._pulled(v)
            out = torch.empty_like(v)
            for i in range(0, len(v), n):
                out[i : i + n] = self._pulled(v[i : i + n])
            return out

    def _pulled(self, v: Tensor) -> Tensor:
        for factor in reversed(self.factors):
            v = factor.pull(v)
        return v


def n_at_once(v: Tensor) -> int:
    """How many of some vectors to multiply together.

    Args:
        v: Shape (n, batch, dimension).

    Returns:
        As many as stay in a CPU's caches; all on other devices.
    """
    return max(1, _CHUNK // max(1, v[0].numel())) if v.device.type == "cpu" else len(v)


def linearised(g: Function, x: Tensor) -> Linearised:
    """A function at a point.

    Args:
        g: As for `Linearised`, or a `Layered`.
        x: The point, shape (batch, ...).

    Returns:
        What multiplies with its Jacobian.

    Raises:
        ShapeError: If g changes the shape.
        ConfigError: If g changes its input in place.
    """
    return LinearisedLayers(g, x) if isinstance(g, Layered) else Linearised(g, x)

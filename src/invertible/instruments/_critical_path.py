"""Where searches begin: iterates of gradient descent, perturbed."""

from __future__ import annotations

import torch
from torch import Tensor

from invertible.errors import NonFiniteError
from invertible.instruments._critical_search import Landscape

MOMENTUM = 0.9


def iterates(land: Landscape, theta: Tensor, n_steps: int, lr: float, n: int) -> list[tuple[int, Tensor]]:
    """Descend with momentum, on all data, and keep some of the way.

    Args:
        land: The function.
        theta: Where to begin, shape (n,).
        n_steps: Of descent.
        lr: Learning rate.
        n: How many points to keep: the first, the last, and others between, evenly in the logarithm of the step.

    Returns:
        Steps and points.

    Raises:
        NonFiniteError: If it diverges.
    """
    wanted, found = set(steps_kept(n_steps, n)), []
    velocity = torch.zeros_like(theta)
    for step in range(n_steps + 1):
        if step in wanted:
            found.append((step, theta.clone()))
        velocity = MOMENTUM * velocity + land.gradient(theta)
        theta = theta - lr * velocity
        if not bool(theta.isfinite().all()):
            got = f"NaN or infinity after {step + 1} steps"
            raise NonFiniteError("the path diverged", expected="finite weights", got=got, hint="a smaller lr")
    return found


def steps_kept(n_steps: int, n: int) -> list[int]:
    """Which steps of a path are kept.

    Args:
        n_steps: Its length.
        n: How many.

    Returns:
        At most n different ones, ascending.

    Example:
        >>> steps_kept(100, 4)
        [0, 4, 21, 100]
    """
    shares = [i / (n - 1) for i in range(n)] if n > 1 else [1.0]
    return sorted({round((1 + n_steps) ** share - 1) for share in shares})


def perturbed(theta: Tensor, amplitude: float, generator: torch.Generator) -> Tensor:
    """Add normal noise.

    Args:
        theta: The point.
        amplitude: Standard deviation of the noise.
        generator: Of the draws.

    Returns:
        Another point.
    """
    return theta + amplitude * torch.randn(theta.shape, generator=generator, dtype=theta.dtype)

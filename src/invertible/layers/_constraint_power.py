"""The papers' power iteration: an estimate of the norm from below, kept for comparison."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from invertible.errors import ConfigError
from invertible.layers._constraint import Certified, Constraint
from invertible.layers._norm_geometry import Geometry, Size
from invertible.layers._norm_operator import apply

_COLD = 50
"""Iterations where there is no vector to start from."""
_PIXELS = 16
"""Per axis, where no image was seen yet."""


class Power(Constraint):
    """W / max(1, s / c), s by power iteration on the layer as an operator, warm-started from the last call.

    s is below the norm, so the effective weight may exceed c. `bound` says by how much it does.

    Args:
        geometry: Of the layer.
        c: The target.
        norms: p and q, from 1 to infinity.
        n_iterations: Per evaluation of the weight in training mode; none in eval mode.

    Attributes:
        vector: Where the norm was found so far, of p-norm 1, shape (1, n_in, *size).

    Raises:
        ConfigError: If the number of iterations is below 1.

    Source: Behrmann et al. 2019, section 2.1; for p and q Boyd 1974 and Chen et al. 2019, appendix C.
    """

    kind = "power"
    vector: Tensor

    def __init__(
        self, geometry: Geometry, c: float, norms: tuple[float, float] = (2.0, 2.0), n_iterations: int = 1
    ) -> None:
        super().__init__(geometry, c, norms)
        if isinstance(n_iterations, bool) or not isinstance(n_iterations, int) or n_iterations < 1:
            raise ConfigError("bad n_iterations", expected="a whole number of at least 1", got=n_iterations)
        self.n_iterations = n_iterations
        self.register_buffer("vector", torch.empty(0))
        self.register_load_state_dict_pre_hook(_resize)

    def norm(self, weight: Tensor, size: Size | None) -> Tensor:
        """The estimate, differentiable.

        Args:
            weight: The raw weight.
            size: Of the input's axes; None: that of the last call.

        Returns:
            A scalar.
        """
        fixed = weight.detach()
        v = self._started(fixed, size)
        with torch.no_grad():
            for _ in range(self.n_iterations if self.training else 0):
                v = self._step(v, fixed)
            u = _dual(apply(v, fixed, self.geometry), self.norms[1])
        if self.training and not v.is_inference():
            self.vector = v.detach()
        return (u * apply(v, weight, self.geometry)).sum()

    def _step(self, v: Tensor, weight: Tensor) -> Tensor:
        # Boyd's power method: the maximum of |W v|_q over |v|_p = 1, by turns with its dual.
        p, q = self.norms
        with torch.enable_grad():
            leaf = v.detach().requires_grad_()
            out = apply(leaf, weight, self.geometry)
            (pulled,) = torch.autograd.grad(out, leaf, _dual(out.detach(), q))
        return _dual(pulled, math.inf if p == 1 else 1 if p == math.inf else p / (p - 1))

    def bound(self, weight: Tensor, size: Size | None) -> float:
        """A proven bound of the norm of the effective weight, which power iteration does not keep below c.

        Args:
            weight: The raw weight.
            size: Of the input's axes; None: any.

        Returns:
            The bound; it may be above c.
        """
        mode, self.training = self.training, False
        with torch.no_grad():
            effective = self.scaled(weight, size)
        self.training = mode
        return Certified(self.geometry, math.inf, self.norms).bound(effective, size)

    def _started(self, weight: Tensor, size: Size | None) -> Tensor:
        if size is None:
            seen = tuple(self.vector.shape[2:])
            size = seen if self.vector.numel() else (_PIXELS,) * len(self.geometry.kernel)
        shape = (1, weight.shape[1] * self.geometry.groups, *size)
        if tuple(self.vector.shape) == shape:
            return self.vector.to(weight)
        generator = torch.Generator().manual_seed(math.prod(shape))
        with torch.inference_mode(False), torch.no_grad():
            v = torch.randn(shape, generator=generator, dtype=torch.float64).to(weight)
            for _ in range(_COLD):
                v = self._step(v, weight)
        return v

    def extra_repr(self) -> str:
        """What `print(module)` shows.

        Returns:
            Target and iterations.
        """
        return f"{super().extra_repr()}, n_iterations={self.n_iterations}"


def _resize(power: Any, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
    # The saved vector is as large as the images it was found on.
    saved = state_dict.get(f"{prefix}vector")
    if saved is not None:
        power.vector = power.vector.new_empty(saved.shape)


def _dual(y: Tensor, q: float) -> Tensor:
    # The u with <u, y> = |y|_q whose dual norm is 1.
    flat = y.flatten()
    if q == math.inf:
        chosen = functional.one_hot(flat.abs().argmax(), len(flat))
        return (chosen * flat.sign()).view_as(y).to(y.dtype)
    scaled = flat / flat.abs().amax().clamp(min=torch.finfo(y.dtype).tiny)
    raised = scaled.sign() * scaled.abs() ** (q - 1)
    norm = torch.linalg.vector_norm(scaled, q).clamp(min=torch.finfo(y.dtype).tiny)
    return (raised / norm ** (q - 1)).view_as(y)

"""The parametrizations that keep a layer's norm below its target."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextvars import ContextVar
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from invertible.errors import ConfigError
from invertible.layers._norm_geometry import Geometry, Size
from invertible.layers._norm_mixed import mixed_norm
from invertible.layers._norm_operator import Norm, operator_norm

_N_SIZES = 4
SIZE: ContextVar[tuple[Constraint, Size] | None] = ContextVar("the constraint in use, and the image size", default=None)


class Constraint(nn.Module, ABC):
    """W / max(1, norm / c): the parametrization of one weight. Abstract: say how the norm is found.

    Inside a call of the layer the norm is that for the size of its input, outside it holds for all sizes.

    Args:
        geometry: Of the layer.
        c: The target.
        norms: p and q: the norm is that from L_p to L_q.

    Attributes:
        c: The target.
        norms: p and q.
        geometry: Of the layer.
    """

    kind = ""

    def __init__(self, geometry: Geometry, c: float, norms: tuple[float, float] = (2.0, 2.0)) -> None:
        super().__init__()
        self.geometry, self.c, self.norms = geometry, c, norms

    @abstractmethod
    def norm(self, weight: Tensor, size: Size | None) -> Tensor:
        """The norm of the raw weight, differentiable.

        Args:
            weight: The raw weight.
            size: Of the input's axes; None: any.

        Returns:
            A scalar.
        """

    @abstractmethod
    def bound(self, weight: Tensor, size: Size | None) -> float:
        """A sound bound of the norm of the effective weight.

        Args:
            weight: The raw weight.
            size: Of the input's axes; None: any.

        Returns:
            The bound.
        """

    def forward(self, weight: Tensor) -> Tensor:
        """The effective weight.

        Args:
            weight: The raw one.

        Returns:
            Its shape and dtype.
        """
        return _eager(self, weight)

    def scaled(self, weight: Tensor, size: Size | None) -> Tensor:
        """The effective weight for images of a size.

        Args:
            weight: The raw one.
            size: Of the input's axes; None: any.

        Returns:
            Its shape and dtype.
        """
        if weight.is_meta or not weight.numel():
            return weight
        norm = self.norm(weight, size)
        return weight * (self.c / norm.clamp(min=self.c)).to(weight.dtype)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What assigning to `layer.weight` sets.

        Args:
            weight: The value assigned.

        Returns:
            The raw weight: the same.
        """
        return weight

    def extra_repr(self) -> str:
        """What `print(module)` shows.

        Returns:
            The target.
        """
        norms = "" if self.norms == (2.0, 2.0) else f", norms=({self.norms[0]:g}, {self.norms[1]:g})"
        return f"c={self.c:g}{norms}"


@_disable_dynamo
def _eager(constraint: Constraint, weight: Tensor) -> Tensor:
    current = SIZE.get()
    return constraint.scaled(weight, current[1] if current is not None and current[0] is constraint else None)


class Certified(Constraint):
    """Keeps the proven bound below c: the norm is a pure function of the weight and the image size.

    It is worked out once per value of the weight and size, and shared by all calls until the weight changes, by
    whatever means: the weights are compared.
    """

    kind = "certified"

    def __init__(self, geometry: Geometry, c: float, norms: tuple[float, float] = (2.0, 2.0)) -> None:
        super().__init__(geometry, c, norms)
        self._known: dict[Size | None, tuple[Tensor, Norm]] = {}

    def norm(self, weight: Tensor, size: Size | None) -> Tensor:
        """The proven bound, differentiable.

        Args:
            weight: The raw weight.
            size: Of the input's axes; None: any.

        Returns:
            A scalar, float32 or float64.
        """
        if self.norms == (2.0, 2.0):
            return self._spectral(weight, size)
        wide = weight if weight.dtype == torch.float64 else weight.float()
        with torch.autocast(weight.device.type, enabled=False):
            norm = mixed_norm(wide, self.geometry, size, self.norms, lambda: self._spectral(weight, size))
        return norm * _slack(weight.dtype)

    def _spectral(self, weight: Tensor, size: Size | None) -> Tensor:
        value, gradient = self.known(weight, size)
        if not (weight.requires_grad and torch.is_grad_enabled()):
            return value * _slack(weight.dtype)
        product = torch.dot(weight.to(gradient.dtype).flatten(), gradient.flatten())
        return (value + (product - product.detach())) * _slack(weight.dtype)

    def bound(self, weight: Tensor, size: Size | None) -> float:
        """A sound bound of the norm of the effective weight.

        Args:
            weight: The raw weight.
            size: Of the input's axes; None: any.

        Returns:
            At most c.
        """
        with torch.no_grad():
            return min(float(self.norm(weight, size)), self.c)

    def known(self, weight: Tensor, size: Size | None) -> Norm:
        """The norm, from memory if the weight has not changed.

        Args:
            weight: The raw weight.
            size: Of the input's axes; None: any.

        Returns:
            The bound and its derivative.
        """
        size = None if self.geometry.is_patchwise else size
        weight = plain(weight)
        kept = self._known.get(size)
        if kept is None or not _is_same(kept[0], weight):
            kept = weight.detach().clone(), operator_norm(weight, self.geometry, size)
            self._known = dict([*self._known.items(), (size, kept)][-_N_SIZES:])
        return kept[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": {}}


def plain(weight: Tensor) -> Tensor:
    """The tensor beneath the wrappers of `torch.func`.

    Args:
        weight: Perhaps wrapped.

    Returns:
        It, detached.

    Raises:
        ConfigError: If it is a batch of weights (vmap): their norms cannot be worked out together.
    """
    weight = weight.detach()
    functorch = cast(Any, torch._C)._functorch
    while functorch.is_functorch_wrapped_tensor(weight):
        if functorch.is_batchedtensor(weight):
            hint = "vmap over inputs only, or a loop over the networks"
            raise ConfigError("a constrained layer takes one weight", got="a batch of them", hint=hint)
        weight = functorch.get_unwrapped(weight)
    return weight


def _is_same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)


def _slack(dtype: torch.dtype) -> float:
    # The scaled weight is rounded: by half a unit in the last place, and in half precision all of them may add up.
    return 1 + (4 if dtype in (torch.float32, torch.float64) else 2) * torch.finfo(dtype).eps

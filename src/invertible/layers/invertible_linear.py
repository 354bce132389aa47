"""Glow's invertible 1x1 convolution: a square matrix that mixes the channels, alike at all positions."""

from __future__ import annotations

import contextlib
import math
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from invertible._checks import can_look, check_channels, check_placement, describe
from invertible.bijection import Bijection
from invertible.errors import ConfigError, NonFiniteError, RangeError
from invertible.layers._channels import check_sizes, n_positions, wide
from invertible.layers._square_matrix import Direct, Factorized, SquareMatrix, random_rotation

Factorization = Literal["plu", "direct"]
_KINDS: dict[str, type[Direct] | type[Factorized]] = {"plu": Factorized, "direct": Direct}


class Invertible1x1(Bijection):
    """y = W x at each position: an invertible 1x1 convolution. W starts as a random rotation.

    With "plu" W = P L (U + diag(s)): P is a fixed permutation, L has ones on the diagonal, U zeros, and the signs of s
    are fixed, so that no step makes W singular and the log-determinant is the sum of log|s|. With "direct" W is the
    parameter. Both have n_channels^2 parameters and work on vectors, images, and anything with channels.

    Small matrices are multiplied and inverted in float64 (where the device has it), also under autocast; the product
    with x is made in x's dtype, float32 at least.

    A matrix so ill-conditioned that its inverse would lose all digits of x raises on the CPU; elsewhere (on a GPU, in
    compiled code), where a look would cost a wait, x comes back as NaN.

    Args:
        n_channels: How many channels.
        factorization: "plu" or "direct".
        dim: The channels' dimension, 1 or higher.

    Attributes:
        matrix: Holds the parameter, `matrix.factors`. With "plu": L below the diagonal, U above it, log|s| on it; with
            "direct": W.

    Raises:
        ConfigError: If an argument is out of range.
        DtypeError: When called: if the parameters have another dtype or device than x.
        NonFiniteError: When called: if W is NaN or infinite and its inverse or log-determinant is wanted.
        RangeError: When called: if W cannot be inverted.
        ShapeError: When called: if x has another number of channels.

    Source: Kingma and Dhariwal 2018 (Glow), section 3.2.

    Example:
        >>> mix = Invertible1x1(3)
        >>> y, logdet = mix.forward_with_logdet(torch.ones(2, 3, 4, 4))
        >>> torch.allclose(mix.inverse(y), torch.ones(2, 3, 4, 4), atol=1e-5)
        True
    """

    def __init__(self, n_channels: int, factorization: Factorization = "plu", dim: int = 1) -> None:
        super().__init__()
        check_sizes(n_channels, dim, "Invertible1x1")
        if factorization not in _KINDS:
            got = repr(factorization)
            raise ConfigError("Invertible1x1 has a bad factorization", expected="'plu' or 'direct'", got=got)
        self.n_channels, self.factorization, self.dim = n_channels, factorization, dim
        self.matrix: SquareMatrix = _KINDS[factorization](random_rotation(n_channels))

    @property
    def weight(self) -> Tensor:
        """W, shape (n_channels, n_channels), float64."""
        return self.matrix.value()

    def set_weight(self, weight: Tensor) -> None:
        """Make W this matrix.

        Args:
            weight: Shape (n_channels, n_channels).

        Raises:
            RangeError: If its shape is another, or it is singular.
        """
        weight, shape = weight.detach(), (self.n_channels, self.n_channels)
        if tuple(weight.shape) != shape or not 0 < abs(float(torch.linalg.det(weight.double()))) < math.inf:
            got = describe(weight) if tuple(weight.shape) != shape else "a singular one"
            raise RangeError("Invertible1x1 got a bad weight", expected=f"an invertible {shape} matrix", got=got)
        self.matrix.set(weight)

    def _forward(self, x: Tensor, context: None) -> Tensor:
        self._check(x)
        with _full_precision(x):
            return _mix(x, self.matrix.value(), self.dim)

    def _inverse(self, y: Tensor, context: None) -> Tensor:
        self._check(y)
        with _full_precision(y):
            return _mix(y, self._sound_inverse(wide(y.dtype)), self.dim)

    def _forward_with_logdet(self, x: Tensor, context: None) -> tuple[Tensor, Tensor]:
        self._check(x)
        with _full_precision(x):
            matrix, log_abs_det = self.matrix.value_and_log_abs_det()
            return _mix(x, matrix, self.dim), self._logdet(x, log_abs_det)

    def _inverse_with_logdet(self, y: Tensor, context: None) -> tuple[Tensor, Tensor]:
        x = self._inverse(y, context)
        with _full_precision(y):
            return x, -self._logdet(y, self.matrix.log_abs_det())

    def _logdet(self, x: Tensor, log_abs_det: Tensor) -> Tensor:
        if _can_check(log_abs_det) and not math.isfinite(float(log_abs_det.detach())):
            raise self._unusable(math.inf)
        return (n_positions(x, self.dim) * log_abs_det).to(wide(x.dtype)).expand(x.shape[0])

    def _sound_inverse(self, dtype: torch.dtype) -> Tensor:
        inverse, condition = self.matrix.inverse()
        is_sound = condition < 1 / torch.finfo(dtype).eps
        if _can_check(condition) and not bool(is_sound):
            raise self._unusable(float(condition))
        return torch.where(is_sound, inverse, torch.nan)

    def _unusable(self, condition: float) -> RangeError | NonFiniteError:
        problem = f"the weight of an Invertible1x1({self.n_channels}) cannot be inverted"
        hint = "a lower learning rate, or no weight decay for this layer"
        if not bool(self.matrix.factors.isfinite().all()):
            return NonFiniteError(problem, expected="finite numbers", got="NaN or infinity in its parameter", hint=hint)
        got = f"condition number {condition:.1e}" if math.isfinite(condition) else "a singular one"
        hint = f"factorization='plu', {hint}" if self.factorization == "direct" else hint
        return RangeError(problem, expected="a well-conditioned matrix", got=got, hint=hint)

    def _check(self, x: Tensor) -> None:
        check_channels(x, self.n_channels, "Invertible1x1", self.dim)
        factors = self.matrix.factors
        if x.dtype != factors.dtype or x.device != factors.device:
            check_placement(x, self, "Invertible1x1")

    def extra_repr(self) -> str:
        """What `print(module)` shows.

        Returns:
            Size, kind and dimension.
        """
        return f"{self.n_channels}, factorization={self.factorization!r}, dim={self.dim}"


def _can_check(t: Tensor) -> bool:
    return can_look(t) and t.device.type == "cpu"


def _full_precision(x: Tensor) -> AbstractContextManager[Any]:
    kind = x.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()


def _mix(x: Tensor, matrix: Tensor, dim: int) -> Tensor:
    dtype = wide(x.dtype)
    matrix, wide_x = matrix.to(dtype), x.to(dtype)
    if x.ndim == 4 and dim == 1:
        out = _mix_images(wide_x, matrix)
    elif dim == x.ndim - 1:
        out = functional.linear(wide_x, matrix)
    else:
        out = functional.linear(wide_x.movedim(dim, -1), matrix).movedim(-1, dim)
    return out.to(x.dtype)


def _mix_images(x: Tensor, matrix: Tensor) -> Tensor:
    # As one product per image it takes an eighth of a convolution's time where channels are few, and no TF32 rounds it;
    # with few positions the gradient of the matrix, one per image before they are summed, would cost more.
    n, channels, height, width = x.shape
    if channels > height * width or x.stride(3) != 1:
        return functional.conv2d(x, matrix[:, :, None, None])
    return torch.bmm(matrix.expand(n, channels, channels), x.flatten(2)).view(n, channels, height, width)

"""What layers that treat each channel alike at all positions share."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from invertible._checks import check_channels, check_placement
from invertible.bijection import Bijection
from invertible.errors import ConfigError


def check_sizes(n_features: int, dim: int, name: str) -> None:
    """Refuse a layer of no channels, or one that mixes the batch.

    Args:
        n_features: How many channels.
        dim: Their dimension.
        name: The layer.

    Raises:
        ConfigError: If a number is below 1.
    """
    if n_features < 1:
        raise ConfigError(f"{name} needs channels", expected="n >= 1", got=n_features)
    if dim < 1:
        raise ConfigError(f"{name} leaves the batch alone", expected="dim >= 1", got=dim)


def wide(*dtypes: torch.dtype) -> torch.dtype:
    """The dtype to compute in: the widest of those given, float32 at least.

    Args:
        *dtypes: Of the tensors involved.

    Returns:
        A floating-point dtype.
    """
    widest = torch.float32
    for dtype in dtypes:
        if dtype is not widest:
            widest = torch.promote_types(widest, dtype)
    return widest


def along(values: Tensor, x: Tensor, dim: int) -> Tensor:
    """One value per channel, shaped so that it broadcasts over x.

    Args:
        values: Shape (channels,).
        x: The tensor to broadcast over.
        dim: Its channel dimension.

    Returns:
        A view of shape (channels, 1, ..., 1).
    """
    return values.reshape(-1, *[1] * (x.ndim - dim - 1))


def n_positions(x: Tensor, dim: int) -> int:
    """At how many positions one element of a batch has channels.

    Args:
        x: The batch.
        dim: The channel dimension.

    Returns:
        The product of all sizes but those of the batch and the channels.
    """
    return math.prod(x.shape[1:dim]) * math.prod(x.shape[dim + 1 :])


class ChannelAffine(Bijection):
    """y = (x + shift) * scale with one shift and one scale > 0 per channel. Abstract: say what these are.

    Sums and products are made in float32 at least and returned in x's dtype.

    Args:
        n_features: How many channels.
        dim: Their dimension, 1 or higher.

    Raises:
        ConfigError: If a number is below 1.
        DtypeError: When called: if the parameters have another dtype or device than x.
        ShapeError: When called: if x has another number of channels.
    """

    def __init__(self, n_features: int, dim: int = 1) -> None:
        super().__init__()
        check_sizes(n_features, dim, type(self).__name__)
        self.n_features, self.dim = n_features, dim

    @abstractmethod
    def _affine(self, dtype: torch.dtype) -> tuple[Tensor | None, Tensor]:
        """Shift (None: zero) and scale, shape (channels,), in that dtype."""

    @abstractmethod
    def _log_scale(self, dtype: torch.dtype) -> Tensor:
        """The scale's logarithm in nats, shape (channels,), in that dtype."""

    def _prepare(self, x: Tensor) -> None:
        """Look at the input of a forward pass, before anything is computed."""

    def _forward(self, x: Tensor, context: None) -> Tensor:
        self._check(x)
        self._prepare(x)
        dtype = self._dtype(x)
        shift, scale = self._affine(dtype)
        moved = x.to(dtype) if shift is None else x.to(dtype) + along(shift, x, self.dim)
        return (moved * along(scale, x, self.dim)).to(x.dtype)

    def _inverse(self, y: Tensor, context: None) -> Tensor:
        self._check(y)
        dtype = self._dtype(y)
        shift, scale = self._affine(dtype)
        moved = y.to(dtype) * along(scale.reciprocal(), y, self.dim)
        return (moved if shift is None else moved - along(shift, y, self.dim)).to(y.dtype)

    def _forward_with_logdet(self, x: Tensor, context: None) -> tuple[Tensor, Tensor]:
        return self._forward(x, context), self._logdet(x)

    def _inverse_with_logdet(self, y: Tensor, context: None) -> tuple[Tensor, Tensor]:
        return self._inverse(y, context), -self._logdet(y)

    def _logdet(self, x: Tensor) -> Tensor:
        return (n_positions(x, self.dim) * self._log_scale(self._dtype(x)).sum()).expand(x.shape[0])

    def _dtype(self, x: Tensor) -> torch.dtype:
        return wide(x.dtype, *(t.dtype for t in self._parameters.values() if t is not None))

    def _check(self, x: Tensor) -> None:
        check_channels(x, self.n_features, type(self).__name__, self.dim)
        if any(t is not None and (t.dtype, t.device) != (x.dtype, x.device) for t in self._parameters.values()):
            check_placement(x, self, type(self).__name__)

    def extra_repr(self) -> str:
        """What `print(module)` shows.

        Returns:
            Size and dimension.
        """
        return f"{self.n_features}, dim={self.dim}"

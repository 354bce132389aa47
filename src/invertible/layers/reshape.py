"""Another shape for the same numbers, e.g. images as vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from invertible._checks import check_event_shape
from invertible.bijection import VolumePreserving
from invertible.errors import ConfigError


class Reshape(VolumePreserving):
    """Give each element of a batch another shape.

    Args:
        in_shape: Of an element before.
        out_shape: And after.

    Raises:
        ConfigError: If the shapes hold different numbers of values.
        ShapeError: When called: if the input has another shape.

    Example:
        >>> import torch
        >>> Reshape((1, 28, 28), (784,))(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 784])
    """

    is_isometric = True
    keeps_lattice = True

    def __init__(self, in_shape: Sequence[int], out_shape: Sequence[int]) -> None:
        super().__init__()
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)
        if math.prod(self.in_shape) != math.prod(self.out_shape) or min(*self.in_shape, *self.out_shape) < 1:
            got = f"{self.in_shape} and {self.out_shape}"
            raise ConfigError("Reshape keeps the number of values", expected="equal products", got=got)

    def _forward(self, x: Tensor, context: None) -> Tensor:
        check_event_shape(x, self.in_shape, "Reshape")
        return x.reshape(x.shape[0], *self.out_shape)

    def _inverse(self, y: Tensor, context: None) -> Tensor:
        check_event_shape(y, self.out_shape, "Reshape's inverse")
        return y.reshape(y.shape[0], *self.in_shape)

    def extra_repr(self) -> str:
        """What `print(module)` shows.

        Returns:
            Both shapes.
        """
        return f"{self.in_shape} -> {self.out_shape}"

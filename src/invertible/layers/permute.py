"""A fixed permutation of the channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from invertible._checks import check_channels
from invertible.bijection import VolumePreserving
from invertible.errors import ConfigError


def _digits(n: int) -> list[str]:
    return sorted(map(str, range(n)))


class Permute(VolumePreserving):
    """Reorder the channels: output channel i is input channel permutation[i].

    Args:
        permutation: Each of 0 ... n-1 once.
        dim: The dimension to permute, 1 or higher.

    Raises:
        ConfigError: If it is no permutation.
        ShapeError: When called: if the number of channels is wrong.

    Example:
        >>> Permute([2, 0, 1])(torch.tensor([[0.0, 1.0, 2.0]]))
        tensor([[2., 0., 1.]])
    """

    permutation: Tensor

    is_isometric = keeps_lattice = True

    def __init__(self, permutation: Sequence[int] | Tensor, dim: int = 1) -> None:
        super().__init__()
        order = permutation.tolist() if isinstance(permutation, Tensor) else permutation
        if not isinstance(order, list | tuple | range) or not order or sorted(map(str, order)) != _digits(len(order)):
            raise ConfigError("Permute got no permutation", expected="each of 0 ... n-1 once", got=order)
        if dim < 1:
            raise ConfigError("Permute leaves the batch in order", expected="dim >= 1", got=dim)
        self.dim = dim
        self.register_buffer("permutation", torch.tensor(order))

    @classmethod
    def reverse(cls, n_channels: int) -> Permute:
        """Last channel first.

        Args:
            n_channels: How many there are.

        Returns:
            The layer.
        """
        return cls(torch.arange(n_channels - 1, -1, -1))

    @classmethod
    def random(cls, n_channels: int, seed: int = 0) -> Permute:
        """A random order, from a seed of its own: the global random state is not touched.

        Args:
            n_channels: How many channels there are.
            seed: Same seed, same order.

        Returns:
            The layer.
        """
        order = torch.randperm(n_channels, generator=torch.Generator().manual_seed(seed), device="cpu")
        return cls(order)

    def _forward(self, x: Tensor, context: None) -> Tensor:
        check_channels(x, len(self.permutation), "Permute", self.dim)
        return x.index_select(self.dim, self.permutation)

    def _inverse(self, y: Tensor, context: None) -> Tensor:
        check_channels(y, len(self.permutation), "Permute.inverse", self.dim)
        return y.index_select(self.dim, torch.argsort(self.permutation))

    def extra_repr(self) -> str:
        """What `print(module)` shows.

        Returns:
            Size and dimension.
        """
        return f"{len(self.permutation)} channels, dim={self.dim}"

"""Stochastic depth: residual branches that are left out at random in training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from invertible._checks import check_floating, describe
from invertible.errors import ConfigError, ShapeError


class StochasticDepth(nn.Module):
    """In training each sample is set to zero with a probability, or kept as it is; in eval mode nothing happens.

    What is kept is not scaled up, as in the normalizer-free networks: the mean of a branch is smaller in training.

    Args:
        rate: The probability, from 0 to below 1.

    Raises:
        ConfigError: If the rate is out of range.
        ShapeError: When called: if x has no batch dimension.

    Source: Huang et al. 2016; without rescaling Brock, De and Smith 2021, appendix.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> StochasticDepth(0.5)(torch.ones(8, 2, 2))[:, 0, 0]
        tensor([..., 0., ...])
        >>> StochasticDepth(0.5).eval()(torch.ones(2, 1)).tolist()
        [[1.0], [1.0]]
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ConfigError("the rate of stochastic depth is out of range", expected="0 to below 1", got=rate)
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Drop samples.

        Args:
            x: Shape (batch, ...).

        Returns:
            Shape of x.

        Raises:
            ShapeError: If x has no batch dimension.
        """
        check_floating(x, "StochasticDepth")
        if x.ndim == 0:
            raise ShapeError("StochasticDepth drops samples", expected="a batch dimension", got=describe(x))
        if not self.training or self.rate == 0:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * keep.to(x.dtype)

    def extra_repr(self) -> str:
        """What `print(module)` shows.

        Returns:
            The rate.
        """
        return f"rate={self.rate:g}"

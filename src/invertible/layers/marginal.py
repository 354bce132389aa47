"""A spline of its own for each column: monotone curves without a network."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from invertible._checks import check_channels
from invertible.bijection import Bijection
from invertible.errors import ConfigError
from invertible.layers._sums import sum_events
from invertible.layers.spline import rational_quadratic, rational_quadratic_inverse


class MarginalSpline(Bijection):
    """Each column of a vector goes through a learned rational-quadratic spline, the identity before training.

    Args:
        n_features: How many columns.
        n_bins: Bins of each spline.
        bound: They act on [-bound, bound] and are the identity outside.

    Raises:
        ConfigError: If a number is out of range.
        ShapeError: When called: if the input has another number of columns.

    Source: Durkan et al. 2019, section 3.1.

    Example:
        >>> spline, x = MarginalSpline(2), torch.randn(3, 2)
        >>> torch.allclose(spline.inverse(spline(x)), x, atol=1e-5)
        True
    """

    def __init__(self, n_features: int, n_bins: int = 8, bound: float = 5.0) -> None:
        super().__init__()
        if n_features < 1 or not 2 <= n_bins <= 256 or not 0 < bound < math.inf:
            got = f"n_features={n_features}, n_bins={n_bins}, bound={bound}"
            raise ConfigError("MarginalSpline does not fit", expected="a column, 2 to 256 bins, bound > 0", got=got)
        self.bound = bound
        self.parameters_of_splines = nn.Parameter(torch.zeros(3 * n_bins - 1, n_features))

    def _forward(self, x: Tensor, context: None) -> Tensor:
        return self._curve(x, rational_quadratic)[0]

    def _inverse(self, y: Tensor, context: None) -> Tensor:
        return self._curve(y, rational_quadratic_inverse)[0]

    def _forward_with_logdet(self, x: Tensor, context: None) -> tuple[Tensor, Tensor]:
        y, log = self._curve(x, rational_quadratic)
        return y, sum_events(log)

    def _inverse_with_logdet(self, y: Tensor, context: None) -> tuple[Tensor, Tensor]:
        x, log = self._curve(y, rational_quadratic_inverse)
        return x, -sum_events(log)

    def _curve(self, x: Tensor, spline: Callable[..., tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        raw = self.parameters_of_splines
        check_channels(x, raw.shape[1], "MarginalSpline")
        dtype = torch.promote_types(x.dtype, torch.float32)
        out, log = spline(x.to(dtype), raw.to(dtype).expand(x.shape[0], *raw.shape), self.bound, 1)
        return out.to(x.dtype), log

    def extra_repr(self) -> str:
        """What `print(module)` shows.

        Returns:
            Columns and bins.
        """
        raw = self.parameters_of_splines
        return f"{raw.shape[1]}, n_bins={(len(raw) + 1) // 3}, bound={self.bound}"

"""Spline coupling: each element of the target goes through a monotone curve that the network draws."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from invertible.errors import ConfigError
from invertible.layers._conditioning import check_stacked
from invertible.layers.coupling import Coupling, Target
from invertible.layers.masks import Mask
from invertible.layers.spline import rational_quadratic, rational_quadratic_inverse


class SplineCoupling(Coupling):
    """(x1, x2) -> (x1, spline(x2; network(x1))), a rational-quadratic spline on [-bound, bound], the identity outside.

    The network gives 3 K - 1 numbers for each element of the target, stacked along `dim` as `AffineCoupling`'s are:
    the first bin's log-width for all channels of the target, the second's, ..., then K log-heights, then the raw
    derivatives at the K - 1 inner knots. So vectors of shape (batch, (3 K - 1) n) and images of shape
    (batch, (3 K - 1) n, height, width) work alike. A network that gives zeros makes the coupling the identity. Under
    autocast the spline itself is computed in the input's precision, and in float32 at least.

    Args:
        network: Any module that maps the source to these numbers. With a context it is called as
            `network(source, context)`.
        n_bins: K.
        bound: Half of the range in which elements change; values outside come through as they are.
        target: Which stream is changed, "second" or "first".
        sizes: Sizes of the two streams; None parts the channels in halves.
        dim: The dimension that is parted.
        takes_context: Whether the network takes a context.
        mask: Instead of sizes and dim: where x1 is, such as `Checkerboard()`.

    Raises:
        ConfigError: If an argument is out of range.
        DtypeError: If the network is no module; when called: if its dtype or device is not the input's.
        ShapeError: When called: if the network's output does not fit.

    Source: Durkan et al. 2019, Neural Spline Flows.

    Example:
        >>> coupling = SplineCoupling(nn.Linear(2, 2 * 11), n_bins=4)
        >>> y, logdet = coupling.forward_with_logdet(torch.randn(3, 4))
        >>> x, back = coupling.inverse_with_logdet(y)
        >>> logdet.shape, torch.allclose(logdet, -back, atol=1e-5)
        (torch.Size([3]), True)
    """

    def __init__(
        self,
        network: nn.Module,
        n_bins: int = 8,
        bound: float = 5.0,
        target: Target = "second",
        sizes: tuple[int, int] | None = None,
        dim: int = 1,
        takes_context: bool = False,
        mask: Mask | None = None,
    ) -> None:
        if isinstance(n_bins, bool) or not isinstance(n_bins, int) or not 2 <= n_bins <= 256:
            raise ConfigError("SplineCoupling has a bad n_bins", expected="2 to 256", got=n_bins)
        if not 0 < bound < math.inf:
            raise ConfigError("SplineCoupling has a bad bound", expected="a number > 0", got=bound)
        super().__init__(network, target, sizes, dim, takes_context, mask)
        self.n_bins, self.bound = n_bins, float(bound)

    @property
    def n_parameters(self) -> int:
        """How many numbers the network gives for each element of the target: 3 K - 1."""
        return 3 * self.n_bins - 1

    def extra_repr(self) -> str:
        """What `print(module)` shows.

        Returns:
            Roles, bins and bound.
        """
        return f"{self._roles.describe(self.takes_context)}, n_bins={self.n_bins}, bound={self.bound}"

    def _outcome(self, target: Tensor, out: Any) -> Tensor:
        dim = self._roles.dim
        check_stacked(out, target, self.n_parameters, dim, "SplineCoupling")
        out = out.to(torch.promote_types(target.dtype, torch.float32))
        return out.unflatten(dim, (self.n_parameters, target.shape[dim]))

    def _change_with_log(self, target: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        y, log = rational_quadratic(target.to(h.dtype), h, self.bound, self._roles.dim)
        return y.to(target.dtype), log

    def _restore_with_log(self, target: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        x, log = rational_quadratic_inverse(target.to(h.dtype), h, self.bound, self._roles.dim)
        return x.to(target.dtype), log

    def _change(self, target: Tensor, h: Tensor) -> Tensor:
        return self._change_with_log(target, h)[0]

    def _restore(self, target: Tensor, h: Tensor) -> Tensor:
        return self._restore_with_log(target, h)[0]

    def _log_derivative(self, target: Tensor, h: Tensor) -> Tensor:
        return self._change_with_log(target, h)[1]

"""Maps of single numbers: NICE's scaling, tanh, and tails that grow like a logarithm."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional

from invertible._checks import can_look
from invertible.bijection import Bijection
from invertible.errors import ConfigError, RangeError
from invertible.layers._channels import ChannelAffine, wide


class Scaling(ChannelAffine):
    """y = x * exp(log_scale), one learned log-scale per channel, zero at first.

    Args:
        n_features: How many channels.
        dim: Their dimension, 1 or higher.

    Raises:
        ConfigError: If a number is below 1.
        DtypeError: When called: if the parameter has another dtype or device than x.
        ShapeError: When called: if x has another number of channels.

    Source: Dinh et al. 2015 (NICE), section 3.3.

    Example:
        >>> scaling = Scaling(2)
        >>> _ = nn.init.constant_(scaling.log_scale, 1.5)
        >>> scaling.forward_with_logdet(torch.ones(1, 2))[1].item()
        3.0
    """

    def __init__(self, n_features: int, dim: int = 1) -> None:
        super().__init__(n_features, dim)
        self.log_scale = nn.Parameter(torch.zeros(n_features))

    def _affine(self, dtype: torch.dtype) -> tuple[None, Tensor]:
        return None, self.log_scale.to(dtype).exp()

    def _log_scale(self, dtype: torch.dtype) -> Tensor:
        return self.log_scale.to(dtype)


class Elementwise(Bijection):
    """The same rising map of every number, whatever the shape. Abstract: say what it does to one.

    The hooks get tensors of float32 at least; results are returned in x's dtype.
    """

    @abstractmethod
    def _map(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _unmap(self, y: Tensor) -> Tensor: ...

    @abstractmethod
    def _log_slope(self, x: Tensor) -> Tensor:
        """Log-derivative of the map at x, in nats."""

    @abstractmethod
    def _log_unslope(self, y: Tensor) -> Tensor:
        """Log-derivative of the inverse map at y, in nats."""

    def _check_input(self, x: Tensor) -> None:
        """Refuse what is not in the map's domain."""

    def _check_output(self, y: Tensor) -> None:
        """Refuse what is not in its image."""

    def _forward(self, x: Tensor, context: None) -> Tensor:
        self._check_input(x)
        return self._map(_wide(x)).to(x.dtype)

    def _inverse(self, y: Tensor, context: None) -> Tensor:
        self._check_output(y)
        return self._unmap(_wide(y)).to(y.dtype)

    def _forward_with_logdet(self, x: Tensor, context: None) -> tuple[Tensor, Tensor]:
        return self._forward(x, context), _sum(self._log_slope(_wide(x)))

    def _inverse_with_logdet(self, y: Tensor, context: None) -> tuple[Tensor, Tensor]:
        return self._inverse(y, context), _sum(self._log_unslope(_wide(y)))


def _wide(x: Tensor) -> Tensor:
    return x.to(wide(x.dtype))


def _sum(log_slope: Tensor) -> Tensor:
    return log_slope.reshape(log_slope.shape[0], math.prod(log_slope.shape[1:])).sum(dim=1)


def check_between(x: Tensor, low: float, high: float, name: str, hint: str) -> None:
    """Refuse numbers that are not strictly inside an interval, NaN among them. Where values are unknown, do nothing.

    Args:
        x: The numbers.
        low: Where the interval begins.
        high: Where it ends.
        name: Who asks, for the message.
        hint: What to try.

    Raises:
        RangeError: If there are any; the message counts them and names the first.
    """
    if not can_look(x):
        return
    bad = ~((x > low) & (x < high))
    if not bool(bad.any()):
        return
    first = tuple(int(i) for i in bad.nonzero()[0])
    got = f"{int(bad.sum())} of {x.numel()} outside, the first at index {first}: {float(x[first]):.6g}"
    raise RangeError(f"{name} got numbers out of range", expected=f"{low:.6g} < x < {high:.6g}", got=got, hint=hint)


class Tanh(Elementwise):
    """y = tanh(x), from the line into (-1, 1). `Inverse(Tanh())` takes data in (-1, 1) to the line.

    Its inverse refuses -1, 1 and beyond. In float32 tanh(x) is 1 for x > 9: what comes out there cannot be undone.

    Raises:
        RangeError: From the inverse: if a number is not in (-1, 1).

    Example:
        >>> y, logdet = Tanh().forward_with_logdet(torch.tensor([[30.0]]))
        >>> y.item(), round(logdet.item(), 4)
        (1.0, -58.6137)
    """

    def _map(self, x: Tensor) -> Tensor:
        return torch.tanh(x)

    def _unmap(self, y: Tensor) -> Tensor:
        return torch.atanh(y)

    def _log_slope(self, x: Tensor) -> Tensor:
        # log(1 - tanh^2) would be -inf where tanh rounds to 1.
        return 2 * (math.log(2) - x - functional.softplus(-2 * x))

    def _log_unslope(self, y: Tensor) -> Tensor:
        return -torch.log1p(-y) - torch.log1p(y)

    def _check_output(self, y: Tensor) -> None:
        check_between(y, -1, 1, "the inverse of Tanh", "scale the data: x * (1 - 1e-3)")


class SoftTails(Elementwise):
    """y = x up to the knee, and sign(x) (knee + log(1 + |x| - knee)) beyond: outliers come near, and can go back.

    Values and slopes meet at the knee. An outlier of 1e6 becomes knee + 13.8. The inverse of numbers beyond
    knee + 88 is too large for float32, and comes out infinite.

    Args:
        knee: Where the logarithm begins, > 0.

    Raises:
        ConfigError: If the knee is not a positive number.

    Example:
        >>> SoftTails(3)(torch.tensor([[-2.0, 1e6]]))
        tensor([[-2.0000, 16.8155]])
    """

    def __init__(self, knee: float = 5.0) -> None:
        super().__init__()
        if not 0 < knee < math.inf:
            raise ConfigError("SoftTails has a bad knee", expected="a number > 0", got=knee)
        self.knee = knee

    def _map(self, x: Tensor) -> Tensor:
        return x.clamp(-self.knee, self.knee) + x.sign() * torch.log1p(self._beyond(x))

    def _unmap(self, y: Tensor) -> Tensor:
        return y.clamp(-self.knee, self.knee) + y.sign() * torch.expm1(self._beyond(y))

    def _log_slope(self, x: Tensor) -> Tensor:
        return -torch.log1p(self._beyond(x))

    def _log_unslope(self, y: Tensor) -> Tensor:
        return self._beyond(y)

    def _beyond(self, x: Tensor) -> Tensor:
        return torch.relu(x.abs() - self.knee)

    def extra_repr(self) -> str:
        """What `print(module)` shows.

        Returns:
            The knee.
        """
        return f"knee={self.knee:g}"

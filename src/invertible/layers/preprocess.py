"""What data goes through before a flow: to mean 0 and deviation 1, and from [0, 1] to the line."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor
from torch.nn import functional

from invertible._checks import check_floating, describe
from invertible.errors import ConfigError, NonFiniteError, ShapeError
from invertible.layers._channels import ChannelAffine
from invertible.layers.elementwise import Elementwise, check_between


class Standardize(ChannelAffine):
    """y = (x - mean) / std per channel, with fixed numbers. `Standardize.fit(x)` takes them from data.

    Args:
        mean: Shape (channels,).
        std: Shape (channels,), positive.
        dim: The channels' dimension, 1 or higher.

    Raises:
        ConfigError: If a number is not finite, or a deviation not positive.
        ShapeError: If mean and std are not vectors of one length; when called: if x has another number of channels.

    Example:
        >>> Standardize.fit(torch.tensor([[1.0, 0.0], [3.0, 4.0]]))(torch.tensor([[4.0, 4.0]]))
        tensor([[2., 1.]])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, dim: int = 1) -> None:
        if mean.ndim != 1 or mean.shape != std.shape:
            got = f"{describe(mean)}; {describe(std)}"
            raise ShapeError("Standardize takes one mean and std per channel", expected="two equal vectors", got=got)
        super().__init__(len(mean), dim)
        if not mean.is_meta and not bool((mean.isfinite() & std.isfinite() & (std > 0)).all()):
            hint = "Standardize.fit(x)"
            raise ConfigError("Standardize has a bad mean or std", expected="finite means, stds > 0", hint=hint)
        self.register_buffer("mean", mean.detach().clone())
        self.register_buffer("std", std.detach().clone())

    @classmethod
    def fit(cls, x: Tensor, dim: int = 1) -> Standardize:
        """Mean and standard deviation of each channel, computed in float64.

        A constant channel gets deviation 1, with a warning that names it.

        Args:
            x: The data, shape (n, channels, ...), finite, n > 0.
            dim: The channels' dimension.

        Returns:
            The layer, in x's dtype and on its device.

        Raises:
            DtypeError: If x is no floating-point tensor.
            NonFiniteError: If a value is NaN or infinite; the message names the first channel and row.
            ShapeError: If x has no values, or no such dimension.
        """
        check_floating(x, "Standardize.fit")
        if x.ndim <= dim or dim < 1 or not x.numel():
            raise ShapeError("Standardize.fit takes data", expected=f"values with dimension {dim}", got=describe(x))
        _check_columns(x, dim)
        mean, std = _moments(x.detach().movedim(dim, 0).flatten(1))
        return cls(mean.to(x.dtype), std.to(x.dtype), dim)

    def _affine(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return -self.mean.to(dtype), self.std.to(dtype).reciprocal()

    def _log_scale(self, dtype: torch.dtype) -> Tensor:
        return -self.std.to(dtype).log()


def _check_columns(x: Tensor, dim: int) -> None:
    bad = ~x.isfinite()
    if not bool(bad.any()):
        return
    index = bad.nonzero()[0]
    columns = bad.movedim(dim, 0).flatten(1).any(dim=1).nonzero().flatten().tolist()
    got = f"NaN or infinity in column {_some(columns)}, the first in row {int(index[0])}, column {int(index[dim])}"
    hint = "drop those rows, or fill in the values"
    raise NonFiniteError("the data to standardize must be finite", expected="only finite values", got=got, hint=hint)


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    double = rows.to(torch.float32 if rows.device.type == "mps" else torch.float64)
    mean = double.mean(dim=1)
    std = (double - mean[:, None]).square().mean(dim=1).sqrt()
    is_constant = (rows == rows[:, :1]).all(dim=1) | (std < torch.finfo(rows.dtype).tiny)
    if bool(is_constant.any()):
        columns = is_constant.nonzero().flatten().tolist()
        text = f"constant columns are not scaled (std 1 instead of 0): column {_some(columns)}"
        warnings.warn(text, UserWarning, stacklevel=3)
    return mean, torch.where(is_constant, torch.ones_like(std), std)


def _some(columns: list[int]) -> str:
    text = ", ".join(map(str, columns[:10]))
    return text + f" and {len(columns) - 10} more" * (len(columns) > 10)


class Logit(Elementwise):
    """y = logit(alpha + (1 - 2 alpha) x), from [0, 1] to the line. `Inverse(Logit(0))` is the logistic sigmoid.

    With alpha > 0 the numbers 0 and 1 have finite images. The inverse is defined everywhere; it gives numbers up to
    alpha / (1 - 2 alpha) outside [0, 1] (0.056 for alpha 0.05), which can come in again; what lies beyond is refused.

    Args:
        alpha: How far from the ends of the unit interval to stay, 0 <= alpha < 1/2.

    Raises:
        ConfigError: If alpha is out of range.
        RangeError: When called: if a number is not in the domain.

    Source: Dinh et al. 2017 (RealNVP), section 4.1; Papamakarios et al. 2017 (MAF), section 4.3 (alpha).

    Example:
        >>> Logit(0.05)(torch.tensor([[0.0, 0.5, 1.0]]))
        tensor([[-2.9444, 0.0000, 2.9444]])
    """

    def __init__(self, alpha: float = 0.05) -> None:
        super().__init__()
        if not 0 <= alpha < 0.5:
            raise ConfigError("Logit has a bad alpha", expected="0 <= alpha < 0.5", got=alpha)
        self.alpha = alpha

    def _map(self, x: Tensor) -> Tensor:
        p, q = self._probabilities(x)
        return p.log() - q.log()

    def _unmap(self, y: Tensor) -> Tensor:
        return (torch.sigmoid(y) - self.alpha) / (1 - 2 * self.alpha)

    def _log_slope(self, x: Tensor) -> Tensor:
        p, q = self._probabilities(x)
        return math.log1p(-2 * self.alpha) - p.log() - q.log()

    def _log_unslope(self, y: Tensor) -> Tensor:
        return -functional.softplus(-y) - functional.softplus(y) - math.log1p(-2 * self.alpha)

    def _probabilities(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # 1 - p from 1 - x: nothing cancels near 1.
        scale = 1 - 2 * self.alpha
        return self.alpha + scale * x, self.alpha + scale * (1 - x)

    def _check_input(self, x: Tensor) -> None:
        edge = self.alpha / (1 - 2 * self.alpha)
        hint = "x / 255 for 8-bit pixels (after dequantization / 256)"
        hint += "" if self.alpha else ", or alpha > 0, which allows 0 and 1"
        check_between(x, -edge, 1 + edge, "Logit", hint)

    def extra_repr(self) -> str:
        """What `print(module)` shows.

        Returns:
            Alpha.
        """
        return f"alpha={self.alpha:g}"

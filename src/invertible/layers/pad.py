"""Injective padding: more channels without losing anything."""

from __future__ import annotations

import torch
from torch import Tensor

from invertible._checks import check_channels
from invertible.bijection import VolumePreserving
from invertible.errors import ConfigError, NotInImageError

DEFAULT_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.5}


class InjectivePad(VolumePreserving):
    """Append channels of zeros; the inverse takes them off, once it has checked that they came back as zeros.

    The map is injective, not onto: a point outside its image has no preimage, and the inverse says so. Its
    log-determinant, log det(J^T J) / 2, is zero.

    Args:
        n_channels: Channels of the input.
        n_pad: Channels to append.
        tolerance: Largest absolute value the padding may have in `inverse`, relative to the largest absolute value
            among the other channels (or to 1, if that is larger). None: 1e-8 in float64, 1e-3 in float32, 0.1 in
            float16, 0.5 in bfloat16, which leaves room for the rounding of a deep chain before it.

    Raises:
        ConfigError: If a number is out of range.
        ShapeError: When called: if the number of channels is wrong.
        NotInImageError: When inverted: if the padding came back above the tolerance, or as NaN.

    Source: Jacobsen et al. 2018, section 3.1 and the released code's `injective_pad`.

    Example:
        >>> pad = InjectivePad(3, 2)
        >>> pad(torch.ones(1, 3)), pad.inverse(pad(torch.ones(1, 3)))
        (tensor([[1., 1., 1., 0., 0.]]), tensor([[1., 1., 1.]]))
        >>> pad.inverse(torch.ones(1, 5))
        Traceback (most recent call last):
        invertible.errors.NotInImageError: InjectivePad cannot be undone: ...
    """

    is_onto, is_isometric, keeps_lattice = False, True, True

    def __init__(self, n_channels: int, n_pad: int, tolerance: float | None = None) -> None:
        super().__init__()
        if n_channels < 1 or n_pad < 0 or (tolerance is not None and not tolerance >= 0):
            got = f"n_channels={n_channels}, n_pad={n_pad}, tolerance={tolerance}"
            raise ConfigError("InjectivePad has a bad size", expected="n_channels >= 1, the others >= 0", got=got)
        self.n_channels, self.n_pad, self.tolerance = n_channels, n_pad, tolerance

    def _forward(self, x: Tensor, context: None) -> Tensor:
        check_channels(x, self.n_channels, "InjectivePad")
        return torch.cat([x, x.new_zeros(x.shape[0], self.n_pad, *x.shape[2:])], dim=1)

    def _inverse(self, y: Tensor, context: None) -> Tensor:
        check_channels(y, self.n_channels + self.n_pad, "InjectivePad.inverse")
        x, padding = y.split([self.n_channels, self.n_pad], dim=1)
        if padding.numel():
            self._check_zero(padding, x)
        return x

    def _check_zero(self, padding: Tensor, kept: Tensor) -> None:
        tolerance = DEFAULT_TOLERANCE.get(kept.dtype, 1e-3) if self.tolerance is None else self.tolerance
        largest, scale = padding.detach().abs().max().item(), max(1.0, kept.detach().abs().max().item())
        if not largest <= tolerance * scale:
            raise NotInImageError(
                "InjectivePad cannot be undone",
                expected=f"padding channels of at most {tolerance * scale:.3g}",
                got=f"{largest:.3g}",
                hint="is this really an output of this network, in the same train/eval mode? If rounding did it:"
                " float64, or a larger `tolerance` (an attribute of this layer)",
            )

    def extra_repr(self) -> str:
        """What `print(module)` shows.

        Returns:
            The sizes.
        """
        return f"{self.n_channels} + {self.n_pad}"

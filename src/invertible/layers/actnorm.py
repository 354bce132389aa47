"""Glow's activation normalisation: an affine map per channel that the first batch sets."""

from __future__ import annotations

import warnings

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from invertible._checks import can_look, check_channels
from invertible.errors import ConfigError, NonFiniteError
from invertible.layers._channels import ChannelAffine


class ActNorm(ChannelAffine):
    """y = (x + shift) * exp(log_scale), per channel; the first training batch sets both so that y is normalised.

    In training mode the first call of `forward` gives each channel mean 0 and standard deviation 1 over batch and
    positions; from then on shift and log-scale are parameters like any other. A channel that is constant in that batch
    keeps scale 1, with a warning. Before, in eval mode, and from the inverse, the layer is the identity. The state dict
    says whether the layer is initialised (`initialised`); the attribute `is_initialised` says the same without a look
    at a tensor.

    Over several processes (`torch.distributed`) the statistics are those of all of them, so all of them must run the
    first batch. Under FSDP, `torch.func`, `torch.export` and a full-graph `torch.compile`, initialise before.

    Args:
        n_features: How many channels.
        dim: Their dimension, 1 or higher; the trailing dimensions are positions.

    Raises:
        ConfigError: If a number is below 1; when called: if the first batch comes where it cannot be looked at.
        DtypeError: When called: if the parameters have another dtype or device than x.
        NonFiniteError: If the first batch has NaN or infinity.
        ShapeError: When called: if x has another number of channels.

    Source: Kingma and Dhariwal 2018 (Glow), section 3.1.

    Example:
        >>> actnorm = ActNorm(2)
        >>> actnorm(torch.tensor([[1.0, 5.0], [3.0, 6.0]])).tolist()
        [[-1.0, -1.0], [1.0, 1.0]]
        >>> actnorm.is_initialised
        True
    """

    initialised: Tensor

    def __init__(self, n_features: int, dim: int = 1) -> None:
        super().__init__(n_features, dim)
        self.shift, self.log_scale = nn.Parameter(torch.zeros(n_features)), nn.Parameter(torch.zeros(n_features))
        self.register_buffer("initialised", torch.tensor(False))
        self.is_initialised = False
        self.register_load_state_dict_post_hook(_mirror)

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Set shift and log-scale so that each channel of the image of x has mean 0 and standard deviation 1.

        A batch without elements, and one without values (on the meta device), changes nothing.

        Args:
            x: Shape (batch, ..., n_features, ...).

        Raises:
            ConfigError: If the values cannot be looked at, or the parameters are not the layer's own.
            NonFiniteError: If a channel has NaN or infinity.
            ShapeError: If x has another number of channels.
        """
        check_channels(x, self.n_features, "ActNorm", self.dim)
        if x.is_meta:
            return
        if not can_look(x) or not isinstance(self.shift, nn.Parameter):
            problem = "ActNorm sets itself from its first training batch"
            hint = "run one training batch first, or actnorm.initialise(x)"
            raise ConfigError(problem, expected="a plain batch", got="one in torch.func or torch.export", hint=hint)
        moments = _moments(x.movedim(self.dim, 0).flatten(1))
        if moments is None:
            return
        mean, std = moments
        self._check_finite(mean, std)
        self.shift.copy_(-mean)
        floored = _floored(std, mean, self.log_scale.dtype)
        self.log_scale.copy_(-floored.log())
        self.initialised.fill_(True)
        self.is_initialised = True
        self._warn_if_constant(int((floored != std).sum()))

    def _prepare(self, x: Tensor) -> None:
        if self.training and not self.is_initialised:
            (_initialise_uncompiled if torch.compiler.is_dynamo_compiling() else ActNorm.initialise)(self, x)

    def _affine(self, dtype: torch.dtype) -> tuple[Tensor | None, Tensor]:
        return self.shift.to(dtype), self.log_scale.to(dtype).exp()

    def _log_scale(self, dtype: torch.dtype) -> Tensor:
        return self.log_scale.to(dtype)

    def _warn_if_constant(self, n: int) -> None:
        if n:
            text = f"{n} of the {self.n_features} channels of an ActNorm are constant in its first batch"
            warnings.warn(f"{text} and keep scale 1: begin with a full, typical batch", UserWarning, stacklevel=3)

    def _check_finite(self, mean: Tensor, std: Tensor) -> None:
        bad = ~(mean.isfinite() & std.isfinite())
        if bool(bad.any()):
            first = int(bad.nonzero()[0])
            problem = f"the first batch of an ActNorm({self.n_features}) must be finite"
            got = f"NaN or infinity in {int(bad.sum())} of its channels, the first is channel {first}"
            raise NonFiniteError(problem, expected="only finite values", got=got, hint="find where they come from")


@_disable_dynamo  # as torch.compiler.disable, which would make the import of this file take seconds longer
def _initialise_uncompiled(layer: ActNorm, x: Tensor) -> None:
    layer.initialise(x)


def _mirror(module: nn.Module, keys: object) -> None:
    if isinstance(module, ActNorm) and not module.initialised.is_meta:
        module.is_initialised = bool(module.initialised)


def _moments(rows: Tensor) -> tuple[Tensor, Tensor] | None:
    # Mean and standard deviation of each row over all processes; in two passes, as a large mean would cancel in one.
    rows = rows.detach().to(torch.float32 if rows.device.type == "mps" else torch.float64)
    totals = _over_processes(torch.cat([rows.sum(1), rows.new_tensor([rows.shape[1]])]))
    n = totals[-1]
    if not bool(n):
        return None
    mean = totals[:-1] / n
    squares = _over_processes((rows - mean[:, None]).square().sum(1))
    return mean, (squares / n).sqrt()


def _over_processes(sums: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(sums)
    return sums


def _floored(std: Tensor, mean: Tensor, dtype: torch.dtype) -> Tensor:
    # A constant channel's deviation is rounding of the mean, or nothing.
    rounding = 1e-12 if std.dtype == torch.float64 else 1e-6
    is_constant = std <= (rounding * mean.abs()).clamp(min=torch.finfo(dtype).tiny)
    return torch.where(is_constant, torch.ones_like(std), std)

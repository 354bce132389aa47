"""Scaled Weight Standardization: each output channel's weights have mean 0 and sum of squares 1, times a learned gain.

What BatchNorm does to activations is done to weights: behind an activation of variance one (`ScaledActivation`) a
channel has variance one at the start, and no mean, whatever the mean of the activation.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from invertible._checks import describe
from invertible.errors import ConfigError, DtypeError

M = TypeVar("M", bound=nn.Module)
EPS = 1e-4
STANDARDIZABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def standardize_weight(weight: Tensor, gain: Tensor | None = None, eps: float = EPS) -> Tensor:
    """Gain (W - mean) / sqrt(max(N Var, eps)), with mean and (biased) variance over the N weights of an output channel.

    In float16 and bfloat16 mean and variance are computed in float32.

    Args:
        weight: Shape (out channels, ...), as in linear layers and convolutions, with N = the rest.
        gain: Shape (out channels,); None: ones.
        eps: Below it N Var counts as eps, so that a channel of equal weights gives zeros.

    Returns:
        Shape and dtype of the weight.

    Source: Brock, De and Smith 2021, section 4.1, equation 5, and the released code (eps, learned gain).

    Example:
        >>> standardize_weight(torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[-0.7071,  0.0000,  0.7071]])
    """
    exact = weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight
    flat = exact.flatten(1)
    variance, mean = torch.var_mean(flat, dim=1, correction=0, keepdim=True)
    scale = (variance * flat.shape[1]).clamp(min=eps).rsqrt()
    if gain is not None:
        scale = scale * gain.to(exact.dtype).unsqueeze(1)
    return ((flat - mean) * scale).view_as(exact).to(weight.dtype)


class _Standardized:
    """What the four layers share: the gain, initial weights, and the refusal of single weights."""

    weight: Tensor
    bias: Tensor | None
    gain: nn.Parameter
    eps: float

    def _begin(self, eps: float) -> None:
        _check_eps(eps)
        _check_fan_in(self.weight, type(self).__name__)
        self.eps = eps
        self.gain = nn.Parameter(torch.ones_like(self.weight[(slice(None), *[0] * (self.weight.ndim - 1))]))
        nn.init.normal_(self.weight, std=self.weight[0].numel() ** -0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def standardized(self) -> Tensor:
        """The weight that the layer computes with.

        Returns:
            Shape of the raw weight.
        """
        return standardize_weight(self.weight, self.gain, self.eps)


class ScaledStdLinear(_Standardized, nn.Linear):
    """A linear layer with Scaled Weight Standardization.

    Weights start as N(0, 1 / in_features), the gain (one for each output) at 1, the bias at 0.

    Args:
        in_features: Size of the input's last dimension, at least 2.
        out_features: Size of the output's.
        bias: Whether to add one.
        eps: As in `standardize_weight`.
        **options: Device and dtype.

    Raises:
        ConfigError: If there is one weight per output, which would become 0, or eps is not positive.

    Source: Brock, De and Smith 2021, section 4.1.

    Example:
        >>> layer = ScaledStdLinear(512, 8)
        >>> round(layer.standardized().square().sum(1).max().item(), 4), abs(layer.standardized().sum().item()) < 1e-4
        (1.0, True)
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, eps: float = EPS, **options: Any
    ) -> None:
        super().__init__(in_features, out_features, bias, **options)
        self._begin(eps)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            input: Shape (..., in_features).

        Returns:
            Shape (..., out_features).
        """
        return nn.functional.linear(input, self.standardized(), self.bias)


class ScaledStdConv1d(_Standardized, nn.Conv1d):
    """`ScaledStdConv2d` in one dimension.

    Args:
        in_channels: Of the input.
        out_channels: Of the output.
        kernel_size: In positions.
        eps: As in `standardize_weight`.
        **options: As in `nn.Conv1d`.

    Raises:
        ConfigError: If there is one weight per output channel, or eps is not positive.

    Example:
        >>> ScaledStdConv1d(4, 8, 3, padding=1)(torch.zeros(2, 4, 10)).shape
        torch.Size([2, 8, 10])
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int | tuple[int], *, eps: float = EPS, **options: Any
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, **options)
        self._begin(eps)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            input: Shape (batch, in_channels, length).

        Returns:
            Shape (batch, out_channels, new length).
        """
        return self._conv_forward(input, self.standardized(), self.bias)


class ScaledStdConv2d(_Standardized, nn.Conv2d):
    """A convolution with Scaled Weight Standardization.

    Weights start as N(0, 1 / N), N being in_channels / groups x kernel area, the gain (one for each output channel) at
    1, the bias at 0. Padding with zeros is no input of variance one: at the border the variance is smaller.

    Args:
        in_channels: Of the input.
        out_channels: Of the output.
        kernel_size: In pixels.
        eps: As in `standardize_weight`.
        **options: As in `nn.Conv2d`: stride, padding, dilation, groups, bias, padding_mode, device, dtype.

    Raises:
        ConfigError: If there is one weight per output channel, which would become 0, or eps is not positive.

    Source: Brock, De and Smith 2021, section 4.1.

    Example:
        >>> conv = ScaledStdConv2d(64, 32, 3, padding=1, padding_mode="circular")
        >>> y = conv(5 + torch.randn(8, 64, 16, 16, generator=torch.Generator().manual_seed(0)))
        >>> round(y.var().item(), 1), abs(y.mean().item()) < 0.01
        (1.0, True)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        eps: float = EPS,
        **options: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, **options)
        self._begin(eps)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            input: Shape (batch, in_channels, height, width).

        Returns:
            Shape (batch, out_channels, new height, new width).
        """
        return self._conv_forward(input, self.standardized(), self.bias)


class ScaledStdConv3d(_Standardized, nn.Conv3d):
    """`ScaledStdConv2d` in three dimensions.

    Args:
        in_channels: Of the input.
        out_channels: Of the output.
        kernel_size: In voxels.
        eps: As in `standardize_weight`.
        **options: As in `nn.Conv3d`.

    Raises:
        ConfigError: If there is one weight per output channel, or eps is not positive.

    Example:
        >>> ScaledStdConv3d(4, 8, 3, padding=1)(torch.zeros(2, 4, 5, 5, 5)).shape
        torch.Size([2, 8, 5, 5, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int, int],
        *,
        eps: float = EPS,
        **options: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, **options)
        self._begin(eps)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            input: Shape (batch, in_channels, depth, height, width).

        Returns:
            Shape (batch, out_channels, new depth, new height, new width).
        """
        return self._conv_forward(input, self.standardized(), self.bias)


class WeightStandardization(nn.Module):
    """Scaled Weight Standardization as a parametrization of a layer's weight, with the gain as its parameter.

    Args:
        weight: The raw weight, shape (out channels, ...).
        eps: As in `standardize_weight`.

    Raises:
        ConfigError: If there is one weight per output channel, or eps is not positive.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> _ = parametrize.register_parametrization(layer, "weight", WeightStandardization(layer.weight))
        >>> torch.allclose(layer.weight.square().sum(1), torch.ones(2))
        True
    """

    def __init__(self, weight: Tensor, eps: float = EPS) -> None:
        super().__init__()
        _check_eps(eps)
        _check_fan_in(weight, "the layer")
        self.eps = eps
        self.gain = nn.Parameter(weight.detach().new_ones(weight.shape[0]))

    def forward(self, weight: Tensor) -> Tensor:
        """Standardise.

        Args:
            weight: The raw weight.

        Returns:
            Shape of the weight.
        """
        return standardize_weight(weight, self.gain, self.eps)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What an assignment to the layer's weight sets: the raw weight, of which the scale is lost.

        Args:
            weight: The weight.

        Returns:
            The weight.
        """
        return weight


def standardize(module: M, eps: float = EPS) -> M:
    """Put Scaled Weight Standardization on every linear layer and convolution of a network, or on one layer.

    In place, as a parametrization: the raw weights stay and go on learning, under the state-dict key
    "parametrizations.weight.original". Layers that are standardised already are left alone.

    Args:
        module: Any network, or one layer.
        eps: As in `standardize_weight`.

    Returns:
        The module.

    Raises:
        DtypeError: If it is no module.
        ConfigError: If there is no such layer, a layer has one weight per output, or another parametrization.

    Source: Brock, De and Smith 2021, section 4.1.

    Example:
        >>> net = standardize(nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Conv1d(8, 2, 1)))
        >>> torch.allclose(net[0].weight.square().sum((1, 2)), torch.ones(8))
        True
    """
    if not isinstance(module, nn.Module):
        raise DtypeError("standardize takes a network", expected="an nn.Module", got=describe(module))
    _check_eps(eps)
    layers = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, STANDARDIZABLE)]
    if not layers:
        expected = "a linear layer or convolution"
        raise ConfigError("nothing to standardise", expected=expected, got=type(module).__name__)
    fresh = [(name, layer) for name, layer in layers if not is_standardized(layer)]
    for name, layer in fresh:
        _check_fan_in(layer.weight, name or type(layer).__name__)
        if parametrize.is_parametrized(layer, "weight"):
            got = f"one on {name or type(layer).__name__}"
            raise ConfigError("the weight has a parametrization", expected="none", got=got, hint="remove it first")
    for _, layer in fresh:
        parametrize.register_parametrization(layer, "weight", WeightStandardization(layer.weight, eps))
    return module


def unstandardize(module: M) -> M:
    """Take the parametrizations of `standardize` off; the layers keep the standardised weights as plain ones.

    Args:
        module: A network.

    Returns:
        The module, which computes what it computed.

    Example:
        >>> layer = standardize(nn.Linear(2, 2))
        >>> weight = layer.weight
        >>> torch.equal(unstandardize(layer).weight, weight), sorted(layer.state_dict())
        (True, ['bias', 'weight'])
    """
    for layer in module.modules():
        if isinstance(layer, STANDARDIZABLE) and not isinstance(layer, _Standardized) and is_standardized(layer):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return module


def is_standardized(layer: nn.Module) -> bool:
    """Tell whether a layer computes with standardised weights.

    Args:
        layer: Any module.

    Returns:
        True for this file's layers and for those with its parametrization.

    Example:
        >>> is_standardized(nn.Linear(2, 2)), is_standardized(ScaledStdLinear(2, 2))
        (False, True)
    """
    if isinstance(layer, _Standardized):
        return True
    if not parametrize.is_parametrized(layer, "weight"):
        return False
    parametrizations: Any = layer.parametrizations
    return any(isinstance(p, WeightStandardization) for p in parametrizations["weight"])


def _check_eps(eps: float) -> None:
    if not eps > 0:
        raise ConfigError("eps of weight standardization is out of range", expected="above 0", got=eps)


def _check_fan_in(weight: Tensor, name: str) -> None:
    if weight.ndim < 2 or weight[0].numel() < 2:
        expected, got = "2 weights or more per output channel", f"shape {tuple(weight.shape)}"
        hint = "leave this layer as it is"
        raise ConfigError(f"a single weight less its mean is 0 ({name})", expected=expected, got=got, hint=hint)

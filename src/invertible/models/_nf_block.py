"""What normalizer-free networks are made of: their layers, the recursion of variances, their block and head."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from invertible._tap_points import TapPoints
from invertible.errors import ConfigError
from invertible.layers import ScaledActivation, ScaledStdConv2d, SkipInit, StochasticDepth, gain
from invertible.layers.gain import make_activation

Scaling = Literal["act(x)/beta", "act(x/beta)"]
Weights = Literal["standardized", "he"]
PaddingMode = Literal["zeros", "circular", "reflect", "replicate"]


@dataclass(frozen=True)
class Parts:
    """Convolutions and activations of one network.

    Args:
        activation: A name, a module (each place gets a copy) or a function.
        weights: "standardized", or "he": plain convolutions of variance 2 / fan-in (1 / fan-in where there is no
            activation, and before the first), activations without gamma.
        padding_mode: Of convolutions.
    """

    activation: str | Callable
    weights: Weights = "standardized"
    padding_mode: PaddingMode = "zeros"

    @cached_property
    def gamma(self) -> float:
        """The factor of activations."""
        return gain(self.activation) if self.weights == "standardized" else 1.0

    def act(self) -> ScaledActivation:
        """One activation.

        Returns:
            A module of its own.
        """
        return ScaledActivation(copy.deepcopy(make_activation(self.activation)), self.gamma)

    def conv(
        self, n_in: int, n_out: int, size: int, stride: int = 1, groups: int = 1, is_first: bool = False
    ) -> nn.Conv2d:
        """One convolution that keeps the spatial size, divided by the stride and rounded up.

        Args:
            n_in: Channels of the input.
            n_out: Channels of the output.
            size: Of the kernel.
            stride: In pixels.
            groups: Of channels.
            is_first: Whether it gets the image, of which no activation has taken half.

        Returns:
            The layer, with a bias of 0.
        """
        kind = ScaledStdConv2d if self.weights == "standardized" else nn.Conv2d
        options = {"padding": size // 2, "padding_mode": self.padding_mode, "groups": groups, "stride": stride}
        conv = kind(n_in, n_out, size, **options)
        if self.weights == "he":
            is_linear = is_first or isinstance(make_activation(self.activation), nn.Identity)
            nn.init.kaiming_normal_(conv.weight, mode="fan_in", nonlinearity="linear" if is_linear else "relu")
            nn.init.constant_(conv.get_parameter("bias"), 0.0)
        return conv

    def variance_behind(self, variance: float, beta: float, inside: bool) -> float:
        """Variance behind a block's first activation, by quadrature.

        Args:
            variance: Of x, which is normal with mean 0.
            beta: What is divided by.
            inside: Whether it stands inside: g(x / beta) instead of g(x) / beta.

        Returns:
            The variance.
        """
        if self.is_homogeneous:
            return variance / beta**2
        std = variance**0.5 / (beta if inside else 1.0)
        activation = copy.deepcopy(make_activation(self.activation))
        scaled = self.gamma**2 / gain(lambda z: activation(std * z)) ** 2
        return scaled if inside else scaled / beta**2

    @cached_property
    def is_homogeneous(self) -> bool:
        """Whether act(s x) = s act(x) for s > 0, as of ReLU and its like: then no integral is needed."""
        activation = copy.deepcopy(make_activation(self.activation))
        x = torch.linspace(-8, 8, 1001, device="cpu")
        with torch.no_grad():
            return all(torch.allclose(activation(s * x), s * activation(x.clone()), 1e-6, 1e-7) for s in (0.3, 7.0))


@dataclass
class Signal:
    """What a block's input looks like at the start of training with skip gains of one; goes from block to block.

    Args:
        parts: Of the network.
        alpha: The factor of residual branches.
        scaling: Where beta stands.
        beta: The paper's: the standard deviation that blocks divide by.
        variance: Of a channel, by theory; None: unknown.

    Source: Brock, De and Smith 2021, section 3: the recursion. Where an activation is not homogeneous, act(x) / beta
    has another variance than 1, which `variance` takes into account and beta does not.
    """

    parts: Parts
    alpha: float
    scaling: Scaling
    beta: float = 1.0
    variance: float | None = 1.0
    _known: dict[tuple[float, float], float] = field(default_factory=dict)

    def residual_variance(self) -> float | None:
        """Variance behind the next block's first activation, which is that at the end of its branch too.

        Returns:
            The variance; None: unknown.
        """
        if self.variance is None or self.parts.weights == "he":
            return None
        inside, key = self.scaling == "act(x/beta)", (round(self.variance, 12), round(self.beta, 12))
        if inside and abs(self.variance / self.beta**2 - 1) < 1e-12:
            return 1.0
        if key not in self._known:
            self._known[key] = self.parts.variance_behind(self.variance, self.beta, inside)
        return self._known[key]

    def advance(self, resets: bool, is_shortcut_known: bool = True) -> None:
        """Go behind a block.

        Args:
            resets: Whether its shortcut is a convolution of its scaled input.
            is_shortcut_known: False: its shortcut averages over pixels, with what variance nobody knows.
        """
        residual = self.residual_variance()
        shortcut = residual if resets else self.variance
        if residual is None or shortcut is None or not is_shortcut_known:
            self.variance = None
        else:
            self.variance = shortcut + self.alpha**2 * residual
        self.beta = ((1.0 if resets else self.beta**2) + self.alpha**2) ** 0.5


class NFBlock(nn.Module):
    """y = S + alpha s F(z) with z = g(x) / beta, and S = x, or a convolution of z where the shape changes.

    Args:
        residual: F.
        shortcut: From z to S; None: S = x.
        activation: g.
        skip: alpha s.
        drop: Stochastic depth of F.
        signal: What x looks like.

    Source: Brock, De and Smith 2021, section 3 and appendix.
    """

    def __init__(
        self,
        residual: nn.Module,
        shortcut: nn.Module | None,
        activation: ScaledActivation,
        skip: SkipInit,
        drop: StochasticDepth,
        signal: Signal,
    ) -> None:
        super().__init__()
        self.activation, self.shortcut, self.residual = activation, shortcut, residual
        self.drop, self.skip = drop, skip
        self.beta, self.scaling = signal.beta, signal.scaling
        self.expected_variance: float | None = None
        self.expected_residual_variance = signal.residual_variance()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: Shape (batch, channels, height, width).

        Returns:
            Shape (batch, new channels, height / stride, width / stride), rounded up.
        """
        inside = self.scaling == "act(x/beta)"
        z = self.activation(x / self.beta) if inside else self.activation(x) / self.beta
        shortcut = x if self.shortcut is None else self.shortcut(z)
        return shortcut + self.skip(self.drop(self.residual(z)))

    def tap_points(self) -> TapPoints:
        """Where instruments listen, and what they may expect.

        Returns:
            The end of F, its gain s, and theory's variances.
        """
        return TapPoints("residual", ("skip.skip_gain",), self.expected_variance, self.expected_residual_variance)

    def extra_repr(self) -> str:
        """What `print(module)` shows.

        Returns:
            beta.
        """
        return f"beta={self.beta:.4g}, scaling={self.scaling!r}"


def check_numbers(name: str, alpha: float, skip_gain: float, dropout: float, se_ratio: float) -> None:
    """Refuse numbers that make no network.

    Args:
        name: Of the network, for the message.
        alpha: Factor of residual branches.
        skip_gain: Its first learned factor.
        dropout: Before the last layer.
        se_ratio: Hidden units of squeeze-excite for each channel.

    Raises:
        ConfigError: If one is out of range.
    """
    rules = [
        ("alpha", 0 < alpha < float("inf"), "a positive number", alpha),
        ("skip_gain", abs(skip_gain) < float("inf"), "a finite number", skip_gain),
        ("dropout", 0 <= dropout < 1, "0 to below 1", dropout),
        ("se_ratio", 0 <= se_ratio < float("inf"), "0 (none) or above", se_ratio),
    ]
    for key, is_fine, expected, got in rules:
        if not is_fine:
            raise ConfigError(f"{name}'s {key} is out of range", expected=expected, got=got)


def nf_head(activation: nn.Module, n_channels: int, n_classes: int, dropout: float, std: float) -> nn.Sequential:
    """From the last feature map to logits: activation, average over space, dropout, linear.

    Args:
        activation: The last one.
        n_channels: Of the feature map.
        n_classes: Number of logits.
        dropout: Rate.
        std: Of the linear layer's first weights.

    Returns:
        The head.
    """
    linear = nn.Linear(n_channels, n_classes)
    nn.init.normal_(linear.weight, std=std)
    nn.init.zeros_(linear.bias)
    drop = [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(activation, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *drop, linear)

"""Networks for couplings: their last layer starts at zero, so that a coupling starts as the identity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from invertible._checks import check_labels, describe
from invertible.errors import ConfigError, ContextError
from invertible.layers.actnorm import ActNorm

Activation = Literal["relu", "tanh", "silu", "elu"]
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    # In place: what goes in is a layer's output that nobody else has.
    "relu": torch.relu_,
    "tanh": torch.tanh_,
    "silu": functional.silu,
    "elu": functional.elu,
}


class _AddContext(nn.Module):
    """h + A context, with context vectors or images brought to h's size."""

    def __init__(self, n_context: int, n_out: int) -> None:
        super().__init__()
        self.n_context = n_context
        self.linear = nn.Linear(n_context, n_out, bias=False)

    def forward(self, h: Tensor, context: Tensor) -> Tensor:
        if context.ndim not in (2, h.ndim) or context.shape[1] != self.n_context:
            expected = f"shape (batch, {self.n_context}), or an image of {self.n_context} channels"
            raise ContextError("a conditioner got the wrong context", expected=expected, got=describe(context))
        if context.ndim == 2:
            added = self.linear(context)
            return h + added.reshape(*added.shape, *[1] * (h.ndim - 2))
        if context.shape[2:] != h.shape[2:]:
            context = functional.interpolate(context, h.shape[2:], mode="bilinear", antialias=True)
        return h + torch.einsum("oi,ni...->no...", self.linear.weight, context)


class MLP(nn.Module):
    """A multi-layer perceptron on vectors.

    Args:
        n_in: Numbers in.
        n_out: Numbers out; zero before training.
        hidden: Widths of the hidden layers.
        activation: "relu", "tanh", "silu" or "elu".
        n_context: Numbers in a context, which joins the first hidden layer; 0: it is called without one.
        clip: Inputs are clipped to [-clip, clip], so that far out the network says what it says there, instead of
            extrapolating; None: they are not.

    Raises:
        ConfigError: If there is no hidden layer, or a size is below 1.

    Example:
        >>> MLP(2, 4)(torch.ones(1, 2))
        tensor([[0., 0., 0., 0.]], grad_fn=<AddmmBackward0>)
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        hidden: Sequence[int] = (64, 64),
        activation: Activation = "relu",
        n_context: int = 0,
        clip: float | None = None,
    ) -> None:
        super().__init__()
        if not hidden or min(n_in, n_out, *hidden) < 1 or n_context < 0:
            got = f"{n_in} -> {tuple(hidden)} -> {n_out}, n_context={n_context}"
            raise ConfigError("an MLP has bad sizes", expected="positive numbers and a hidden layer", got=got)
        if activation not in _ACTIVATIONS:
            raise ConfigError("an MLP has a bad activation", expected=", ".join(_ACTIVATIONS), got=repr(activation))
        widths, self._activate, self.clip = list(hidden), _ACTIVATIONS[activation], clip
        self.first = nn.Linear(n_in, widths[0])
        self.context = _AddContext(n_context, widths[0]) if n_context else None
        self.rest = nn.ModuleList(nn.Linear(n, m) for n, m in pairwise(widths))
        self.last = zeroed(nn.Linear(widths[-1], n_out))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Run the network.

        Args:
            x: Shape (batch, n_in).
            context: Shape (batch, n_context), if it takes one.

        Returns:
            Shape (batch, n_out).
        """
        # `self.first` would cost half a microsecond each time.
        parts, activate = cast("dict[str, nn.Module]", self._modules), self._activate
        h = _linear(parts["first"], x if self.clip is None else x.clamp(-self.clip, self.clip))
        if context is not None and parts["context"] is not None:
            h = parts["context"](h, context)
        h = activate(h)
        for layer in cast("dict[str, nn.Module]", parts["rest"]._modules).values():
            h = activate(_linear(layer, h))
        return _linear(parts["last"], h)


class ConvNet(nn.Module):
    """Glow's network: convolutions 3x3, 1x1, 3x3.

    Args:
        n_in: Channels in.
        n_out: Channels out; zero before training.
        hidden: Channels between.
        n_context: Channels of a context (vectors, or images of any size), which joins the first layer; 0: none.
        actnorm: Whether an `ActNorm` follows the first two convolutions, instead of biases, as in the paper's code.

    Raises:
        ConfigError: If a size is below 1.

    Source: Kingma and Dhariwal 2018 (Glow), section 4 and appendix B.

    Example:
        >>> ConvNet(3, 6, hidden=8)(torch.ones(1, 3, 4, 4)).shape
        torch.Size([1, 6, 4, 4])
    """

    def __init__(self, n_in: int, n_out: int, hidden: int = 512, n_context: int = 0, actnorm: bool = False) -> None:
        super().__init__()
        if min(n_in, n_out, hidden) < 1 or n_context < 0:
            got = f"{n_in} -> {hidden} -> {n_out}, n_context={n_context}"
            raise ConfigError("a ConvNet has bad sizes", expected="positive numbers", got=got)
        self.conv1 = _small(nn.Conv2d(n_in, hidden, 3, padding=1, bias=not actnorm))
        self.norm1 = ActNorm(hidden) if actnorm else nn.Identity()
        self.conv2 = _small(nn.Conv2d(hidden, hidden, 1, bias=not actnorm))
        self.norm2 = ActNorm(hidden) if actnorm else nn.Identity()
        self.conv3 = zeroed(nn.Conv2d(hidden, n_out, 3, padding=1))
        self.context = _AddContext(n_context, hidden) if n_context else None

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Run the network.

        Args:
            x: Shape (batch, n_in, height, width).
            context: Shape (batch, n_context) or (batch, n_context, any height, any width), if it takes one.

        Returns:
            Shape (batch, n_out, height, width).
        """
        h = self.conv1(x)
        if self.context is not None and context is not None:
            h = self.context(h, context)
        h = torch.relu_(self.norm1(h))
        return self.conv3(torch.relu_(self.norm2(self.conv2(h))))


class NormedConv2d(nn.Conv2d):
    """A 3x3 convolution with weight normalisation, which unlike PyTorch's parametrization can be pickled.

    Args:
        n_in: Channels in.
        n_out: Channels out.
        bias: Whether to add one.

    Source: Salimans and Kingma 2016, equation 2.

    Example:
        >>> NormedConv2d(3, 8)(torch.ones(1, 3, 4, 4)).shape
        torch.Size([1, 8, 4, 4])
    """

    def __init__(self, n_in: int, n_out: int, bias: bool = True) -> None:
        super().__init__(n_in, n_out, 3, padding=1, bias=bias)
        self.norm = nn.Parameter(torch.linalg.vector_norm(self.weight.detach(), dim=(1, 2, 3)))

    def forward(self, input: Tensor) -> Tensor:
        """Convolve.

        Args:
            input: Shape (batch, n_in, height, width).

        Returns:
            Shape (batch, n_out, height, width).
        """
        scale = self.norm / torch.linalg.vector_norm(self.weight, dim=(1, 2, 3))
        return functional.conv2d(input, self.weight * scale[:, None, None, None], self.bias, padding=1)


class ResidualNet(nn.Module):
    """RealNVP's network: a 3x3 convolution, residual blocks (BatchNorm, ReLU, 3x3, BatchNorm, ReLU, 3x3), a 1x1.

    The 3x3 convolutions are weight-normalised.

    Args:
        n_in: Channels in.
        n_out: Channels out; zero before training.
        hidden: Channels of the blocks.
        n_blocks: How many.
        n_context: Channels of a context (vectors, or images of any size), which joins the first layer; 0: none.

    Raises:
        ConfigError: If a size is below 1.

    Source: Dinh et al. 2017 (RealNVP), sections 3.7 and 4.1.

    Example:
        >>> ResidualNet(3, 6, hidden=8, n_blocks=2)(torch.ones(2, 3, 4, 4)).shape
        torch.Size([2, 6, 4, 4])
    """

    def __init__(self, n_in: int, n_out: int, hidden: int = 64, n_blocks: int = 8, n_context: int = 0) -> None:
        super().__init__()
        if min(n_in, n_out, hidden, n_blocks) < 1 or n_context < 0:
            got = f"{n_in} -> {n_blocks} x {hidden} -> {n_out}, n_context={n_context}"
            raise ConfigError("a ResidualNet has bad sizes", expected="positive numbers", got=got)
        self.first = NormedConv2d(n_in, hidden)
        self.context = _AddContext(n_context, hidden) if n_context else None
        self.blocks = nn.ModuleList(_block(hidden) for _ in range(n_blocks))
        self.norm = nn.BatchNorm2d(hidden)
        self.last = zeroed(nn.Conv2d(hidden, n_out, 1))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Run the network.

        Args:
            x: Shape (batch, n_in, height, width).
            context: Shape (batch, n_context) or (batch, n_context, any height, any width), if it takes one.

        Returns:
            Shape (batch, n_out, height, width).
        """
        h = self.first(x)
        if self.context is not None and context is not None:
            h = self.context(h, context)
        for block in self.blocks:
            h = h + block(h)
        return self.last(torch.relu(self.norm(h)))


class ClassEmbedding(nn.Module):
    """A learned vector for each class, as context of couplings.

    Args:
        n_classes: How many.
        n_out: Length of the vectors.

    Raises:
        ConfigError: If there is no class.

    Example:
        >>> ClassEmbedding(10, 16)(torch.tensor([0, 9])).shape
        torch.Size([2, 16])
    """

    def __init__(self, n_classes: int, n_out: int) -> None:
        super().__init__()
        if n_classes < 1:
            raise ConfigError("an embedding needs classes", expected="at least 1", got=n_classes)
        self.weight = nn.Parameter(torch.randn(n_classes, n_out))

    def forward(self, labels: Tensor) -> Tensor:
        """Look the vectors up.

        Args:
            labels: Shape (batch,).

        Returns:
            Shape (batch, n_out).
        """
        check_labels(labels, len(self.weight), "ClassEmbedding")
        return functional.embedding(labels, self.weight)


def _linear(layer: nn.Module, x: Tensor) -> Tensor:
    # A plain layer that nobody listens to need not pay for a module's call: a fifth of the time of a small network.
    if type(layer) is nn.Linear and not (layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks):
        weights = cast("dict[str, Tensor]", layer._parameters)
        return functional.linear(x, weights["weight"], weights["bias"])
    return layer(x)


def zeroed(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    """Set a layer's parameters to zero.

    Args:
        layer: The layer.

    Returns:
        The same.
    """
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _small(conv: nn.Conv2d) -> nn.Conv2d:
    nn.init.normal_(conv.weight, std=0.05)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def _block(n: int) -> nn.Module:
    return nn.Sequential(
        nn.BatchNorm2d(n), nn.ReLU(), NormedConv2d(n, n, bias=False),
        nn.BatchNorm2d(n), nn.ReLU(), NormedConv2d(n, n),
    )  # fmt: skip

"""FFJORD's networks as vector fields, with tangents written out: fully connected and convolutional."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from invertible._checks import check_channels, describe
from invertible.errors import ConfigError, ContextError
from invertible.layers.vector_field import VectorField

FieldActivation = Literal["tanh", "softplus"]


class _Activation(NamedTuple):
    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor, Tensor], Tensor]  # from the argument and the value
    tangent: Callable[[Tensor, Tensor, Tensor], Tensor]  # the slope times a tangent


def _tanh_slope(a: Tensor, h: Tensor) -> Tensor:
    return 1 - h.square()


def _tanh_tangent(a: Tensor, h: Tensor, v: Tensor) -> Tensor:
    return torch.ops.aten.tanh_backward(v, h.expand_as(v))  # (1 - h^2) v in one operation


def _softplus_slope(a: Tensor, h: Tensor) -> Tensor:
    return torch.sigmoid(a)


def _softplus_tangent(a: Tensor, h: Tensor, v: Tensor) -> Tensor:
    return v * torch.sigmoid(a)


_ACTIVATIONS = {
    "tanh": _Activation(torch.tanh, _tanh_slope, _tanh_tangent),
    "softplus": _Activation(functional.softplus, _softplus_slope, _softplus_tangent),
}


class _Layer(NamedTuple):
    """h -> gate * (weight h) + shift; without a gate of its own for each element it is folded into the weight."""

    weight: Tensor
    gate: Tensor | None
    shift: Tensor


def _apply(layer: _Layer, h: Tensor) -> Tensor:
    if layer.gate is None:
        return functional.linear(h, layer.weight, layer.shift)
    return torch.addcmul(layer.shift, functional.linear(h, layer.weight), layer.gate)


def _apply_tangent(layer: _Layer, v: Tensor) -> Tensor:
    v = functional.linear(v, layer.weight)
    return v if layer.gate is None else v * layer.gate


class MLPField(VectorField):
    """FFJORD's network for vectors: each layer's output is gated and shifted by the time ("concat-squash").

    A layer is (W h + b) * sigmoid(g t + c) + d t, with vectors g, c, d. A context is a vector that adds to the argument
    of the sigmoid and to the shift, linearly. The exact divergence of two hidden layers costs about as much as the
    value: tr(W3 S2 W2 S1 W1) = s2^T (W2 * (W1 W3)^T) s1 with the slopes s of the activations.

    Args:
        n: Numbers of a state.
        hidden: Widths of the hidden layers.
        activation: "tanh" or "softplus".
        n_context: Numbers of a context; 0: none.

    Raises:
        ConfigError: If a size is below 1 or there is no hidden layer.

    Source: Grathwohl et al. 2019 (FFJORD), appendix B.2; the layer is that of the paper's code.

    Example:
        >>> field = MLPField(2)
        >>> f, divergence = field.forward_with_divergence(0.5, torch.zeros(7, 2))
        >>> f.shape, divergence.shape
        (torch.Size([7, 2]), torch.Size([7]))
    """

    def __init__(
        self,
        n: int,
        hidden: Sequence[int] = (64, 64, 64),
        activation: FieldActivation = "tanh",
        n_context: int = 0,
    ) -> None:
        super().__init__()
        sizes = _sizes(n, hidden, n_context)
        self.n, self.activation, self.takes_context = n, activation, n_context > 0
        self._act, self._sizes = _ACTIVATIONS[activation], sizes[1:]
        linears = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        self.weights = nn.ParameterList([linear.weight for linear in linears])
        self.bias = nn.Parameter(torch.cat([linear.bias.detach() for linear in linears]))
        total = len(self.bias)
        self.gate_slope, self.gate_offset, self.shift_slope = (
            nn.Parameter(torch.empty(total).uniform_(-1, 1)) for _ in range(3)
        )
        self.of_context = nn.Linear(n_context, 2 * total, bias=False) if n_context else None
        if len(hidden) < 3 and not n_context:
            self.exact_up_to = 4096

    def extra_repr(self) -> str:
        """What `print(module)` shows.

        Returns:
            Sizes and activation.
        """
        return f"{self.n}, hidden={tuple(self._sizes[:-1])}, activation={self.activation!r}"

    def forward(self, t: float, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The velocity.

        Args:
            t: The time.
            x: The state, shape (batch, n).
            context: Shape (batch, n_context), if the field takes one.

        Returns:
            dx/dt, shape (batch, n).
        """
        *inner, last = self._layers(t, x, context)
        for layer in inner:
            x = self._act.value(_apply(layer, x))
        return _apply(last, x)

    def forward_with_jvp(self, t: float, x: Tensor, v: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The velocity, and df/dx times tangents.

        Args:
            t: The time.
            x: The state, shape (batch, n).
            v: Tangents, shape (n_tangents, batch, n).
            context: As in `forward`.

        Returns:
            f, shape (batch, n), and J v, shape (n_tangents, batch, n).
        """
        *inner, last = self._layers(t, x, context)
        for layer in inner:
            a = _apply(layer, x)
            x = self._act.value(a)
            v = self._act.tangent(a, x, _apply_tangent(layer, v))
        return _apply(last, x), _apply_tangent(last, v)

    def forward_with_divergence(self, t: float, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The velocity and its exact divergence.

        Args:
            t: The time.
            x: The state, shape (batch, n).
            context: As in `forward`.

        Returns:
            f, shape (batch, n), and tr df/dx, shape (batch,).
        """
        *inner, last = layers = self._layers(t, x, context)
        slopes = []
        for layer in inner:
            x, slope = self._activate(_apply(layer, x))
            slopes.append(slope if layer.gate is None else slope * layer.gate)
        return _apply(last, x), _trace([layer.weight for layer in layers], slopes, last.gate)

    def _activate(self, a: Tensor) -> tuple[Tensor, Tensor]:
        h = self._act.value(a)
        return h, self._act.slope(a, h)

    def _layers(self, t: float, x: Tensor, context: Tensor | None) -> list[_Layer]:
        check_channels(x, self.n, "MLPField")
        gate = torch.add(self.gate_offset, self.gate_slope, alpha=t)
        shift = self.shift_slope * t
        if self.of_context is None or context is None:
            gate = torch.sigmoid(gate)
            shifts = torch.addcmul(shift, self.bias, gate).split(self._sizes)
            gates = gate[:, None].split(self._sizes)
            return [_Layer(w * g, None, s) for w, g, s in zip(self.weights, gates, shifts, strict=True)]
        extra = self.of_context(_vector(context, self.of_context.in_features))
        more_gate, more_shift = extra.chunk(2, dim=-1)
        gate = torch.sigmoid(gate + more_gate)
        shifts = torch.addcmul(shift + more_shift, self.bias, gate).split(self._sizes, dim=-1)
        return [_Layer(*row) for row in zip(self.weights, gate.split(self._sizes, dim=-1), shifts, strict=True)]


def _trace(weights: list[Tensor], slopes: list[Tensor], last_gate: Tensor | None) -> Tensor:
    # tr(W_last S_L W_L ... S_1 W_1) for each element, where S_l is diagonal.
    if last_gate is None and len(slopes) == 1:
        return slopes[0] @ (weights[0] * weights[1].T).sum(dim=1)
    if last_gate is None and len(slopes) == 2:
        around = weights[1] * (weights[0] @ weights[2]).T
        return (functional.linear(slopes[0], around) * slopes[1]).sum(dim=1)
    if last_gate is None and 2 * weights[0].shape[1] > weights[-1].shape[1]:
        # Round the circle from the last activation: a layer less, and as many tangents as it is wide.
        u = _push((weights[0] @ weights[-1]).T, weights[1:-2], slopes[:-1])
        return ((u * weights[-2]).sum(dim=-1) * slopes[-1]).sum(dim=-1)
    u = _push(weights[0].T, weights[1:-1], slopes)
    if last_gate is None:
        return u.flatten(1) @ weights[-1].flatten()
    return ((u * weights[-1]).sum(dim=-1) * last_gate).sum(dim=-1)


def _push(start: Tensor, weights: list[Tensor], slopes: list[Tensor]) -> Tensor:
    # Tangents, shape (n_tangents, width), through layers: (batch, n_tangents, width of the last).
    # Rows for the matrix product: a transposed start would make everything after it strided, and slow.
    u = start.contiguous() * slopes[0][:, None]
    for weight, slope in zip(weights, slopes[1:], strict=True):
        u = functional.linear(u.flatten(0, 1), weight).unflatten(0, u.shape[:2]) * slope[:, None]
    return u


class ConvField(VectorField):
    """FFJORD's network for images: 3x3 convolutions of stride 1 that see the time as one more channel ("concat").

    A context is a vector; it adds to each channel of each layer, linearly.

    Args:
        n_channels: Of an image.
        hidden: Channels of the hidden layers.
        activation: "softplus" or "tanh".
        n_context: Numbers of a context; 0: none.

    Raises:
        ConfigError: If a size is below 1 or there is no hidden layer.

    Source: Grathwohl et al. 2019 (FFJORD), appendix B.2; the layer is that of the paper's code.

    Example:
        >>> ConvField(3, hidden=(8,))(0.5, torch.zeros(2, 3, 4, 4)).shape
        torch.Size([2, 3, 4, 4])
    """

    def __init__(
        self,
        n_channels: int,
        hidden: Sequence[int] = (64, 64, 64),
        activation: FieldActivation = "softplus",
        n_context: int = 0,
    ) -> None:
        super().__init__()
        sizes = _sizes(n_channels, hidden, n_context)
        self.n_channels, self.takes_context = n_channels, n_context > 0
        self._act, self._sizes = _ACTIVATIONS[activation], sizes[1:]
        pairs = list(pairwise(sizes))
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairs)
        self.of_time = nn.ParameterList(_time_kernel(a, b) for a, b in pairs)
        self.of_context = nn.Linear(n_context, sum(sizes[1:]), bias=False) if n_context else None

    def forward(self, t: float, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The velocity.

        Args:
            t: The time.
            x: The state, shape (batch, n_channels, height, width).
            context: Shape (batch, n_context), if the field takes one.

        Returns:
            dx/dt, same shape as x.
        """
        shifts = self._shifts(t, x, context)
        for conv, shift in zip(self.convs[:-1], shifts[:-1], strict=True):
            x = self._act.value(conv(x) + shift)
        return self.convs[-1](x) + shifts[-1]

    def forward_with_jvp(self, t: float, x: Tensor, v: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The velocity, and df/dx times tangents.

        Args:
            t: The time.
            x: The state, shape (batch, n_channels, height, width).
            v: Tangents, shape (n_tangents, *x.shape).
            context: As in `forward`.

        Returns:
            f, same shape as x, and J v, same shape as v.
        """
        shifts = self._shifts(t, x, context)
        for conv, shift in zip(self.convs[:-1], shifts[:-1], strict=True):
            a = conv(x) + shift
            x = self._act.value(a)
            v = self._act.tangent(a, x, _convolve(conv, v))
        return self.convs[-1](x) + shifts[-1], _convolve(self.convs[-1], v)

    def _shifts(self, t: float, x: Tensor, context: Tensor | None) -> list[Tensor]:
        check_channels(x, self.n_channels, "ConvField")
        time = torch.full((1, 1, *x.shape[2:]), t, dtype=x.dtype, device=x.device)
        shifts = [functional.conv2d(time, kernel, padding=1) for kernel in self.of_time]
        if self.of_context is None or context is None:
            return shifts
        extra = self.of_context(_vector(context, self.of_context.in_features)).split(self._sizes, dim=-1)
        return [shift + more[..., None, None] for shift, more in zip(shifts, extra, strict=True)]


def _convolve(conv: nn.Module, v: Tensor) -> Tensor:
    out = functional.conv2d(v.flatten(0, 1), cast(nn.Conv2d, conv).weight, padding=1)
    return out.unflatten(0, v.shape[:2])


def _time_kernel(n_in: int, n_out: int) -> nn.Parameter:
    # As one of n_in + 1 input channels of a convolution would be drawn.
    bound = 1 / math.sqrt(9 * (n_in + 1))
    return nn.Parameter(torch.empty(n_out, 1, 3, 3).uniform_(-bound, bound))


def _vector(context: Tensor, n: int) -> Tensor:
    if context.ndim != 2 or context.shape[1] != n:
        raise ContextError("a field got the wrong context", expected=f"shape (batch, {n})", got=describe(context))
    return context


def _sizes(n: int, hidden: Sequence[int], n_context: int) -> list[int]:
    if not hidden or min(n, *hidden) < 1 or n_context < 0:
        got = f"{n} -> {tuple(hidden)} -> {n}, n_context={n_context}"
        raise ConfigError("a field has bad sizes", expected="positive numbers and a hidden layer", got=got)
    return [n, *hidden, n]

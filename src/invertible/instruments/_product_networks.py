"""Networks that multiply, with weights written down: in one wide layer, and in a tree of four-neuron gates."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.polynomial import Polynomial
from torch import Tensor, nn

from invertible.errors import ConfigError

Smooth = Literal["softplus", "sigmoid", "tanh", "exp"]
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softplus": nn.functional.softplus,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "exp": torch.exp,
}
MOST_VARIABLES = 12
SMALL = 1e-9


@dataclass(frozen=True)
class Neuron:
    """sigma(t) = activation(shift + t).

    Args:
        activation: "softplus", "sigmoid", "tanh" or "exp".
        shift: Where its Taylor series is taken: the neuron's bias.

    Example:
        >>> [round(value, 6) for value in Neuron("softplus", 0.0).derivatives(4)]
        [0.693147, 0.5, 0.25, 0.0, -0.125]
    """

    activation: Smooth
    shift: float

    def derivatives(self, n: int) -> list[float]:
        """Derivatives at t = 0, from polynomials with whole coefficients: no differences, no autograd.

        Args:
            n: The highest.

        Returns:
            n + 1 numbers: the value, the slope, and so on.

        Raises:
            ConfigError: If the activation is unknown.
        """
        x = self.shift
        logistic = 1 / (1 + math.exp(-x))
        if self.activation == "exp":
            return [math.exp(x)] * (n + 1)
        if self.activation == "tanh":
            return _along(Polynomial([0, 1]), Polynomial([1, 0, -1]), math.tanh(x), n)
        if self.activation == "sigmoid":
            return _along(Polynomial([0, 1]), Polynomial([0, 1, -1]), logistic, n)
        if self.activation == "softplus":
            rest = _along(Polynomial([0, 1]), Polynomial([0, 1, -1]), logistic, max(n - 1, 0))
            return [math.log1p(math.exp(x)), *rest][: n + 1]
        raise ConfigError("no such activation", expected=" or ".join(FUNCTIONS), got=repr(self.activation))

    def needed(self, order: int, purpose: str) -> float:
        """A derivative that must not vanish.

        Args:
            order: Which.
            purpose: What it is needed for.

        Returns:
            It.

        Raises:
            ConfigError: If it vanishes.
        """
        value = self.derivatives(order)[order]
        if abs(value) < SMALL:
            got = f"derivative {order} of {self.activation} at {self.shift:g} is {value:.1g}"
            raise ConfigError(f"{purpose} needs curvature", expected="not zero", got=got, hint="another shift")
        return value


class Shifted(nn.Module):
    """The activation of a `Neuron`, as a module.

    Args:
        neuron: Which.
    """

    def __init__(self, neuron: Neuron) -> None:
        super().__init__()
        self.neuron = neuron

    def forward(self, t: Tensor) -> Tensor:
        """Apply it.

        Args:
            t: Any shape.

        Returns:
            The same shape.
        """
        return FUNCTIONS[self.neuron.activation](t + self.neuron.shift)


def one_layer(n: int, neuron: Neuron, scale: float) -> nn.Sequential:
    """A network of one hidden layer with 2^n neurons, whose output tends to the product of its n inputs.

    sum over signs s of prod(s) sigma(scale s . x) / (2^n sigma_n scale^n), where sigma_n is the nth derivative.

    Args:
        n: How many inputs.
        neuron: Of the hidden layer.
        scale: Of the input weights: the relative error is scale^2 sigma_(n+2) / (6 sigma_n) |x|^2, and higher powers.

    Returns:
        A network in float64, shape (N, n) to (N, 1).

    Source: Lin, Tegmark and Rolnick 2017, "Why does deep and cheap learning work so well?", appendix A.

    Example:
        >>> x = torch.tensor([[0.5, 2.0, 3.0]], dtype=torch.float64)
        >>> round(one_layer(3, Neuron("exp", 0.0), 1e-2)(x).item(), 4)
        3.0007
    """
    top = neuron.needed(n, f"a product of {n}")
    signs = torch.tensor(list(itertools.product((1.0, -1.0), repeat=n)), dtype=torch.float64)
    out = signs.prod(1) / (2**n * top * scale**n)
    return nn.Sequential(_linear(scale * signs), Shifted(neuron), _linear(out[None]))


def tree(n: int, neuron: Neuron, scale: float) -> nn.Sequential:
    """A network of gates in a binary tree, whose output tends to the product of its n inputs: 4 (n - 1) neurons.

    A gate is (sigma(u + v) + sigma(-u - v) - sigma(u - v) - sigma(v - u)) / (4 sigma_2), which tends to u v, with
    inputs times scale and outputs over scale^2. Where a level has an odd one out, two more neurons carry it on.

    Args:
        n: How many inputs.
        neuron: Of all hidden layers.
        scale: As in `one_layer`.

    Returns:
        A network in float64 of ceil(log2 n) hidden layers, shape (N, n) to (N, 1).

    Source: Lin, Tegmark and Rolnick 2017, section II.D and figure 2.

    Example:
        >>> net = tree(5, Neuron("softplus", 1.0), 1e-3)
        >>> x = torch.tensor([[1.0, 2.0, 0.5, -1.0, 3.0]], dtype=torch.float64)
        >>> n_neurons(net), n_layers(net), round(net(x).item(), 3)
        (20, 3, -3.0)
    """
    into, out = _gate(neuron, scale)
    members: list[nn.Module] = []
    before = torch.eye(n, dtype=torch.float64)
    while n > 1:
        blocks_in, blocks_out = [into] * (n // 2), [out] * (n // 2)
        if n % 2:
            carry = scale * torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
            blocks_in.append(carry)
            blocks_out.append(carry.T / (2 * scale**2 * neuron.needed(1, "a carry")))
        members += [_linear(torch.block_diag(*blocks_in) @ before), Shifted(neuron)]
        before, n = torch.block_diag(*blocks_out), (n + 1) // 2
    return nn.Sequential(*members, _linear(before))


def predicted(kind: str, x: Tensor, neuron: Neuron, scale: float) -> Tensor:
    """Relative error of a network to second order in the scale, from derivatives.

    Args:
        kind: "one layer" or "tree".
        x: Shape (N, n).
        neuron: As in the networks.
        scale: Likewise.

    Returns:
        Shape (N); the next term is of fourth order.
    """
    n = x.shape[1]
    derivatives = neuron.derivatives(max(n, 2) + 2)
    if kind == "one layer":
        return scale**2 * derivatives[n + 2] / (6 * derivatives[n]) * x.square().sum(1)
    gate, carry = derivatives[4] / (6 * derivatives[2]), derivatives[3] / (6 * derivatives[1])
    total = torch.zeros(len(x), dtype=x.dtype)
    while x.shape[1] > 1:
        n_pairs = x.shape[1] // 2
        pairs = x[:, : 2 * n_pairs].unflatten(1, (n_pairs, 2))
        odd = x[:, 2 * n_pairs :]
        total += scale**2 * (gate * pairs.square().sum((1, 2)) + carry * odd.square().sum(1))
        x = torch.cat([pairs.prod(2), odd], dim=1)
    return total


def n_neurons(network: nn.Sequential) -> int:
    """Hidden units.

    Args:
        network: Linear layers and activations.

    Returns:
        Their number.
    """
    return sum(layer.out_features for layer in list(network)[:-1] if isinstance(layer, nn.Linear))


def n_layers(network: nn.Sequential) -> int:
    """Hidden layers.

    Args:
        network: Linear layers and activations.

    Returns:
        Their number.
    """
    return sum(isinstance(layer, Shifted) for layer in network)


def _gate(neuron: Neuron, scale: float) -> tuple[Tensor, Tensor]:
    into = torch.tensor([[1.0, 1], [-1, -1], [1, -1], [-1, 1]], dtype=torch.float64)
    out = torch.tensor([[1.0, 1, -1, -1]], dtype=torch.float64)
    return scale * into, out / (4 * neuron.needed(2, "a gate") * scale**2)


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(weight)
    return linear.requires_grad_(False)


def _along(value: Polynomial, slope: Polynomial, at: float, n: int) -> list[float]:
    # f' = slope(f), so the next derivative of p(f) is p'(f) slope(f).
    found = []
    for _ in range(n + 1):
        found.append(float(np.asarray(value(at))))
        value = value.deriv() * slope
    return found

"""Many small networks of one shape as one: every layer is a stack of matrices, one product runs all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn

from invertible._checks import check_floating, describe
from invertible.errors import ConfigError, ShapeError

Activation = Literal["tanh", "relu", "sigmoid", "identity"]
Init = Literal["uniform", "normal"]

_MODULES = {"tanh": nn.Tanh, "relu": nn.ReLU, "sigmoid": nn.Sigmoid, "identity": nn.Identity}
_IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh_,
    "relu": torch.relu_,
    "sigmoid": torch.sigmoid_,
    "identity": lambda z: z,
}
WEIGHTS, ORDER = 0, 1
"""What a network draws at random: the two must not depend on each other."""


class ManyMlps(nn.Module):
    """n independent fully connected networks of the same widths.

    Network i draws from a stream of its own, (seed, i): it is the same whatever n is, and a part of many can be trained
    at a time (`first`). The layers' activations come between the layers; the last layer is linear.

    Args:
        widths: Numbers of the input, of each hidden layer and of the output: two or more.
        n: How many networks.
        activation: "tanh", "relu", "sigmoid" or "identity".
        init: "uniform": that of `nn.Linear`, weights and biases within 1 / sqrt(inputs); "normal": weights from
            N(0, 1 / inputs), cut at two standard deviations, and no biases.
        seed: Of all networks.
        first: Number of the first of them.
        dtype: Of the parameters.

    Attributes:
        weights: One per layer, shape (n, in, out).
        biases: Likewise, shape (n, 1, out).

    Raises:
        ConfigError: If an argument is out of its range.

    Example:
        >>> nets = ManyMlps((3, 5, 2), 4, seed=1)
        >>> x = torch.randn(7, 3)
        >>> nets(x).shape, bool((nets(x)[2] - nets.network(2)(x)).abs().max() < 1e-6)
        (torch.Size([4, 7, 2]), True)
    """

    def __init__(
        self,
        widths: Sequence[int],
        n: int,
        *,
        activation: Activation = "tanh",
        init: Init = "uniform",
        seed: int = 0,
        first: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        _check(widths, n, activation, init, first)
        self.widths, self.n, self.activation, self.seed, self.first = tuple(widths), n, activation, seed, first
        flat = np.stack([_draw(self.widths, init, self.generator(i, WEIGHTS)) for i in range(n)])
        parts = torch.from_numpy(flat).to(dtype).split([size for pair in _sizes(self.widths) for size in pair], dim=1)
        pairs = list(pairwise(self.widths))
        self.weights = nn.ParameterList(
            nn.Parameter(part.reshape(n, n_in, n_out).contiguous())
            for part, (n_in, n_out) in zip(parts[::2], pairs, strict=True)
        )
        self.biases = nn.ParameterList(nn.Parameter(part.unsqueeze(1).contiguous()) for part in parts[1::2])

    def forward(self, x: Tensor) -> Tensor:
        """Run all networks.

        Args:
            x: Shape (N, in), the same for all, or (n, N, in), each its own.

        Returns:
            Shape (n, N, out).
        """
        return self.activations(x)[-1]

    def activations(self, x: Tensor) -> tuple[Tensor, ...]:
        """Run all networks, and keep what each layer gives.

        Args:
            x: Shape (N, in), the same for all, or (n, N, in), each its own.

        Returns:
            One per layer, shape (n, N, width): after the activation; of the last layer, which has none, the outputs.
        """
        self.check_input(x)
        weights, biases = self.layers()
        found: list[Tensor] = []
        for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            z = _affine(found[-1] if found else x, weight, bias)
            found.append(z if i == len(weights) - 1 else _IN_PLACE[self.activation](z))
        return tuple(found)

    def layers(self) -> tuple[list[Tensor], list[Tensor]]:
        """The parameters of the layers.

        Returns:
            Weights and biases.
        """
        return [cast("Tensor", w) for w in self.weights], [cast("Tensor", b) for b in self.biases]

    def network(self, i: int) -> nn.Sequential:
        """One of them as modules of its own.

        Args:
            i: Which, from 0 (the one with number `first`).

        Returns:
            Linear layers and activations, with copies of the parameters.
        """
        members: list[nn.Module] = []
        weights, biases = self.layers()
        for weight, bias in zip(weights, biases, strict=True):
            linear = nn.Linear(weight.shape[1], weight.shape[2], dtype=weight.dtype, device=weight.device)
            linear.load_state_dict({"weight": weight[i].mT, "bias": bias[i, 0]})
            members += [linear, _MODULES[self.activation]()]
        return nn.Sequential(*members[:-1])

    def generator(self, i: int, purpose: int) -> np.random.Generator:
        """A stream of random numbers that belongs to one network.

        Args:
            i: Which, from 0.
            purpose: What for: `WEIGHTS`, `ORDER` or another whole number.

        Returns:
            It, from its beginning.
        """
        return np.random.default_rng((self.seed, purpose, self.first + i))

    def check_input(self, x: Tensor) -> None:
        """Refuse what the networks cannot take.

        Args:
            x: As for `forward`.

        Raises:
            ShapeError: If the shape does not fit.
        """
        check_floating(x, "ManyMlps")
        n_in = self.widths[0]
        if x.ndim not in (2, 3) or x.shape[-1] != n_in or (x.ndim == 3 and x.shape[0] != self.n):
            expected = f"shape (N, {n_in}) or ({self.n}, N, {n_in})"
            raise ShapeError("ManyMlps got the wrong shape", expected=expected, got=describe(x), hint="x.flatten(1)")


def _affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if x.ndim == 3:
        return torch.baddbmm(bias, x, weight)
    n, n_in, n_out = weight.shape
    # One large product instead of n small ones: about twice as fast for narrow layers.
    joint = torch.addmm(bias.reshape(1, -1), x, weight.transpose(0, 1).reshape(n_in, n * n_out))
    return joint.view(len(x), n, n_out).transpose(0, 1)


def _sizes(widths: Sequence[int]) -> list[tuple[int, int]]:
    return [(n_in * n_out, n_out) for n_in, n_out in pairwise(widths)]


def _draw(widths: Sequence[int], init: str, random: np.random.Generator) -> np.ndarray:
    parts: list[np.ndarray] = []
    for n_in, (n_weights, n_biases) in zip(widths[:-1], _sizes(widths), strict=True):
        bound = 1 / math.sqrt(n_in)
        if init == "uniform":
            parts.append(random.uniform(-bound, bound, n_weights + n_biases))
        else:
            parts += [bound * _truncated_normal(random, n_weights), np.zeros(n_biases)]
    return np.concatenate(parts)


def _truncated_normal(random: np.random.Generator, n: int, limit: float = 2.0) -> np.ndarray:
    from scipy.special import ndtr, ndtri

    return ndtri(random.uniform(ndtr(-limit), ndtr(limit), n))


def _check(widths: Sequence[int], n: int, activation: str, init: str, first: int) -> None:
    if len(widths) < 2 or min(widths) < 1:
        expected = "two or more whole numbers from 1"
        raise ConfigError("ManyMlps has bad widths", expected=expected, got=tuple(widths))
    if n < 1 or first < 0:
        raise ConfigError("ManyMlps has a bad number of networks", expected="n >= 1, first >= 0", got=(n, first))
    for name, value, known in (("activation", activation, Activation), ("init", init, Init)):
        if value not in get_args(known):
            raise ConfigError(f"ManyMlps has no such {name}", expected=" or ".join(get_args(known)), got=repr(value))

"""The figures of the transposed reconstruction of one layer, summed over batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from invertible.errors import ConfigError
from invertible.instruments._relu_layers import ReluLayer
from invertible.instruments._transposed_rows import Control, Reconstruction, TransposedLayer
from invertible.instruments._transposed_theory import Linear, find_linear_map, predict, rows_of, transpose
from invertible.instruments._weights import find_weights

_AFFINE = 1e-3
"""A norm behind a layer that is off an affine map per channel by more is another kind of norm."""


@dataclass
class _Sums:
    """Of x^2, x x^, x^^2 over everything, with x^ the reconstruction; and of x^^2 where x is not zero."""

    input: float = 0.0
    product: float = 0.0
    square: float = 0.0
    active_square: float = 0.0

    def add(self, x: Tensor, mean: Tensor, square: Tensor) -> None:
        self.input += x.square().sum(dtype=torch.float64).item()
        self.product += (x * mean).sum(dtype=torch.float64).item()
        self.square += square.sum(dtype=torch.float64).item()
        self.active_square += square[x != 0].sum(dtype=torch.float64).item()

    @property
    def error(self) -> float:
        return self._relative(self.square)

    @property
    def active(self) -> float:
        return self._relative(self.active_square)

    def _relative(self, square: float) -> float:
        return (self.input - 2 * self.product + square) / self.input if self.input else float("nan")

    @property
    def scaled(self) -> float:
        if not self.input:
            return float("nan")
        return 1 - self.product**2 / (self.input * self.square) if self.square else 1.0


class LayerSums:
    """One layer, batch after batch.

    Args:
        found: The layer and its end.
        keeps: Shares of the outputs that are kept.
        threshold: In standard deviations of the predicted noise.
        n_controls: Draws of each control.
        seed: Of draws and masks.
    """

    def __init__(
        self, found: ReluLayer, keeps: Sequence[float], threshold: float, n_controls: int, seed: int
    ) -> None:  # fmt: skip
        self.found, self.keeps, self.threshold, self.seed = found, tuple(keeps), threshold, seed
        self._n_draws, self._n_calls, self._n_examples = n_controls, 0, 0
        names = ["own", "predicted", *(f"gaussian {i}" for i in range(n_controls)),
                 *(f"permuted {i}" for i in range(n_controls))]  # fmt: skip
        self._sums = {(keep, name): _Sums() for keep in keeps for name in names}
        self._active, self._n_values, self._n_inputs, self._reached = 0.0, 0, 0, 0.0
        self._input_sum: Tensor | None = None
        self._map: Linear | None = None
        self.is_clipped: bool | None = None
        self.is_usable = True

    def add(self, x: Tensor, z: Tensor, r: Tensor) -> None:
        """Take in a batch.

        Args:
            x: The layer's input.
            z: Its output.
            r: What the ReLU gets.
        """
        x, z, r = (self._batched(tensor) for tensor in (x, z, r))
        weight, bias = self._effective(x, z, r)
        if not self.is_usable:
            return
        if self.is_clipped is None:
            self.is_clipped = not bool((x < 0).any())
        variances = rows_of(weight.flatten(1).square().mean(1), weight)
        self._count(x, weight, z)
        for keep in self.keeps:
            self._add_with(keep, x, r, weight, bias, variances)
        self._n_calls += 1

    def _add_with(self, keep: float, x: Tensor, r: Tensor, weight: Tensor, bias: Tensor, variances: Tensor) -> None:
        theory = predict(self._linear, x, variances, bias, keep)
        moments = theory.estimate(x, self.threshold, bool(self.is_clipped))
        self._sums[keep, "predicted"].add(x, moments.mean, moments.square)
        mask = self._mask(r, keep)
        for name, other in (("own", None), *self._controls(weight, variances)):
            used = weight if other is None else other
            y = (r if other is None else self._linear(x, used) + bias).relu() * mask
            guess = transpose(self._linear, x, used, y) / theory.gain - self.threshold * theory.noise
            guess = guess.relu() if self.is_clipped else guess
            self._sums[keep, name].add(x, guess, guess.square())

    def _controls(self, weight: Tensor, variances: Tensor) -> Iterator[tuple[str, Tensor]]:
        # Drawn anew for each batch from the same seeds: the same weights, and none kept.
        for i in range(self._n_draws):
            generator = torch.Generator().manual_seed(self.seed + 1 + i)
            drawn = torch.randn(weight.shape, generator=generator).to(weight)
            yield f"gaussian {i}", drawn * variances.sqrt()
            order = torch.rand(weight.flatten(1).shape, generator=generator).argsort(1).to(weight.device)
            yield f"permuted {i}", weight.flatten(1).gather(1, order).view_as(weight)

    def _mask(self, r: Tensor, keep: float) -> Tensor:
        if keep == 1:
            return torch.ones((), dtype=r.dtype, device=r.device)
        generator = torch.Generator().manual_seed(self.seed + 7919 * (1 + self._n_calls))
        return (torch.rand(r.shape, generator=generator) < keep).to(r)

    def _effective(self, x: Tensor, z: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        module = self.found.layer.module
        weight, bias = find_weights(module)[0].values.to(z), module.bias
        bias = z.new_zeros(z.shape[1]) if bias is None else bias.detach().to(z)  # pyright: ignore[reportCallIssue]
        self._map = self._map or find_linear_map(module, x, weight, _spread(bias, z), z)
        self.is_usable = self._map is not None
        if self.is_usable and self.found.layer.name != self.found.end.name:
            scale, shift = self._affine(z, r)
            weight, bias = rows_of(scale, weight) * weight, scale * bias + shift
        return weight, _spread(bias, z)

    def _linear(self, x: Tensor, weight: Tensor) -> Tensor:
        if self._map is None:
            raise ConfigError(f"{self.found.layer.name} is no linear map")
        return self._map(x, weight)

    def _affine(self, z: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        dims = [i for i in range(z.ndim) if i != 1]
        z_mean, r_mean = (tensor.mean(dims, keepdim=True) for tensor in (z, r))
        spread = (z - z_mean).square().sum(dims)
        scale = ((z - z_mean) * (r - r_mean)).sum(dims) / spread.clamp(min=1e-30)
        view = [1, -1, *[1] * (z.ndim - 2)]
        off = r - r_mean - scale.view(view) * (z - z_mean)
        self.is_usable = bool(off.abs().max() <= _AFFINE * r.abs().max().clamp(min=1e-12))
        return scale, r_mean.flatten() - scale * z_mean.flatten()

    def _batched(self, tensor: Tensor) -> Tensor:
        tensor = tensor.detach().clone()  # outside a caller's inference mode
        tensor = tensor if tensor.dtype == torch.float64 else tensor.float()
        if isinstance(self.found.layer.module, nn.Linear):
            return tensor.reshape(-1, tensor.shape[-1])
        n_dims = len(self.found.layer.module.kernel_size) + 2  # pyright: ignore[reportArgumentType]
        return tensor if tensor.ndim == n_dims else tensor[None]

    def _count(self, x: Tensor, weight: Tensor, z: Tensor) -> None:
        self._active += (x != 0).sum().item()
        self._n_values += x.numel()
        self._n_inputs = weight[0].numel()
        reached = transpose(self._linear, x[:1], torch.ones_like(weight), torch.ones_like(z[:1]))
        self._reached = reached.mean().item()
        total = x.sum(0, dtype=torch.float64)
        is_same = self._input_sum is not None and self._input_sum.shape == total.shape
        self._input_sum = self._input_sum + total if is_same and self._input_sum is not None else total
        self._n_examples = self._n_examples + len(x) if is_same else len(x)

    def layer(self) -> TransposedLayer:
        """What was found.

        Returns:
            The layer.

        Raises:
            ConfigError: If there was no batch.
        """
        layer, n = self.found.layer, self._n_examples
        if self._input_sum is None:
            raise ConfigError(f"{layer.name} never ran", expected="a call", got="none")
        squares = self._sums[self.keeps[0], "own"].input
        left = 1 - (self._input_sum.square().sum() / n).item() / squares if squares else float("nan")
        mean_error = left * (n / (n - 1)) ** 2 if n > 1 else None  # each mean over the other examples
        found = tuple(self._reconstruction(keep) for keep in self.keeps)
        return TransposedLayer(
            layer.name or "the network", type(layer.module).__name__, self.found.end.name or "the network",
            self._n_inputs, self._reached, self._active / self._n_values, bool(self.is_clipped), mean_error, found,
        )  # fmt: skip

    def _reconstruction(self, keep: float) -> Reconstruction:
        own, predicted = self._sums[keep, "own"], self._sums[keep, "predicted"]
        controls = (self._control(keep, "gaussian"), self._control(keep, "permuted"))
        return Reconstruction(
            keep, own.error, own.active, own.scaled, predicted.error, predicted.active, predicted.scaled, *controls
        )

    def _control(self, keep: float, kind: str) -> Control:
        sums = [self._sums[keep, f"{kind} {i}"] for i in range(self._n_draws)]
        scaled = [each.scaled for each in sums]
        mean = sum(each.error for each in sums) / len(sums)
        return Control(mean, sum(scaled) / len(scaled), min(scaled), max(scaled))


def _spread(per_channel: Tensor, z: Tensor) -> Tensor:
    return per_channel.view(1, -1, *[1] * (z.ndim - 2))

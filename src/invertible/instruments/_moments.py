"""Mean and variance of each channel, over any number of batches, in constant memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from invertible._checks import describe
from invertible.errors import ShapeError

Axis = int | Literal["auto"]

_CHANNELS = {
    "num_features": nn.modules.batchnorm._NormBase,
    "num_channels": nn.GroupNorm,
    "in_channels": nn.modules.conv._ConvNd,
    "out_channels": nn.modules.conv._ConvNd,
}
_FEATURES = {
    "in_features": nn.Linear,
    "out_features": nn.Linear,
    "embed_dim": nn.MultiheadAttention,
    "embedding_dim": nn.Embedding,
    "hidden_size": nn.RNNBase,
}


class ChannelMoments:
    """Mean and biased variance of each channel, over all other axes and all that was added.

    Batches are reduced in their own precision (half precision in float32) and put together in float64.

    Example:
        >>> moments = ChannelMoments()
        >>> moments.add(torch.tensor([[0.0, 1.0], [2.0, 1.0]]), 1)
        >>> moments.squared_mean, moments.variance  # channels (0, 2) and (1, 1): means 1 and 1, variances 1 and 0
        (1.0, 0.5)
    """

    def __init__(self) -> None:
        self.n = 0
        self._mean = self._variance = torch.zeros(())

    def add(self, x: Tensor, axis: int) -> None:
        """Take in a tensor.

        Args:
            x: Any rank.
            axis: Which of its dimensions are the channels; of a tensor of rank 1 there is one channel.

        Raises:
            ShapeError: If the number of channels is another than before.
        """
        x = x.detach()
        x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        x = x.unsqueeze(-1) if x.ndim < 2 else x
        others = [dim for dim in range(x.ndim) if dim != axis % x.ndim]
        n = x.numel() // max(x.shape[axis], 1)
        mean, variance = _mean_and_variance(x, others)
        if self.n and mean.shape != self._mean.shape:
            got = f"{len(mean)} channels after {len(self._mean)}"
            raise ShapeError("the number of channels changes from call to call", got=got, hint="channel_axis=...")
        self._merge(n, mean, variance)

    def _merge(self, n: int, mean: Tensor, variance: Tensor) -> None:
        total = self.n + n
        if not self.n:
            self._mean, self._variance = mean, variance
        elif n:
            shift = mean - self._mean
            within = (self._variance * self.n + variance * n) / total
            self._variance = within + shift.square() * (self.n * n / total**2)
            self._mean = self._mean + shift * (n / total)
        self.n = total

    @property
    def squared_mean(self) -> float:
        """Average over the channels of the squared mean."""
        return self._mean.square().mean().item()

    @property
    def variance(self) -> float:
        """Average over the channels of the biased variance."""
        return self._variance.mean().item()

    @property
    def n_channels(self) -> int:
        """How many channels there are."""
        return self._mean.numel()


def _mean_and_variance(x: Tensor, others: list[int]) -> tuple[Tensor, Tensor]:
    mean, variance = _in_two_passes(x, others)
    if x.dtype == torch.float32 and not variance.isfinite().all():
        # Squares leave float32 where values are 1e19: networks without normalisation get there, and are still finite.
        return _in_two_passes(x.double(), others)
    return mean, variance


def _in_two_passes(x: Tensor, others: list[int]) -> tuple[Tensor, Tensor]:
    # Six times as fast as torch.var_mean on a CPU. What rounding leaves of the mean is taken off again.
    centre = x.mean(others, keepdim=True)
    rest = x - centre
    left = rest.mean(others).double()
    variance = rest.square_().mean(others).double() - left.square()
    return centre.flatten().double() + left, variance.clamp_(min=0)


def channel_axis(x: Tensor, axis: Axis, *modules: nn.Module) -> int:
    """Which dimension of a module's output are its channels.

    Args:
        x: The output.
        axis: The dimension, or "auto": the second, unless the modules' linear layers and norms have the size of the
            last one and no convolution or BatchNorm has that of the second, as in transformers.
        *modules: The module, and others to ask if it knows nothing.

    Returns:
        The dimension, counted from 0.

    Raises:
        ShapeError: If x has no such dimension.

    Example:
        >>> channel_axis(torch.zeros(2, 7, 16), "auto", nn.LayerNorm(16))
        2
    """
    if axis != "auto":
        if not -x.ndim <= axis < x.ndim:
            raise ShapeError("no such channel axis", expected=f"{axis} in a tensor's dimensions", got=describe(x))
        return axis % x.ndim
    if x.ndim < 3:
        return x.ndim - 1
    for module in modules:
        if x.shape[1] in _sizes(module, _CHANNELS):
            return 1
        if x.shape[-1] in {*_sizes(module, _FEATURES), *_normalised(module)}:
            return x.ndim - 1
    return 1


def _sizes(module: nn.Module, known: dict[str, type[nn.Module]]) -> Iterator[int]:
    for part in module.modules():
        yield from (vars(part)[key] for key, kind in known.items() if isinstance(part, kind))


def _normalised(module: nn.Module) -> Iterator[int]:
    yield from (part.normalized_shape[-1] for part in module.modules() if isinstance(part, nn.LayerNorm | nn.RMSNorm))

"""Mean and deviation of a layer's gradient over the batches of an epoch: its drift and its diffusion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from invertible.errors import NonFiniteError
from invertible.instruments._information_rows import LayerGradient, Phase


class GradientMoments:
    """Adds up gradients, batch by batch.

    Args:
        n_networks: How many networks there are; above 1 the first dimension of each gradient counts them.

    Example:
        >>> moments = GradientMoments()
        >>> for value in (1.0, 3.0):
        ...     moments.add({"layer": [torch.full((4,), value)]})
        >>> found = moments.layers({"layer": 1.0})[0]
        >>> found.mean, found.deviation, found.ratio
        (4.0, 2.0, 2.0)
    """

    def __init__(self, n_networks: int = 1) -> None:
        self._n_networks, self.n_batches = n_networks, 0
        self._totals: dict[str, tuple[list[Tensor], list[Tensor], int]] = {}

    def add(self, gradients: Mapping[str, Sequence[Tensor]]) -> None:
        """Take in a batch's.

        Args:
            gradients: By layer, of its weights.

        Raises:
            NonFiniteError: If one holds NaN or infinity.
        """
        self.n_batches += 1
        for name, parts in gradients.items():
            values = [(part.to_dense() if part.is_sparse else part).detach().double() for part in parts]
            if not all(math.isfinite(float(value.sum())) for value in values):
                raise NonFiniteError(f"the gradient of {name} must be finite", got="NaN or infinity", hint="a lower lr")
            sums, squares, n = self._totals.get(
                name, ([torch.zeros_like(v) for v in values], [torch.zeros_like(v) for v in values], 0)
            )
            sums = [total + value for total, value in zip(sums, values, strict=True)]
            squares = [total + value.square() for total, value in zip(squares, values, strict=True)]
            self._totals[name] = sums, squares, n + 1

    def layers(self, weights: Mapping[str, float]) -> tuple[LayerGradient, ...]:
        """What came out.

        Args:
            weights: Norm of each layer's weights.

        Returns:
            One per layer that had a gradient in every batch, in the order of `weights`.
        """
        whole = [
            name for name in weights if self.n_batches and self._totals.get(name, ((), (), 0))[2] == self.n_batches
        ]
        return tuple(self._layer(name, weights[name]) for name in whole)

    def _layer(self, name: str, weight: float) -> LayerGradient:
        sums, squares, n = self._totals[name]
        means = [total / n for total in sums]
        variances = [(square / n - mean.square()).clamp_min(0) for square, mean in zip(squares, means, strict=True)]
        mean, variance = self._norm2([m.square() for m in means]), self._norm2(variances)
        if n == 1:
            variance = torch.zeros_like(variance)  # what rounding leaves of a difference is no noise
        deviation, mean = variance.sqrt(), mean.sqrt()
        ratio = math.exp(float((mean.log() - deviation.log()).mean())) if bool((deviation > 0).all()) else math.inf
        return LayerGradient(name, float(mean.mean()), float(deviation.mean()), ratio, weight)

    def _norm2(self, parts: Sequence[Tensor]) -> Tensor:
        n = self._n_networks
        return torch.stack([part.reshape(n if n > 1 else 1, -1).sum(1) for part in parts]).sum(0)


def layers_with_weights(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The layers of a network that have weights, that is parameters of two dimensions or more of their own.

    Args:
        model: The network.

    Returns:
        Their weights by name, those that are trained.

    Example:
        >>> list(layers_with_weights(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))))
        ['0', '2']
    """
    found: dict[str, list[nn.Parameter]] = {}
    for name, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if p.ndim > 1 and p.requires_grad]
        if own:
            found[name] = own
    return found


def phases_of(epochs: Sequence[int], gradients: Sequence[Sequence[LayerGradient]]) -> tuple[Phase, ...]:
    """Find each layer's turn from drift to diffusion.

    Args:
        epochs: Of the measured gradients.
        gradients: Per epoch, one per layer.

    Returns:
        One per layer; none for layers with one batch per epoch, which have no deviation.
    """
    if not gradients or not epochs:
        return ()
    found: list[Phase] = []
    for i, layer in enumerate(gradients[0]):
        ratios = [one[i].ratio for one in gradients]
        if not all(map(math.isfinite, ratios)):
            continue
        below = len(ratios)
        while below and ratios[below - 1] < 1:
            below -= 1
        turn = epochs[below] if below < len(ratios) else -1
        found.append(Phase(layer.layer, turn, ratios[0], ratios[-1]))
    return tuple(found)

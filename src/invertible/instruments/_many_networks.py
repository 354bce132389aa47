"""Many small networks trained as one batched computation."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from torch.utils.data import TensorDataset

from invertible.errors import ConfigError, NonFiniteError, ShapeError
from invertible.instruments._memorization_logits import N_AT_ONCE, logits_of
from invertible.instruments._memorization_sets import inputs_of, labels_of
from invertible.instruments.fitting import SGDFit

Weights = dict[str, Tensor]


class Together:
    """Networks of one architecture, each trained on its own examples in its own order, as `SGDFit` trains one.

    Args:
        models: The networks, in train mode; they keep their first weights.
        fit: How.
        n_classes: Of the labels.

    Raises:
        ConfigError: If networks have buffers (BatchNorm), which a batched computation cannot update, or differ.
    """

    def __init__(self, models: Sequence[nn.Module], fit: SGDFit, n_classes: int) -> None:
        with_buffers = [name for name, _ in models[0].named_buffers()]
        if with_buffers:
            hint = "together=1, or a network without BatchNorm"
            got = f"buffers: {', '.join(with_buffers[:3])}"
            raise ConfigError("these networks cannot be trained together", expected="no buffers", got=got, hint=hint)
        try:
            self.weights: Weights = {name: p.detach() for name, p in stack_module_state(list(models))[0].items()}
        except (RuntimeError, ValueError) as error:
            raise ConfigError("these networks cannot be trained together", got=str(error), hint="together=1") from error
        self._trained = {name for name, p in models[0].named_parameters() if p.requires_grad}
        self._base, self._fit, self._n_classes = copy.deepcopy(models[0]), fit, n_classes

    def train(self, data: TensorDataset, subsets: Tensor, seeds: Sequence[int]) -> None:
        """Train all for the epochs of the fit.

        Args:
            data: The whole set.
            subsets: Rows of it that each network gets, int64, shape (n_models, m).
            seeds: Of each network's order, as `torch.manual_seed` and `SGDFit` would have it.

        Raises:
            NonFiniteError: If a network diverged.
            ShapeError: If the loss is no number.
        """
        x, y = inputs_of(data), labels_of(data)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        step = vmap(grad_and_value(self._loss), in_dims=(0, 0, 0), randomness="different")
        momenta = {name: torch.zeros_like(self.weights[name]) for name in self._trained}
        self._base.train()
        for epoch in range(self._fit.epochs):
            orders = torch.stack([torch.randperm(subsets.shape[1], generator=generator) for generator in generators])
            for rows in subsets.gather(1, orders).split(self._fit.batch_size, 1):
                gradients, losses = step(self.weights, x[rows], y[rows])
                if not bool(torch.isfinite(losses).all()):
                    raise NonFiniteError("training diverged", expected="finite losses", hint="a lower lr")
                self._move(gradients, momenta, self._fit.rate(epoch))

    def predictions(self, data: TensorDataset) -> Tensor:
        """Predicted classes, in eval mode.

        Args:
            data: Inputs.

        Returns:
            int64, shape (n_models, n).
        """
        self._base.eval()
        run = vmap(self._logits, in_dims=(0, None), randomness="different")
        with torch.no_grad():
            return torch.cat([run(self.weights, x).argmax(2) for x in inputs_of(data).split(N_AT_ONCE)], 1)

    def _logits(self, weights: Weights, x: Tensor) -> Tensor:
        return logits_of(functional_call(self._base, weights, (x,)), self._n_classes)

    def _loss(self, weights: Weights, x: Tensor, y: Tensor) -> Tensor:
        loss = self._fit.loss(self._logits(weights, x), y)
        if loss.ndim:
            raise ShapeError("the loss is no number", expected="a scalar", got=tuple(loss.shape), hint="loss.mean()")
        return loss

    def _move(self, gradients: Weights, momenta: Weights, rate: float) -> None:
        for name in self._trained:
            gradient = gradients[name]
            if self._fit.weight_decay:
                gradient = gradient.add(self.weights[name], alpha=self._fit.weight_decay)
            momenta[name].mul_(self._fit.momentum).add_(gradient)
            self.weights[name].add_(momenta[name], alpha=-rate)

"""Training many small networks at once by SGD with momentum, each on minibatches of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from invertible._checks import check_finite, check_labels, describe
from invertible.errors import ConfigError, NonFiniteError, ShapeError
from invertible.instruments._many_mlps import ORDER, ManyMlps

Loss = Literal["cross_entropy", "squared_error"]


@dataclass(frozen=True)
class Training:
    """How networks are trained: SGD as `torch.optim.SGD` does it.

    Args:
        n_epochs: How often the data are gone through.
        lr: Learning rate of the first epoch.
        batch_size: Examples of a step; None: all, in order.
        momentum: 0 to below 1.
        weight_decay: Added to the gradient, times the parameters, biases included.
        decay: The rate is multiplied by it after every epoch.
        loss: "cross_entropy" of labels, or "squared_error", the mean over examples and outputs.

    Example:
        >>> Training(10, 0.1, decay=0.5).rate(2)
        0.025
    """

    n_epochs: int
    lr: float
    batch_size: int | None = 100
    momentum: float = 0.9
    weight_decay: float = 0.0
    decay: float = 1.0
    loss: Loss = "cross_entropy"

    def __post_init__(self) -> None:
        bounds = {
            "n_epochs": self.n_epochs >= 0,
            "lr": self.lr > 0,
            "batch_size": self.batch_size is None or self.batch_size >= 1,
            "momentum": 0 <= self.momentum < 1,
            "weight_decay": self.weight_decay >= 0,
            "decay": 0 < self.decay <= 1,
            "loss": self.loss in ("cross_entropy", "squared_error"),
        }
        for name, is_good in bounds.items():
            if not is_good:
                raise ConfigError(f"training has a bad {name}", got=repr(getattr(self, name)))

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch.

        Args:
            epoch: Which, from 0.

        Returns:
            The rate.
        """
        return self.lr * self.decay**epoch


def train(
    nets: ManyMlps, x: Tensor, y: Tensor, training: Training, after_epoch: Callable[[int], None] | None = None
) -> Tensor:
    """Train networks, in place. Derivatives are written out: half the time of autograd for narrow networks.

    Args:
        nets: The networks.
        x: Shape (N, in), the same for all, or (n, N, in), each its own.
        y: Labels, shape (N) or (n, N); for the squared error targets, shape (N, out) or (n, N, out).
        training: How.
        after_epoch: Called with the number of the epoch, from 0, once it is over, without gradients.

    Returns:
        The mean loss of the steps of each epoch, each taken before its step; shape (n_epochs, n).

    Raises:
        NonFiniteError: If data hold NaN, or networks diverge.

    Example:
        >>> nets = ManyMlps((2, 4, 2), 3)
        >>> x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        >>> losses = train(nets, x, (x[:, 0] > 0).long(), Training(20, 0.1, batch_size=10))
        >>> losses.shape, bool((losses[-1] < losses[0] / 3).all())
        (torch.Size([20, 3]), True)
    """
    x, y = _checked(nets, x, y, training)
    step, n_rows, found = _Step(nets, training), x.shape[-2], []
    orders, is_ce = _Orders(nets, n_rows, training.batch_size), training.loss == "cross_entropy"
    with torch.no_grad():
        for epoch in range(training.n_epochs):
            total = x.new_zeros(nets.n)
            for rows in orders.of_one_epoch():
                batch_x, batch_y = _rows_of(x, rows, 2), _rows_of(y, rows, 1 if is_ce else 2)
                total += step(batch_x, batch_y, training.rate(epoch)) * (batch_x.shape[-2] / n_rows)
            found.append(_finite(total, epoch))
            if after_epoch is not None:
                after_epoch(epoch)
    return torch.stack(found) if found else x.new_empty(0, nets.n)


def losses_of(outputs: Tensor, y: Tensor, loss: Loss = "cross_entropy") -> Tensor:
    """The mean loss of each network.

    Args:
        outputs: Shape (n, N, out).
        y: As for `train`.
        loss: Which.

    Returns:
        Shape (n).
    """
    if loss == "squared_error":
        return (outputs - y).square().mean((1, 2))
    rows = y.expand(outputs.shape[0], -1).unsqueeze(2)
    return -outputs.log_softmax(2).gather(2, rows).squeeze(2).mean(1)


class _Step:
    """One step of all networks.

    Args:
        nets: The networks.
        training: How they are trained.
    """

    def __init__(self, nets: ManyMlps, training: Training) -> None:
        self._nets, self._training = nets, training
        weights, biases = nets.layers()
        self._weights, self._biases = [w.detach() for w in weights], [b.detach() for b in biases]
        self._parameters = [*self._weights, *self._biases]
        self._velocities = [torch.zeros_like(p) for p in self._parameters]

    def __call__(self, x: Tensor, y: Tensor, rate: float) -> Tensor:
        activations = self._nets.activations(x)
        losses, gradient = _loss_and_gradient(activations[-1], y, self._training.loss)
        self._accumulate((x, *activations[:-1]), gradient)
        for parameter, velocity in zip(self._parameters, self._velocities, strict=True):
            if self._training.weight_decay:
                velocity.add_(parameter, alpha=self._training.weight_decay)
            parameter.add_(velocity, alpha=-rate)
        return losses

    def _accumulate(self, inputs: tuple[Tensor, ...], gradient: Tensor) -> None:
        n_layers, momentum = len(self._weights), self._training.momentum
        ones = gradient.new_ones(1, 1, gradient.shape[1]).expand(self._nets.n, -1, -1)
        for i in reversed(range(n_layers)):
            x = inputs[i] if inputs[i].ndim == 3 else inputs[i].expand(self._nets.n, -1, -1)
            # momentum * velocity + gradient is what the product itself can add to: no pass over memory of its own.
            self._velocities[i].baddbmm_(x.mT, gradient, beta=momentum)
            self._velocities[n_layers + i].baddbmm_(ones, gradient, beta=momentum)
            if i:
                gradient = _through(gradient @ self._weights[i].mT, inputs[i], self._nets.activation)


class _Orders:
    """Which examples each network sees when.

    Args:
        nets: The networks.
        n_examples: How many there are.
        batch_size: Of a step; None: all.
    """

    def __init__(self, nets: ManyMlps, n_examples: int, batch_size: int | None) -> None:
        self._n_examples, self._size = n_examples, batch_size
        self._device = next(nets.parameters()).device
        self._generators = [] if batch_size is None else [nets.generator(i, ORDER) for i in range(nets.n)]

    def of_one_epoch(self) -> Iterator[Tensor | None]:
        if self._size is None:
            yield None
            return
        orders = np.stack([generator.permutation(self._n_examples) for generator in self._generators])
        yield from torch.from_numpy(orders).to(self._device).split(self._size, dim=1)


def _loss_and_gradient(outputs: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
    n, n_rows, n_out = outputs.shape
    if loss == "squared_error":
        difference = outputs - y
        return difference.square().mean((1, 2)), difference * (2 / (n_rows * n_out))
    rows = y.expand(n, -1).unsqueeze(2)
    logs = outputs.log_softmax(2)
    losses = -logs.gather(2, rows).squeeze(2).mean(1)
    gradient = logs.exp_()
    gradient.scatter_add_(2, rows, gradient.new_full((1, 1, 1), -1.0).expand(n, n_rows, 1))
    return losses, gradient.div_(n_rows)


def _through(gradient: Tensor, output: Tensor, activation: str) -> Tensor:
    if activation == "tanh":
        return torch.ops.aten.tanh_backward(gradient, output)
    if activation == "sigmoid":
        return torch.ops.aten.sigmoid_backward(gradient, output)
    return torch.ops.aten.threshold_backward(gradient, output, 0.0) if activation == "relu" else gradient


def _rows_of(values: Tensor, rows: Tensor | None, n_dims_shared: int) -> Tensor:
    if rows is None:
        return values
    if values.ndim == n_dims_shared:
        return values[rows]
    return values[torch.arange(len(rows), device=rows.device).unsqueeze(1), rows]


def _checked(nets: ManyMlps, x: Tensor, y: Tensor, training: Training) -> tuple[Tensor, Tensor]:
    nets.check_input(x)
    parameter = next(nets.parameters())
    x, y = x.detach().to(parameter.device, parameter.dtype), y.detach().to(parameter.device)
    n_rows, is_ce = x.shape[-2], training.loss == "cross_entropy"
    tail = (n_rows,) if is_ce else (n_rows, nets.widths[-1])
    if not n_rows or tuple(y.shape) not in (tail, (nets.n, *tail)):
        expected = f"one or more examples, targets of shape {tail} or {(nets.n, *tail)}"
        raise ShapeError("examples and targets do not fit", expected=expected, got=f"{describe(x)}; {describe(y)}")
    check_finite(x, "the data for many networks")
    if is_ce:
        check_labels(y, nets.widths[-1], "many networks' training")
        return x, y.long()
    check_finite(y, "the targets for many networks")
    return x, y.to(parameter.dtype)


def _finite(losses: Tensor, epoch: int) -> Tensor:
    bad = ~torch.isfinite(losses)
    if bad.any():
        got = f"{int(bad.sum())} of {len(losses)} not, in epoch {epoch}; the first is number {int(bad.nonzero()[0])}"
        raise NonFiniteError("networks diverged", expected="finite losses", got=got, hint="a smaller lr")
    return losses

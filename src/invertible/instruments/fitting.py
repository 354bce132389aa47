"""How experiments train: the contract of a fit function, and the paper's stochastic gradient descent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from invertible._checks import describe
from invertible.errors import ConfigError, NonFiniteError, ShapeError
from invertible.instruments._batch import Batch
from invertible.instruments._memorization_logits import logits_of
from invertible.instruments._memorization_sets import inputs_of, labels_of

Loss = Callable[[Tensor, Tensor], Tensor]
cross_entropy: Loss = nn.functional.cross_entropy


class Report(Protocol):
    """What a fit function calls after each epoch."""

    def __call__(self, *, steps: int | None = None) -> bool:
        """Measure the network as it is now; nothing of it changes.

        Args:
            steps: Steps of the optimizer since the last call; None: those that optimizers of torch.optim made.

        Returns:
            True: stop, the training set is fitted or time is up.
        """
        ...


class Fit(Protocol):
    """Trains a network: `fit(model, train, report)`.

    `train` is a `TensorDataset` of inputs and labels, on the network's device and in its dtype: `DataLoader(train,
    batch_size=128, shuffle=True)` iterates over it. Random numbers come from the global states, which the experiment
    has seeded. After each epoch: `if report(): return`. It must do the same whatever the labels are.
    """

    def __call__(self, model: nn.Module, train: TensorDataset, report: Report) -> object:
        """Train.

        Args:
            model: Fresh, in train mode; changed in place.
            train: The training set.
            report: To be called after each epoch.
        """
        ...


@dataclass(frozen=True)
class SGDFit:
    """Stochastic gradient descent with momentum, as Zhang et al. train: no weight decay, no augmentation.

    The paper has lr 0.1 for Inception and 0.01 for AlexNet and the MLPs; the size of a batch it does not give.

    Args:
        epochs: At most so many.
        batch_size: Examples per step; the last batch of an epoch may be smaller.
        lr: Learning rate of the first epoch.
        momentum: Of the gradients.
        decay: Factor on the learning rate from epoch to epoch.
        weight_decay: Added to the gradients, times the weights.
        loss: From logits (batch, classes) and labels (batch,) to a number.

    Raises:
        ConfigError: If a number is out of range.

    Source: Zhang et al. 2017, section 2 and appendix A.

    Example:
        >>> train = TensorDataset(torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1]))
        >>> network = nn.Linear(1, 2)
        >>> SGDFit(epochs=50)(network, train, lambda steps=None: False)
        >>> network(train.tensors[0]).argmax(1)
        tensor([0, 1])
    """

    epochs: int = 100
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    decay: float = 0.95
    weight_decay: float = 0.0
    loss: Loss = cross_entropy

    def __post_init__(self) -> None:
        numbers = (self.lr, self.momentum, self.decay, self.weight_decay)
        is_fine = self.epochs >= 1 and self.batch_size >= 1 and self.lr > 0 and 0 <= self.momentum < 1
        if not (is_fine and self.decay > 0 and self.weight_decay >= 0 and all(map(math.isfinite, numbers))):
            expected = "epochs, batch_size >= 1, lr, decay > 0, 0 <= momentum < 1, weight_decay >= 0"
            raise ConfigError("SGDFit has an option out of range", expected=expected, got=str(self))

    def __call__(self, model: nn.Module, train: TensorDataset, report: Report) -> None:
        """Train until `report` says stop, or for `epochs`.

        Args:
            model: Changed in place; left in train mode.
            train: The training set.
            report: Called after each epoch.
        """
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(parameters, self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        model.train()
        for epoch in range(self.epochs):
            for group in optimizer.param_groups:
                group["lr"] = self.rate(epoch)
            for rows in self.batches(len(train)):
                self._step(model, optimizer, inputs_of(train)[rows], labels_of(train)[rows])
            if report():
                return

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch.

        Args:
            epoch: From 0.

        Returns:
            It.
        """
        return self.lr * self.decay**epoch

    def batches(self, n: int) -> Iterator[Tensor]:
        """The rows of each batch of an epoch, shuffled by the global random state.

        Args:
            n: How many examples there are.

        Yields:
            int64.
        """
        yield from torch.randperm(n).split(self.batch_size)

    def _step(self, model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
        loss = self.loss(logits_of(Batch((x,)).run(model), 1), y)
        check_loss(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def check_loss(loss: Tensor) -> None:
    """Refuse what cannot be descended.

    Args:
        loss: What the loss returned.

    Raises:
        ShapeError: If it is not one number.
        NonFiniteError: If it is NaN or infinite.
        ConfigError: If no weights are behind it.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.ndim > 1:
        raise ShapeError("the loss is no number", expected="a scalar", got=describe(loss), hint="loss.mean()")
    if not loss.requires_grad:
        hint = "a loss made of the network's output, without detach() or no_grad()"
        raise ConfigError("the loss has no gradient", expected="one that depends on the weights", hint=hint)
    if not math.isfinite(loss.item()):
        raise NonFiniteError("training diverged", expected="a finite loss", got=loss.item(), hint="a lower lr")

"""Objectives: modules whose forward returns the loss and a dictionary of metrics, so that DDP works as usual."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from invertible.errors import RangeError, ShapeError


class Classification(nn.Module):
    """Cross-entropy of a classifier.

    Args:
        model: From a batch of inputs to logits, shape (batch, n_classes).
        label_smoothing: Share of the target probability spread over all classes.

    Raises:
        ShapeError: When called: if the logits are no (batch, n_classes).
        RangeError: When called on the CPU: if a label is not below n_classes.

    Example:
        >>> objective = Classification(nn.Linear(4, 3))
        >>> loss, metrics = objective(torch.zeros(2, 4), torch.tensor([0, 2]))
        >>> sorted(metrics)
        ['accuracy']
    """

    def __init__(self, model: nn.Module, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.model, self.label_smoothing = model, label_smoothing

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss.

        Args:
            x: Inputs, shape (batch, ...).
            y: Labels, shape (batch,).

        Returns:
            Mean cross-entropy in nats, and metrics (means over the batch, without gradient).
        """
        logits = self.model(x)
        _check(logits, y)
        loss = functional.cross_entropy(logits, y, label_smoothing=self.label_smoothing)
        accuracy = (logits.detach().argmax(dim=1) == y).float().mean()
        return loss, {"accuracy": accuracy}


def _check(logits: Tensor, y: Tensor) -> None:
    if logits.ndim != 2 or len(logits) != len(y):
        raise ShapeError("a classifier returns logits", expected=f"({len(y)}, n_classes)", got=tuple(logits.shape))
    if torch.compiler.is_compiling() or y.is_cuda or not len(y):
        return
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= logits.shape[1]:
        hint = "build the model with n_classes=... of the data set"
        expected = f"labels 0 to {logits.shape[1] - 1}"
        raise RangeError("labels are out of range", expected=expected, got=f"{low} to {high}", hint=hint)

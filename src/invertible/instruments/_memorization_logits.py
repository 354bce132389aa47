"""Logits of any classifier, and what they say about a labelled set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from invertible._checks import check_finite, describe
from invertible.errors import DtypeError, ShapeError
from invertible.instruments._batch import Batch
from invertible.instruments._memorization_sets import inputs_of
from invertible.instruments._tensors import tensors_in
from invertible.instruments.untouched import measuring

N_AT_ONCE = 512
"""Examples per forward pass of a measurement."""


def logits_of(output: Any, n_classes: int) -> Tensor:
    """The logits in what a network returns.

    Args:
        output: A tensor; a mapping, tuple or dataclass that holds one under "logits", or one only that could be logits.
        n_classes: At least so many columns.

    Returns:
        Shape (batch, n_classes or more).

    Raises:
        DtypeError: If there is none, or which it is cannot be told.
        ShapeError: If it has another shape.

    Example:
        >>> logits_of({"loss": torch.tensor(0.1), "logits": torch.zeros(2, 3)}, 3).shape
        torch.Size([2, 3])
    """
    named = output.get("logits") if isinstance(output, Mapping) else output
    if isinstance(named, Tensor):
        found = [named]
    else:
        found = [tensor for tensor in tensors_in(output) if tensor.is_floating_point() and tensor.ndim == 2]
    if len(found) != 1:
        hint = 'a network that returns a tensor, or a mapping with "logits"'
        got = f"{describe(output)} with {len(found)} that could be"
        raise DtypeError("the network returns no logits", expected="one tensor (batch, classes)", got=got, hint=hint)
    logits = found[0]
    if logits.ndim != 2 or logits.shape[1] < n_classes or not logits.is_floating_point():
        hint = f"a last layer of {n_classes} outputs"
        expected = f"real numbers of shape (batch, {n_classes})"
        raise ShapeError(
            "the network's output does not fit the labels", expected=expected, got=describe(logits), hint=hint
        )
    return logits


def run_in_batches(model: nn.Module, data: TensorDataset, n_classes: int) -> Iterator[Tensor]:
    """Logits in eval mode; the network and every random state are left as they are.

    Args:
        model: The network.
        data: Inputs, where the network is.
        n_classes: Of the labels.

    Yields:
        Logits of up to `N_AT_ONCE` examples, in order.
    """
    with measuring(model, "eval") as network:
        for x in inputs_of(data).split(N_AT_ONCE):
            logits = logits_of(Batch((x,)).run(network), n_classes)
            check_finite(logits, "the network's output")
            yield logits


def predictions(model: nn.Module, data: TensorDataset, labels: Tensor, n_classes: int) -> tuple[Tensor, float]:
    """Predicted classes and the mean cross-entropy.

    Args:
        model: The network.
        data: Inputs.
        labels: Against which the cross-entropy is taken, shape (n,).
        n_classes: How many classes there are.

    Returns:
        int64, shape (n,); nats per example.
    """
    classes, total = [], 0.0
    for logits, y in zip(run_in_batches(model, data, n_classes), labels.split(N_AT_ONCE), strict=True):
        classes.append(logits.argmax(1))
        total += float(nn.functional.cross_entropy(logits.double(), y, reduction="sum"))
    return torch.cat(classes), total / len(labels)

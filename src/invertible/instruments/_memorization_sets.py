"""Whole data sets as two tensors, checked: what experiments need that change labels and pixels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from invertible._checks import check_finite, check_labels, describe
from invertible.errors import ConfigError, DataError, DtypeError, ShapeError
from invertible.instruments._batch import Batch, as_batch
from invertible.instruments._sources import IndexedSet

Pair = tuple[TensorDataset, TensorDataset]
_KINDS = "(x, y), a list or DataLoader of batches, a Dataset or a labelled set of ours"


def inputs_of(data: TensorDataset) -> Tensor:
    """The inputs of a set.

    Args:
        data: Of inputs and labels.

    Returns:
        Shape (n, ...).
    """
    return data.tensors[0]


def labels_of(data: TensorDataset) -> Tensor:
    """The labels of a set.

    Args:
        data: Of inputs and labels.

    Returns:
        int64, shape (n,).
    """
    return data.tensors[1]


def collect_pair(data: Any, name: str, n_classes: int | None = None) -> tuple[TensorDataset, TensorDataset, int]:
    """Gather a training and a test set.

    Args:
        data: (train, test), each as `collect` takes it.
        name: Who asks.
        n_classes: How many classes there are; None: the largest label of both sets and one.

    Returns:
        Training set, test set, number of classes.

    Raises:
        ConfigError: If it is no pair of sets, or holds one class only.
        DtypeError: If a set is of an unknown kind or labels are no whole numbers.
        ShapeError: If shapes differ.
        RangeError: If labels are negative or too large.
        NonFiniteError: If inputs hold NaN or infinity.
        DataError: If a set is empty or used up.
    """
    if not isinstance(data, tuple | list) or len(data) != 2 or isinstance(data[0], Tensor):
        hint = "((x, y), (x_test, y_test)), or a pair of data sets or loaders"
        raise ConfigError(f"{name} takes two sets", expected="(train, test)", got=describe(data), hint=hint)
    train, test = collect(data[0], f"{name}'s training set"), collect(data[1], f"{name}'s test set")
    if inputs_of(train).shape[1:] != inputs_of(test).shape[1:]:
        expected, got = tuple(inputs_of(train).shape[1:]), tuple(inputs_of(test).shape[1:])
        raise ShapeError(f"{name}'s test inputs have another shape", expected=expected, got=got)
    return train, test, count_classes(labels_of(train), labels_of(test), name, n_classes)


def collect(data: Any, name: str) -> TensorDataset:
    """Gather a labelled set into two tensors of its own.

    Args:
        data: `(x, y)`; a list, `DataLoader` or other iterable of such batches; a `Dataset` of examples; a set of ours.
            8-bit images are divided by their white, other whole numbers become float32.
        name: What it is, for messages.

    Returns:
        Inputs of real numbers, shape (n, ...), and labels, int64, shape (n,). Copies.

    Raises:
        DtypeError: If it is of another kind.
        DataError: If there is nothing in it.
        ShapeError: If examples and labels are not as many, or examples differ in shape.
        NonFiniteError: If inputs hold NaN or infinity.

    Example:
        >>> found = collect((torch.tensor([[0.5]]), torch.tensor([1])), "an example")
        >>> found.tensors
        (tensor([[0.5000]]), tensor([1]))
    """
    batches = [_parts(batch, name) for batch in _batches(data, name)]
    if not sum(len(x) for x, _ in batches):
        hint = "a generator or iterator runs once: pass the list or DataLoader itself"
        raise DataError(f"{name} is empty", expected="an example or more", got="none", hint=hint)
    if len({x.shape[1:] for x, _ in batches}) > 1:
        shapes = sorted({str(tuple(x.shape[1:])) for x, _ in batches})
        raise ShapeError(f"{name} has examples of several shapes", expected="one shape", got=" and ".join(shapes))
    x, y = (torch.cat(tensors).clone() for tensors in zip(*batches, strict=True))
    check_finite(x, name)
    return TensorDataset(x, y)


def _batches(data: Any, name: str) -> Iterator[Batch]:
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        return iter([as_batch(data)])
    if isinstance(data, Batch | dict):
        return iter([as_batch(data)])
    if isinstance(data, IndexedSet):
        return iter([Batch((_white_is_one(data.batch(torch.arange(len(data))), data),), labels=data.labels)])
    if isinstance(data, TensorDataset) and len(data.tensors) == 2:
        return iter([Batch(data.tensors[:1], labels=data.tensors[1])])
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        return (_one(data[i], name) for i in range(len(data)))  # pyright: ignore[reportArgumentType]
    if isinstance(data, str | bytes | Tensor) or not isinstance(data, Iterable):
        raise DtypeError(f"{name} is of an unknown kind", expected=_KINDS, got=describe(data))
    return (as_batch(item) for item in data)


def _one(item: Any, name: str) -> Batch:
    if not isinstance(item, tuple | list) or len(item) != 2 or not isinstance(item[0], Tensor):
        hint = "a transform that makes tensors"
        raise DtypeError(f"{name} has items of an unknown kind", expected="(x, y)", got=describe(item), hint=hint)
    return Batch((item[0][None],), labels=torch.as_tensor(item[1]).reshape(1))


def _parts(batch: Batch, name: str) -> tuple[Tensor, Tensor]:
    tensors = batch.tensors
    if len(tensors) != 1:
        raise DtypeError(f"{name} has batches of an unknown kind", expected="one tensor and labels", got=len(tensors))
    x, y = tensors[0], batch.needed_labels(name)
    if y.ndim != 1:
        hint = "y.argmax(1) of one-hot rows, y.flatten() of a column"
        raise ShapeError(f"{name} takes one label per example", expected="shape (n,)", got=describe(y), hint=hint)
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise DtypeError(f"{name} takes labels", expected="whole numbers", got=describe(y), hint="y.long()")
    x = x.detach()
    if x.dtype == torch.uint8:
        x = x.float() / 255
    return (x if x.is_floating_point() else x.float()), y.detach().long().to(x.device)


def _white_is_one(x: Tensor, data: Any) -> Tensor:
    return x.float() / vars(data).get("max_value", 255) if x.dtype == torch.uint8 else x


def count_classes(y: Tensor, y_test: Tensor, name: str, n_classes: int | None) -> int:
    """Count classes, and refuse labels that are none.

    Args:
        y: Labels of the training set.
        y_test: Of the test set.
        name: Who asks.
        n_classes: How many there are; None: the largest label and one.

    Returns:
        Their number.

    Raises:
        ConfigError: If the training set has one class only.
    """
    found = int(max(y.max(), y_test.max())) + 1 if n_classes is None else n_classes
    check_labels(y.cpu(), found, f"{name} (training set)")
    check_labels(y_test.cpu(), found, f"{name} (test set)")
    if len(y.unique()) < 2:
        expected, got = "two or more in the training set", f"class {int(y[0])} only"
        raise ConfigError(f"{name} needs classes", expected=expected, got=got, hint="shuffle before you cut the data")
    return found

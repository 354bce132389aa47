"""Tensors in whatever a module takes or returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from invertible.bijection import Bijection


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Find the tensors in a structure, in order.

    Args:
        value: A tensor; tuples, lists, mappings and dataclasses of anything, nested (`ModelOutput` is a mapping).

    Yields:
        The tensors; other values are passed over.

    Example:
        >>> import torch
        >>> [t.item() for t in tensors_in({"a": torch.tensor(1), "b": (None, [torch.tensor(2)])})]
        [1, 2]
    """
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name))


def main_tensor(module: nn.Module, value: Any, is_input: bool = False) -> Tensor | None:
    """The one tensor that stands for a module's output or input: the streams of one of our bijections put together.

    Args:
        module: Whose.
        value: What it returned or got.
        is_input: Which of both.

    Returns:
        Of others than bijections the first tensor of real numbers; None if there is none.
    """
    if isinstance(module, Bijection) and isinstance(value, tuple):
        split = module.split_in if is_input else module.split_out
        if split is not None and all(isinstance(item, Tensor) for item in value):
            return split.merge(value)
    return next((tensor for tensor in tensors_in(value) if tensor.is_floating_point()), None)

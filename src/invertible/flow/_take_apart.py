"""A distribution taken apart into a plan and its tensors, to be put together again with other tensors.

`copy.deepcopy` of a distribution will not do: it loses what an inverse transform is the inverse of.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.distributions import Distribution, Transform
from torch.distributions.transforms import _InverseTransform


@dataclass(frozen=True)
class _Slot:
    index: int


@dataclass(frozen=True)
class _Plan:
    kind: type
    fields: dict[str, Any]


def take_apart(value: Any, tensors: list[Tensor]) -> Any:
    """Replace the tensors of a distribution, and of the distributions and transforms in it, by slots.

    Args:
        value: The distribution, or a part of it.
        tensors: Those found are appended, each once.

    Returns:
        A plan that can be copied and pickled.
    """
    if isinstance(value, Tensor):
        known = [i for i, tensor in enumerate(tensors) if tensor is value]
        if not known:
            tensors.append(value)
        return _Slot(known[0] if known else len(tensors) - 1)
    if isinstance(value, Distribution | Transform):
        return _Plan(type(value), {k: take_apart(v, tensors) for k, v in _fields(value)})
    if type(value) in (list, tuple):
        return type(value)([take_apart(item, tensors) for item in value])
    return value


def _fields(value: Distribution | Transform) -> Iterator[tuple[str, Any]]:
    # A transform remembers its inverse, which an inverse is made of.
    for name, field in vars(value).items():
        yield name, None if name == "_inv" and not isinstance(value, _InverseTransform) else field


def put_together(plan: Any, tensors: list[Tensor]) -> Any:
    """Undo `take_apart`.

    Args:
        plan: What it returned.
        tensors: What to put into the slots.

    Returns:
        A distribution, or the part that the plan is of.
    """
    if isinstance(plan, _Slot):
        return tensors[plan.index]
    if isinstance(plan, _Plan):
        made = object.__new__(plan.kind)
        for key, field in plan.fields.items():
            made.__dict__[key] = put_together(field, tensors)
        return made
    if type(plan) in (list, tuple):
        return type(plan)([put_together(item, tensors) for item in plan])
    return plan

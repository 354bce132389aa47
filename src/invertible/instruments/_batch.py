"""One batch in the form a network takes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from invertible._checks import check_finite, describe
from invertible.errors import ConfigError, DtypeError, InvertibleError, ShapeError
from invertible.instruments._tensors import tensors_in

LABELS = ("labels", "label", "targets", "target", "y")
"""Keys of a dict under which labels are looked for, in this order."""


@dataclass(frozen=True, eq=False)
class Batch:
    """What the network is called with, and the labels.

    Args:
        args: Positional arguments.
        kwargs: Arguments by name.
        labels: One per example, where there are any; the network does not get them.

    Example:
        >>> Batch((torch.zeros(4, 2),)).run(nn.Linear(2, 3)).shape
        torch.Size([4, 3])
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    labels: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that the network gets."""
        return tuple(tensors_in((self.args, self.kwargs)))

    @property
    def n_examples(self) -> int:
        """Size of the first tensor's first dimension."""
        first = next(iter(self.tensors), None)
        return 1 if first is None or first.ndim == 0 else len(first)

    def run(self, model: nn.Module) -> Any:
        """Call a network.

        Args:
            model: It.

        Returns:
            What it returns.

        Raises:
            InvertibleError: As the network raises it.
            RuntimeError: As the network raises it, with a note of what it was called with.
            TypeError: Likewise.
            ValueError: Likewise.
        """
        try:
            return model(*self.args, **self.kwargs)
        except InvertibleError:
            raise
        except (RuntimeError, TypeError, ValueError) as error:
            what = ", ".join(describe(tensor) for tensor in self.tensors) or "nothing"
            error.add_note(
                f"{type(model).__name__} was called with {what}; batch_fn=... makes of a batch what it takes."
            )
            raise

    def few(self, n: int) -> Batch:
        """The first examples only.

        Args:
            n: How many.

        Returns:
            A batch whose tensors are cut where their first dimension is the number of examples.
        """
        size = self.n_examples

        def cut(tensor: Tensor) -> Tensor:
            return tensor[:n] if tensor.ndim and len(tensor) == size else tensor

        return Batch(_mapped(self.args, cut), _mapped(self.kwargs, cut))

    def needed_labels(self, name: str) -> Tensor:
        """The labels, for an instrument that cannot do without.

        Args:
            name: The instrument's.

        Returns:
            One label per example.

        Raises:
            ConfigError: If there are none, or their number is another.
        """
        if self.labels is None:
            hint = 'batches (x, y) or dicts with "labels", or batch_fn=lambda batch: Batch((x,), labels=y)'
            raise ConfigError(f"{name} needs labels", expected="one per example", got="none", hint=hint)
        if self.labels.shape[:1] != (self.n_examples,):
            got = f"{tuple(self.labels.shape)} for {self.n_examples}"
            raise ConfigError(f"{name} needs labels", expected="one per example", got=got)
        return self.labels

    def placed(self, model: nn.Module) -> Batch:
        """Copies of the tensors, where the network is.

        Args:
            model: Its first parameter or buffer of real numbers tells device and dtype.

        Returns:
            Real numbers converted, others moved; nobody else's tensors.
        """
        tensors = [*model.parameters(), *model.buffers()]
        own = next((t for t in tensors if t.is_floating_point()), None)
        device = own.device if own is not None else tensors[0].device if tensors else None

        def place(tensor: Tensor) -> Tensor:
            dtype = own.dtype if own is not None and tensor.is_floating_point() else tensor.dtype
            return tensor.detach().to(device or tensor.device, dtype, copy=True)

        labels = None if self.labels is None else self.labels.detach()
        return Batch(_mapped(self.args, place), _mapped(self.kwargs, place), labels)

    def checked(self) -> Batch:
        """Refuse what nothing can be measured on.

        Returns:
            Itself.

        Raises:
            ShapeError: If it has no examples.
            NonFiniteError: If it holds NaN or infinity.
        """
        if not self.tensors or not all(tensor.numel() for tensor in self.tensors):
            raise ShapeError("a batch is empty", expected="an example or more", got=_shapes(self.tensors))
        for tensor in self.tensors:
            if tensor.is_floating_point():
                check_finite(tensor, "the data")
        return self


def as_batch(item: Any) -> Batch:
    """Make a batch of what data sets and loaders give.

    Args:
        item: A tensor; (x, y), where y are the labels and x a tensor, dict or tuple of arguments; a dict of arguments
            by name, labels among them; a `Batch`.

    Returns:
        The batch.

    Raises:
        DtypeError: If it is anything else.

    Example:
        >>> as_batch({"x": torch.zeros(2, 3), "labels": torch.tensor([0, 1])}).labels
        tensor([0, 1])
    """
    if isinstance(item, Batch):
        return item
    if isinstance(item, Tensor):
        return Batch((item,))
    if isinstance(item, Mapping):
        kwargs = {str(key): value for key, value in item.items()}
        key = next((key for key in LABELS if isinstance(kwargs.get(key), Tensor)), None)
        return Batch((), kwargs, None if key is None else kwargs.pop(key))
    if isinstance(item, tuple | list) and len(item) in (1, 2):
        inner = item[0]
        inside = Batch(tuple(inner)) if isinstance(inner, tuple | list) else as_batch(inner)
        labels = item[1] if len(item) == 2 and isinstance(item[1], Tensor) else inside.labels
        return Batch(inside.args, inside.kwargs, labels)
    hint = "batch_fn=lambda batch: ..., which returns one of these, or Batch(args, kwargs, labels)"
    raise DtypeError("a batch of an unknown kind", expected="a tensor, (x, y) or a dict", got=describe(item), hint=hint)


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _mapped(item, function) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_mapped(item, function) for item in value)
    return value


def _shapes(tensors: tuple[Tensor, ...]) -> str:
    return ", ".join(str(tuple(tensor.shape)) for tensor in tensors) or "no tensor"


def noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """Draw N(0, 1) noise; the global random state is not touched.

    Args:
        shape: Of the batch.
        seed: Of the draw.

    Returns:
        float32.

    Example:
        >>> noise((2, 3), 0).shape
        torch.Size([2, 3])
    """
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)

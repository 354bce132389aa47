"""What a loss is: a function of a network's output and the labels that gives one number."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from invertible._checks import check_labels, describe
from invertible.errors import ConfigError, DtypeError, InvertibleError, ShapeError
from invertible.instruments._batch import Batch

Loss = Callable[[Any, Any], Tensor] | nn.Module | str
HINT = 'loss=lambda output, y: cross_entropy(output["logits"], y), of whatever the network returns'


def evaluate(loss: Loss | None, output: Any, batch: Batch) -> Tensor:
    """Compute a batch's loss and check that it is one.

    Args:
        loss: (output, labels) -> a scalar; a name of `NAMED`; None: cross-entropy.
        output: What the network returned.
        batch: For its labels; a loss of one's own gets None where there are none.

    Returns:
        A scalar.

    Raises:
        ConfigError: If there is no loss of that name.
        ShapeError: If it is no scalar.
        DtypeError: If it is no tensor of real numbers.
        InvertibleError: As the loss raises it.
        RuntimeError: As the loss raises it, with a note of what it was called with.
        TypeError: Likewise.
        ValueError: Likewise.
        KeyError: Likewise.
        AttributeError: Likewise.

    Example:
        >>> evaluate(None, torch.zeros(2, 4), Batch((torch.zeros(2, 1),), labels=torch.tensor([0, 3]))).item()
        1.3862943649291992
    """
    if loss is None or isinstance(loss, str):
        return _named(loss or "cross-entropy")(output, batch)
    try:
        found = loss(output, batch.labels)
    except InvertibleError:
        raise
    except (RuntimeError, TypeError, ValueError, KeyError, AttributeError) as error:
        labels = "None" if batch.labels is None else describe(batch.labels)
        error.add_note(f"The loss was called with ({_kind(output)}, {labels}): what the network returned, and labels.")
        raise
    hint = "the mean over examples, e.g. loss=nn.CrossEntropyLoss(), not reduction='none'"
    if not isinstance(found, Tensor) or found.is_complex():
        raise DtypeError("the loss is no real number", expected="a scalar tensor", got=describe(found), hint=hint)
    if found.numel() != 1:
        raise ShapeError("the loss is not a scalar", expected="one number per batch", got=describe(found), hint=hint)
    return found.reshape(())


def cross_entropy(output: Any, batch: Batch) -> Tensor:
    """The default: cross-entropy in nats, mean over examples (and positions, of images or sequences).

    Args:
        output: Logits, shape (batch, n_classes, ...), or a mapping or dataclass that has them as `logits`.
        batch: Labels of shape (batch, ...), 0 to n_classes - 1.

    Returns:
        A scalar.

    Raises:
        ConfigError: If the network returns no logits, or there are no labels.
        ShapeError: If labels and logits do not fit.
    """
    logits = logits_of(output)
    labels = batch.needed_labels("cross-entropy")
    n_classes = logits.shape[1] if logits.ndim > 1 else 0
    if n_classes < 1 or labels.shape != (len(logits), *logits.shape[2:]):
        hint = f"loss=mse_loss for numbers; {HINT}"
        expected = "logits (batch, n_classes), labels (batch,)"
        got = f"{tuple(logits.shape)}, {tuple(labels.shape)}"
        raise ShapeError("cross-entropy does not fit the output", expected=expected, got=got, hint=hint)
    check_labels(labels, n_classes, "cross-entropy")
    return nn.functional.cross_entropy(logits, labels.long())


def mean_squared_error(output: Any, batch: Batch) -> Tensor:
    """Mean of (output - labels)^2 over all numbers.

    Args:
        output: A tensor, or as in `cross_entropy`.
        batch: Labels: real numbers of the same shape.

    Returns:
        A scalar.

    Raises:
        ShapeError: If shapes differ; nothing is broadcast.
    """
    predicted, wanted = logits_of(output), batch.needed_labels("mean squared error")
    if predicted.shape != wanted.shape:
        got = f"{tuple(predicted.shape)}, {tuple(wanted.shape)}"
        hint = "y.unsqueeze(1), or a loss of your own: (output, y) -> a scalar"
        raise ShapeError("labels do not fit the output", expected="equal shapes", got=got, hint=hint)
    return (predicted - wanted.to(predicted.dtype)).square().mean()


NAMED: dict[str, Callable[[Any, Batch], Tensor]] = {"cross-entropy": cross_entropy, "mse": mean_squared_error}
"""Losses that have a name, for the command line."""


def _named(name: str) -> Callable[[Any, Batch], Tensor]:
    if name not in NAMED:
        expected = f"{' or '.join(map(repr, NAMED))}, or a function (output, y) -> a scalar"
        raise ConfigError("no loss of that name", expected=expected, got=repr(name))
    return NAMED[name]


def name_of(loss: Loss | None) -> str:
    """What a loss is called in results.

    Args:
        loss: As in `evaluate`.

    Returns:
        Its name, or that of the function or class.

    Example:
        >>> name_of(None), name_of(nn.MSELoss())
        ('cross-entropy', 'MSELoss')
    """
    if loss is None or isinstance(loss, str):
        return loss or "cross-entropy"
    return type(loss).__name__ if isinstance(loss, nn.Module) else getattr(loss, "__name__", type(loss).__name__)


def logits_of(output: Any) -> Tensor:
    """Find the logits in what a network returns.

    Args:
        output: A tensor, or a mapping or object that has one as `logits`.

    Returns:
        The tensor.

    Raises:
        ConfigError: If it is anything else.

    Example:
        >>> logits_of({"hidden": torch.zeros(1), "logits": torch.ones(2)})
        tensor([1., 1.])
    """
    found = output.get("logits") if isinstance(output, Mapping) else output
    if dataclasses.is_dataclass(output):
        found = vars(output).get("logits")
    if not isinstance(found, Tensor) or not found.is_floating_point():
        expected = "a tensor, or a dict or dataclass with logits"
        raise ConfigError("the network returns no logits", expected=expected, got=_kind(output), hint=HINT)
    return found


def split_output(output: Any) -> tuple[list[Tensor], list[Tensor], Any]:
    """Cut an output off the network: the same structure over leaves of a new graph.

    Args:
        output: A tensor; tuples, lists, mappings and dataclasses of anything.

    Returns:
        The tensors that have gradients; leaves equal to them; the output with these in their place.

    Raises:
        ConfigError: If none has a gradient.
    """
    outputs: list[Tensor] = []
    leaves: list[Tensor] = []

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor):
            if not value.requires_grad:
                return value
            outputs.append(value)
            leaves.append(value.detach().clone().requires_grad_())
            return leaves[-1]
        return _rebuilt(value, cut)

    rebuilt = cut(output)
    if not outputs:
        raise ConfigError("the output does not depend on the parameters", got="no gradient", hint="no detach() in it")
    return outputs, leaves, rebuilt


def _rebuilt(value: Any, cut: Callable[[Any], Any]) -> Any:
    if isinstance(value, Mapping):
        new = copy.copy(value)
        for key, item in value.items():
            new[key] = cut(item)  # pyright: ignore[reportIndexIssue]  # an own copy; mappings of outputs can be written
        return new
    if isinstance(value, tuple) and type(value) is not tuple:
        return type(value)(*map(cut, value))  # named
    if isinstance(value, tuple | list):
        return type(value)(map(cut, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        new = copy.copy(value)
        for field in dataclasses.fields(value):
            object.__setattr__(new, field.name, cut(getattr(value, field.name)))
        return new
    return value


def _kind(output: Any) -> str:
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} with {', '.join(map(str, output))}"
    return describe(output)


def classes_in(batches: list[Batch]) -> int | None:
    """How many different labels there are.

    Args:
        batches: The data.

    Returns:
        Their number; None where labels are missing or no whole numbers.
    """
    if any(batch.labels is None or batch.labels.is_floating_point() for batch in batches):
        return None
    return len(torch.cat([batch.labels.flatten() for batch in batches if batch.labels is not None]).unique())

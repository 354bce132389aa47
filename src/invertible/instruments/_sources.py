"""What data are made of: opened once per pass over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset, default_collate

from invertible._checks import describe
from invertible.errors import ConfigError, DtypeError
from invertible.instruments._batch import Batch, noise

BATCH_SIZE = 64
"""Of data sets that are not in batches."""

Gather = Callable[[Tensor], Any]


@runtime_checkable
class IndexedSet(Protocol):
    """A labelled set of ours: `ImageSet`, `LazyImageSet`, `PointSet`."""

    labels: Tensor

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> Tensor:
        """Gather examples."""
        ...


def open_source(data: Any, seed: int) -> tuple[Callable[[], Iterator[Any]], int | None]:
    """Find out how batches come out of data.

    Args:
        data: As `Feed` takes them.
        seed: Of noise and shuffling.

    Returns:
        What opens the data for one pass, and how many batches there are, if that can be known.

    Raises:
        ConfigError: If noise of no size is asked for.
        DtypeError: If the data are of an unknown kind.

    Example:
        >>> start, n = open_source((2, 3), seed=0)
        >>> [tuple(batch.shape) for batch in start()], n
        ([(2, 3)], 1)
    """
    if isinstance(data, tuple) and data and all(isinstance(n, int) and not isinstance(n, bool) for n in data):
        if min(data) < 1:
            raise ConfigError("noise of this shape has no examples", expected="sizes >= 1", got=tuple(data))
        return lambda: iter([noise(tuple(data), seed)]), 1
    if isinstance(data, Tensor | tuple | Mapping | Batch):
        return lambda: iter([data]), 1
    gather = _gather(data)
    if gather is not None:
        n = len(data)
        return lambda: _shuffled(gather, n, seed), -(-n // BATCH_SIZE)
    if _is_refused(data):
        expected = "a tensor, a shape for noise, a batch, an iterable of batches, or a data set"
        hint = "torch.as_tensor(array) of an array; DataLoader(dataset, batch_size=64) of single examples"
        raise DtypeError("data of an unknown kind", expected=expected, got=describe(data), hint=hint)
    return (lambda: iter(data), _length(data)) if _is_iterable(data) else (lambda: _made(data), None)


def _made(make: Callable[[], Any]) -> Iterator[Any]:
    # What a function returns may be one batch as well.
    data = make()
    return iter([data]) if isinstance(data, Tensor | tuple | Mapping | Batch) else iter(data)


def _is_iterable(data: Any) -> bool:
    return isinstance(data, Iterable)


def _is_refused(data: Any) -> bool:
    is_array = type(data).__module__.split(".")[0] in ("numpy", "pandas", "PIL")
    is_wrong = isinstance(data, str | bytes | nn.Module | type | IterableDataset)
    return is_array or is_wrong or not (isinstance(data, Iterable) or callable(data))


def _gather(data: Any) -> Gather | None:
    if isinstance(data, IndexedSet):
        return lambda indices: (_real(data.batch(indices), data), data.labels[indices])
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        return lambda indices: default_collate([data[int(i)] for i in indices])
    return None


def _shuffled(gather: Gather, n: int, seed: int) -> Iterator[Any]:
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return (gather(indices) for indices in order.split(BATCH_SIZE)) if n else iter(())


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except TypeError:  # generators, and loaders of iterable data sets
        return None


def _real(x: Tensor, data: Any) -> Tensor:
    return x.float() / vars(data).get("max_value", 255) if x.dtype == torch.uint8 else x

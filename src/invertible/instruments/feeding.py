"""Data for instruments: anything that gives batches, within a budget, with a bar on what takes long."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from torch import nn

from invertible._console import progress
from invertible.errors import ConfigError, DataError
from invertible.instruments._batch import Batch, as_batch
from invertible.instruments._sources import open_source
from invertible.instruments.provenance import Fingerprint, Provenance, Stopwatch, provenance

SECONDS_UNSEEN = 2.0
"""So long nothing is shown."""


class Feed:
    """Batches for an instrument: where the network is, checked, counted, and no more than the budget allows.

    Make it inside `measuring` or `untouched`: loaders draw from the global random state, which these restore.

    Args:
        name: The instrument's, for messages and the bar.
        model: The network that is measured.
        data: A tensor (one batch); a tuple of whole numbers (N(0, 1) noise of that shape); one batch as (x, y) or dict;
            a list, `DataLoader` or other iterable of batches; a function without arguments that returns one; a
            `torch.utils.data.Dataset` or a set of ours, which are shuffled (by `seed`) into batches of 64, images
            of 8 bits divided by their white.
        batch_fn: Makes of each batch a tensor, (x, y), dict or `Batch`; None: it is one.
        batches: Stop after so many; None: after all.
        seconds: Stop after the batch during which so much time ran out; None: no limit. One batch always runs.
        seed: Of noise and shuffling.
        quiet: Show no bar.

    Attributes:
        first: The first batch.
        stopped: Why the last pass ended early; "": it did not.

    Raises:
        ConfigError: If the budget is none.
        DataError: If there are no batches, or a generator is used up.
        DtypeError: If data or a batch are of an unknown kind.
        ShapeError: If a batch is empty.
        NonFiniteError: If a batch holds NaN or infinity.

    Example:
        >>> import torch
        >>> feed = Feed("an example", nn.Linear(2, 3), [torch.zeros(4, 2), torch.ones(4, 2)], batches=1)
        >>> [batch.n_examples for batch in feed], feed.stopped
        ([4], 'batches=1 of 2')
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        data: Any,
        *,
        batch_fn: Callable[[Any], Any] | None = None,
        batches: int | None = None,
        seconds: float | None = None,
        seed: int = 0,
        quiet: bool = False,
    ) -> None:
        check_budget(name, batches, seconds)
        self.name, self.model, self.seed, self.quiet = name, model, seed, quiet
        self._batch_fn, self._batches, self._seconds = batch_fn, batches, seconds
        self._open, self._total = open_source(data, seed)
        self._is_once = isinstance(data, Iterator)
        self.watch, self._fingerprint = Stopwatch(), Fingerprint()
        self.stopped, self._n_batches, self._n_examples, self._n_passes = "", 0, 0, 0
        self._current = self._open()
        first = self._next(self._current, 0)
        if first is None:
            hint = "a generator runs once: a list, or a function that makes it anew"
            raise DataError(f"{self.name} got no data", expected="a batch or more", got="none", hint=hint)
        self.first = first

    def __iter__(self) -> Iterator[Batch]:
        if self._n_passes and self._is_once:
            hint = "a list, a DataLoader, or a function that makes the generator anew"
            raise DataError(f"{self.name} goes over the data again", got="a generator, used up", hint=hint)
        source = self._current if not self._n_passes else self._open()
        first = [self.first] if not self._n_passes else []
        self._n_passes += 1
        watch, self.stopped = (self.watch if first else Stopwatch()), ""
        with ExitStack() as stack:
            update = Bar(self.name, stack, self.quiet)
            for i in itertools.count():
                self.stopped = self._reason(i, watch) if i else ""
                batch = None if self.stopped else first[0] if i < len(first) else self._next(source, i)
                if batch is None:
                    return
                if self._n_passes == 1:
                    self._count(batch)
                yield batch
                update(watch.seconds, self._share(i + 1, watch))

    def provenance(self, model: nn.Module) -> Provenance:
        """Where a result from these batches comes from.

        Args:
            model: The network, in the mode it was measured in.

        Returns:
            The record, for `Result.provenance`.
        """
        found = {"n_batches": self._n_batches, "n_examples": self._n_examples, "stopped": self.stopped}
        return provenance(model, self.watch, seed=self.seed, data=self._fingerprint.digest(), **found)

    def _count(self, batch: Batch) -> None:
        self._fingerprint.add(batch.tensors)
        self._n_batches += 1
        self._n_examples += batch.n_examples

    def _next(self, source: Iterator[Any], i: int) -> Batch | None:
        missing = object()
        item = next(source, missing)
        if item is missing:
            return None
        try:
            return as_batch(item if self._batch_fn is None else self._batch_fn(item)).placed(self.model).checked()
        except Exception as error:
            error.add_note(f"This was batch {i} of the data for {self.name}.")
            raise

    def _reason(self, done: int, watch: Stopwatch) -> str:
        if self._total is not None and done >= self._total:
            return ""
        of = "" if self._total is None else f" of {self._total}"
        if self._batches is not None and done >= self._batches:
            return f"batches={self._batches}{of}"
        if self._seconds is not None and watch.seconds >= self._seconds:
            return f"seconds={self._seconds:g}, after {done} batch{'es' * (done > 1)}{of}"
        return ""

    def _share(self, done: int, watch: Stopwatch) -> float | None:
        counts = [n for n in (self._total, self._batches) if n is not None]
        shares = [done / min(counts)] if counts else []
        shares += [watch.seconds / self._seconds] if self._seconds else []
        return min(max(shares), 1.0) if shares else None


class Bar:
    """Shows how far it is, once it has taken some seconds.

    Args:
        name: What is going on.
        stack: Takes the bar off when it closes.
        quiet: Never show it.
    """

    def __init__(self, name: str, stack: ExitStack, quiet: bool) -> None:
        self._name, self._stack, self._quiet, self._move = name, stack, quiet, None

    def __call__(self, seconds: float, share: float | None) -> None:
        """Move on.

        Args:
            seconds: How long it has taken.
            share: How much is done, 0 to 1; None: nobody knows.
        """
        if self._quiet or seconds < SECONDS_UNSEEN:
            return
        if self._move is None:
            display = self._stack.enter_context(progress())
            task = display.add_task(self._name, total=None if share is None else 1.0)
            self._move = lambda done: display.update(task, completed=done)
        self._move(share or 0.0)


def check_budget(name: str, batches: object, seconds: object) -> None:
    """Refuse a budget that is none.

    Args:
        name: Whose.
        batches: A whole number from 1, or None.
        seconds: Above 0, or None.

    Raises:
        ConfigError: If one is anything else.
    """
    if batches is not None and (isinstance(batches, bool) or not isinstance(batches, int) or batches < 1):
        raise ConfigError(f"{name} has a bad budget", expected="batches >= 1, a whole number", got=repr(batches))
    is_time = isinstance(seconds, int | float) and not isinstance(seconds, bool) and seconds > 0
    if seconds is not None and not (is_time and not math.isnan(seconds)):  # pyright: ignore[reportArgumentType]
        raise ConfigError(f"{name} has a bad budget", expected="seconds > 0", got=repr(seconds))

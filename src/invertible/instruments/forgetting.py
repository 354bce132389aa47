"""Which examples are learned and forgotten again in training: forgetting events (Toneva et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from invertible._checks import describe
from invertible.errors import ConfigError, DataError, DtypeError, RangeError, ShapeError
from invertible.instruments._example_pictures import Shown, draw_with_examples, shown
from invertible.instruments.provenance import Stopwatch, provenance
from invertible.instruments.result import Finding, Result, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Forgetting(Result):
    """What a `ForgettingRecorder` saw.

    Args:
        findings: Worst first.
        events: Per example, how often it was right at one presentation and wrong at the next.
        learned_at: At which of its presentations it was right first, from 1; 0: never.
        presented: How often it was presented.
        labels: Classes; empty if they were not given.
        most: Examples with the most events, those never learned first.
        least: Examples learned earliest that were never forgotten.
    """

    events: tuple[int, ...]
    learned_at: tuple[int, ...]
    presented: tuple[int, ...]
    labels: tuple[int, ...]
    most: tuple[Shown, ...]
    least: tuple[Shown, ...]

    @property
    def unforgettable(self) -> tuple[int, ...]:
        """Examples that were learned and never forgotten."""
        pairs = zip(self.events, self.learned_at, strict=True)
        return tuple(i for i, (events, learned) in enumerate(pairs) if learned and not events)

    @property
    def never_learned(self) -> tuple[int, ...]:
        """Examples that were presented and never right."""
        pairs = zip(self.learned_at, self.presented, strict=True)
        return tuple(i for i, (learned, presented) in enumerate(pairs) if presented and not learned)

    @property
    def table(self) -> list[Row]:
        """One row per example."""
        labels = self.labels or (None,) * len(self.events)
        rows = zip(labels, self.events, self.learned_at, self.presented, strict=True)
        names = ("label", "events", "learned_at", "presented")
        return [{"example": i, **dict(zip(names, row, strict=True))} for i, row in enumerate(rows)]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw how many examples were forgotten how often, and the extreme ones.

        Args:
            ax: Where, for the histogram alone; None: all on a new figure.

        Returns:
            The axes of the histogram.
        """
        rows = [("most", self.most), ("least", self.least)]
        axes = draw_with_examples(rows, "Forgetting events")[0] if ax is None else ax
        learned = [events for events, at in zip(self.events, self.learned_at, strict=True) if at]
        largest = max(learned, default=0)
        axes.hist(learned, bins=[k - 0.5 for k in range(largest + 2)], color="C0", label="learned")
        if self.never_learned:
            axes.bar([largest + 1], [len(self.never_learned)], color="C3", label="never learned")
        axes.set(xlabel="forgetting events", ylabel="examples", yscale="log")
        axes.legend(frameon=False, fontsize=8)
        return axes


class ForgettingRecorder:
    """Counts forgetting events in any training loop: one call per batch.

    Call it with what the network predicted for the batch before, or after, its step; the same everywhere. Nothing is
    measured beside: predictions that training makes anyway are enough.

    Args:
        n_examples: Size of the training set.

    Raises:
        ConfigError: If there are none.

    Source: Toneva, Sordoni, Tachet des Combes, Trischler, Bengio and Gordon 2019, "An empirical study of example
        forgetting during deep neural network learning", algorithm 1.

    Example:
        >>> recorder = ForgettingRecorder(3)
        >>> for correct in ([True, False, False], [False, True, False], [True, True, False]):
        ...     recorder.record(torch.arange(3), torch.tensor(correct))
        >>> found = recorder.result()
        >>> found.events, found.learned_at, found.never_learned
        ((1, 0, 0), (1, 2, 0), (2,))
    """

    def __init__(self, n_examples: int) -> None:
        if n_examples < 1:
            raise ConfigError("ForgettingRecorder has nothing to count", expected="n_examples >= 1", got=n_examples)
        self._was_right = torch.zeros(n_examples, dtype=torch.bool)
        self._events, self._learned_at, self._presented = torch.zeros(3, n_examples, dtype=torch.int64).unbind()
        self._watch = Stopwatch()

    def record(self, indices: Tensor, correct: Tensor) -> None:
        """Take in a batch.

        Args:
            indices: Which examples, int64, shape (batch,). One that comes twice was presented twice, in this order.
            correct: Whether each was predicted right, bool: `logits.argmax(1) == labels`.

        Raises:
            DtypeError: If they are of other dtypes.
            ShapeError: If they are not one for one.
            RangeError: If there is no such example.
        """
        self._check(indices, correct)
        with torch.inference_mode(False), torch.no_grad():
            rest, right = indices.detach().cpu().clone(), correct.detach().cpu().clone()
            while rest.numel():
                is_first = _first_of_each(rest)
                self._once(rest[is_first], right[is_first])
                rest, right = rest[~is_first], right[~is_first]

    def result(self, x: Tensor | None = None, labels: Tensor | None = None, n_shown: int = 10) -> Forgetting:
        """What was counted so far.

        Args:
            x: The inputs, shape (n, ...), for pictures.
            labels: The labels, shape (n,).
            n_shown: How many examples at either end.

        Returns:
            Counts, findings, pictures.

        Raises:
            DataError: If nothing was recorded.
            ShapeError: If there is not one input and label per example.
        """
        n = len(self._events)
        if not bool(self._presented.any()):
            raise DataError("nothing was recorded", expected="recorder.record(indices, correct) per batch", got="none")
        for name, given in (("x", x), ("labels", labels)):
            if given is not None and len(given) != n:
                raise ShapeError(f"{name} does not fit the recorder", expected=f"{n} examples", got=describe(given))
        events, learned, presented = (tuple(t.tolist()) for t in (self._events, self._learned_at, self._presented))
        classes = torch.zeros(n, dtype=torch.int64) if labels is None else labels.cpu()
        ends = ([], []) if x is None else self._extremes(n_shown)
        most, least = (() if x is None else shown(x, classes, rows, self._captions(rows)) for rows in ends)
        origin = provenance(nn.Identity(), self._watch, n_examples=n)
        given = () if labels is None else tuple(classes.tolist())
        return Forgetting(self._findings(), events, learned, presented, given, most, least, provenance=origin)

    def _once(self, indices: Tensor, right: Tensor) -> None:
        self._presented[indices] += 1
        self._events[indices] += (self._was_right[indices] & ~right).long()
        is_new = right & (self._learned_at[indices] == 0)
        self._learned_at[indices[is_new]] = self._presented[indices[is_new]]
        self._was_right[indices] = right

    def _check(self, indices: Tensor, correct: Tensor) -> None:
        if indices.dtype != torch.int64 or correct.dtype != torch.bool:
            got, hint = f"{indices.dtype} and {correct.dtype}", "logits.argmax(1) == labels"
            raise DtypeError("a batch of another kind", expected="int64 and bool", got=got, hint=hint)
        if indices.ndim != 1 or indices.shape != correct.shape:
            got = f"{tuple(indices.shape)} and {tuple(correct.shape)}"
            raise ShapeError("indices and predictions do not fit", expected="(batch,) both", got=got)
        n = len(self._events)
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < n:
            got = f"{int(indices.min())} to {int(indices.max())}"
            raise RangeError("no such example", expected=f"0 to {n - 1}", got=got, hint=f"n_examples of more than {n}")

    def _extremes(self, n: int) -> tuple[list[int], list[int]]:
        is_seen = self._presented > 0
        hard = torch.where(self._learned_at > 0, self._events, self._events.max() + 1)
        easy = hard * (int(self._presented.max()) + 1) + self._learned_at
        worst = torch.where(is_seen, hard, -1).argsort(descending=True, stable=True)[:n]
        best = torch.where(is_seen, easy, easy.max() + 1).argsort(stable=True)[:n]
        return worst.tolist(), best.tolist()

    def _captions(self, rows: list[int]) -> list[str]:
        events, learned = self._events.tolist(), self._learned_at.tolist()
        return [f"{events[i]} events" if learned[i] else "never learned" for i in rows]

    def _findings(self) -> tuple[Finding, ...]:
        n_seen = int((self._presented > 0).sum())
        is_learned = self._learned_at > 0
        kept = int((is_learned & (self._events == 0)).sum())
        never = int(((self._presented > 0) & ~is_learned).sum())
        found = [
            Finding(
                "note",
                f"{kept:,} of {n_seen:,} examples ({kept / n_seen:.1%}) were learned and never forgotten, {never:,} "
                f"were never learned; the most forgotten one was forgotten {int(self._events.max())} times.",
                int(self._events.argmax()),
            )
        ]
        fewest = int(self._presented[self._presented > 0].min())
        if fewest < 5:
            found.append(Finding("warning", f"Some examples came {fewest} times only: too few to be forgotten in."))
        if n_seen < len(self._events):
            found.append(Finding("warning", f"{len(self._events) - n_seen:,} examples were never presented."))
        return tuple(found)


def _first_of_each(indices: Tensor) -> Tensor:
    order = indices.argsort(stable=True)
    is_new = torch.ones(len(indices), dtype=torch.bool)
    is_new[1:] = indices[order][1:] != indices[order][:-1]
    found = torch.empty_like(is_new)
    found[order] = is_new
    return found

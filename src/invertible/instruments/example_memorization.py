"""Which labels a network knows only because it saw them: memorisation of single examples (Feldman and Zhang 2020)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from invertible.errors import ConfigError
from invertible.instruments._example_counts import Counts, Scores
from invertible.instruments._example_pictures import Shown, draw_with_examples, shown
from invertible.instruments._many_networks import Together
from invertible.instruments._memorization_conditions import Normalisation, normalised
from invertible.instruments._memorization_logits import predictions
from invertible.instruments._memorization_sets import collect, count_classes, inputs_of, labels_of
from invertible.instruments._memorization_watch import check_factory, check_output, fresh, placed, training_apart
from invertible.instruments.feeding import Bar, check_budget
from invertible.instruments.fitting import Fit, SGDFit
from invertible.instruments.provenance import Fingerprint, Stopwatch, provenance
from invertible.instruments.result import Finding, Result, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = "example_memorization"
MEMORISED = 0.25
"""From this score on Feldman and Zhang call an example memorised."""


@dataclass(frozen=True)
class ExampleMemorization(Result):
    """What `example_memorization` found.

    Args:
        findings: Worst first.
        scores: Per example: accuracy on it of networks that saw it, less that of those that did not.
        low: Lower ends of 95 % intervals.
        high: Upper ends.
        seen: Accuracy of networks trained with it.
        unseen: Of networks trained without it.
        labels: Classes.
        n_models: How many networks were trained.
        share: Which part of the set each saw.
        most: Examples of the largest scores.
        least: Of the smallest.
    """

    scores: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    seen: tuple[float, ...]
    unseen: tuple[float, ...]
    labels: tuple[int, ...]
    n_models: int
    share: float
    most: tuple[Shown, ...]
    least: tuple[Shown, ...]

    @property
    def mean(self) -> float:
        """The mean score: accuracy on seen examples less that on unseen ones."""
        return math.fsum(self.scores) / len(self.scores)

    @property
    def table(self) -> list[Row]:
        """One row per example."""
        columns = (self.labels, self.scores, self.low, self.high, self.seen, self.unseen)
        names = ("label", "score", "low", "high", "seen", "unseen")
        rows = zip(*columns, strict=True)
        return [{"example": i, **dict(zip(names, row, strict=True))} for i, row in enumerate(rows)]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw how scores are distributed, and the extreme examples.

        Args:
            ax: Where, for the histogram alone; None: all on a new figure.

        Returns:
            The axes of the histogram.
        """
        rows = [("most memorised", self.most), ("least", self.least)]
        title = f"Memorisation of single examples: {self.n_models} networks, each on {self.share:.0%}"
        axes = draw_with_examples(rows, title)[0] if ax is None else ax
        axes.hist(self.scores, bins=40, color="C0", label="estimate")
        axes.hist(self.low, bins=40, color="C1", histtype="step", label="lower end of its interval")
        axes.axvline(MEMORISED, color="grey", linestyle=":", label="memorised, by convention")
        axes.set(xlabel="right with the example in the set - right without it", ylabel="examples", yscale="log")
        axes.legend(frameon=False, fontsize=8)
        return axes


def example_memorization(
    make_model: Callable[[], nn.Module],
    fit: Fit,
    data: Any,
    *,
    n_models: int = 100,
    share: float = 0.7,
    together: int = 1,
    normalise: Normalisation = "global",
    n_classes: int | None = None,
    n_shown: int = 10,
    seconds: float | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> ExampleMemorization:
    """Train networks on random parts of a set, and see on which examples it matters whether they were in the part.

    Every network is trained for the whole of `fit`: `report` returns False. The interval of an example is that of a
    difference of two shares (Newcombe's, from Wilson's); it is per example, so of many examples some lie outside.

    Args:
        make_model: Makes a network with fresh weights.
        fit: Trains it: `SGDFit(...)`, or `fit(model, train, report)`.
        data: The training set: `(x, y)`, batches of these, a `Dataset`, or a set of ours.
        n_models: How many networks; the half-width of an interval is about 1 / sqrt(n_models).
        share: Which part of the set each sees.
        together: So many networks are trained at a time, as one batched computation; for `SGDFit` and networks
            without BatchNorm. It pays for small ones.
        normalise: As in `memorization`, by the statistics of the whole set.
        n_classes: How many classes there are; None: the largest label and one.
        n_shown: How many examples are kept as pictures at either end.
        seconds: Stop after the networks during which so much time ran out.
        seed: Network i has seed + i for weights and order; parts are drawn by it too.
        quiet: Show no progress.

    Returns:
        Scores with intervals, findings, pictures; see `ExampleMemorization`.

    Raises:
        ConfigError: If an option is wrong, or networks cannot be trained together.
        DtypeError: If a factory, a fit function, data or labels are of an unknown kind.
        ShapeError: If logits do not fit the labels, or the loss is no number.
        RangeError: If labels are out of range.
        NonFiniteError: If inputs hold NaN or infinity, or training diverged.
        DataError: If the set is empty or used up.

    Source: Feldman and Zhang 2020, "What neural networks memorize and why: discovering the long tail via influence
        estimation", equation 1 and section 2.

    Example:
        >>> y = torch.arange(60) % 2
        >>> x = torch.randn(60, 30, generator=torch.Generator().manual_seed(0)) + 2.0 * y[:, None]
        >>> y[7] = 0
        >>> fit = SGDFit(epochs=10, batch_size=16)
        >>> found = example_memorization(lambda: nn.Linear(30, 2), fit, (x, y), n_models=40, together=40)
        >>> found.most[0].example
        7
    """
    _check(n_models, share, together, fit, n_shown, seconds)
    watch, fingerprint = Stopwatch(), Fingerprint()
    with training_apart():
        train = collect(data, NAME)
        n = count_classes(labels_of(train), labels_of(train), NAME, n_classes)
        fingerprint.add(train.tensors)
        looked_at = check_factory(make_model, fit, NAME)
        x, _ = normalised(inputs_of(train), inputs_of(train), normalise)
        subsets = _subsets(len(train), n_models, share, seed)
        placed_set = placed(TensorDataset(x, labels_of(train)), looked_at)
        check_output(looked_at, placed_set, n)
        counts = Counts(len(train))
        stopped = _train_all(make_model, fit, placed_set, subsets, counts, (n, together, seed), (seconds, quiet))
        origin = provenance(
            looked_at, watch, seed=seed, data=fingerprint.digest(), n_examples=len(train), stopped=stopped
        )  # fmt: skip
    found = counts.estimates()
    findings, labels = _findings(found, counts, n_models, stopped), tuple(labels_of(train).tolist())
    order = sorted(range(len(found.scores)), key=lambda i: -found.scores[i])
    most, least = (
        shown(inputs_of(train), labels_of(train), rows, [found.caption(i) for i in rows])
        for rows in (order[:n_shown], order[::-1][:n_shown])
    )
    numbers = found.scores, found.low, found.high, found.seen, found.unseen
    return ExampleMemorization(findings, *numbers, labels, counts.n_models, share, most, least, provenance=origin)


def _train_all(
    make_model: Callable[[], nn.Module],
    fit: Fit,
    train: TensorDataset,
    subsets: Tensor,
    counts: Counts,
    options: tuple[int, int, int],
    budget: tuple[float | None, bool],
) -> str:
    (n_classes, together, seed), (seconds, quiet), clock = options, budget, Stopwatch()
    with ExitStack() as stack:
        bar = Bar(NAME, stack, quiet)
        for start in range(0, len(subsets), together):
            if start and seconds is not None and clock.seconds >= seconds:
                return f"seconds={seconds:g}, after {start} of {len(subsets)} networks"
            few = subsets[start : start + together]
            seeds = [seed + start + i for i in range(len(few))]
            for subset, found in zip(few, _predicted(make_model, fit, train, few, seeds, n_classes), strict=True):
                counts.add(subset, found == labels_of(train))
            bar(clock.seconds, (start + len(few)) / len(subsets))
    return ""


def _predicted(
    make_model: Callable[[], nn.Module], fit: Fit, train: TensorDataset, subsets: Tensor, seeds: list[int], n: int
) -> Iterator[Tensor]:
    if len(seeds) > 1 and isinstance(fit, SGDFit):
        networks = Together([fresh(make_model, seed) for seed in seeds], fit, n)
        networks.train(train, subsets.to(inputs_of(train).device), seeds)
        yield from networks.predictions(train)
        return
    for subset, seed in zip(subsets, seeds, strict=True):
        model = fresh(make_model, seed)
        fit(model, TensorDataset(inputs_of(train)[subset], labels_of(train)[subset]), _go_on)
        yield predictions(model, train, labels_of(train), n)[0]


def _go_on(*, steps: int | None = None) -> bool:
    return False


def _subsets(n: int, n_models: int, share: float, seed: int) -> Tensor:
    size = round(share * n)
    if not 0 < size < n:
        raise ConfigError("a part of this set is all or nothing", expected="a share between", got=f"{size} of {n}")
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(n, generator=generator)[:size] for _ in range(n_models)])


def _check(n_models: int, share: float, together: int, fit: object, n_shown: int, seconds: float | None) -> None:
    check_budget(NAME, None, seconds)
    if n_models < 2 or not 0 < share < 1 or together < 1 or n_shown < 0:
        got = f"n_models={n_models}, share={share}, together={together}, n_shown={n_shown}"
        expected = "n_models >= 2, 0 < share < 1, together >= 1, n_shown >= 0"
        raise ConfigError(f"{NAME} got a bad option", expected=expected, got=got)
    if together > 1 and not isinstance(fit, SGDFit):
        hint = "fit=SGDFit(...), or together=1"
        raise ConfigError(
            "a fit function of your own trains one network at a time", got=f"together={together}", hint=hint
        )


def _findings(found: Scores, counts: Counts, n_models: int, stopped: str) -> tuple[Finding, ...]:
    n, sure = len(found.scores), sum(low > MEMORISED for low in found.low)
    guessed = sum(score > MEMORISED for score in found.scores)
    mean = math.fsum(found.scores) / n
    sentences = [
        Finding(
            "note",
            f"On average {mean:.1%} of the labels are known because they were seen. {guessed:,} of {n:,} "
            f"examples score above {MEMORISED}, {sure:,} with their whole interval.",
            found.scores.index(max(found.scores)),
        )
    ]
    if stopped:
        sentences.append(Finding("warning", f"Stopped early ({stopped}): intervals are wider."))
    fewest = int(counts.trials.min())
    if fewest < 5:
        hint = f"more than {n_models} networks, or a share nearer to one half"
        sentences.append(Finding("warning", f"Some examples were in, or left out of, {fewest} networks only: {hint}."))
    return tuple(sentences)

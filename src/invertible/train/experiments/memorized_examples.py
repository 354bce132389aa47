"""Which training examples a network knows by heart: subsampled retraining beside forgetting events."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from invertible.errors import ConfigError
from invertible.instruments import (
    ExampleMemorization,
    Forgetting,
    ForgettingRecorder,
    SGDFit,
    example_memorization,
)
from invertible.instruments.result import Finding, Result, Row
from invertible.train.experiments._images import Labelled, train_and_test
from invertible.train.experiments.memorization import FitConfig, NetConfig, count_classes, factory
from invertible.train.figures import new_figure
from invertible.train.randomness import seeded
from invertible.train.recipe import DataConfig

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass
class ExamplesOptions:
    """Options of `memorized_examples`.

    Args:
        data: Images with labels; the training images are looked at.
        net: Which network.
        n_models: How many are trained on parts of the set. Feldman and Zhang train 4,000.
        share: Which part each sees; theirs is 0.7.
        together: So many are trained as one batched computation; 1 for networks with BatchNorm.
        fit: How they are trained.
        seed: Of parts, weights and orders.
    """

    data: DataConfig = field(default_factory=DataConfig)
    net: NetConfig = field(default_factory=lambda: NetConfig("MLP", "mlp", {"hidden": [64]}))
    n_models: int = 200
    share: float = 0.7
    together: int = 50
    fit: FitConfig = field(default_factory=lambda: FitConfig(epochs=30, batch_size=64))
    seed: int = 0


@dataclass(frozen=True)
class MemorizedExamples(Result):
    """What `memorized_examples` found.

    Args:
        findings: Worst first.
        scores: By subsampled retraining.
        forgetting: In one training on the whole set.
        rank_correlation: Spearman's, between scores and forgetting events (never learned counts as most).
    """

    scores: ExampleMemorization
    forgetting: Forgetting
    rank_correlation: float

    @property
    def table(self) -> list[Row]:
        """One row per example: "score" with its interval, "seen", "unseen", "events", "learned_at"."""
        pairs = zip(self.scores.table, self.forgetting.table, strict=True)
        return [{**score, "events": row["events"], "learned_at": row["learned_at"]} for score, row in pairs]

    @property
    def mean_score(self) -> float:
        """Over all examples: the gap between seen and unseen ones."""
        return self.scores.mean

    @property
    def share_memorised(self) -> float:
        """Share of examples whose score is above 0.25."""
        return sum(score > 0.25 for score in self.scores.scores) / len(self.scores.scores)

    @property
    def pictures(self) -> Mapping[str, Callable[[], Figure]]:
        """The most and least memorised images, and the most and least forgotten."""
        return {"memorised": _figure_of(self.scores.plot), "forgotten": _figure_of(self.forgetting.plot)}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw scores against forgetting events.

        Args:
            ax: Where; None: on a new figure.

        Returns:
            The axes.
        """
        axes = new_figure(6, 4).subplots() if ax is None else ax
        axes.scatter(_hardness(self.forgetting), self.scores.scores, s=6, alpha=0.4)
        title = f"rank correlation {self.rank_correlation:.2f}"
        axes.set(xlabel="forgetting events", ylabel="memorisation score", title=title)
        axes.grid(alpha=0.25)
        return axes


def memorized_examples(options: ExamplesOptions, *, out: Path | None = None, quiet: bool = False) -> MemorizedExamples:
    """Score every training image twice: by what it changes to leave it out, and by how often it is forgotten.

    Args:
        options: What to train, on what.
        out: Where the scores are kept, once they are there.
        quiet: Show no progress.

    Returns:
        Scores, counts and how they agree.

    Source: Feldman and Zhang 2020, "What neural networks memorize and why"; Toneva et al. 2019, "An empirical study of
        example forgetting during deep neural network learning".

    Example:
        >>> few = ExamplesOptions(DataConfig("digits", n_train=60), n_models=8, together=8, fit=FitConfig(epochs=3))
        >>> len(memorized_examples(few, quiet=True).table)
        60
    """
    train, _ = train_and_test(options.data)
    n_classes = count_classes(train)
    make = factory(options.net.name, options.net.arguments, train, n_classes)
    fit = options.fit.sgd(options.net.lr)
    file = None if out is None else out / "scores.json"
    if file is not None and file.exists():
        scores = ExampleMemorization.load(file)
    else:
        scores = example_memorization(
            make, fit, train, n_models=options.n_models, share=options.share, together=options.together,
            n_classes=n_classes, seed=options.seed, quiet=quiet,
        )  # fmt: skip
        if file is not None:
            scores.save(file)
    forgetting = _forgetting(make, fit, train, options.seed)
    agreement = _rank_correlation(torch.tensor(scores.scores), torch.tensor(_hardness(forgetting)).double())
    findings = [replace(finding, row=None) for finding in (*scores.findings, *forgetting.findings)]
    words = f"Scores and forgetting events have a rank correlation of {agreement:.2f}."
    return MemorizedExamples(
        (*findings, Finding("note", words)), scores, forgetting, agreement, provenance=scores.provenance
    )  # fmt: skip


def _forgetting(make: Callable[[], nn.Module], fit: SGDFit, train: Labelled, seed: int) -> Forgetting:
    x, y = train
    x, recorder = (x - x.mean()) / x.std(), ForgettingRecorder(len(y))
    with seeded(torch.device("cpu"), seed):
        model = make().train()
        optimizer = torch.optim.SGD(model.parameters(), fit.lr, momentum=fit.momentum, weight_decay=fit.weight_decay)
        for epoch in range(fit.epochs):
            optimizer.param_groups[0]["lr"] = fit.rate(epoch)
            for rows in fit.batches(len(y)):
                logits = model(x[rows])
                recorder.record(rows, logits.argmax(1) == y[rows])
                optimizer.zero_grad()
                fit.loss(logits, y[rows]).backward()
                optimizer.step()
    return recorder.result(x, y)


def _hardness(found: Forgetting) -> list[int]:
    worst = max(found.events) + 1
    return [events if at else worst for events, at in zip(found.events, found.learned_at, strict=True)]


def _rank_correlation(a: Tensor, b: Tensor) -> float:
    if len(a.unique()) < 2 or len(b.unique()) < 2:
        return 0.0
    from scipy.stats import spearmanr

    return float(spearmanr(a.numpy(), b.numpy())[0])  # pyright: ignore[reportArgumentType]


def _figure_of(plot: Callable[[], Axes]) -> Callable[[], Figure]:
    def draw() -> Figure:
        figure = plot().get_figure(root=True)
        if figure is None:
            raise ConfigError("the picture has no figure", expected="axes on a figure", got="none")
        return figure

    return draw

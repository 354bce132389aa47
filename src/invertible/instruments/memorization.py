"""Can this network learn labels that mean nothing, and what does that cost? The battery of Zhang et al. (2017)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils.data import TensorDataset

from invertible.errors import ConfigError
from invertible.instruments._compare_plot import Curve
from invertible.instruments._memorization_conditions import (
    NAMED,
    Condition,
    Draws,
    Normalisation,
    corrupted,
)
from invertible.instruments._memorization_findings import findings_of
from invertible.instruments._memorization_plot import draw, draw_panels
from invertible.instruments._memorization_rows import Trained, Training
from invertible.instruments._memorization_sets import collect_pair, labels_of
from invertible.instruments._memorization_watch import (
    Watch,
    check_factory,
    check_output,
    fresh,
    placed,
    train_once,
    training_apart,
)
from invertible.instruments.feeding import Bar, check_budget
from invertible.instruments.fitting import Fit
from invertible.instruments.provenance import Fingerprint, Stopwatch, provenance
from invertible.instruments.result import Result, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = "memorization"


@dataclass(frozen=True)
class Memorization(Result):
    """What `memorization` found.

    Args:
        findings: Worst first.
        conditions: In the order in which they were asked for, each with its trainings.
        model: The network's class.
        n_parameters: How many numbers are trained.
        n_classes: How many classes there are.
        fitted_at: Training accuracy that counted as fitted.
        normalise: How inputs were normalised.
        fit: How it was trained.
    """

    conditions: tuple[Trained, ...]
    model: str
    n_parameters: int
    n_classes: int
    fitted_at: float
    normalise: str
    fit: str

    def of(self, name: str) -> Trained:
        """One condition.

        Args:
            name: "true labels", "corrupt(0.5)", "random labels", "shuffled pixels", ...

        Returns:
            Its trainings.

        Raises:
            ConfigError: If it was not measured.
        """
        for found in self.conditions:
            if found.condition.name == name:
                return found
        expected = ", ".join(found.condition.name for found in self.conditions)
        raise ConfigError("no such condition in this result", expected=expected, got=repr(name))

    @property
    def table(self) -> list[Row]:
        """One row per condition; accuracies and times are means over seeds, with the ends of 95 % intervals."""
        return [found.row() for found in self.conditions]

    @property
    def curves(self) -> dict[str, Curve]:
        """Against the share of corrupted labels "test error" and "time to fit"; "loss" at the largest against steps."""
        by_corruption = _by_corruption(self.conditions)
        shares = tuple(found.condition.corruption for found in by_corruption)
        errors = tuple(1 - found.test.mean for found in by_corruption)
        times = tuple(found.epochs_to_fit.mean for found in by_corruption)
        last = by_corruption[-1].trainings[0].moments if by_corruption else ()
        steps, losses = tuple(float(m.steps) for m in last), tuple(m.loss for m in last)
        return {
            "test error": Curve(shares, errors, "share of corrupted labels", "test error"),
            "time to fit": Curve(shares, times, "share of corrupted labels", "epochs to fit"),
            "loss": Curve(steps, losses, "steps", "training loss, nats"),
        }

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw figure 1 of the paper, (a) to (c), and what becomes of mislabelled examples.

        Args:
            ax: Where, for (a) alone; None: all on a new figure.

        Returns:
            The axes, of (a).
        """
        title = f"{self.model}, {self.n_parameters:,} parameters"
        return draw_panels(self.conditions, title) if ax is None else draw(ax, self.conditions)


def memorization(
    make_model: Callable[[], nn.Module],
    fit: Fit,
    data: Any,
    *,
    corruptions: Sequence[float] = (0.25, 0.5, 0.75),
    conditions: Sequence[str] = tuple(NAMED),
    seeds: Sequence[int] = (0,),
    normalise: Normalisation = "global",
    n_classes: int | None = None,
    fitted_at: float = 1.0,
    every: int = 1,
    seconds: float | None = None,
    quiet: bool = False,
) -> Memorization:
    """Train a network on true labels, on labels that mean less and less, and on pixels that do.

    Each condition is drawn once per seed and stays fixed over the epochs; test labels are true in all. For one seed all
    conditions share the first weights, the order of examples and every option. Inputs are normalised after pixels were
    spoilt. The caller's networks, data and random states are left as they are.

    Args:
        make_model: Makes a network with fresh weights; called without arguments. What it makes is trained.
        fit: Trains: `SGDFit(...)`, or a function `fit(model, train, report)`; see `fitting.Fit`.
        data: (train, test): each `(x, y)`, batches of these, a `Dataset`, or a set of ours.
        corruptions: Shares of labels to be drawn anew, beside 0 (true labels) and 1 (random labels).
        conditions: Which of "true labels", "random labels", "shuffled pixels", "random pixels", "gaussian pixels".
        seeds: One training of each condition for each. From two on, intervals are over seeds.
        normalise: "global", "pixel", "image" (as the paper has it) or "none".
        n_classes: How many classes there are; None: the largest label and one.
        fitted_at: Training accuracy, measured in eval mode, at which the network has fitted.
        every: Measure after every so manieth epoch only; times to fit are then multiples of it.
        seconds: Stop after the training during which so much time ran out.
        quiet: Show no progress.

    Returns:
        Per condition time to fit and accuracies with intervals, curves, findings; see `Memorization`.

    Raises:
        ConfigError: If an option is wrong, there is one class only, the factory returns the same network again, or
            `fit` never reports.
        DtypeError: If a factory, a fit function, data or labels are of an unknown kind, or a network gives no logits.
        ShapeError: If shapes differ, logits do not fit the labels, or the loss is no number.
        RangeError: If labels are out of range.
        NonFiniteError: If inputs hold NaN or infinity, or every training diverged (findings tell of one).
        DataError: If a set is empty or used up.

    Source: Zhang, Bengio, Hardt, Recht and Vinyals 2017, "Understanding deep learning requires rethinking
        generalization", section 2; the mislabelled subset after Arpit et al. 2017.

    Example:
        >>> import torch
        >>> from invertible.instruments.fitting import SGDFit
        >>> x = torch.randn(60, 20, generator=torch.Generator().manual_seed(0))
        >>> y = (x[:, 0] > 0).long()
        >>> found = memorization(
        ...     lambda: nn.Sequential(nn.Linear(20, 100), nn.ReLU(), nn.Linear(100, 2)),
        ...     SGDFit(epochs=100, batch_size=10),
        ...     ((x[:30], y[:30]), (x[30:], y[30:])),
        ...     corruptions=(), conditions=("true labels", "random labels"),
        ... )
        >>> [trained.is_fitted for trained in found.conditions]
        [True, True]
    """
    plan = _plan(conditions, corruptions)
    _check_options(seeds, fitted_at, every, seconds)
    watch, fingerprint = Stopwatch(), Fingerprint()
    with training_apart():
        train, test, n = collect_pair(data, NAME, n_classes)
        fingerprint.add([*train.tensors, *test.tensors])
        looked_at = check_factory(make_model, fit, NAME)
        check_output(looked_at, placed(train, looked_at), n)
        sets = train, test, n
        trainings, stopped = _all(make_model, fit, sets, plan, (seeds, normalise, fitted_at, every), (seconds, quiet))
        origin = provenance(
            looked_at, watch, seed=seeds[0], data=fingerprint.digest(), n_examples=len(train), stopped=stopped
        )  # fmt: skip
    found = tuple(Trained(c, len(train), len(test), tuple(trainings[c.name])) for c in plan if trainings[c.name])
    n_parameters = sum(p.numel() for p in looked_at.parameters() if p.requires_grad)
    about = type(looked_at).__name__, n_parameters, n, fitted_at, normalise, _words(fit)
    return Memorization(findings_of(found, n, fitted_at, stopped), found, *about, provenance=origin)


def joined(results: Sequence[Memorization]) -> Memorization:
    """Put parts of one battery together: other conditions, or other seeds of the same.

    Args:
        results: Of one network, fit, data and normalisation.

    Returns:
        A result with the trainings of all, read anew.

    Raises:
        ConfigError: If there are none, or they are of different batteries.
    """
    batteries = {(r.model, r.n_parameters, r.n_classes, r.fitted_at, r.normalise, r.fit) for r in results}
    fingerprints = {r.provenance.data for r in results if r.provenance is not None}
    if len(batteries) != 1 or len(fingerprints) > 1:
        got = f"{len(batteries)} batteries, {len(fingerprints)} data sets"
        raise ConfigError("these results do not belong together", expected="parts of one battery", got=got)
    parts: dict[Condition, list[Trained]] = {}
    for trained in (trained for result in results for trained in result.conditions):
        parts.setdefault(trained.condition, []).append(trained)
    conditions = sorted(parts, key=_place)
    found = tuple(
        replace(parts[c][0], trainings=tuple(t for part in parts[c] for t in part.trainings)) for c in conditions
    )  # fmt: skip
    first, stopped = results[0], next((r.provenance.stopped for r in results if r.provenance and r.is_partial), "")
    return replace(first, findings=findings_of(found, first.n_classes, first.fitted_at, stopped), conditions=found)


def _all(
    make_model: Callable[[], nn.Module],
    fit: Fit,
    sets: tuple[TensorDataset, TensorDataset, int],
    plan: Sequence[Condition],
    options: tuple[Sequence[int], Normalisation, float, int],
    budget: tuple[float | None, bool],
) -> tuple[dict[str, list[Training]], str]:
    (train, test, n_classes), (seeds, normalise, fitted_at, every), (seconds, quiet) = sets, options, budget
    found: dict[str, list[Training]] = {condition.name: [] for condition in plan}
    clock, total = Stopwatch(), len(seeds) * len(plan)
    with ExitStack() as stack:
        bar = Bar(NAME, stack, quiet)
        for done, (seed, condition) in enumerate(_order(seeds, plan)):
            if done and seconds is not None and clock.seconds >= seconds:
                return found, f"seconds={seconds:g}, after {done} of {total} trainings"
            model = fresh(make_model, seed)
            spoilt, tested = (
                placed(s, model) for s in Draws(train, test, n_classes, seed).spoilt(condition, normalise)
            )
            true = labels_of(train).to(labels_of(spoilt).device)
            watch = Watch(model, spoilt, tested, true, n_classes, fitted_at, every)
            try:
                found[condition.name].append(train_once(model, fit, spoilt, watch, seed))
            except Exception as error:
                error.add_note(f"This was the training on {condition.name}, seed {seed}.")
                raise
            bar(clock.seconds, (done + 1) / total)
    return found, ""


def _order(seeds: Sequence[int], plan: Sequence[Condition]) -> Iterator[tuple[int, Condition]]:
    # Seeds outside: what a budget cuts off is seeds, not conditions.
    return ((seed, condition) for seed in seeds for condition in plan)


def _plan(conditions: Sequence[str], corruptions: Sequence[float]) -> list[Condition]:
    unknown = [name for name in conditions if name not in NAMED]
    if unknown or isinstance(conditions, str):
        got = repr(conditions if isinstance(conditions, str) else unknown[0])
        hint = "corrupted labels go into corruptions=(0.5,)"
        raise ConfigError("no such condition", expected="a list of " + ", ".join(NAMED), got=got, hint=hint)
    chosen = [NAMED[name] for name in NAMED if name in conditions] + [corrupted(p) for p in corruptions]
    plan = list({condition.name: condition for condition in chosen}.values())
    if not plan:
        raise ConfigError("memorization got no condition", expected="one or more", got="none")
    return sorted(plan, key=_place)


def _place(condition: Condition) -> tuple[bool, float, int]:
    # True labels, corrupted ones by their share, random labels, then spoilt pixels.
    names = list(NAMED)
    place = names.index(condition.name) if condition.name in names else len(names)
    return condition.pixels != "as they are", condition.corruption, place


def _check_options(seeds: Sequence[int], fitted_at: float, every: int, seconds: float | None) -> None:
    check_budget(NAME, None, seconds)
    if not len(seeds) or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ConfigError("memorization got bad seeds", expected="different whole numbers from 0", got=tuple(seeds))
    if not 0 < fitted_at <= 1 or every < 1:
        got = f"fitted_at={fitted_at}, every={every}"
        raise ConfigError("memorization got a bad option", expected="0 < fitted_at <= 1, every >= 1", got=got)


def _by_corruption(conditions: Sequence[Trained]) -> list[Trained]:
    return [found for found in conditions if found.condition.pixels == "as they are" and found.finished]


def _words(fit: object) -> str:
    # Addresses differ from run to run.
    return str(fit) if type(fit).__str__ is not object.__str__ else getattr(fit, "__qualname__", type(fit).__name__)

"""What the battery tells, in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from invertible.errors import NonFiniteError
from invertible.instruments._estimates import wilson
from invertible.instruments._memorization_conditions import RANDOM, TRUE
from invertible.instruments._memorization_rows import Trained
from invertible.instruments.result import Finding

_Z_LEAK = 3.29  # one false alarm in a thousand, were predictions independent of each other
_MARGIN_LEAK = 0.03  # they are not: images of one class are predicted alike


def findings_of(found: Sequence[Trained], n_classes: int, fitted_at: float, stopped: str) -> tuple[Finding, ...]:
    """Read the conditions.

    Args:
        found: They, in the order of the table.
        n_classes: How many classes there are.
        fitted_at: Training accuracy that counted as fitted.
        stopped: Why it ended early.

    Returns:
        Sentences.

    Raises:
        NonFiniteError: If every training diverged.
    """
    if found and not any(trained.finished for trained in found):
        error = found[0].trainings[0].error
        raise NonFiniteError("every training diverged", got=error, hint="a lower learning rate")
    by_name = {trained.condition.name: (row, trained) for row, trained in enumerate(found)}
    sentences = [*_troubles(found, fitted_at), *_random_labels(by_name, n_classes), *_pixels(by_name)]
    sentences += [*_mislabelled(found), *_remarks(found, stopped)]
    return tuple(sentences)


def _troubles(found: Sequence[Trained], fitted_at: float) -> Iterator[Finding]:
    for row, trained in enumerate(found):
        name = trained.condition.name
        for training in trained.trainings:
            if training.error:
                yield Finding("error", f"{name}, seed {training.seed}: {training.error}", row)
        unfitted = [t.last for t in trained.finished if t.epochs_to_fit is None and t.last is not None]
        if unfitted:
            best, epochs = max(moment.train for moment in unfitted), max(moment.epoch for moment in unfitted)
            how_many = f"{len(unfitted)} of {len(trained.trainings)} trainings"
            yield Finding(
                "warning",
                f"{name}: {how_many} did not reach {fitted_at:.4g} within {epochs} epochs (they came to {best:.4g}); "
                "their time to fit is not known, and means leave them out. More epochs, or a slower decay of the "
                "learning rate, would tell whether the network cannot or was not given the time.",
                row,
            )


def _random_labels(by_name: dict[str, tuple[int, Trained]], n_classes: int) -> Iterator[Finding]:
    if RANDOM not in by_name:
        return
    row, random = by_name[RANDOM]
    if not random.finished:
        return
    _, true = by_name.get(TRUE, (0, None))
    if random.is_fitted:
        yield Finding("note", _fits(random, true, n_classes), row)
    low, _ = wilson(
        random.test.mean * random.n_test * len(random.finished), random.n_test * len(random.finished), _Z_LEAK
    )
    if low > max(random.chance, 1 / n_classes) + _MARGIN_LEAK:
        yield Finding(
            "warning",
            f"Trained on random labels the network is right on {random.test.mean:.1%} of the test set, above the "
            f"{random.chance:.1%} of chance: look for labels that reach it another way.",
            row,
        )


def _fits(random: Trained, true: Trained | None, n_classes: int) -> str:
    text = f"It fits random labels after {random.epochs_to_fit.mean:.3g} epochs"
    if true is not None and true.is_fitted:
        slower = random.epochs_to_fit.mean / true.epochs_to_fit.mean
        text += f", {slower:.1f} times as long as true ones ({true.epochs_to_fit.mean:.3g})"
    text += f", and is then right on {random.test.mean:.1%} of the test set (chance: {1 / n_classes:.1%})."
    if true is not None and true.finished:
        text += f" The same network and training reach {true.test.mean:.1%} with true labels: that it can memorise this"
        text += (
            " set does not keep it from generalising, and no bound that depends on the network alone tells both apart."
        )
    return text


def _pixels(by_name: dict[str, tuple[int, Trained]]) -> Iterator[Finding]:
    random = by_name.get(RANDOM, (0, None))[1]
    for name in ("random pixels", "gaussian pixels"):
        row, trained = by_name.get(name, (0, None))
        if trained is None or random is None or not (trained.is_fitted and random.is_fitted):
            continue
        ours, theirs = trained.epochs_to_fit.mean, random.epochs_to_fit.mean
        word = "sooner than" if ours < theirs else "later than" if ours > theirs else "as soon as"
        yield Finding("note", f"{name} are fitted {word} random labels: {ours:.3g} epochs, {theirs:.3g} there.", row)


def _mislabelled(found: Sequence[Trained]) -> Iterator[Finding]:
    for row, trained in enumerate(found):
        if not 0 < trained.condition.corruption < 1 or math.isnan(trained.wrong_given.mean):
            continue
        best, end = trained.wrong_true_at_best.mean, trained.wrong_true.mean
        yield Finding(
            "note",
            f"{trained.condition.name}: of the mislabelled training examples {trained.wrong_given.mean:.1%} end with "
            f"the label they were given and {end:.1%} with the true one; at the best epoch it was {best:.1%}. "
            f"Test accuracy ends at {trained.test.mean:.1%}.",
            row,
        )


def _remarks(found: Sequence[Trained], stopped: str) -> Iterator[Finding]:
    if stopped:
        yield Finding("warning", f"Stopped early ({stopped}): conditions have fewer seeds, or are missing.")
    if all(len(trained.trainings) < 2 for trained in found):
        hint = "seeds=(0, 1, 2) would give intervals over draws, weights and orders"
        yield Finding("note", f"One training per condition: intervals know of examples only; {hint}.")

"""What one training of the battery showed, and what several of one condition do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from invertible.instruments._estimates import Estimate, over_seeds, share_of
from invertible.instruments._memorization_conditions import Condition
from invertible.instruments.result import Row


@dataclass(frozen=True)
class Moment:
    """The network after an epoch.

    Args:
        epoch: From 1; of the moment after training, the last one.
        steps: Of the optimizer until here.
        loss: Cross-entropy over the training set with the labels that it was given, nats, in eval mode.
        train: Accuracy on them.
        test: Accuracy on the test set, with true labels.
        wrong_given: Accuracy on mislabelled training examples, against the labels that were given; None: none are.
        wrong_true: On the same against the true ones.
    """

    epoch: int
    steps: int
    loss: float
    train: float
    test: float
    wrong_given: float | None
    wrong_true: float | None


@dataclass(frozen=True)
class Training:
    """One network in one condition.

    Args:
        seed: Of the draws, the first weights and the order of examples.
        n_changed: How many training labels are wrong.
        moments: After each epoch.
        last: After training; None: it failed.
        epochs_to_fit: Epochs until the training accuracy reached `fitted_at`; None: it never did.
        steps_to_fit: Likewise.
        seconds: Of wall-clock time.
        chance: Test accuracy of predictions as frequent as these, made regardless of the image; None: it failed.
        error: What went wrong; "": nothing.
    """

    seed: int
    n_changed: int
    moments: tuple[Moment, ...]
    last: Moment | None
    epochs_to_fit: int | None
    steps_to_fit: int | None
    seconds: float
    chance: float | None
    error: str = ""


@dataclass(frozen=True)
class Trained:
    """All trainings of a condition.

    Args:
        condition: Which.
        n_train: Training examples.
        n_test: Test examples.
        trainings: One per seed.
    """

    condition: Condition
    n_train: int
    n_test: int
    trainings: tuple[Training, ...]

    @property
    def finished(self) -> tuple[Training, ...]:
        """Those that did not fail."""
        return tuple(training for training in self.trainings if training.last is not None)

    @property
    def is_fitted(self) -> bool:
        """Whether every seed fitted its labels."""
        return bool(self.trainings) and all(training.epochs_to_fit is not None for training in self.trainings)

    @property
    def epochs_to_fit(self) -> Estimate:
        """Mean over the seeds that fitted."""
        return over_seeds([float(t.epochs_to_fit) for t in self.trainings if t.epochs_to_fit is not None])

    @property
    def steps_to_fit(self) -> Estimate:
        """Mean over the seeds that fitted."""
        return over_seeds([float(t.steps_to_fit) for t in self.trainings if t.steps_to_fit is not None])

    @property
    def train(self) -> Estimate:
        """Final accuracy on the labels that were given."""
        return share_of([moment.train for moment in self.ends], self.n_train)

    @property
    def test(self) -> Estimate:
        """Final accuracy on true test labels."""
        return share_of([moment.test for moment in self.ends], self.n_test)

    @property
    def wrong_given(self) -> Estimate:
        """Final accuracy on mislabelled examples against the labels given: 1 is memorised."""
        return self._of_wrong([moment.wrong_given for moment in self.ends])

    @property
    def wrong_true(self) -> Estimate:
        """Final accuracy on them against the true labels: what the network did not believe."""
        return self._of_wrong([moment.wrong_true for moment in self.ends])

    @property
    def wrong_true_at_best(self) -> Estimate:
        """The same at its highest epoch."""
        epochs = [[m.wrong_true for m in t.moments if m.wrong_true is not None] for t in self.finished]
        return self._of_wrong([max(shares) for shares in epochs if shares])

    @property
    def chance(self) -> float:
        """Mean over the seeds."""
        return over_seeds([t.chance for t in self.finished if t.chance is not None]).mean

    @property
    def ends(self) -> list[Moment]:
        """The network after training, of every seed that did not fail."""
        return [training.last for training in self.trainings if training.last is not None]

    def _of_wrong(self, shares: Sequence[float | None]) -> Estimate:
        known = [share for share in shares if share is not None]
        return share_of(known, self.trainings[0].n_changed)

    def row(self) -> Row:
        """As a row of the table.

        Returns:
            Plain values: means, with the ends of their intervals. "epochs" is how long was trained, fitted or not.
        """
        changed = [t.n_changed / self.n_train for t in self.trainings]
        row: Row = {"condition": self.condition.name, "corruption": self.condition.corruption}
        row |= {"pixels": self.condition.pixels, "changed": over_seeds(changed).mean}
        row |= {"n_seeds": len(self.trainings), "n_fitted": sum(t.epochs_to_fit is not None for t in self.trainings)}
        row["epochs"] = over_seeds([float(moment.epoch) for moment in self.ends]).mean
        for name in ("epochs_to_fit", "steps_to_fit", "train", "test", "wrong_given", "wrong_true"):
            found: Estimate = getattr(self, name)
            row |= {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
        row |= {"wrong_true_at_best": self.wrong_true_at_best.mean, "chance": self.chance}
        row["seconds"] = math.fsum(t.seconds for t in self.trainings)
        return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}

"""How many epochs fit in a given time: a few steps are trained and timed first, and thrown away."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from torch import nn

from invertible.train.prepare import Splits
from invertible.train.recipe import Recipe, ScheduleConfig
from invertible.train.train import Sitting, prepare

N_STEPS = 3  # of a round
MAX_ROUNDS = 50
SHARE = 0.05  # of the time that is asked for goes to measuring


def seconds_per_epoch(recipe: Recipe, seconds: float) -> float:
    """Time rounds of a few training steps and a batch of evaluation, by the loop that trains.

    The rate is a hundredth of the recipe's, so that no step can break. Networks whose cost grows as they learn
    (FFJORD's solver takes more steps) take longer afterwards than this says.

    Args:
        recipe: What would be trained.
        seconds: How long; about a twentieth of it is spent here, or what a few rounds take.

    Returns:
        Seconds that an epoch with its evaluation takes.
    """
    sitting, network = _rehearsal(recipe)
    with tempfile.TemporaryDirectory() as folder:
        small = replace(sitting, folder=Path(folder), splits=_first(sitting))
        trainer = small.trainer(network)
        trainer.options.monitor = None
        evaluation: list[float] = []

        def evaluate(model: nn.Module) -> dict[str, float]:
            start = time.monotonic()
            sitting.task.evaluate(model, small.batches(small.splits.test, is_training=False))
            evaluation.append(time.monotonic() - start)
            return {}

        trainer.fit(evaluate)  # the first of these rounds warms up: compilation, caches
        spent = trainer.progress.seconds
        n_rounds = min(MAX_ROUNDS, math.ceil(seconds * SHARE / max(spent / 2, 1e-6)))
        trainer.options.training = replace(trainer.options.training, epochs=2 + n_rounds)
        history = trainer.fit(evaluate).history
    rounds = [b["seconds"] - a["seconds"] for a, b in pairwise(history)]
    per_batch = statistics.median(evaluation[1:])
    per_step = max(statistics.median(rounds) - per_batch, 0.0) / len(trainer.batches)
    return per_step * _n_batches(sitting, is_training=True) + per_batch * _n_batches(sitting, is_training=False)


def epochs_within(seconds: float, per_epoch: float) -> int:
    """How many epochs come closest to a time.

    Args:
        seconds: The time.
        per_epoch: What one takes.

    Returns:
        At least 1.

    Example:
        >>> epochs_within(20.0, 3.0), epochs_within(1.0, 3.0)
        (7, 1)
    """
    return max(1, round(seconds / max(per_epoch, 1e-9)))


def _rehearsal(recipe: Recipe) -> tuple[Sitting, nn.Module]:
    optimizer = replace(recipe.optimizer, lr=recipe.optimizer.lr / 100)
    training = replace(recipe.training, epochs=2, checkpoint_seconds=math.inf)
    gentle = replace(recipe, optimizer=optimizer, schedule=ScheduleConfig("constant"), training=training)
    accelerator, splits, network, task = prepare(gentle)
    return Sitting(gentle, Path(), splits, task, accelerator, quiet=True), network


def _first(sitting: Sitting) -> Splits:
    # As much as a round takes, the evaluated part under the name of the test data.
    splits, n = sitting.splits, N_STEPS * sitting.recipe.training.batch_size
    evaluated = splits.test if splits.validation is None else splits.validation
    n_evaluated = min(sitting.task.evaluation_batch, len(evaluated))
    train = splits.train.subset(list(range(min(n, len(splits.train)))))
    return replace(splits, train=train, test=evaluated.subset(list(range(n_evaluated))))


def _n_batches(sitting: Sitting, is_training: bool) -> float:
    # A last, smaller batch of an evaluation counts by its size.
    splits = sitting.splits
    if is_training:
        return len(sitting.batches(splits.train, is_training=True))
    evaluated = splits.test if splits.validation is None else splits.validation
    return max(1.0, len(evaluated) / sitting.task.evaluation_batch)

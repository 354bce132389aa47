"""A paper's table, trained: every row with every seed, ours beside the paper's; goes on where it was stopped."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from invertible._console import announce
from invertible._files import read_json, write_json, write_text
from invertible.errors import CheckpointError, ConfigError, InvertibleError
from invertible.train.compare_figure import save_comparison
from invertible.train.compare_result import (
    ComparedFigure,
    ComparedRow,
    ComparedRun,
    Comparison,
    findings_of,
    in_words,
)
from invertible.train.compare_table import RowConfig, TableRecipe, folder_name, read_table_recipe
from invertible.train.compare_time import epochs_within, seconds_per_epoch
from invertible.train.compare_write import RESULT, write_comparison
from invertible.train.read_recipe import read_recipe
from invertible.train.recipe import Recipe
from invertible.train.run import METRICS, RECIPE, read_metrics
from invertible.train.threads import use_threads
from invertible.train.train import resume, train, with_absolute_paths

PLAN = "plan.json"
FREE = ("training.checkpoint_seconds",)  # what may differ in a run that counts as the same


def compare(
    table: TableRecipe | str | Path,
    folder: str | Path,
    seeds: Sequence[int] | None = None,
    overrides: Sequence[str] = (),
    *,
    overwrite: bool = False,
    quiet: bool = False,
) -> Comparison:
    """Train every row of a table with every seed, and put ours beside the paper's.

    Each run is a folder of its own in `folder`, NAME-seedK, and a run like any other. Those that are finished with the
    same recipe are kept, one that was stopped goes on. One that fails is written down with its error, and the others go
    on. After each run table.json, table.csv and table.md are written, and in the end table.png.

    Args:
        table: The table, a shipped one's name or a YAML file.
        folder: Where to; made if needed.
        seeds: Instead of the table's.
        overrides: Of every row's recipe, as on the command line: `["--training.epochs", "1"]`.
        overwrite: Train runs that are there with another recipe again; otherwise they are an error.
        quiet: Show nothing.

    Returns:
        What was found; `.errors` says what failed.

    Raises:
        ConfigError: If table, seeds or overrides are wrong. Nothing is trained then.
        CheckpointError: If the folder holds something else, or runs with another recipe.

    Example:
        >>> import tempfile
        >>> from invertible.train.compare_table import FigureConfig, RowConfig
        >>> rows = [RowConfig("a", "nice/digits"), RowConfig("b", "nice/digits", {"optimizer.lr": 0.01})]
        >>> table = TableRecipe("Two rates", figures=[FigureConfig("test_bits_per_dim")], rows=rows)
        >>> few = ["--training.epochs", "1", "--data.n_train", "64", "--training.threads", "1"]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     compared = compare(table, folder, seeds=[0], overrides=few, quiet=True)
        >>> [row.name for row in compared.rows], compared.errors
        (['a', 'b'], [])
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        hint = "`invertible compare` without torchrun, or `invertible train` for each row"
        raise ConfigError("a comparison runs in one process", expected="WORLD_SIZE 1", got="more", hint=hint)
    table = table if isinstance(table, TableRecipe) else read_table_recipe(table)
    table = table if seeds is None else replace(table, seeds=list(seeds))
    sitting = _Sitting(table, Path(folder), list(overrides), overwrite, quiet)
    sitting.check()
    return sitting.run()


@dataclass(frozen=True)
class _Sitting:
    """A comparison under way."""

    table: TableRecipe
    folder: Path
    overrides: list[str]
    overwrite: bool
    quiet: bool

    def check(self) -> None:
        """Whatever is wrong shows before the first step.

        Raises:
            ConfigError: If seeds or overrides are wrong.
            CheckpointError: If the folder holds something else, or runs with another recipe.
        """
        if any(text.split("=")[0] == "--training.seed" for text in self.overrides):
            raise ConfigError("the seeds of a table", got="--training.seed", hint="--seeds 0,1,2")
        recipes = {row.name: self.table.recipe_of(row, self.overrides) for row in self.table.rows}
        if (self.folder / RECIPE).is_file():
            raise CheckpointError(f"{self.folder} is a run", expected="a folder of its own", hint="another --out")
        self._check_title()
        for row in self.table.rows:
            for seed in self.table.seeds:
                self._check_run(self._folder_of(row, seed), _seeded(recipes[row.name], seed), row)

    def _check_title(self) -> None:
        path = self.folder / f"{RESULT}.json"
        if path.is_file() and (title := Comparison.load(path).title) != self.table.title:
            expected, hint = f"that of {self.table.title!r}", "another --out"
            raise CheckpointError(f"{self.folder} holds another table", expected=expected, got=repr(title), hint=hint)

    def _check_run(self, folder: Path, recipe: Recipe, row: RowConfig) -> None:
        if self.overwrite or not (folder / RECIPE).is_file():
            return
        changed = _changes(read_recipe(folder / RECIPE), recipe)
        if self.table.seconds_of(row, self.overrides) is not None:
            changed.pop("training.epochs", None)
        if changed:
            expected = ", ".join(f"{key}={new}" for key, (_, new) in changed.items())
            got = ", ".join(f"{key}={old}" for key, (old, _) in changed.items())
            hint = "another --out, or --overwrite to train it again"
            raise CheckpointError(f"{folder} was trained with another recipe", expected=expected, got=got, hint=hint)

    def run(self) -> Comparison:
        """Train what is missing.

        Returns:
            The comparison.
        """
        jobs = [(row, seed) for row in self.table.rows for seed in self.table.seeds]
        done: dict[str, list[ComparedRun]] = {row.name: [] for row in self.table.rows}
        began, n_trained, comparison = time.monotonic(), 0, self._collect(done)
        for i, (row, seed) in enumerate(jobs):
            was_there = (self._folder_of(row, seed) / METRICS).is_file()
            spent = time.monotonic() - began
            left = f"; about {_duration(spent / n_trained * (len(jobs) - i))} to go" if n_trained else ""
            self._say(f"[{i + 1}/{len(jobs)}] {row.name}, seed {seed}{left}")
            done[row.name].append(self._one(row, seed))
            n_trained += not was_there
            self._say(f"      {'there already: ' if was_there else ''}{_outcome(done[row.name][-1])}")
            comparison = self._collect(done)
            write_comparison(comparison, self.folder)
        save_comparison(comparison, self.folder / f"{RESULT}.png")
        return comparison

    def _one(self, row: RowConfig, seed: int) -> ComparedRun:
        folder, epochs = self._folder_of(row, seed), None
        try:
            recipe = _seeded(self._planned(row), seed)
            epochs = recipe.training.epochs
            with use_threads(torch.get_num_threads()):  # a row may set its own, and the next shall not inherit them
                metrics = self._train(recipe, folder)
        except InvertibleError as error:
            return ComparedRun(seed, folder.name, epochs, {}, str(error))
        except Exception as error:  # of a row's network, out of memory, ...: the other rows can do without it
            write_text(folder.with_name(f"{folder.name}-error.txt"), traceback.format_exc())
            return ComparedRun(seed, folder.name, epochs, {}, f"{type(error).__name__}: {error}")
        values = {figure.name(): figure.of(metrics) for figure in self.table.figures}
        known = {name: value for name, value in values.items() if value is not None}
        return ComparedRun(seed, folder.name, epochs, known, None)

    def _planned(self, row: RowConfig) -> Recipe:
        # A row's recipe, with the epochs that fit its time: measured once, and then kept for all seeds and sittings.
        recipe = self.table.recipe_of(row, self.overrides)
        seconds = self.table.seconds_of(row, self.overrides)
        if seconds is None:
            return recipe
        plans = self._plans()
        wanted: dict[str, Any] = {"seconds": seconds, "recipe": with_absolute_paths(recipe).to_dict()}
        plan = plans.get(row.name, {})
        if {key: plan.get(key) for key in wanted} != wanted:
            with use_threads(torch.get_num_threads()):
                per_epoch = seconds_per_epoch(recipe, seconds)
            plan = wanted | {"seconds_per_epoch": per_epoch, "epochs": epochs_within(seconds, per_epoch)}
            write_json(self.folder / PLAN, plans | {row.name: plan})
        self._say(f"      {plan['epochs']} epochs of {plan['seconds_per_epoch']:.3g} s in {seconds:g} s")
        return replace(recipe, training=replace(recipe.training, epochs=plan["epochs"]))

    def _plans(self) -> dict[str, Any]:
        return read_json(self.folder / PLAN) if (self.folder / PLAN).is_file() else {}

    def _folder_of(self, row: RowConfig, seed: int) -> Path:
        return self.folder / f"{folder_name(row.name)}-seed{seed}"

    def _collect(self, done: dict[str, list[ComparedRun]]) -> Comparison:
        figures = tuple(ComparedFigure(figure.name(), figure.direction()) for figure in self.table.figures)
        rows = tuple(self._row(row, done[row.name]) for row in self.table.rows)
        conditions = self._conditions(done)
        found, table = findings_of(rows, figures), self.table
        return Comparison(found, table.title, table.paper, figures, rows, table.note, conditions)

    def _row(self, row: RowConfig, runs: list[ComparedRun]) -> ComparedRow:
        paper = {name: float(value) for name, value in row.paper.items()}
        seconds = self.table.seconds_of(row, self.overrides)
        per_epoch = self._plans().get(row.name, {}).get("seconds_per_epoch") if seconds is not None else None
        return ComparedRow(row.name, row.recipe, paper, tuple(runs), seconds, per_epoch)

    def _conditions(self, done: dict[str, list[ComparedRun]]) -> dict[str, str]:
        folders = [self.folder / run.folder for runs in done.values() for run in runs if run.error is None]
        metrics = [read_metrics(folder) for folder in folders]
        keys = ("data", "n_train", "n_test", "hardware", "threads", "torch")
        found = {key: dict.fromkeys(str(m[key]) for m in metrics if key in m) for key in keys}
        overrides = {"overrides": " ".join(self.overrides)} if self.overrides else {}
        return {key: " or ".join(values) for key, values in found.items() if values} | overrides

    def _train(self, recipe: Recipe, folder: Path) -> dict[str, Any]:
        if (folder / RECIPE).is_file() and not _changes(read_recipe(folder / RECIPE), recipe):
            is_finished = (folder / METRICS).is_file()
            return read_metrics(folder) if is_finished else resume(folder, quiet=True)
        for abandoned in folder.glob(".partial-*"):  # by a process that was killed before it had written the recipe
            abandoned.unlink(missing_ok=True)
        return train(recipe, folder, overwrite=self.overwrite, quiet=True)

    def _say(self, text: str) -> None:
        if not self.quiet:
            announce(text)


def _seeded(recipe: Recipe, seed: int) -> Recipe:
    return replace(recipe, training=replace(recipe.training, seed=seed))


def _changes(before: Recipe, now: Recipe) -> dict[str, tuple[Any, Any]]:
    # Keys that differ, with both values; titles do not count.
    old, new = before.to_dict(), with_absolute_paths(now).to_dict()
    pairs = {
        f"{section}.{key}": (old[section].get(key), value)
        for section, values in new.items()
        if isinstance(values, dict)
        for key, value in values.items()
    }
    return {key: (a, b) for key, (a, b) in pairs.items() if a != b and key not in FREE}


def _outcome(run: ComparedRun) -> str:
    if run.error is not None:
        return f"failed: {run.error}"
    return ", ".join(f"{name} {in_words(value)}" for name, value in run.figures.items())


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )

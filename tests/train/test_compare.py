"""Tables: what is read, what is trained, what is kept when it is stopped, what is said when a row fails."""

from __future__ import annotations

import csv
import importlib
import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from invertible._files import write_json
from invertible.errors import CheckpointError, ConfigError, DataError
from invertible.train import InterruptedRun, compare, read_recipe, read_table_recipe, table_names
from invertible.train.compare_result import (
    ComparedFigure,
    ComparedRow,
    ComparedRun,
    Comparison,
    findings_of,
    ranks,
)
from invertible.train.compare_table import FigureConfig, RowConfig, TableRecipe, as_options
from invertible.train.compare_time import seconds_per_epoch
from invertible.train.compare_write import as_markdown, expectation
from invertible.train.run import save_recipe

module = importlib.import_module("invertible.train.compare")  # the function has the module's name

TINY = {"in_shape": [1, 8, 8], "n_classes": 10, "n_blocks": [1], "channels": [4], "strides": [2]}
COMMON = {"data.n_train": 128, "training.epochs": 1, "training.threads": 1, "model.exact": False}


def tiny(**changes: Any) -> TableRecipe:
    """Two rows of tiny networks that train in no time."""
    own = {"model.name": "resnet", "model.arguments": TINY}
    rows = [
        RowConfig("small rate", "irevnet/digits", {**own, "optimizer.lr": 0.001}, {"MNIST loss": 4.36}),
        RowConfig("Large, rate", "irevnet/digits", {**own, "optimizer.lr": 0.05}, {"MNIST loss": 1.06}),
    ]
    figures = [FigureConfig("test_loss"), FigureConfig("n_parameters"), FigureConfig("train_seconds")]
    table = TableRecipe("Two rates", "No paper", figures, rows, [0, 1], dict(COMMON), note="A note.")
    return replace(table, **changes)


def write(folder: Path, content: Any) -> Path:
    path = folder / "table.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def plain(**changes: Any) -> dict[str, Any]:
    """A table as its YAML file has it."""
    rows = [{"name": "a", "recipe": "nice/digits"}, {"name": "b", "recipe": "glow/digits", "paper": {"test loss": 1}}]
    return {"title": "T", "figures": [{"metric": "test_bits_per_dim"}], "rows": rows} | changes


def pretend(monkeypatch: pytest.MonkeyPatch, metrics: dict[str, float]) -> list[str]:
    """Instead of training leave these figures; returns the list of folders that they were left in."""
    trained: list[str] = []

    def train(recipe: Any, folder: Path, **options: Any) -> dict[str, Any]:
        trained.append(folder.name)
        save_recipe(folder, recipe)
        write_json(folder / "metrics.json", metrics)
        return metrics

    monkeypatch.setattr(module, "train", train)
    return trained


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Comparison]:
    folder = tmp_path_factory.mktemp("compare") / "out"
    return folder, compare(tiny(), folder, quiet=True)


# Reading ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", table_names())
def test_a_shipped_table_reads_and_says_where_it_is_from(name: str) -> None:
    table = read_table_recipe(name)
    assert table.title
    assert table.paper
    assert table.columns()
    short = name.replace("/tables/", "/")
    assert read_table_recipe(short) == table


def test_a_table_from_yaml(tmp_path: Path) -> None:
    table = read_table_recipe(write(tmp_path, plain(seconds=3, seeds=[4, 5], overrides={"data.n_train": 7})))
    assert (table.seeds, table.seconds, table.columns()) == ([4, 5], 3, ["test loss"])
    assert table.recipe_of(table.rows[0]).data.n_train == 7


def test_a_recipe_beside_the_table_is_found(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("title: mine\nmodel: {name: nice_digits}\n")
    table = read_table_recipe(write(tmp_path, plain(rows=[{"name": "a", "recipe": "mine.yaml"}])))
    assert table.recipe_of(table.rows[0]).title == "mine"


def test_the_command_line_wins_over_the_row_and_the_row_over_the_table() -> None:
    table = tiny(overrides={"optimizer.lr": 0.5, "optimizer.momentum": 0.5, "data.n_train": 9})
    recipe = table.recipe_of(table.rows[0], ["--data.n_train", "3"])
    assert (recipe.optimizer.lr, recipe.optimizer.momentum, recipe.data.n_train) == (0.001, 0.5, 3)


def test_overrides_of_every_type_arrive() -> None:
    values = {
        "model.arguments.c": 0.5,
        "model.exact": False,
        "optimizer.clip_norm": None,
        "schedule.milestones": [1, 2],
    }
    recipe = read_recipe("irevnet/digits", as_options(values | {"schedule.name": "step", "optimizer.lr": 1e-5}))
    assert recipe.model.arguments == {"c": 0.5}
    assert (recipe.model.exact, recipe.optimizer.clip_norm, recipe.optimizer.lr) == (False, None, 1e-5)
    assert (recipe.schedule.name, recipe.schedule.milestones) == ("step", [1, 2])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (plain(titel="x"), r"unknown key in a table: got 'titel'\. Try: 'title'"),
        (plain(secnds=3), r"unknown key in a table: got 'secnds'\. Try: 'seconds'"),
        (plain(rows=[{"name": "a", "recipee": "b"}]), r"in rows, number 1: got 'recipee'\. Try: 'recipe'"),
        (plain(rows=[{"name": "a"}]), r"missing in a table, in rows, number 1: expected name, recipe, got name"),
        (plain(figures=[{"metrc": "x"}]), r"in figures, number 1: got 'metrc'\. Try: 'metric'"),
        (plain(figures=[{"metric": "x", "show": "kg"}]), r"(?s)figures.*kg.*invertible compare --help"),
        (plain(rows=["a"]), r"rows of a table: expected a list with keys in each"),
        (plain(rows=[]), r"rows of a table is out of range: expected at least one"),
        (plain(figures=[]), r"figures of a table is out of range: expected at least one"),
        (plain(seeds=[]), r"seeds of a table is out of range"),
        (plain(seeds=[1, 1]), r"seeds of a table is out of range: expected each once"),
        (plain(seeds=[-1]), r"seeds of a table is out of range"),
        (plain(seconds=0), r"seconds of a table is out of range: expected above 0"),
        (plain(rows=[{"name": "a", "recipe": "nice/digts"}]), r"row 'a': unknown recipe.*'nice/digits'"),
        (plain(rows=[{"name": n, "recipe": "nice/digits"} for n in ("a b", "A-b")]), r"names of their own.*got a-b"),
        (plain(overrides={"optimizer.lrr": 1}), r"row 'a': unknown key.*'optimizer.lrr'\. Try: 'optimizer.lr'"),
        (plain(overrides={"training.seed": 1}), r"row 'a': set twice: expected the table's seeds to decide"),
        (plain(overrides={"training.epochs": 1}, seconds=2), r"set twice: expected its seconds to decide"),
        ("- 1\n", r"table\.yaml is no table: expected sections and keys, got list"),
        ("rows: [\n", r"table\.yaml is no YAML file"),
    ],
)
def test_a_mistake_in_a_table_is_named(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_table_recipe(write(tmp_path, content))


def test_an_unknown_table() -> None:
    with pytest.raises(ConfigError, match=r"unknown table: .* got 'irevnet/digts'\. Try: 'irevnet/tables/digits'"):
        read_table_recipe("irevnet/digts")


# Training -----------------------------------------------------------------------------------------------------------


def test_every_row_is_trained_with_every_seed(finished: tuple[Path, Comparison]) -> None:
    folder, found = finished
    runs = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert runs == ["large-rate-seed0", "large-rate-seed1", "small-rate-seed0", "small-rate-seed1"]
    assert found.errors == []
    for row in found.rows:
        for seed, run in enumerate(row.runs):
            metrics = json.loads((folder / run.folder / "metrics.json").read_text())
            assert (metrics["seed"], metrics["epochs"]) == (seed, 1)
            assert run.figures["test loss"] == metrics["test_loss"]
    better, worse = found.rows[1].mean("test loss"), found.rows[0].mean("test loss")
    assert better < worse, "fifty times the rate, one epoch"


def test_a_run_is_the_same_as_if_trained_alone(finished: tuple[Path, Comparison], tmp_path: Path) -> None:
    from invertible.train import train

    folder, table = finished[0], tiny()
    train(table.recipe_of(table.rows[1], ["--training.seed", "1"]), tmp_path / "run", quiet=True)
    ours = (folder / "large-rate-seed1" / "model.safetensors").read_bytes()
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == ours


def test_the_files_say_the_same(finished: tuple[Path, Comparison]) -> None:
    folder, found = finished
    assert Comparison.load(folder / "table.json") == found
    rows = list(csv.DictReader((folder / "table.csv").read_text().splitlines()))
    assert [row["row"] for row in rows] == ["small rate", "Large, rate"]
    values = found.rows[0].values("test loss")
    assert float(rows[0]["test loss"]) == pytest.approx(statistics.fmean(values))
    assert float(rows[0]["test loss, standard deviation"]) == pytest.approx(statistics.stdev(values))
    assert rows[0]["paper: MNIST loss"] == "4.36"
    text = (folder / "table.md").read_text()
    assert found.rows[0].shown("test loss") in text
    assert "**1.06**" in text
    for words in ("# Two rates", "No paper", "A note.", "1 of 1 pairs stand in the paper's order", "digits"):
        assert words in text
    with Image.open(folder / "table.png") as picture:
        assert min(picture.size) > 200
    assert not list(folder.glob(".partial*"))


def test_finished_runs_are_kept_and_more_seeds_join(
    finished: tuple[Path, Comparison], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, found = finished
    weights = folder / "small-rate-seed0" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    trained = pretend(monkeypatch, {"test_loss": 2.0})
    again = compare(tiny(), folder, seeds=[0, 2], quiet=True)
    assert weights.stat().st_mtime_ns == before
    assert trained == ["small-rate-seed2", "large-rate-seed2"]
    assert again.rows[0].values("test loss") == [found.rows[0].values("test loss")[0], 2.0]
    assert compare(tiny(), folder, quiet=True) == found


def test_other_overrides_are_refused_unless_told(finished: tuple[Path, Comparison]) -> None:
    words = r"small-rate-seed0 was trained with another recipe: expected data.n_train=64, got data.n_train=128\. Try: "
    with pytest.raises(CheckpointError, match=words):
        compare(tiny(), finished[0], overrides=["--data.n_train", "64"], quiet=True)


def test_overwrite_trains_again_what_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = pretend(monkeypatch, {"test_loss": 1.0})
    table = tiny(rows=tiny().rows[:1], seeds=[0])
    compare(table, tmp_path, quiet=True)
    compare(table, tmp_path, overrides=["--optimizer.lr=0.003"], overwrite=True, quiet=True)
    assert read_recipe(tmp_path / "small-rate-seed0" / "recipe.yaml").optimizer.lr == 0.003
    assert trained == ["small-rate-seed0"] * 2


def test_a_stopped_comparison_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tiny(seeds=[0], overrides=COMMON | {"training.epochs": 2, "training.checkpoint_seconds": 0})
    whole = compare(table, tmp_path / "whole", quiet=True)
    real, calls = torch.optim.SGD.step, iter(range(10**6))

    def step(self: Any, *args: Any, **options: Any) -> Any:
        if next(calls) == 6:  # of two times two steps a run: in the second epoch of the second one
            raise InterruptedRun
        return real(self, *args, **options)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    with pytest.raises(KeyboardInterrupt):
        compare(table, tmp_path / "stopped", quiet=True)
    monkeypatch.setattr(torch.optim.SGD, "step", real)
    partial = Comparison.load(tmp_path / "stopped" / "table.json")
    assert [len(row.runs) for row in partial.rows] == [1, 0]
    assert (tmp_path / "stopped" / "large-rate-seed0" / "checkpoint" / "state.json").is_file()
    first = (tmp_path / "stopped" / "small-rate-seed0" / "metrics.json").stat().st_mtime_ns
    resumed = compare(table, tmp_path / "stopped", quiet=True)
    assert (tmp_path / "stopped" / "small-rate-seed0" / "metrics.json").stat().st_mtime_ns == first
    assert [row.values("test loss") for row in resumed.rows] == [row.values("test loss") for row in whole.rows]


def test_a_row_that_fails_is_recorded_and_the_others_go_on(tmp_path: Path) -> None:
    broken = RowConfig(
        "broken", "irevnet/digits", {"model.name": "resnet", "model.arguments": {**TINY, "n_classes": 3}}
    )
    table = tiny(rows=[broken, tiny().rows[1]], seeds=[0])
    found = compare(table, tmp_path, quiet=True)
    assert len(found.errors) == 1
    assert found.errors[0].startswith("broken, seed 0: ")
    assert found.findings[0].severity == "error"
    assert found.rows[1].values("test loss")
    text = (tmp_path / "table.md").read_text()
    assert "| broken | failed |" in text
    assert found.errors[0].removeprefix("broken, seed 0: ") in text
    assert (tmp_path / "table.png").is_file()


def test_an_error_that_is_not_ours_is_recorded_with_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(recipe: Any, folder: Path, **options: Any) -> dict[str, Any]:
        raise MemoryError("too large")

    monkeypatch.setattr(module, "train", train)
    found = compare(tiny(seeds=[0]), tmp_path, quiet=True)
    assert found.errors == [f"{name}, seed 0: MemoryError: too large" for name in ("small rate", "Large, rate")]
    assert "in train" in (tmp_path / "small-rate-seed0-error.txt").read_text()


def test_the_thread_count_of_one_row_is_not_the_next_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(recipe: Any, folder: Path, **options: Any) -> dict[str, Any]:
        assert torch.get_num_threads() == 1
        torch.set_num_threads(2)
        raise DataError("no data")

    monkeypatch.setattr(module, "train", train)
    found = compare(tiny(seeds=[0]), tmp_path, quiet=True)
    assert [error.split(": ")[1] for error in found.errors] == ["no data", "no data"]
    assert torch.get_num_threads() == 1


def test_a_metric_that_no_run_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"test_nats": 1.0})
    found = compare(tiny(seeds=[0]), tmp_path, quiet=True)
    assert "no run's metrics.json has what 'test loss' asks for" in [f.sentence for f in found.findings]


# Where it may not write ---------------------------------------------------------------------------------------------


def test_nothing_is_mixed(finished: tuple[Path, Comparison]) -> None:
    folder = finished[0]
    with pytest.raises(CheckpointError, match="holds another table: expected that of 'Another', got 'Two rates'"):
        compare(tiny(title="Another"), folder, quiet=True)
    with pytest.raises(CheckpointError, match="is a run: expected a folder of its own"):
        compare(tiny(), folder / "small-rate-seed0", quiet=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seeds": []}, "seeds of a table is out of range"),
        ({"overrides": ["--training.seed", "3"]}, r"seeds of a table: got --training\.seed\. Try: --seeds"),
        ({"overrides": ["--optimizer.lrr", "3"]}, "row 'small rate': unknown key"),
    ],
)
def test_a_mistake_leaves_nothing_behind(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        compare(tiny(), tmp_path / "out", **options, quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_one_process_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="a comparison runs in one process"):
        compare(tiny(), tmp_path, quiet=True)


# Equal time ---------------------------------------------------------------------------------------------------------


def timed(**changes: Any) -> TableRecipe:
    common = {key: value for key, value in COMMON.items() if key != "training.epochs"}
    return tiny(overrides=common, **changes)


def test_epochs_fill_the_time_are_written_down_and_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[float] = []

    def measure(recipe: Any, seconds: float) -> float:
        measured.append(seconds)
        return seconds / (2.0 if recipe.optimizer.lr < 0.01 else 3.4)

    monkeypatch.setattr(module, "seconds_per_epoch", measure)
    pretend(monkeypatch, {"test_loss": 1.0})
    rows = [tiny().rows[0], replace(tiny().rows[1], seconds=7.0)]
    found = compare(timed(seconds=5.0, rows=rows, seeds=[0, 1]), tmp_path, quiet=True)
    assert measured == [5.0, 7.0], "once for all seeds"
    assert [(row.epochs(), row.seconds, row.seconds_per_epoch) for row in found.rows] == [
        (2, 5.0, 2.5),
        (3, 7.0, 7.0 / 3.4),
    ]
    assert read_recipe(tmp_path / "small-rate-seed1" / "recipe.yaml").training.epochs == 2
    again = compare(timed(seconds=5.0, rows=rows, seeds=[0, 1]), tmp_path, quiet=True)
    assert (again, measured) == (found, [5.0, 7.0])


def test_epochs_on_the_command_line_win_over_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"test_loss": 1.0})
    for overrides in (["--training.epochs", "1"], ["--training.epochs=1"]):
        found = compare(timed(seconds=1e6, seeds=[0]), tmp_path, overrides=overrides, quiet=True)
        assert [row.epochs() for row in found.rows] == [1, 1]
    assert not (tmp_path / "plan.json").exists()


def test_a_rehearsal_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table, before = timed(), torch.random.get_rng_state()
    recipe = table.recipe_of(table.rows[1], ["--data.validation_fraction", "0.1"])
    assert 0 < seconds_per_epoch(recipe, 0.1) < 60
    assert list(tmp_path.iterdir()) == []
    assert recipe == table.recipe_of(table.rows[1], ["--data.validation_fraction", "0.1"])
    assert before.shape == torch.random.get_rng_state().shape


# What it tells ------------------------------------------------------------------------------------------------------


def row(name: str, paper: float | None, *values: float) -> ComparedRow:
    runs = tuple(ComparedRun(k, f"{name}-seed{k}", 1, {"test loss": value}, None) for k, value in enumerate(values))
    return ComparedRow(name, "nice/digits", {} if paper is None else {"MNIST": paper}, runs)


BITS = (ComparedFigure("test loss", "smaller"),)


def test_the_papers_order_is_held_against_ours() -> None:
    rows = [row("a", 1.0, 2.0), row("b", 2.0, 3.0), row("c", 3.0, 2.5), row("d", None, 0.0)]
    (finding,) = findings_of(rows, BITS)
    assert (finding.severity, finding.sentence) == (
        "warning",
        "2 of 3 pairs stand in the paper's order of MNIST; not: b and c",
    )
    (close,) = findings_of([row("a", 1.0, 2.0, 3.0), row("b", 2.0, 1.9, 2.9)], BITS)
    assert (close.severity, "within the spread of seeds" in close.sentence) == ("note", True)
    assert findings_of([row("a", 1.0, 2.0)], BITS) == ()


def test_places() -> None:
    assert ranks([2.0, None, 1.0, math.nan, 2.0], "larger") == [1, None, 3, None, 1]
    assert ranks([2.0, 1.0], None) == [None, None]


def test_one_seed_has_no_deviation_and_odd_numbers_do_not_break_the_table() -> None:
    one, odd = row("a", 1.0, 2.0), row("b|[x]", 2.0, math.inf, 1.0)
    assert (one.deviation("test loss"), one.shown("test loss")) == (None, "2")
    assert odd.shown("test loss") == "inf ± nan"
    found = Comparison((), "T", "P", BITS, (one, odd), "", {})
    assert "| b\\|[x] | inf ± nan | 2 | 1 |" in as_markdown(found)
    assert found.plot().get_title() == "ours, 2 seeds\ntest loss"


def test_an_expectation_for_the_next_time(finished: tuple[Path, Comparison]) -> None:
    entry = expectation(finished[1], "invertible compare mine.yaml")
    assert {"data", "seeds", "hardware", "command", "rows"} == set(entry)
    kept = entry["rows"]["small rate"]
    assert set(kept) == {"test loss"}, "not the time, not the size"
    assert kept["test loss"]["ours"] == pytest.approx(finished[1].rows[0].mean("test loss"), rel=1e-3)
    assert kept["test loss"]["tolerance"] >= 0.03 * kept["test loss"]["ours"] - 1e-3

"""Experiments: every shipped one reads, names what exists and runs at its quick size; the mechanism beside them."""

from __future__ import annotations

import functools
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from invertible.cli import main
from invertible.cli._experiment import KEYS
from invertible.errors import CheckpointError, ConfigError
from invertible.instruments import Finding, Result
from invertible.train import experiment_run as module
from invertible.train.catalogue import catalogue
from invertible.train.experiment_figures import find_figure
from invertible.train.experiment_recipe import SoughtFigure, experiment_names, find_experiment, read_experiment
from invertible.train.experiment_run import flat, kept_figures, run_experiment
from invertible.train.experiments import EXPERIMENTS, Experiment, experiment
from invertible.train.figures import new_figure

NAMES = experiment_names()

# what ships ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_registered_experiment_exists_and_takes_what_it_should(name: str) -> None:
    known = experiment(name)
    assert known.options() is not None  # each option has a default
    assert known.about


@functools.cache
def _first() -> set[str]:
    """The first recipe of each kind of experiment, whose files are written as well."""
    lines = {name: re.search(r"^experiment:.*", find_experiment(name).read_text(), re.MULTILINE) for name in NAMES}
    return set({line and line[0]: name for name, line in reversed(lines.items())}.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_experiment_runs_at_its_quick_size(name: str, tmp_path: Path) -> None:
    full = read_experiment(name)
    assert full.title
    assert full.paper
    assert full.figures
    result = _with_files(name, tmp_path) if name in _first() else _without_files(name, tmp_path)
    missing = {s.name: found.missing for s in full.figures if (found := find_figure(s, result, None)).ours is None}
    numbers = {s.name for s in full.figures if any(not isinstance(value, str) for value in s.where.values())}
    unexpected = {k: why for k, why in missing.items() if k not in numbers or not why.startswith("no row")}
    assert unexpected == {}  # a number in `where` may be one of the full size only: an epoch, a width


def _with_files(name: str, folder: Path) -> Result:
    before = torch.get_rng_state()
    report = run_experiment(name, folder, is_quick=True, quiet=True)
    assert torch.equal(torch.get_rng_state(), before)
    pictures = {f"{picture}.png" for picture in report.result.pictures}
    files = {"experiment.json", "picture.png", "report.md", "result.json", "table.csv"} | pictures
    assert {path.name for path in folder.iterdir()} == set(report.files) == files
    read_again = type(report.result).load(folder / "result.json")
    assert read_again.table == report.result.table or _has_nan(report.result)
    return report.result


def _without_files(name: str, folder: Path) -> Result:
    quick = read_experiment(name, is_quick=True)
    with torch.random.fork_rng(devices=[]):
        return experiment(quick.experiment).function(quick.options, out=folder, quiet=True)


def _has_nan(result: Result) -> bool:
    return any(isinstance(value, float) and math.isnan(value) for row in result.table for value in row.values())


@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept_is_of_the_options_that_ship(name: str) -> None:
    beside = find_experiment(name).with_name("expected.json")
    entries = json.loads(beside.read_text()) if beside.is_file() else {}
    entry = entries.get(name.rsplit("/", 1)[1])
    if entry is None:
        return
    assert {"data", "seeds", "hardware", "seconds", "command", "overrides", "options", "figures"} == set(entry)
    recipe = read_experiment(name, entry["overrides"])
    assert set(entry["figures"]) <= {figure.name for figure in recipe.figures}
    assert kept_figures(name, recipe.plain_options()) == entry["figures"], "measure again: the options have changed"


# the mechanism ------------------------------------------------------------------------------------------------------


@dataclass
class TallyOptions:
    """Options."""

    n: int = 3
    fails: bool = False


@dataclass(frozen=True)
class Tally(Result):
    values: tuple[float, ...]

    @property
    def table(self):
        return [{"n": i, "kind": "odd" if i % 2 else "even", "value": v} for i, v in enumerate(self.values)]

    @property
    def total(self) -> float:
        return sum(self.values)

    @property
    def pictures(self):
        return {"more": lambda: new_figure(1, 1)}

    def plot(self, ax=None):
        if self.values[0] < 0:
            raise OSError("no ink")
        return Figure().subplots() if ax is None else ax


def tally(options: TallyOptions, *, out: Path | None = None, quiet: bool = False) -> Tally:
    """Adds up numbers, one file each; told to, it is stopped before the last."""
    assert out is not None
    for i in range(options.n):
        if i == options.n - 1 and (out / "stop").exists():
            raise KeyboardInterrupt
        done = out / f"{i}.txt"
        done.write_text(done.read_text() + "again" if done.exists() else f"{i}")
    values = tuple(float(len((out / f"{i}.txt").read_text())) for i in range(options.n))
    return Tally((Finding("note", "Added up."),), tuple(-v for v in values) if options.fails else values)


RECIPE = """
title: Adding up
paper: Gauss 1787
experiment: tally
options: {n: 3}
figures:
  - {name: total, property: total, paper: 3, within: 0.5, tolerance: 1}
  - {name: even, column: value, where: {kind: even}, of: mean, show: "%"}
about: Nothing.
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(Experiment, "function", property(lambda self: tally))
    monkeypatch.setitem(EXPERIMENTS, "tally", Experiment("tally", "here:tally", "adds up"))
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.delenv("INVERTIBLE_TRACEBACK", raising=False)
    path = tmp_path / "adding.yaml"
    path.write_text(RECIPE)
    return path


def test_files_report_and_what_a_rerun_is_held_to(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, expected = tmp_path / "out", tmp_path / "expected.json"
    command = ["experiment", str(recipe), "--out", str(out)]
    assert main([*command, "--held"]) == 2  # nothing was measured before
    assert "nothing to hold it to" in capsys.readouterr().err
    assert main([*command, "--expect", str(expected)]) == 0
    files = ["experiment.json", "more.png", "picture.png", "report.md", "result.json", "table.csv"]
    assert sorted(path.name for path in out.iterdir()) == files
    text = (out / "report.md").read_text()
    for words in (
        "# Adding up",
        "Gauss 1787",
        "| total | 3 | 3 (the paper's ± 0.5) |",
        "| even | - | 100 % |",
        "Added",
    ):
        assert words in text
    assert main([*command, "--held"]) == 0
    assert "Held: every figure" in capsys.readouterr().out
    entry = json.loads(expected.read_text())
    entry["adding"]["figures"]["total"]["ours"] = 4.5
    expected.write_text(json.dumps(entry))
    assert main([*command, "--held"]) == 2
    printed = capsys.readouterr()
    assert "it did not come out again" in printed.err
    assert "total: 3, measured before 4.5 ± 1" in printed.err
    assert "NOT HELD" in (out / "report.md").read_text()
    assert main([*command, "--held", "--options.n", "2", "--overwrite"]) == 2  # measured with other options
    assert "nothing to hold it to" in capsys.readouterr().err


def test_it_goes_on_where_it_was_stopped(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    (out / "work").mkdir(parents=True)
    (out / "work" / "stop").touch()
    command = ["experiment", str(recipe), "--out", str(out)]
    assert main(command) == 130
    assert "The same command again goes on" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=r"begun with other options: expected n=4, got n=3. Try: another --out"):
        run_experiment(recipe, out, ["--options.n=4"], quiet=True)
    (out / "work" / "stop").unlink()
    assert main(command) == 0
    assert [row["value"] for row in run_experiment(recipe, out, quiet=True).result.table] == [6, 6, 1]  # 0again, ...
    assert run_experiment(recipe, out, overwrite=True, quiet=True).result.table[0]["value"] == 1


def test_overwriting_keeps_the_old_until_there_is_a_new_one(recipe: Path, tmp_path: Path) -> None:
    run_experiment(recipe, tmp_path / "out", quiet=True)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(CheckpointError, match=r"cannot write .*no ink"):
        run_experiment(recipe, tmp_path / "out", ["--options.fails", "true"], overwrite=True, quiet=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()} == before


def test_another_experiment_in_the_folder(recipe: Path, tmp_path: Path) -> None:
    run_experiment(recipe, tmp_path / "out", quiet=True)
    path = tmp_path / "out" / "experiment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"experiment": "other"}))
    with pytest.raises(CheckpointError, match="holds another experiment: expected tally, got other"):
        run_experiment(recipe, tmp_path / "out", quiet=True)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("{n: 3}", "{m: 3}", r"unknown key in an experiment or its overrides: got 'options\.m'"),
        ("{n: 3}", "{n: few}", r"options\.n.*Got value: few"),
        ("{n: 3}", "[3]", r"options is a section of an experiment"),
        ("experiment: tally", "experiment: taly", r"no such experiment: .*got 'taly'\. Try: 'tally'"),
        ("titl", "titel", r"unknown key in an experiment or its overrides: got 'titele'"),
        ("property: total", "propert: total", r"unknown key in an experiment, in figures, number 1: got 'propert'"),
        ("property: total, ", "", r"figure 'total' of an experiment: expected column or property"),
        ("paper: 3", "paper: about 3", r"within at least 0, and paper a number"),
        ("tolerance: 1", "tolerance: -1", r"tolerance at least 0"),
        ("name: even", "name: total", r"names of their own"),
        ("of: mean", "of: median", r"(?s)figures.*median"),
    ],
)
def test_mistakes_in_the_file(recipe: Path, old: str, new: str, words: str) -> None:
    assert old in RECIPE
    recipe.write_text(RECIPE.replace(old, new, 1))
    with pytest.raises(ConfigError, match=words):
        read_experiment(recipe)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--options.m", "1"], "unknown key in an experiment or its overrides: got 'options.m'"),
        (["--quick", "--held"], "a quick run measures nothing"),
        (["--quick", "--expect", "x.json"], "a quick run measures nothing"),
        (["--data-dir", "nowhere"], "no such --data-dir"),
    ],
)
def test_mistakes_on_the_command_line_leave_nothing(
    recipe: Path, tmp_path: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["experiment", str(recipe), "--out", str(tmp_path / "out"), *options]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_unknown_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment", "random_like/spectre"]) == 2
    assert "unknown experiment: expected a YAML file" in capsys.readouterr().err


def test_a_wrong_signature_is_an_error() -> None:
    with pytest.raises(ConfigError, match="another signature"):
        _ = Experiment("x", "registry:experiment", "").function


def test_data_folders_are_no_matter_of_what_is_measured() -> None:
    overrides = ["--options.seed=1", "--options.data.data_dir", "/a", "--options.data.data_dir=/b"]
    assert module._without_places(overrides) == ["--options.seed=1"]
    assert module._command("a/b", overrides, False) == "invertible experiment a/b --options.seed=1 --data-dir FOLDER"
    here = read_experiment("random_like/spectra", overrides[1:3]).plain_options()
    assert here == read_experiment("random_like/spectra").plain_options()
    assert flat(here)["data.name"] == "digits"


# figures ------------------------------------------------------------------------------------------------------------

RESULT = Tally((), (1.0, 0.5, 0.25, math.inf))


@pytest.mark.parametrize(
    ("sought", "ours"),
    [
        ({"column": "value", "where": {"n": 1}}, 0.5),
        ({"column": "value", "where": {"n": 1}, "show": "error %"}, 50.0),
        ({"column": "value", "where": {"kind": "even"}, "of": "mean"}, 0.625),
        ({"column": "value", "where": {"kind": "even"}, "of": "max", "show": "%"}, 100.0),
        ({"column": "value", "of": "min"}, 0.25),
        ({"column": "kind", "where": {"n": 0}}, "even"),
        ({"property": "is_partial"}, False),
        ({"property": "total"}, math.inf),
    ],
)
def test_finding_a_figure(sought: dict, ours: float) -> None:
    found = find_figure(SoughtFigure("a", **sought), RESULT, None)
    assert (found.ours, found.missing, found.is_held, found.is_the_papers) == (ours, "", None, None)


@pytest.mark.parametrize(
    ("sought", "why"),
    [
        ({"column": "vale"}, "no column 'vale', but n, kind, value"),
        ({"column": "value", "where": {"kin": 1}}, "no column 'kin'"),
        ({"column": "value", "where": {"kind": "prime"}}, "no row with kind: prime"),
        ({"column": "value", "where": {"kind": "odd"}}, "2 rows with kind: odd, where one should be"),
        ({"property": "totl"}, "no property 'totl'"),
        ({"property": "values"}, "it is no number, truth value or text, but tuple"),
        ({"property": "provenance"}, "it was not measured"),
    ],
)
def test_a_figure_that_is_not_there_says_why(sought: dict, why: str) -> None:
    found = find_figure(SoughtFigure("a", **sought), RESULT, {"ours": 1.0, "tolerance": 1.0})
    assert found.ours is None
    assert why in found.missing
    assert found.is_held is False  # what was measured before and is gone has not come out again


@pytest.mark.parametrize(
    ("where", "kept", "tolerance", "is_held"),
    [
        ({"n": 1}, 0.6, 0.1, True),
        ({"n": 1}, 0.61, 0.1, False),
        ({"n": 3}, "inf", 0.0, True),
        ({"n": 1}, "inf", 0.0, False),
        ({"n": 3}, 1.0, 0.1, False),
    ],
)
def test_holding_a_figure(where: dict, kept: float | str, tolerance: float, is_held: bool) -> None:
    sought = SoughtFigure("a", column="value", where=where)
    assert find_figure(sought, RESULT, {"ours": kept, "tolerance": tolerance}).is_held is is_held


@pytest.mark.parametrize(("paper", "is_theirs"), [(0.9, False), (0.55, True), ("about 1", None), (None, None)])
def test_the_papers_figure(paper: float | str | None, is_theirs: bool | None) -> None:
    within = 0.1 if isinstance(paper, float) else None
    sought = SoughtFigure("a", column="value", where={"n": 1}, paper=paper, within=within)
    assert find_figure(sought, RESULT, None).is_the_papers is is_theirs


# help and listing ---------------------------------------------------------------------------------------------------


def test_help_lists_experiments_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    for words, told in ((["--help"], "spectra_over_training"), (["random_like/spectra", "--help"], "--options.widths")):
        with pytest.raises(SystemExit):
            main(["experiment", *words])
        assert told in capsys.readouterr().out


def test_the_experiments_in_docs_and_help_can_be_read(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "command_line.md").read_text()
    shown = page.split("```yaml\ntitle: The spectra")[1].split("```")[0]
    helped = KEYS.split("\n\n")[1].replace("# EXPERIMENTS", "")
    for i, text in enumerate((f"title: The spectra{shown}", helped)):
        (tmp_path / f"{i}.yaml").write_text(text)
        assert read_experiment(tmp_path / f"{i}.yaml", is_quick=True).options.widths == [16]


def test_the_catalogue_lists_experiments() -> None:
    entry = next(entry for entry in catalogue("random_like") if entry.kind == "experiment")
    assert entry.name == "random_like/experiments/spectra"
    assert entry.command.startswith("invertible experiment random_like/spectra")
    assert "quarter circle" in entry.theirs

"""`invertible compare` and `invertible recipes`: exit codes, what they print, what they say when something is wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from invertible.cli import main
from invertible.cli._compare import KEYS
from invertible.train import catalogue as module
from invertible.train import read_table_recipe, recipe_names, table_names
from invertible.train.catalogue import catalogue

TABLE = """
title: Two widths
paper: none
figures: [{metric: test_accuracy, show: error %}, {metric: n_parameters}]
overrides: {model.name: resnet, model.exact: false, data.n_train: 100, training.epochs: 1, training.threads: 1}
rows:
  - name: narrow
    recipe: irevnet/digits
    overrides: {model.arguments: {in_shape: [1, 8, 8], n_blocks: [1], channels: [2], strides: [2]}}
    paper: {CIFAR-10 error %: 6.78}
  - name: wide
    recipe: irevnet/digits
    overrides: {model.arguments: {in_shape: [1, 8, 8], n_blocks: [1], channels: [5], strides: [2]}}
    paper: {CIFAR-10 error %: 6.69}
note: Small [networks].
"""


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.delenv("INVERTIBLE_TRACEBACK", raising=False)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tables") / "widths.yaml"
    path.write_text(TABLE)
    return path


def test_compare_and_again(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["compare", str(table), "--out", str(out), "--seeds", "3", "--optimizer.lr=0.02"]) == 0
    printed = capsys.readouterr()
    assert "[1/2] narrow, seed 3" in printed.err
    for words in ("Two widths", "narrow", "wide", "6.78", "test error %", "note: Small [networks].", f"{out}/table.md"):
        assert words in printed.out
    assert "lr: 0.02" in (out / "wide-seed3" / "recipe.yaml").read_text()
    files = sorted(path.name for path in out.iterdir() if path.is_file())
    assert files == ["table.csv", "table.json", "table.md", "table.png"]
    before = (out / "wide-seed3" / "metrics.json").stat().st_mtime_ns
    assert main(["compare", str(table), "--out", str(out), "--seeds", "3", "--optimizer.lr=0.02"]) == 0
    assert (out / "wide-seed3" / "metrics.json").stat().st_mtime_ns == before
    assert "there already: test error %" in capsys.readouterr().err


def test_a_row_that_fails_ends_with_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.yaml").write_text(TABLE.replace("channels: [2]", "channels: [2, 2]"))
    assert main(["compare", str(tmp_path / "t.yaml"), "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    assert "failed" in printed.out
    assert "error: 1 of 2 runs failed: got narrow, seed 0: " in printed.err
    assert "the same command again tries these" in printed.err
    assert (tmp_path / "out" / "wide-seed0" / "metrics.json").is_file()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--seeds", "a"], "seeds are whole numbers: expected --seeds 0,1,2, got 'a'"),
        (["--seeds", ""], "seeds are whole numbers"),
        (["--data-dir", "nowhere"], "no such --data-dir"),
        (["--training.epoch", "1"], "overrides: got 'training.epoch'. Try: 'training.epochs'"),
        (["--training.seed", "1"], "Try: --seeds 0,1,2"),
    ],
)
def test_a_mistake_leaves_nothing_behind(
    table: Path, tmp_path: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(table), "--out", str(tmp_path / "out"), *options]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert words in printed.err
    assert list(tmp_path.iterdir()) == []


def test_the_tables_in_docs_and_help_can_be_read(tmp_path: Path) -> None:
    page = Path(__file__).parents[1] / "docs" / "command_line.md"
    shown = re.search(r"```yaml\n(title: Two learning.*?)```", page.read_text(), re.DOTALL)
    helped = re.search(r"(  title: Two.*?)\n\n", KEYS, re.DOTALL)
    for match, seconds in ((shown, None), (helped, 20)):
        assert match is not None
        (tmp_path / "t.yaml").write_text(match.group(1))
        assert [row.name for row in read_table_recipe(tmp_path / "t.yaml").rows] == ["slow", "fast"]
        assert read_table_recipe(tmp_path / "t.yaml").seconds == seconds


def test_an_unknown_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "realnvp/tables/digit"]) == 2
    assert "unknown table: expected a YAML file or a shipped table" in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("torch.optim.SGD.step", stop)
    assert main(["compare", str(table), "--out", str(tmp_path)]) == 130
    assert "The same command again goes on where it was.\nstopped" in capsys.readouterr().err


# recipes ------------------------------------------------------------------------------------------------------------


def test_recipes_fit_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["recipes"]) == 0
    out = capsys.readouterr().out
    assert max(len(line) for line in out.splitlines()) <= 100
    assert [name for name in [*recipe_names(), *table_names()] if name not in out] == []


def test_all_in_detail_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--all"]) == 0
    out = capsys.readouterr().out
    for entry in catalogue():
        assert entry.command in out
        assert entry.title in out
        assert (entry.status == "measured") == bool(entry.ours)


def test_one_paper(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "realnvp"]) == 0
    out = capsys.readouterr().out
    for words in ("realnvp/digits: ", "2.035 bits/dim", "3.49 CIFAR-10 bits/dim", "invertible compare realnvp/tables"):
        assert words in out
    assert "glow/cifar10" not in out


def test_an_unknown_paper(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "glwo"]) == 2
    assert "no such paper" in capsys.readouterr().err


def test_tables_and_figures_with_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = {"NICE": {"bits/dim": {"ours": 3.0, "deviation": 0.125, "tolerance": 0.1}}}
    entry = {"data": "digits", "seeds": [0, 1], "hardware": "a machine", "command": "a command", "rows": measured}
    figure = {"title": "Folds", "source": "P", "paper": "none", "ours": "3 folds", "command": "c", "about": "1-D"}
    (tmp_path / "realnvp" / "tables").mkdir(parents=True)
    (tmp_path / "realnvp" / "tables" / "expected.json").write_text(json.dumps({"digits": entry}))
    (tmp_path / "realnvp" / "figures.json").write_text(json.dumps({"figure-1": figure}))
    monkeypatch.setattr(module, "ROOT", tmp_path)
    module._expected.cache_clear()
    found = {entry.name: entry for entry in catalogue("realnvp")}
    module._expected.cache_clear()
    digits = found["realnvp/tables/digits"]
    assert (digits.status, digits.command, digits.ours) == ("measured", "a command", "3 bits/dim")
    assert digits.figures[0].ours == "3 ± 0.125 bits/dim"
    assert "seeds 0, 1; a machine" in digits.about
    assert (found["realnvp/figure-1"].kind, found["realnvp/figure-1"].ours) == ("figure", "3 folds")

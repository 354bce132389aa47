"""`invertible measure` and `invertible checkup`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from invertible.cli import main
from invertible.instruments import Result, SignalPropagation

NETS = """
import torch
from torch import nn
from invertible.models import revnet
net = lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
small = lambda: revnet((3, 8, 8), n_blocks=(1, 1), channels=(4, 8), strides=(1, 2))
needy = lambda n: nn.Linear(n, n)
number = lambda: 3
batches = lambda: iter([(torch.ones(4, 3), torch.zeros(4))])
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")


def files(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def test_measure_writes_three_files(capsys: pytest.CaptureFixture) -> None:
    assert main(["measure", "signal_propagation", "some_nets:net", "--data", "16,3"]) == 0
    folder = "measurements/some_nets-net"
    assert files(folder) == [f"signal_propagation.{kind}" for kind in ("csv", "json", "png")]
    found = Result.load(f"{folder}/signal_propagation.json")
    assert isinstance(found, SignalPropagation)
    assert [block.name for block in found.blocks] == ["input of 0", "0", "2"]
    out = capsys.readouterr().out
    assert "note: signal_propagation: The variance goes from" in out
    assert f"Result: {folder}/signal_propagation.json" in out


def test_options_have_the_types_of_the_signature() -> None:
    words = [
        "--layers",
        "[0, 2]",
        "--channel-axis",
        "-1",
        "--unit-gains",
        "--seed",
        "5",
        "--mode=eval",
        "--seconds",
        "9",
    ]
    assert main(["measure", "signal_propagation", "some_nets:net", "--data", "16,3", "--out", "o", *words]) == 0
    about = json.loads(Path("o/signal_propagation.json").read_text())["fields"]["provenance"]
    assert (about["seed"], about["mode"], about["stopped"]) == (5, "eval", "")


@pytest.mark.parametrize("data", ["a.npy", "some_nets:batches"])
def test_data_of_ones_own(data: str) -> None:
    np.save("a.npy", np.ones((4, 3)))
    assert main(["measure", "signal_propagation", "some_nets:net", "--data", data, "--out", "o"]) == 0
    assert Result.load("o/signal_propagation.json").provenance.n_examples == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["signal_prop", "some_nets:net"], "no such instrument"),
        (["signal_propagation", "nowhere"], "expected the folder of a run, or package.module:factory"),
        (["signal_propagation", "some_nets:nt"], "Try: some_nets:net"),
        (["signal_propagation", "no_such_module:nt"], "cannot import 'no_such_module'"),
        (["signal_propagation", "some_nets:needy"], "cannot be called without arguments"),
        (["signal_propagation", "some_nets:number"], "makes no network: expected a torch.nn.Module, got int"),
        (["signal_propagation", "some_nets:net"], "it needs data. Try: --data 16,3,32,32"),
        (["signal_propagation", "some_nets:net", "--data", "digit"], "unknown --data"),
        (["signal_propagation", "some_nets:net", "--data", "b.npy"], "cannot read b.npy"),
        (["signal_propagation", "some_nets:net", "--data", "4,5"], "the network failed on the data: got RuntimeError"),
        (["signal_propagation", "some_nets:net", "--data", "4,3", "--sed", "1"], "unrecognized arguments: --sed"),
        (["signal_propagation", "some_nets:net", "--data", "4,3", "--seed", "x"], "a bad option of the instrument"),
        (["reversibility", "some_nets:net", "--data", "4,3"], "the network has no invertible part"),
    ],
)
def test_mistakes_are_explained(words: list[str], said: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["measure", *words]) == 2
    assert said in capsys.readouterr().err
    assert not Path("measurements").exists()


def test_help_names_the_instruments_options(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["measure", "signal_propagation", "--help"])
    assert "--unit-gains: Measure as if skip gains were one" in capsys.readouterr().out


def test_checkup_runs_what_fits_and_tells_the_worst_first(capsys: pytest.CaptureFixture) -> None:
    assert main(["checkup", "some_nets:small", "--data", "4,3,8,8", "--out", "all"]) == 0
    out = capsys.readouterr().out
    assert {name.split(".")[0] for name in files("all")} >= {"signal_propagation", "reversibility"}
    severities = [line.split(":")[0] for line in out.splitlines() if ":" in line and line.split(":")[0] != "Results"]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)


def test_checkup_leaves_out_what_takes_too_long(capsys: pytest.CaptureFixture) -> None:
    assert main(["checkup", "some_nets:small", "--data", "4,3,8,8", "--out", "all", "--seconds", "0.05"]) == 0
    assert "reversibility: left out, it would take about" in capsys.readouterr().err
    assert not (Path("all") / "reversibility.json").exists()


def test_checkup_without_data_says_what_is_missing(capsys: pytest.CaptureFixture) -> None:
    assert main(["checkup", "some_nets:small"]) == 0
    captured = capsys.readouterr()
    assert "signal_propagation: left out, it needs data" in captured.err
    assert not Path("measurements/some_nets-small/signal_propagation.json").exists()
    assert main(["checkup"]) == 2
    assert main(["checkup", "--list"]) == 0
    assert "reversibility: where an invertible" in capsys.readouterr().out


def test_a_run(capsys: pytest.CaptureFixture) -> None:
    options = ["--training.epochs", "1", "--data.n_train", "64", "--model.exact", "false"]
    assert main(["train", "irevnet/digits", *options, "--out", "run"]) == 0
    assert main(["measure", "signal_propagation", "run", "--batches", "2"]) == 0
    assert "Measured on part of the data: batches=2 of 8" in capsys.readouterr().out
    assert files("run/measurements") == [f"signal_propagation.{kind}" for kind in ("csv", "json", "png")]

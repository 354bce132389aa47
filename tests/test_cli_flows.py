"""The commands for densities: train, evaluate, sample, score, reconstruct."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from invertible.cli import main


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.delenv("INVERTIBLE_TRACEBACK", raising=False)


def _train(folder: Path, recipe: str, model: str, arguments: str, *overrides: str) -> Path:
    options = ["--data.n_train=300", "--training.epochs=1", "--training.threads=1", *overrides]
    model_options = [f"--model.name={model}", f"--model.arguments={arguments}"]
    assert main(["train", recipe, *model_options, *options, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Path:
    arguments = "{n_couplings: 2, hidden: [8]}"
    return _train(tmp_path_factory.mktemp("cli") / "plane", "realnvp/toys", "realnvp_table", arguments)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    arguments = "{in_shape: [1, 8, 8], n_couplings: 2, hidden: [16], n_levels: 17, n_classes: 10}"
    return _train(tmp_path_factory.mktemp("cli") / "digits", "nice/digits", "nice", arguments)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "classifier"
    options = ["--data.n_train=100", "--training.epochs=1", "--out", str(folder)]
    assert main(["train", "irevnet/digits", *options]) == 0
    return folder


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a command fails with."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def says(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a command prints on standard output."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def test_train_and_evaluate(plane: Path, digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = says(capsys, "evaluate", plane)
    assert f"{plane} on its test points" in out
    assert "nats (log-likelihood)" in out
    assert "bits per dim" not in out
    out = says(capsys, "evaluate", digits, "--dtype", "float64")
    for words in ("on its test images", "bits per dim", "pixels equal", "float64"):
        assert words in out


def test_train_says_what_comes_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    _train(tmp_path / "run", "realnvp/toys", "realnvp_table", "{n_couplings: 1, hidden: [4]}", "--data.name=toy/rings")
    out, err = capsys.readouterr()
    assert "toy/rings: 300 training, 2,000 validation, 10,000 test points;" in err
    for words in ("test nats (log-likelihood)", f"Pictures: {tmp_path}/run/density.png", "Next: invertible sample"):
        assert words in out


def test_sample_points(plane: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = says(capsys, "sample", plane, "-n", 30, "--temperature", 0.5, "--save", tmp_path / "s.npy")
    assert f"30 samples at temperature 0.5. Picture: {plane}/sample.png" in out
    assert np.load(tmp_path / "s.npy").shape == (30, 2)
    says(capsys, "sample", plane, "-n", 30, "--temperature", 0.5, "--save", tmp_path / "again.npy")
    assert np.array_equal(np.load(tmp_path / "s.npy"), np.load(tmp_path / "again.npy"))
    says(capsys, "sample", plane, "-n", 30, "--seed", 1, "--save", tmp_path / "other.npy")
    assert not np.array_equal(np.load(tmp_path / "s.npy"), np.load(tmp_path / "other.npy"))


@pytest.mark.parametrize("label", ["3", "three"])
def test_sample_images_of_a_class(label: str, digits: Path, tmp_path: Path, capsys) -> None:
    label = json.loads((digits / "model.json").read_text())["classes"][3] if label == "three" else label
    picture, numbers = tmp_path / "a" / "s.png", tmp_path / "s.npy"
    out = says(capsys, "sample", digits, "-n", 5, "--class", label, "-o", picture, "--save", numbers)
    assert f"Picture: {picture}" in out
    values = np.load(numbers)
    assert values.shape == (5, 1, 8, 8)
    assert np.array_equal(values, values.round())
    with Image.open(picture) as drawn:
        assert drawn.format == "PNG"


def test_score_the_test_data(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = says(capsys, "score", digits, "--draws", 2)
    assert "450 scored, in bits/dim of the even mixture of all classes (larger is more unlikely; mean of 2 draws" in out
    assert "... and 430 more in the table" in out
    with (digits / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 450
    bits = [float(row["bits_per_dim"]) for row in rows]
    assert bits == sorted(bits, reverse=True)
    assert all(float(row["standard_error"]) > 0 for row in rows)
    assert json.loads((digits / "scores.json").read_text())["n_draws"] == 2
    assert (digits / "scores.png").is_file()


def test_score_files(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    Image.new("RGB", (8, 8), (10, 20, 30)).save(tmp_path / "dark.png")
    out = says(capsys, "score", digits, tmp_path, "--class", 0, "--out", tmp_path / "out" / "t.csv")
    assert "2 scored, in bits/dim of class" in out
    assert f"note: {tmp_path}/dark.png: converted from colour to grey; scaled to 0..16" in out
    assert "noise.png" in out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"t.csv", "t.json", "t.png"}


def test_score_points(plane: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.csv").write_text("x,y\n0,0\n100,100\n")
    out = says(capsys, "score", plane, tmp_path / "mine.csv", "--out", tmp_path / "t.csv")
    assert "2 scored, in nats of all data (smaller is more unlikely; one evaluation)" in out
    assert out.index("mine.csv row 1") < out.index("mine.csv row 0"), "the outlier first"


def test_reconstruct_with_a_flow(digits: Path, plane: Path, tmp_path: Path, capsys) -> None:
    out = says(capsys, "reconstruct", digits, "--out", tmp_path / "a.png")
    assert "pixels equal" in out
    assert "yes" in out
    assert (tmp_path / "a.png").is_file()
    Image.new("L", (30, 20), 100).save(tmp_path / "mine.png")
    assert "pixels equal" in says(capsys, "reconstruct", digits, "--image", tmp_path / "mine.png")
    assert "this run has no images" in fails(capsys, "reconstruct", plane)


@pytest.mark.parametrize("command", ["sample", "score"])
def test_a_run_that_is_no_flow(command: str, classifier: Path, tmp_path: Path, capsys) -> None:
    message = fails(capsys, command, classifier)
    assert "this network is no density: expected a Flow, got irevnet_digits, a classifier. Try: train a flow" in message
    assert "nowhere is no run" in fails(capsys, command, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sample", "-n", "0"], "-n or --seed is out of range"),
        (["sample", "--temperature", "-1"], "a bad temperature: expected 0 or more, finite, got -1.0"),
        (["sample", "--class", "1"], "this flow knows no classes: expected no class, got 1. Try: leave --class out"),
        (["sample", "--save", "s.txt"], "expected --save NAME.npy, got s.txt"),
        (["sample", "-o", "s.txt"], "unknown kind of picture"),
        (["score", "--out", "s.txt"], "expected --out NAME.csv, got s.txt"),
        (["score", "--draws", "0"], "--draws is out of range"),
        (["score", "nowhere.csv"], "nowhere.csv: no such file"),
        (["score", "--class", "cat"], "no such class: expected part 0, part 1, got 'cat'"),
    ],
)
def test_options_that_do_not_fit(arguments: list[str], words: str, plane: Path, capsys) -> None:
    command, *rest = arguments
    assert words in fails(capsys, command, plane, *rest)


def test_a_picture_of_another_size(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("L", (28, 28)).save(tmp_path / "big.png")
    message = fails(capsys, "score", digits, tmp_path / "big.png")
    assert "big.png has the wrong size: expected 8x8 pixels, as the run's images, got 28x28. Try: resize it" in message

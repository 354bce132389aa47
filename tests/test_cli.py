"""The command line: help, exit codes, what it prints, and what it says when something is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from invertible.cli import main
from invertible.data import load
from invertible.errors import ConfigError
from invertible.train import recipe_names

COMMANDS = (
    "demo",
    "train",
    "resume",
    "evaluate",
    "reconstruct",
    "sample",
    "score",
    "encode",
    "decode",
    "restore",
    "measure",
    "checkup",
    "compare",
    "recipes",
)


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.delenv("INVERTIBLE_TRACEBACK", raising=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", "irevnet/digits", "--training.epochs", "2", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def rounded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose network rounds."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    options = ["--model.exact", "false", "--data.n_train", "200", "--training.epochs", "1"]
    assert main(["train", "irevnet/digits", *options, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    arguments = "{in_shape: [1, 8, 8], n_blocks: [1, 1], channels: [4, 8], strides: [1, 2]}"
    model, data = f"model: {{name: resnet, arguments: {arguments}}}\n", "data: {n_train: 100}\n"
    (folder / "resnet.yaml").write_text(model + data + "training: {epochs: 1, threads: 1}\n")
    assert main(["train", str(folder / "resnet.yaml"), "--out", str(folder / "run")]) == 0
    return folder / "run"


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a command fails with."""
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


# Help and wrong usage -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"usage: invertible {command}")
    assert err == ""


def test_help_of_all_names_every_command_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert [command for command in COMMANDS if f"invertible {command}" not in text] == []
    assert "INVERTIBLE_TRACEBACK=1" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["train"], "the following arguments are required: RECIPE"),
        (["resume"], "the following arguments are required: RUN"),
        (["evaluate", "run", "--dtype", "float16"], "invalid choice: 'float16'"),
        (
            ["evaluate", "run", "--dtyp", "float64"],
            "unknown arguments: --dtyp float64 (see `invertible evaluate --help`)",
        ),
        (["recipes", "glow", "all"], "unknown arguments: all (see `invertible recipes --help`)"),
        (["demo", "--training.epochs", "3"], "unknown arguments: --training.epochs 3"),
    ],
)
def test_wrong_usage(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    out = capsys.readouterr().out
    assert [name for name in recipe_names() if name not in out] == []


def test_a_real_process_has_the_same_exit_codes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "invertible.cli", "train", "irevnet/digits", "--optimzer.lr", "1"]
    environment = {**os.environ, "COLUMNS": "300"}
    environment.pop("INVERTIBLE_TRACEBACK", None)
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: unknown key in a recipe or its overrides: got 'optimzer.lr'. Try: 'optimizer.lr'\n"
    assert list(tmp_path.iterdir()) == []


def test_a_traceback_for_those_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INVERTIBLE_TRACEBACK", "1")
    with pytest.raises(ConfigError, match="unknown recipe"):
        main(["train", "nosuch"])


def test_ctrl_c_outside_a_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("invertible.cli._recipes", interrupted)
    assert main(["recipes"]) == 130
    assert capsys.readouterr().err == "stopped\n"


# Train --------------------------------------------------------------------------------------------------------------


def test_train_leaves_the_recipe_with_its_overrides(trained: Path) -> None:
    text = (trained / "recipe.yaml").read_text()
    assert "epochs: 2" in text
    assert "lr: 0.05" in text


def test_train_refuses_to_overwrite(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (trained / "model.safetensors").read_bytes()
    message = fails(capsys, "train", "irevnet/digits", "--out", trained)
    assert f"{trained} holds a run already. Try: `invertible resume {trained}` goes on with it, --overwrite" in message
    assert (trained / "model.safetensors").read_bytes() == before


def test_train_overwrites_if_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "irevnet/digits", "--data.n_train=64", "--training.epochs=1", "--out", str(tmp_path)]
    assert main(command) == 0
    assert main([*command, "--overwrite", "--training.seed=3"]) == 0
    assert "seed: 3" in (tmp_path / "recipe.yaml").read_text()


def test_the_default_folder_is_named_after_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "irevnet/digits", "--data.n_train=64", "--training.epochs=1"]) == 0
    assert (tmp_path / "runs" / "irevnet-digits" / "metrics.json").is_file()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--training.epochs", "0"], "training.epochs is out of range: expected at least 1, got 0"),
        (["--model.name", "irevnet_digit"], "Try: 'irevnet_digits'"),
        (["--model.arguments.n_classes", "3"], "model and data disagree: expected 10 logits, got (1, 3)"),
        (
            ["--model.name", "resnet20", "--model.exact", "false"],
            "wrong shape: expected shape (batch, 3, 32, 32), got shape (1, 1, 8, 8)",
        ),
        (["--data.name", "folder"], "folder: no folder: expected data_dir, got None"),
        (["--data.name", "folder", "--data-dir", "nowhere"], "nowhere"),
        (["--training.precision", "float16", "--training.device", "cpu"], "training.precision does not fit the CPU"),
        (["--model.exact", "50"], "a lattice has a bad resolution: expected k from 0 to 40, got 50"),
        (
            ["--model.name", "resnet20"],
            "no argument 'exact': expected n_classes, got 'exact'. Try: --model.exact false",
        ),
        (["stray"], "stray"),
    ],
)
def test_a_bad_recipe_leaves_nothing_behind(
    tmp_path: Path, overrides: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in fails(capsys, "train", "irevnet/digits", *overrides, "--out", tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_breaks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "irevnet/digits", "--optimizer.lr", "1e30", "--out"]
    assert main([*command, str(tmp_path / "plain"), "--model.exact", "false"]) == 2
    assert "error: the loss broke at step 2: expected a finite loss, got nan. Try: a smaller" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "exact")]) == 2
    err = capsys.readouterr().err
    assert "the range in which sums are exact, at step 2: expected absolute values below 64, got NaN" in err
    assert "Try: a smaller learning rate, warm-up, or optimizer.clip_norm; or " in err


def test_an_output_that_cannot_be_written(tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    assert f"cannot write {file}/run" in fails(capsys, "train", "irevnet/digits", "--out", file / "run")
    assert f"cannot write {file}/a.png" in fails(capsys, "reconstruct", trained, "--out", file / "a.png")
    assert file.read_text() == "x"


def test_data_dir_passes_through(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digits, pictures = load("digits"), tmp_path / "pictures"
    for i in range(200):
        folder = pictures / f"class{digits.labels[i]}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[i, 0] * 15).numpy()).save(folder / f"{i}.png")
    overrides = ["--data.name=folder", "--data.size=8", "--training.epochs=1"]
    run = tmp_path / "run"
    assert main(["train", "irevnet/digits", *overrides, "--data-dir", str(pictures), "--out", str(run)]) == 0
    assert f"data_dir: {pictures}" in (run / "recipe.yaml").read_text()
    assert main(["evaluate", str(run)]) == 0
    first = capsys.readouterr().out.split(f"{run} on its test images\n", 1)[1]
    pictures.rename(tmp_path / "moved")
    assert str(pictures) in fails(capsys, "evaluate", run)
    assert main(["evaluate", str(run), "--data-dir", str(tmp_path / "moved")]) == 0
    assert first in capsys.readouterr().out
    assert main(["reconstruct", str(run), "--data-dir", str(tmp_path / "moved")]) == 0


# Runs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["evaluate", "reconstruct", "resume"])
def test_no_run(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, command, tmp_path / "nowhere")
    assert (
        "nowhere is no run: expected the folder of a run, got no such folder. Try: `invertible train RECIPE" in message
    )
    assert "got a folder without recipe.yaml" in fails(capsys, command, tmp_path)


@pytest.mark.parametrize("command", ["evaluate", "reconstruct"])
def test_a_run_without_weights(command: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text((trained / "recipe.yaml").read_text())
    assert f"no weights: expected the file {tmp_path}/model.safetensors" in fails(capsys, command, tmp_path)


def test_evaluate(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(trained)]) == 0
    out = capsys.readouterr().out
    for words in ("accuracy", "loss", "reconstruction max abs error", "reconstruction n", "450", "float32"):
        assert words in out
    for dtype in ("float32", "float64"):
        assert main(["evaluate", str(trained), "--dtype", dtype]) == 0
        rows = {cells[1].strip(): cells[2].strip() for cells in _rows(capsys.readouterr().out)}
        assert (rows["reconstruction max abs error"], rows["bit-exact"]) == ("0", "yes")


def test_evaluate_a_network_that_is_not_exact(rounded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for dtype, low, high in (("float32", 1e-8, 1e-4), ("float64", 0, 1e-13)):
        assert main(["evaluate", str(rounded), "--dtype", dtype]) == 0
        rows = {cells[1].strip(): cells[2].strip() for cells in _rows(capsys.readouterr().out)}
        assert low < float(rows["reconstruction max abs error"]) < high
        assert rows["bit-exact"] == "no"


def _rows(out: str) -> list[list[str]]:
    return [line.split("│") for line in out.splitlines() if "│" in line]


def test_reconstruct_the_test_images(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reconstruct", str(trained), "--out", str(tmp_path / "a.png")]) == 0
    assert f"picture: {tmp_path}/a.png" in capsys.readouterr().out
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG"
    assert main(["reconstruct", str(trained)]) == 0
    assert f"picture: {trained}/reconstruction.png" in capsys.readouterr().out


RANDOM = np.random.default_rng(0)
PICTURES = {
    "grey.png": (Image.fromarray(RANDOM.integers(0, 256, (8, 8), dtype=np.uint8)), "scaled to 0..16"),
    "colour.png": (
        Image.fromarray(RANDOM.integers(0, 256, (8, 8, 3), dtype=np.uint8)),
        "converted from colour to grey",
    ),
    "big.jpg": (
        Image.fromarray(RANDOM.integers(0, 256, (600, 900, 3), dtype=np.uint8)),
        "cut to its centre 600x600 of 900x600",
    ),
    "tiny.png": (Image.new("L", (1, 1), 128), "resized from 1x1 to 8x8"),
    "deep.png": (Image.fromarray(RANDOM.integers(0, 65536, (8, 8), dtype=np.uint16)), "scaled from 16 to 8 bits"),
    "clear.png": (Image.fromarray(RANDOM.integers(0, 256, (8, 8, 4), dtype=np.uint8)), "transparency put on black"),
    "palette.gif.png": (Image.new("P", (9, 9), 3), "resized from 9x9 to 8x8"),
    "white.png": (Image.new("L", (8, 8), 255), "scaled to 0..16"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_reconstruct_any_picture(name: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture, note = PICTURES[name]
    picture.save(tmp_path / name)
    out = tmp_path / "out" / "back.png"
    assert main(["reconstruct", str(trained), "--image", str(tmp_path / name), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "note: " in text
    assert note in text
    row = next(line for line in text.splitlines() if "max abs error" in line)
    assert float(row.split("│")[2]) == 0
    assert "│ bit-exact" in text
    with Image.open(out) as drawn:
        drawn.load()


def test_no_picture(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_text("no picture")
    assert "a.png: not a readable image" in fails(capsys, "reconstruct", trained, "--image", tmp_path / "a.png")
    assert "b.png: no such file" in fails(capsys, "reconstruct", trained, "--image", tmp_path / "b.png")
    assert "no such file" in fails(capsys, "reconstruct", trained, "--image", tmp_path)


def test_a_resnet_evaluates_and_says_that_it_cannot_reconstruct(
    resnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(resnet)]) == 0
    out = capsys.readouterr().out
    assert "accuracy" in out
    assert "reconstruction" not in out
    message = "this network cannot reconstruct: expected a Classifier, got resnet, which drops information on its way"
    assert message in fails(capsys, "reconstruct", resnet)
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    assert message in fails(capsys, "reconstruct", resnet, "--image", tmp_path / "a.png")
    assert not (resnet / "reconstruction.png").exists()


def test_the_next_steps_fit_the_network(resnet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", str(resnet)]) == 0
    out = capsys.readouterr().out
    assert f"Next: invertible evaluate {resnet}" in out
    assert "reconstruct" not in out


def test_resuming_a_finished_run_reports_it_again(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (trained / "model.safetensors").read_bytes()
    assert main(["resume", str(trained)]) == 0
    assert f"All figures: {trained}/metrics.json" in capsys.readouterr().out
    assert (trained / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("name", ["x.txt", "x", "."])
def test_reconstruct_refuses_a_place_that_is_no_picture(trained: Path, tmp_path: Path, capsys, name: str) -> None:
    assert main(["reconstruct", str(trained), "--out", str(tmp_path / name)]) == 2
    assert "unknown kind of picture" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_reconstruct_never_replaces_the_user_s_picture(trained: Path, tmp_path: Path, capsys) -> None:
    photo = tmp_path / "photo.png"
    Image.new("L", (20, 20), 99).save(photo)
    before = photo.read_bytes()
    assert main(["reconstruct", str(trained), "--image", str(photo), "--out", str(photo)]) == 2
    assert "would replace --image" in capsys.readouterr().err
    assert photo.read_bytes() == before


def test_demo_replaces_only_a_demo(trained: Path, capsys) -> None:
    before = (trained / "recipe.yaml").read_text()
    (trained / "recipe.yaml").write_text(before.replace("title: ", "title: my own "))
    assert main(["demo", "--out", str(trained)]) == 2
    assert "holds a run already" in capsys.readouterr().err
    (trained / "recipe.yaml").write_text(before)


def test_a_data_dir_that_is_not_there(trained: Path, capsys) -> None:
    assert main(["evaluate", str(trained), "--data-dir", "/nowhere/at/all"]) == 2
    assert "no such --data-dir" in capsys.readouterr().err


# Encode and decode --------------------------------------------------------------------------------------------------


def test_a_picture_through_the_network_and_back(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = RANDOM.integers(0, 256, (31, 45, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    z, back = tmp_path / "new" / "z.safetensors", tmp_path / "other" / "back.png"
    assert main(["encode", str(trained), str(tmp_path / "a.png"), "-o", str(z)]) == 0
    out = capsys.readouterr().out
    assert f"{tmp_path}/a.png: 45x31 RGB, 72 tiles, 4,608 whole numbers" in out
    assert f"decoded again: every pixel the same. Encoding: {z}" in out
    assert main(["decode", str(trained), str(z), "--out", str(back)]) == 0
    assert f"45x31 RGB, every pixel as it was encoded. Picture: {back}" in capsys.readouterr().out
    with Image.open(back) as picture:
        assert np.array_equal(np.array(picture), pixels)


def test_what_was_changed_without_loss_is_said(trained: Path, tmp_path: Path, capsys) -> None:
    Image.new("P", (4, 4), 3).save(tmp_path / "a.png")
    assert main(["encode", str(trained), str(tmp_path / "a.png"), "-o", str(tmp_path / "z.safetensors")]) == 0
    assert "note: converted from mode P to RGB, all colours kept" in capsys.readouterr().out


def test_encode_says_what_a_network_must_be(trained, rounded, resnet, tmp_path: Path, capsys) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    z = tmp_path / "z.safetensors"
    message = fails(capsys, "encode", rounded, tmp_path / "a.png", "-o", z)
    assert "would lose bits: expected an exact network, got irevnet_digits in plain floating point" in message
    assert "trained with --model.exact true" in message
    assert "this network cannot reconstruct" in fails(capsys, "encode", resnet, tmp_path / "a.png", "-o", z)
    assert "is no run" in fails(capsys, "encode", tmp_path / "no", tmp_path / "a.png", "-o", z)
    assert "b.png: no such file" in fails(capsys, "encode", trained, tmp_path / "b.png", "-o", z)
    assert not z.exists()


def test_encode_replaces_encodings_only(trained: Path, tmp_path: Path, capsys) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    weights = trained / "model.safetensors"
    before = weights.read_bytes()
    message = fails(capsys, "encode", trained, tmp_path / "a.png", "-o", weights)
    assert f"{weights} is there, and no encoded picture. Try: another --out" in message
    assert weights.read_bytes() == before
    assert "expected NAME.safetensors" in fails(capsys, "encode", trained, tmp_path / "a.png", "-o", tmp_path / "z")
    z = tmp_path / "z.safetensors"
    for _ in range(2):
        assert main(["encode", str(trained), str(tmp_path / "a.png"), "-o", str(z)]) == 0


@pytest.mark.parametrize("name", ["back.jpg", "back", "back.webp"])
def test_decode_writes_formats_that_lose_nothing(trained: Path, tmp_path: Path, capsys, name: str) -> None:
    message = fails(capsys, "decode", trained, tmp_path / "z.safetensors", "-o", tmp_path / name)
    assert "every pixel is to be kept: expected a PNG or TIFF file" in message
    assert list(tmp_path.iterdir()) == []


def test_decode_wrong_files(trained: Path, tmp_path: Path, capsys) -> None:
    back = tmp_path / "back.png"
    assert "no such file: expected an encoded picture" in fails(
        capsys, "decode", trained, tmp_path / "z.safetensors", "-o", back
    )
    assert "is no encoded picture" in fails(capsys, "decode", trained, trained / "model.safetensors", "-o", back)
    assert not back.exists()

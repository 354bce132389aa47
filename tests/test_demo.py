"""`make demo`'s command, as a user runs it: its figures, its files, and what it says comes next."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

KEYS = {
    *("test_accuracy", "test_loss", "reconstruction_max_abs_error", "reconstruction_mean_abs_error"),
    *(
        "reconstruction_n",
        "reconstruction_dtype",
        "bit_exact",
        "n_parameters",
        "train_seconds",
        "seconds_per_epoch",
        "best_epoch",
    ),
    *("n_train", "n_test", "seed", "epochs", "data", "data_fingerprint", "threads", "hardware", "torch", "python"),
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess]:
    folder = tmp_path_factory.mktemp("demo") / "out"
    script = Path(sys.executable).with_name("invertible")
    command = [str(script)] if script.is_file() else [sys.executable, "-m", "invertible.cli"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [*command, "demo", "--out", str(folder)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder, done


def test_figures(demo: tuple[Path, subprocess.CompletedProcess]) -> None:
    metrics = json.loads((demo[0] / "metrics.json").read_text())
    assert metrics.keys() == KEYS
    assert metrics["test_accuracy"] >= 0.975
    assert metrics["bit_exact"] is True
    assert metrics["reconstruction_max_abs_error"] == metrics["reconstruction_mean_abs_error"] == 0
    assert (metrics["reconstruction_n"], metrics["n_train"], metrics["n_test"]) == (450, 1347, 450)
    assert metrics["reconstruction_dtype"] == "float32"
    assert metrics["best_epoch"] == metrics["epochs"]


def test_files(demo: tuple[Path, subprocess.CompletedProcess]) -> None:
    folder, _ = demo
    with (folder / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == list(range(1, len(rows) + 1))
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"]) / 10
    for name in ("curves.png", "reconstruction.png"):
        with Image.open(folder / name) as picture:
            picture.load()
            assert picture.format == "PNG"
    metrics = json.loads((folder / "metrics.json").read_text())
    weights = load_file(folder / "model.safetensors")
    n = sum(w.numel() for name, w in weights.items() if "running" not in name and "num_batches" not in name)
    assert n == metrics["n_parameters"]


def test_what_it_prints(demo: tuple[Path, subprocess.CompletedProcess]) -> None:
    folder, done = demo
    metrics = json.loads((folder / "metrics.json").read_text())
    for words in (
        f"{metrics['test_accuracy']:.4g}",
        "│ reconstruction max abs error  │ 0       │",
        "│ bit-exact                     │ yes     │",
        f"All figures: {folder}/metrics.json",
        f"curves: {folder}/curves.png",
        f"Originals beside their reconstructions: {folder}/reconstruction.png",
        f"Next: invertible evaluate {folder}",
        f"invertible reconstruct {folder} --image PICTURE",
    ):
        assert words in done.stdout
    assert "epoch 1  lr" in done.stderr, "progress goes to standard error"
    assert "Warning" not in done.stderr
    assert "Traceback" not in done.stderr

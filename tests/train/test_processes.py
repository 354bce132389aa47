"""Real training processes: killed at random moments, interrupted, and two of them under torchrun."""

from __future__ import annotations

import csv
import json
import os
import random
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

# Everything that makes exactness hard: BatchNorm, dropout, augmentation, momentum, averaged weights, a schedule.
RECIPE = """
title: small, with everything that remembers
model:
  name: irevnet
  arguments: {in_shape: [1, 8, 8], n_blocks: [1, 1], strides: [2, 2], channels: null, hidden: [8, 8],
              init_squeeze: 2, dropout: 0.2}
data: {name: digits, crop: 1, flip: true, validation_fraction: 0.2, n_train: 480}
optimizer: {lr: 0.05, nesterov: true}
schedule: {warmup_epochs: 0.5}
training: {epochs: 5, batch_size: 8, ema: 0.9, threads: 1, checkpoint_seconds: 0.02}
"""
STEPS_PER_EPOCH, N_STEPS = 60, 300
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def start(*arguments: object) -> subprocess.Popen:
    """`invertible ARGUMENTS` in a process group of its own, so that its test can end all of it."""
    command = [sys.executable, "-m", "invertible.cli", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, env=ENVIRONMENT, **pipes)


def finish(process: subprocess.Popen) -> str:
    """The output of a process that has to succeed."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def saved_step(folder: Path) -> int:
    """How far the state on disk is; 0 if there is none."""
    try:
        return json.loads((folder / "checkpoint" / "state.json").read_text())["step"]
    except FileNotFoundError:
        return 0


def wait_for_step(process: subprocess.Popen, folder: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while saved_step(folder) < step:
        assert process.poll() is None, f"the run ended before step {step}: {process.communicate()[1]}"
        assert time.monotonic() < deadline, f"no step {step} within two minutes"
        time.sleep(0.001)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor a run leaves: weights to keep, and model, average and optimiser of the last checkpoint."""
    states = list((folder / "checkpoint").iterdir())
    names = sorted(path.name for path in states)
    assert names == [f"state-{N_STEPS:09d}.safetensors", "state.json"], "something was left behind"
    kept = {f"kept/{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    return kept | load_file(folder / "checkpoint" / names[0])


def history_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open() as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def assert_same_run(folder: Path, reference: Path) -> None:
    tensors, wanted = tensors_of(folder), tensors_of(reference)
    assert tensors.keys() == wanted.keys()
    different = [name for name, tensor in tensors.items() if not torch.equal(tensor, wanted[name])]
    assert different == []
    assert history_of(folder) == history_of(reference)
    seconds = ("train_seconds", "seconds_per_epoch")
    metrics, expected = (json.loads((path / "metrics.json").read_text()) for path in (folder, reference))
    assert {k: v for k, v in metrics.items() if k not in seconds} == {
        k: v for k, v in expected.items() if k not in seconds
    }


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def reference(recipe: Path) -> Path:
    """The same run, never stopped."""
    folder = recipe.with_name("reference")
    finish(start("train", recipe, "--out", folder))
    return folder


def test_the_run_has_all_that_makes_exactness_hard(reference: Path) -> None:
    names = tensors_of(reference)
    for part in ("kept/", "objective/model.", "average/module.", "optimizer/", "running_mean", "momentum_buffer"):
        assert any(part in name for name in names), part
    assert len(history_of(reference)) == N_STEPS // STEPS_PER_EPOCH
    assert "validation_accuracy" in history_of(reference)[0]


def test_killed_five_times_and_resumed_is_as_if_never_killed(recipe: Path, reference: Path, tmp_path: Path) -> None:
    chance, folder, stopped_at = random.Random(0), tmp_path / "run", []
    moments = sorted(chance.sample(range(5, N_STEPS - 60), 5))
    for i, moment in enumerate(moments):
        process = start("resume", folder) if i else start("train", recipe, "--out", folder)
        wait_for_step(process, folder, max(moment, saved_step(folder) + 1))
        time.sleep(chance.uniform(0, 0.03))  # the kill may fall between steps, inside one, or while files are written
        process.kill()
        assert process.wait() == -signal.SIGKILL
        process.communicate()
        stopped_at.append(saved_step(folder))
    assert stopped_at == sorted(set(stopped_at)), "each sitting got further"
    assert sum(step % STEPS_PER_EPOCH != 0 for step in stopped_at) >= 3, f"too few kills fell mid-epoch: {stopped_at}"
    finish(start("resume", folder))
    assert_same_run(folder, reference)


def test_ctrl_c_and_sigterm_save_the_run_and_tell_how_to_go_on(recipe: Path, reference: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    sittings = [(signal.SIGINT, 33, ("train", recipe, "--out", folder)), (signal.SIGTERM, 155, ("resume", folder))]
    for number, step, arguments in sittings:
        process = start(*arguments)
        wait_for_step(process, folder, step)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert f"Saved. Go on with:  invertible resume {folder}" in err
        assert "Traceback" not in out + err
        assert step <= saved_step(folder) < N_STEPS
        assert not (folder / "metrics.json").exists()
    finish(start("resume", folder))
    assert_same_run(folder, reference)


def test_resuming_a_finished_run_changes_nothing(reference: Path, tmp_path: Path) -> None:
    before = tensors_of(reference)
    assert "All figures" in finish(start("resume", reference))
    after = tensors_of(reference)
    assert all(torch.equal(after[name], before[name]) for name in before)


# A program of a user's own, for torchrun and for a plain process.
SCRIPT = """
import atexit, json, sys
from pathlib import Path
import torch
from torch import nn
from invertible.chain import Chain
from invertible.data import Batches, load
from invertible.layers import AdditiveCoupling
from invertible.models import Classifier
from invertible.train import Classification, FitOptions, Trainer, evaluate_classifier
from invertible.train.loop import make_accelerator
from invertible.train.recipe import OptimizerConfig, ScheduleConfig, TrainingConfig

def residual():
    return nn.Sequential(nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 32))

def run(folder, epochs, micro_batches=1, lr=0.1):
    torch.manual_seed(0)
    couplings = [AdditiveCoupling(residual(), target=t) for t in ("second", "first", "second")]
    model = nn.Sequential(nn.Flatten(), Classifier(Chain(*couplings), nn.Linear(64, 10)))
    optimizer, schedule = OptimizerConfig("sgd", lr, 0.9), ScheduleConfig("constant")
    training = TrainingConfig(epochs, 20, micro_batches, threads=1)
    accelerator = make_accelerator(training)
    rank, ranks = accelerator.process_index, accelerator.num_processes
    share = {"rank": rank, "world_size": ranks, "device": accelerator.device}
    train = Batches(load("digits").subset(range(107)), 20, seed=3, drop_last=True, **share)  # 5 steps and 7 images
    test = Batches(load("digits", "test").subset(range(103)), 50, shuffle=False, **share)
    own = Path(folder) / f"rank{rank}of{ranks}"
    options = FitOptions(optimizer, schedule, training, own, quiet=True)
    trainer = Trainer(Classification(model), train, options, accelerator)

    def reduce(sums):
        return torch.as_tensor(accelerator.reduce(sums, "sum"))

    def evaluate(model):
        return {f"test_{k}": v for k, v in evaluate_classifier(model, test, reduce).items()}

    progress = trainer.fit(evaluate, lambda model, row, is_best: None)
    weights = {name: w.detach().flatten().double().tolist() for name, w in model.named_parameters()}
    report = {"rank": rank, "ranks": ranks, "weights": weights, "history": progress.history}
    (Path(folder) / f"report{rank}of{ranks}.json").write_text(json.dumps(report))

def tell_what_is_left():
    threads = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]  # none but on Linux
    left = sum("gloo" in name for name in threads)
    sys.stdout.write(f"group: {torch.distributed.is_initialized()}, threads of it: {left}\\n")

if __name__ == "__main__":
    atexit.register(tell_what_is_left)  # runs last
    run(sys.argv[1], 2)
    run(sys.argv[2], 1, micro_batches=3, lr=0.3)
"""


def torchrun(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, env=ENVIRONMENT, timeout=200, check=False
    )


def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    script, plain, accumulated = tmp_path / "program.py", tmp_path / "plain", tmp_path / "accumulated"
    script.write_text(SCRIPT)
    plain.mkdir()
    accumulated.mkdir()
    done = torchrun(script, plain, accumulated)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("group: False, threads of it: 0") == 2, "a group that is left can abort the exit"
    run = runpy.run_path(str(script))["run"]
    for folder, options in ((plain, {"epochs": 2}), (accumulated, {"epochs": 1, "lr": 0.3})):
        run(folder, **options)
        alone, first, second = (
            json.loads((folder / f"report{name}.json").read_text()) for name in ("0of1", "0of2", "1of2")
        )
        assert first["weights"] == second["weights"], "the processes drifted apart"
        for name, weight in alone["weights"].items():
            assert weight == pytest.approx(first["weights"][name], abs=1e-6), name
        for row, other, expected in zip(first["history"], second["history"], alone["history"], strict=True):
            for key in ("step", "train_loss", "train_accuracy", "test_loss", "test_accuracy"):
                assert row[key] == other[key] == pytest.approx(expected[key], rel=1e-6, abs=1e-6), key
        files = {path.name for path in (folder / "rank0of2").iterdir()}
        assert {"checkpoint", "history.csv"} <= files
        assert not (folder / "rank1of2").exists(), "only the first process writes"


def test_the_command_line_under_torchrun(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = torchrun("-m", "invertible.cli", "train", "irevnet/digits", "--training.epochs", "1", "--out", folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy") == done.stdout.count("All figures") == 1, "one process prints"
    assert done.stderr.count("epoch 1  lr") == 1
    metrics, history = json.loads((folder / "metrics.json").read_text()), history_of(folder)
    assert len(history) == 1
    # Evaluated together after the epoch, and by the first process at the end: the same network.
    assert float(history[0]["test_accuracy"]) == pytest.approx(metrics["test_accuracy"], abs=1e-6)
    assert metrics["reconstruction_max_abs_error"] < 1e-4
    leftovers = [path.name for path in folder.rglob(".*")]
    assert leftovers == []

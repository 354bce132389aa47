"""From a recipe to a folder: what is in it, which epoch is kept, and what is refused before anything is written."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from invertible.data import Batches
from invertible.errors import CheckpointError, ConfigError, DataError, NonFiniteError, ShapeError
from invertible.models import Classifier
from invertible.train import Recipe, assess, load_run, read_recipe, resume, train
from invertible.train.evaluate import evaluate_classifier, evaluate_reconstruction, reconstruction_error
from invertible.train.prepare import prepare_data
from invertible.train.run import Run, build_model

SMALL = {
    "in_shape": [1, 8, 8],
    "n_blocks": [1, 1],
    "strides": [2, 2],
    "channels": None,
    "hidden": [8, 8],
    "init_squeeze": 2,
}


def recipe(*overrides: str, model: dict[str, Any] | None = None) -> Recipe:
    base = ["--data.n_train=200", "--training.epochs=2", "--data.crop=0", "--model.exact=false", *overrides]
    made = read_recipe("irevnet/digits", base)
    made.model.name, made.model.arguments = "irevnet", dict(SMALL if model is None else model)
    return made


def history(folder: Path) -> list[dict[str, float]]:
    with (folder / "history.csv").open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def test_the_kept_weights_are_those_of_the_best_epoch(tmp_path: Path) -> None:
    # A rate so large that the accuracy jumps up and down: the last epoch is not the best one.
    wild = recipe(
        "--data.validation_fraction=0.3", "--training.epochs=8", "--schedule.name=constant", "--optimizer.lr=1.2"
    )
    metrics = train(wild, tmp_path / "run", quiet=True)
    accuracies = [row["validation_accuracy"] for row in history(tmp_path / "run")]
    assert max(accuracies) > accuracies[-1], "the test needs a run whose last epoch is not the best"
    best = accuracies.index(max(accuracies))
    run = load_run(tmp_path / "run")
    assert metrics["best_epoch"] == run.record["epoch"] == best + 1
    splits = prepare_data(wild.data)
    again = evaluate_classifier(run.model, run.batches(splits.validation))
    assert again["accuracy"] == pytest.approx(accuracies[best], abs=1e-9)
    assert again["loss"] == pytest.approx(history(tmp_path / "run")[best]["validation_loss"], rel=1e-6)
    last = load_file(next((tmp_path / "run" / "checkpoint").glob("*.safetensors")))
    weights = dict(run.model.named_parameters())
    assert not all(torch.equal(last[f"objective/model.{name}"], weight) for name, weight in weights.items())
    assert metrics["test_accuracy"] == assess(run, splits.test)["accuracy"]


def test_validation_images_are_held_out_of_training_and_of_the_normalisation() -> None:
    all_of_it = prepare_data(read_recipe("irevnet/digits").data)
    splits = prepare_data(read_recipe("irevnet/digits", ["--data.validation_fraction=0.25"]).data)
    assert splits.validation is not None
    assert len(splits.train) + len(splits.validation) == len(all_of_it.train)
    assert splits.test.fingerprint() == all_of_it.test.fingerprint()
    assert splits.normalize != all_of_it.normalize
    pixels = splits.train.batch(range(len(splits.train)))
    normalized = splits.normalize(pixels)
    assert normalized.mean().item() == pytest.approx(0, abs=1e-4)
    rows = {tuple(image.flatten().tolist()) for image in pixels}
    held_out = [tuple(image.flatten().tolist()) for image in splits.validation.batch(range(len(splits.validation)))]
    assert sum(row in rows for row in held_out) <= 2, "but for twins in the data"


def test_the_last_epoch_is_kept_without_validation(tmp_path: Path) -> None:
    metrics = train(recipe("--training.epochs=3"), tmp_path, quiet=True)
    assert metrics["best_epoch"] == 3
    row = history(tmp_path)[-1]
    assert row["test_accuracy"] == pytest.approx(metrics["test_accuracy"], abs=1e-6)
    assert row["seconds"] == metrics["train_seconds"]


def test_what_a_run_leaves(tmp_path: Path) -> None:
    metrics = train(recipe(), tmp_path / "a" / "b", quiet=True)
    names = {path.name for path in (tmp_path / "a" / "b").iterdir()} - {"tensorboard"}
    assert names == {
        *("recipe.yaml", "origin.json", "model.safetensors", "model.json", "metrics.json"),
        *("history.csv", "curves.png", "reconstruction.png", "checkpoint"),
    }
    assert json.loads((tmp_path / "a" / "b" / "metrics.json").read_text()) == metrics
    assert (metrics["n_train"], metrics["n_test"], metrics["seed"], metrics["epochs"]) == (200, 450, 0, 2)
    assert metrics["reconstruction_n"] == 450
    assert metrics["reconstruction_dtype"] == "float32"
    assert metrics["data_fingerprint"] == prepare_data(recipe().data).train.fingerprint()


def test_the_average_is_what_is_kept(tmp_path: Path) -> None:
    train(recipe("--training.ema=0.9"), tmp_path, quiet=True)
    state = load_file(next((tmp_path / "checkpoint").glob("*.safetensors")))
    kept = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(state[f"average/module.{name}"], tensor) for name, tensor in kept.items())
    assert not all(torch.equal(state[f"objective/model.{name}"], tensor) for name, tensor in kept.items())


def test_the_same_recipe_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    runs = [("a", "0"), ("b", "0"), ("c", "1")]
    for name, seed in runs:
        train(recipe(f"--training.seed={seed}"), tmp_path / name, quiet=True)
    a, b, c = (load_file(tmp_path / name / "model.safetensors") for name, _ in runs)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_the_global_random_state_does_not_matter_and_building_leaves_it() -> None:
    weights = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        weights.append(next(build_model(recipe()).parameters()))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*weights)


# Refusals -----------------------------------------------------------------------------------------------------------


def test_a_run_is_not_overwritten_unless_asked(tmp_path: Path) -> None:
    train(recipe(), tmp_path, quiet=True)
    before = (tmp_path / "model.safetensors").read_bytes()
    words = rf"{tmp_path} holds a run already\. Try: `invertible resume {tmp_path}` goes on with it, --overwrite"
    with pytest.raises(CheckpointError, match=words):
        train(recipe("--training.seed=5"), tmp_path, quiet=True)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert train(recipe("--training.seed=5"), tmp_path, overwrite=True, quiet=True)["seed"] == 5
    assert (tmp_path / "model.safetensors").read_bytes() != before


def test_an_overwritten_run_that_breaks_leaves_no_weights_of_the_run_before(tmp_path: Path) -> None:
    train(recipe(), tmp_path, quiet=True)
    with pytest.raises(NonFiniteError):
        train(recipe("--optimizer.lr=1e38"), tmp_path, overwrite=True, quiet=True)
    with pytest.raises(CheckpointError, match="no weights"):
        load_run(tmp_path)
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize(
    ("overrides", "model", "error", "words"),
    [
        ([], SMALL | {"n_classes": 3}, ConfigError, r"model and data disagree: expected 10 logits, got \(1, 3\)"),
        (
            [],
            SMALL | {"in_shape": [3, 32, 32]},
            ShapeError,
            r"wrong shape: expected shape \(batch, 3, 32, 32\), got .*1, 8, 8",
        ),
        ([], SMALL | {"n_clases": 3}, ConfigError, r"no argument 'n_clases'.*Try: 'n_classes'"),
        (["--data.name=digts"], SMALL, ConfigError, r"unknown data set: .*got 'digts'\. Try: 'digits'"),
        (["--data.n_train=5000"], SMALL, ConfigError, r"data\.n_train is too large: expected at most 1347, got 5000"),
        (["--data.size=9"], SMALL, ConfigError, r"digits: bad options: .*size=9"),
    ],
)
def test_a_bad_recipe_leaves_no_folder_behind(
    tmp_path: Path, overrides: list[str], model: dict, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        train(recipe(*overrides, model=model), tmp_path / "run", quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_a_path_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(CheckpointError, match=rf"cannot write {folder}"):
            train(recipe(), folder, quiet=True)
    assert (tmp_path / "file").read_text() == "x"


def test_resume_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no run"):
        resume(tmp_path / "nowhere")


def test_a_run_that_never_saved_its_state_starts_again(tmp_path: Path) -> None:
    train(recipe(), tmp_path / "a", quiet=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "recipe.yaml").write_text((tmp_path / "a" / "recipe.yaml").read_text())
    resume(tmp_path / "b", quiet=True)
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)


# Figures ------------------------------------------------------------------------------------------------------------


def test_reconstruction_errors_are_in_units_of_the_pixel_range() -> None:
    class Off(Classifier):
        def reconstruct(self, representation: torch.Tensor) -> torch.Tensor:
            return super().reconstruct(representation) + 0.5

    splits = prepare_data(recipe().data)
    made = build_model(recipe())
    model = Off(made.body, made.head, made.in_shape).double().eval()
    batches = Batches(splits.test.subset(range(20)), 8, shuffle=False, normalize=splits.normalize)
    errors = evaluate_reconstruction(model, batches, splits.normalize)
    assert errors["max_abs_error"] == pytest.approx(0.5 * splits.normalize.std[0], rel=1e-6)
    assert errors["mean_abs_error"] == pytest.approx(0.5 * splits.normalize.std[0], rel=1e-6)
    assert errors["n"] == 20


def test_evaluation_weighs_images_not_batches() -> None:
    splits, model = prepare_data(recipe().data), build_model(recipe()).eval()
    images = splits.test.subset(range(25))
    figures = [
        evaluate_classifier(model, Batches(images, n, shuffle=False, normalize=splits.normalize)) for n in (25, 10, 1)
    ]
    for other in figures[1:]:
        assert other == pytest.approx(figures[0], rel=1e-5)
    x, y = splits.normalize(images.images), images.labels
    assert figures[0]["loss"] == pytest.approx(torch.nn.functional.cross_entropy(model(x), y).item(), rel=1e-5)
    assert figures[0]["accuracy"] == pytest.approx((model(x).argmax(1) == y).float().mean().item(), abs=1e-6)


def test_broken_weights_are_not_evaluated_silently() -> None:
    splits, model = prepare_data(recipe().data), build_model(recipe()).eval()
    model.head[-1].weight.data.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="the evaluated loss is not finite: got nan"):
        evaluate_classifier(model, Batches(splits.test, 256, shuffle=False, normalize=splits.normalize))
    x = torch.zeros(1, 1, 2, 2)
    with pytest.raises(NonFiniteError, match=r"the reconstruction is not finite.*the same in float64"):
        reconstruction_error(x, x / 0, splits.normalize)


def test_a_resnet_says_that_it_cannot_reconstruct(tmp_path: Path) -> None:
    resnet = {"in_shape": [1, 8, 8], "n_blocks": [1, 1], "channels": [4, 8], "strides": [1, 2]}
    made = recipe("--training.epochs=1")
    made.model.name, made.model.arguments = "resnet", resnet
    metrics = train(made, tmp_path, quiet=True)
    assert not any("reconstruction" in name for name in metrics)
    run: Run = load_run(tmp_path)
    words = r"this network cannot reconstruct: expected a Classifier, got resnet, which drops.*Try: train an i-RevNet"
    with pytest.raises(ConfigError, match=words):
        _ = run.classifier


def test_resume_refuses_other_images_and_weights_alone(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(recipe(), folder, quiet=True)
    described = (folder / "origin.json").read_text()
    (folder / "origin.json").write_text(described.replace('"fingerprint": "', '"fingerprint": "0'))
    with pytest.raises(CheckpointError, match=r"was trained on other images: expected the \d+ images it began with"):
        resume(folder, quiet=True)
    (folder / "origin.json").write_text(described)
    edited = (folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(edited.replace("seed: 0", "seed: 7"))
    with pytest.raises(CheckpointError, match=r"another recipe: expected training.seed=0, got training.seed=7"):
        resume(folder, quiet=True)
    (folder / "recipe.yaml").write_text(edited)
    shutil.rmtree(folder / "checkpoint")
    weights = (folder / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="cannot be resumed: expected a resumable state"):
        resume(folder, quiet=True)
    assert (folder / "model.safetensors").read_bytes() == weights


def test_equal_runs_leave_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        train(recipe(), tmp_path / name, quiet=True)
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b"))
    assert a == b


def test_train_leaves_a_folder_of_other_files_alone(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("mine")
    with pytest.raises(CheckpointError, match="holds files that are no run's"):
        train(recipe(), tmp_path, overwrite=True, quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_overwrite_leaves_nothing_of_the_old_run(tmp_path: Path) -> None:
    train(recipe(), tmp_path / "run", quiet=True)
    broken = recipe()
    broken.optimizer.lr = 1e30
    with pytest.raises(NonFiniteError):
        train(broken, tmp_path / "run", overwrite=True, quiet=True)
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert not left & {"history.csv", "curves.png", "reconstruction.png", "metrics.json", "model.safetensors"}


def test_other_classes_than_the_run_s_are_refused(tmp_path: Path) -> None:
    train(recipe(), tmp_path / "run", quiet=True)
    run = load_run(tmp_path / "run")
    run.record["classes"][0] = "cat"
    with pytest.raises(DataError, match=r"other classes than the run's: expected .'cat'"):
        run.test_images()

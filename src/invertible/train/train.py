"""From a recipe to a trained network in a folder, with its figures and pictures."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from invertible._console import announce
from invertible._files import write_json
from invertible.data import Batches
from invertible.errors import CheckpointError, ConfigError
from invertible.models import Classifier
from invertible.train.assess import assess
from invertible.train.checkpoint import FOLDER, has_checkpoint
from invertible.train.evaluate import evaluate_classifier
from invertible.train.figures import save_curves
from invertible.train.loop import FitOptions, Trainer, make_accelerator
from invertible.train.objective import Classification
from invertible.train.origin import check_same_origin, write_origin
from invertible.train.prepare import Images, Splits, augmentations, prepare_data
from invertible.train.read_recipe import read_recipe
from invertible.train.recipe import Recipe
from invertible.train.reconstruct import reconstruct_images
from invertible.train.run import (
    EVALUATION_BATCH,
    METRICS,
    ORIGIN,
    RECIPE,
    RECORD,
    WEIGHTS,
    build_model,
    check_is_run,
    load_run,
    save_model,
    save_recipe,
)
from invertible.train.threads import fastest_threads


def train(recipe: Recipe, folder: str | Path, *, overwrite: bool = False, quiet: bool = False) -> dict[str, Any]:
    """Train, evaluate, and leave everything in a folder.

    Args:
        recipe: What to train.
        folder: Where to; made if needed.
        overwrite: Replace a run that is there already.
        quiet: Show nothing.

    Returns:
        The figures, as in metrics.json.

    Raises:
        CheckpointError: If the folder holds a run already or cannot be written to.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / RECIPE).is_file():
        hint = "--out with a new or an empty folder"
        raise CheckpointError(f"{folder} holds files that are no run's", expected="a new folder", hint=hint)
    if (folder / RECIPE).is_file() and not overwrite:
        hint = f"`invertible resume {folder}` goes on with it, --overwrite replaces it, or another --out"
        raise CheckpointError(f"{folder} holds a run already", hint=hint)
    recipe = _with_absolute_paths(recipe)
    accelerator, splits, model = _prepare(recipe)  # before anything is written: a bad recipe leaves nothing behind
    if accelerator.is_main_process:
        if folder.is_dir():
            _clear(folder)
        save_recipe(folder, recipe)
        write_origin(folder, recipe, splits)
    accelerator.wait_for_everyone()
    return _run(recipe, folder, splits, model, accelerator, quiet)


def resume(folder: str | Path, *, quiet: bool = False) -> dict[str, Any]:
    """Go on with a run that was stopped; a run that never saved its state starts again.

    Args:
        folder: Of the run.
        quiet: Show nothing.

    Returns:
        The figures, as `train` returns them. The weights are, to the bit, those of a run never stopped.

    Raises:
        CheckpointError: If the folder is no run, cannot be resumed, or the images are not those it began with.
    """
    folder = Path(folder)
    check_is_run(folder)
    recipe = read_recipe(folder / RECIPE)
    if not has_checkpoint(folder) and (folder / WEIGHTS).is_file():
        hint = f"`invertible train {folder / RECIPE} --out ANOTHER` trains it again from the start"
        expected = f"a resumable state in {folder / FOLDER}"
        raise CheckpointError(f"{folder} cannot be resumed", expected=expected, got="weights only", hint=hint)
    accelerator, splits, model = _prepare(recipe)
    check_same_origin(folder, recipe, splits)
    return _run(recipe, folder, splits, model, accelerator, quiet)


def _with_absolute_paths(recipe: Recipe) -> Recipe:
    # So that the run can be evaluated from anywhere.
    if recipe.data.data_dir is None:
        return recipe
    path = str(Path(recipe.data.data_dir).expanduser().resolve())
    return replace(recipe, data=replace(recipe.data, data_dir=path))


def _clear(folder: Path) -> None:
    pictures = ("history.csv", "curves.png", "reconstruction.png")
    names = (METRICS, WEIGHTS, RECORD, ORIGIN, *pictures)
    for old in [*(folder / name for name in names), *folder.glob(f"{FOLDER}/*state*")]:
        old.unlink(missing_ok=True)
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)


def _say_what_begins(splits: Splits, model: nn.Module, step: int) -> None:
    parts = {"training": splits.train, "validation": splits.validation, "test": splits.test}
    sizes = ", ".join(f"{len(images):,} {name}" for name, images in parts.items() if images is not None)
    n = sum(p.numel() for p in model.parameters())
    announce(
        f"{splits.train.name}: {sizes} images of {len(splits.train.classes)} classes; {n:,} parameters;"
        f" {torch.get_num_threads()} CPU threads" + (f"; goes on at step {step}" if step else "")
    )


def _timeless(row: dict[str, float]) -> dict[str, float]:
    # So that equal runs give equal files.
    return {name: value for name, value in row.items() if name != "seconds"}


def _prepare(recipe: Recipe) -> tuple[Accelerator, Splits, nn.Module]:
    accelerator = make_accelerator(recipe.training)
    splits, model = prepare_data(recipe.data), build_model(recipe)
    _check_fit(model, splits)
    return accelerator, splits, model


def _run(
    recipe: Recipe, folder: Path, splits: Splits, network: nn.Module, accelerator: Accelerator, quiet: bool
) -> dict[str, Any]:
    record = {"normalize": splits.normalize.to_dict(), "classes": list(splits.train.classes)}
    record |= {"in_shape": list(splits.train.shape), "data_fingerprint": splits.train.fingerprint()}
    trainer = _trainer(recipe, folder, network, splits, accelerator, quiet)
    if has_checkpoint(folder):
        trainer.resume()

    def keep(model: nn.Module, row: dict[str, float], is_best: bool) -> None:
        if is_best:
            save_model(folder, model, record | {"epoch": row["epoch"], "metrics": _timeless(row)})

    if not quiet and accelerator.is_main_process:
        _say_what_begins(splits, network, trainer.progress.step)
    progress = trainer.fit(_evaluator(recipe, splits, accelerator), keep)
    metrics: dict[str, Any] = {}
    if accelerator.is_main_process:
        metrics = _finish(recipe, folder, splits, progress.history, progress.threads, quiet)
    return broadcast_object_list([metrics])[0] if accelerator.num_processes > 1 else metrics


def _check_fit(model: nn.Module, splits: Splits) -> None:
    # One image through the untrained network: wrong shapes and too few logits show before the first step.
    image = splits.normalize(splits.train.batch([0]))
    with torch.no_grad():
        logits = model.eval()(image)
    n_classes = len(splits.train.classes)
    if logits.shape != (1, n_classes):
        hint = f"model.arguments.n_classes: {n_classes}"
        raise ConfigError("model and data disagree", expected=f"{n_classes} logits", got=tuple(logits.shape), hint=hint)


def _trainer(
    recipe: Recipe, folder: Path, model: nn.Module, splits: Splits, accelerator: Accelerator, quiet: bool
) -> Trainer:
    training = recipe.training
    objective = Classification(model, training.label_smoothing)
    batches = _batches(splits.train, recipe, splits, accelerator, is_training=True)
    if training.threads != "auto":
        torch.set_num_threads(training.threads)
    elif accelerator.device.type == "cpu" and not has_checkpoint(folder):
        torch.set_num_threads(_measure_threads(recipe, splits))
    if training.compile:
        model.compile()
    monitor = "validation_accuracy" if splits.validation is not None else None
    options = FitOptions(recipe.optimizer, recipe.schedule, training, folder, monitor, quiet)
    return Trainer(objective, batches, options, accelerator)


def _measure_threads(recipe: Recipe, splits: Splits) -> int:
    objective = Classification(build_model(recipe))
    indices = list(range(min(len(splits.train), recipe.training.batch_size)))
    x, y = splits.normalize(splits.train.batch(indices)), splits.train.labels[indices]
    with torch.random.fork_rng(devices=[]):
        return fastest_threads(lambda: objective(x, y)[0].backward())


def _batches(images: Images, recipe: Recipe, splits: Splits, accelerator: Accelerator, is_training: bool) -> Batches:
    n, ranks = recipe.training.batch_size, accelerator.num_processes
    return Batches(
        images,
        n if is_training else max(EVALUATION_BATCH, ranks),
        seed=recipe.training.seed,
        shuffle=is_training,
        augment=augmentations(recipe.data) if is_training else None,
        normalize=splits.normalize,
        device=accelerator.device,
        rank=accelerator.process_index,
        world_size=ranks,
        drop_last=is_training and len(images) > n,
    )


def _evaluator(recipe: Recipe, splits: Splits, accelerator: Accelerator):  # noqa: ANN202
    name = "test" if splits.validation is None else "validation"
    images = splits.test if splits.validation is None else splits.validation
    batches = _batches(images, recipe, splits, accelerator, is_training=False)

    def reduce(sums: Tensor) -> Tensor:
        return torch.as_tensor(accelerator.reduce(sums, "sum"))

    def evaluate(model: nn.Module) -> dict[str, float]:
        return {f"{name}_{key}": value for key, value in evaluate_classifier(model, batches, reduce).items()}

    return evaluate


def _finish(
    recipe: Recipe, folder: Path, splits: Splits, history: list[dict[str, float]], threads: int, quiet: bool
) -> dict[str, Any]:
    run = load_run(folder)
    figures = assess(run, splits.test)
    if isinstance(run.model, Classifier):
        exact_run = load_run(folder, dtype=figures["reconstruction_dtype"])
        reconstruct_images(exact_run, splits.test, folder / "reconstruction.png")
    metrics: dict[str, Any] = {f"test_{name}": figures.pop(name) for name in ("accuracy", "loss")}
    metrics |= figures | {
        "n_parameters": sum(p.numel() for p in run.model.parameters()),
        "train_seconds": history[-1]["seconds"],
        "seconds_per_epoch": history[-1]["seconds"] / len(history),
        "best_epoch": run.record["epoch"],
        "n_train": len(splits.train),
        "n_test": len(splits.test),
    }
    metrics |= _provenance(recipe, splits, threads)
    save_curves(history, folder / "curves.png")
    write_json(folder / METRICS, metrics)
    return metrics


def _provenance(recipe: Recipe, splits: Splits, threads: int) -> dict[str, Any]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "seed": recipe.training.seed,
        "epochs": recipe.training.epochs,
        "data": splits.train.name,
        "data_fingerprint": splits.train.fingerprint(),
        "threads": threads,
        "hardware": f"{device}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }

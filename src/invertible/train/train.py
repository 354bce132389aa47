"""From a recipe to a trained network in a folder, with its figures and pictures."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from invertible._console import announce
from invertible._files import write_json
from invertible.data import PointSet
from invertible.errors import CheckpointError
from invertible.flow import Flow
from invertible.models import Hybrid
from invertible.train.checkpoint import FOLDER, has_checkpoint
from invertible.train.choose import task_of
from invertible.train.feed import Feed, feed
from invertible.train.figures import save_curves
from invertible.train.flow_figures import PICTURES
from invertible.train.loop import Evaluate, FitOptions, Trainer, make_accelerator
from invertible.train.origin import check_same_origin, write_origin
from invertible.train.prepare import Data, Splits, augmentations, prepare_data
from invertible.train.read_recipe import read_recipe
from invertible.train.recipe import Recipe
from invertible.train.run import (
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
from invertible.train.task import Task
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
    recipe = with_absolute_paths(recipe)
    accelerator, splits, model, task = prepare(recipe)  # before anything is written
    if accelerator.is_main_process:
        if folder.is_dir():
            _clear(folder)
        save_recipe(folder, recipe)
        write_origin(folder, recipe, splits)
    accelerator.wait_for_everyone()
    return Sitting(recipe, folder, splits, task, accelerator, quiet).run(model)


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
    accelerator, splits, model, task = prepare(recipe)
    check_same_origin(folder, recipe, splits)
    return Sitting(recipe, folder, splits, task, accelerator, quiet).run(model)


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """A recipe as a run keeps it, so that it can be evaluated from anywhere.

    Args:
        recipe: The recipe.

    Returns:
        The same, `data.data_dir` absolute.
    """
    if recipe.data.data_dir is None:
        return recipe
    path = str(Path(recipe.data.data_dir).expanduser().resolve())
    return replace(recipe, data=replace(recipe.data, data_dir=path))


def _clear(folder: Path) -> None:
    pictures = ("history.csv", "curves.png", "reconstruction.png", *PICTURES)
    names = (METRICS, WEIGHTS, RECORD, ORIGIN, *pictures)
    for old in [*(folder / name for name in names), *folder.glob(f"{FOLDER}/*state*")]:
        old.unlink(missing_ok=True)
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)


def _say_what_begins(splits: Splits, model: nn.Module, step: int) -> None:
    sizes = ", ".join(f"{len(data):,} {name}" for name, data in splits.parts.items())
    n, n_classes = sum(p.numel() for p in model.parameters()), len(splits.train.classes)
    what = "points" if isinstance(splits.train, PointSet) else f"images of {n_classes} classes"
    announce(
        f"{splits.train.name}: {sizes} {what}; {n:,} parameters;"
        f" {torch.get_num_threads()} CPU threads" + (f"; goes on at step {step}" if step else "")
    )


def _timeless(row: dict[str, float]) -> dict[str, float]:
    # So that equal runs give equal files.
    return {name: value for name, value in row.items() if name != "seconds"}


def prepare(recipe: Recipe) -> tuple[Accelerator, Splits, nn.Module, Task]:
    """Everything that a run begins with; nothing is written.

    Args:
        recipe: What to train.

    Returns:
        The engine, the data, the untrained network, and the task that it is for.
    """
    accelerator = make_accelerator(recipe.training)
    model = build_model(recipe)
    splits = prepare_data(recipe.data, is_measured=not isinstance(model, Flow | Hybrid))
    task = task_of(model, splits.normalize)
    splits = replace(splits, normalize=task.normalization(splits))
    task.begin(model, splits, recipe.training)
    return accelerator, splits, model, task


@dataclass(frozen=True)
class Sitting:
    """One process's share of a run, from its start or from a checkpoint.

    Args:
        recipe: What to train.
        folder: Of the run.
        splits: Its data.
        task: What the network is for.
        accelerator: The engine.
        quiet: Show nothing.
    """

    recipe: Recipe
    folder: Path
    splits: Splits
    task: Task
    accelerator: Accelerator
    quiet: bool

    def run(self, network: nn.Module) -> dict[str, Any]:
        """Train to the end and leave figures and pictures in the folder.

        Args:
            network: Untrained, as `prepare` made it.

        Returns:
            The figures, as in metrics.json.
        """
        folder, splits, accelerator = self.folder, self.splits, self.accelerator
        normalize = None if splits.normalize is None else splits.normalize.to_dict()
        record = {"normalize": normalize, "classes": list(splits.train.classes)}
        record |= {"in_shape": list(splits.train.shape), "data_fingerprint": splits.train.fingerprint()}
        trainer = self.trainer(network)
        if has_checkpoint(folder):
            trainer.resume()

        def keep(model: nn.Module, row: dict[str, float], is_best: bool) -> None:
            if is_best:
                save_model(folder, model, record | {"epoch": row["epoch"], "metrics": _timeless(row)})

        if not self.quiet and accelerator.is_main_process:
            _say_what_begins(splits, network, trainer.progress.step)
        progress = trainer.fit(self._evaluator(), keep)
        metrics = self._finish(progress.history, progress.threads) if accelerator.is_main_process else {}
        return broadcast_object_list([metrics])[0] if accelerator.num_processes > 1 else metrics

    def trainer(self, model: nn.Module) -> Trainer:
        """The loop, with objective, batches and CPU threads set.

        Args:
            model: The network.

        Returns:
            The trainer.
        """
        training = self.recipe.training
        objective = self.task.objective(model, training)
        batches = self.batches(self.splits.train, is_training=True)
        if training.threads != "auto":
            torch.set_num_threads(training.threads)
        elif self.accelerator.device.type == "cpu" and not has_checkpoint(self.folder):
            torch.set_num_threads(self._measure_threads())
        if training.compile:
            model.compile()
        monitor = f"validation_{self.task.monitor}" if self.splits.validation is not None else None
        options = FitOptions(self.recipe.optimizer, self.recipe.schedule, training, self.folder, monitor, self.quiet)
        return Trainer(objective, batches, options, self.accelerator)

    def _measure_threads(self) -> int:
        train, normalize = self.splits.train, self.splits.normalize
        objective = self.task.objective(build_model(self.recipe), self.recipe.training)
        indices = list(range(min(len(train), self.recipe.training.batch_size)))
        x, y = train.batch(indices), train.labels[indices]
        x = x if normalize is None else normalize(x)
        with torch.random.fork_rng(devices=[]):
            return fastest_threads(lambda: objective(x, y)[0].backward())

    def batches(self, data: Data, is_training: bool) -> Feed:
        """Batches as the recipe has them.

        Args:
            data: Images or points.
            is_training: Whether they are shuffled and augmented, or in evaluation order.

        Returns:
            This process's share of them.
        """
        n, ranks = self.recipe.training.batch_size, self.accelerator.num_processes
        return feed(
            data,
            n if is_training else max(self.task.evaluation_batch, ranks),
            seed=self.recipe.training.seed,
            shuffle=is_training,
            augment=augmentations(self.recipe.data) if is_training else None,
            normalize=self.splits.normalize,
            device=self.accelerator.device,
            rank=self.accelerator.process_index,
            world_size=ranks,
            drop_last=is_training and len(data) > n,
        )

    def _evaluator(self) -> Evaluate:
        validation = self.splits.validation
        name, data = ("test", self.splits.test) if validation is None else ("validation", validation)
        batches = self.batches(data, is_training=False)

        def reduce(sums: Tensor) -> Tensor:
            return torch.as_tensor(self.accelerator.reduce(sums, "sum"))

        def evaluate(model: nn.Module) -> dict[str, float]:
            return {f"{name}_{key}": value for key, value in self.task.evaluate(model, batches, reduce).items()}

        return evaluate

    def _finish(self, history: list[dict[str, float]], threads: int) -> dict[str, Any]:
        run = load_run(self.folder)
        figures = self.task.assess(run, self.splits.test)
        self.task.draw(run, self.splits.test, figures)
        metrics: dict[str, Any] = {f"test_{name}": figures.pop(name) for name in self.task.tested if name in figures}
        metrics |= figures | {
            "n_parameters": sum(p.numel() for p in run.model.parameters()),
            "train_seconds": history[-1]["seconds"],
            "seconds_per_epoch": history[-1]["seconds"] / len(history),
            "best_epoch": run.record["epoch"],
            "n_train": len(self.splits.train),
            "n_test": len(self.splits.test),
        }
        metrics |= _provenance(self.recipe, self.splits, threads)
        save_curves(history, self.folder / "curves.png", self.task.curves)
        write_json(self.folder / METRICS, metrics)
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

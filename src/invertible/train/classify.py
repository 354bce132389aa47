"""The task of classifiers: cross-entropy, accuracy, and for invertible ones how exactly images come back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from invertible._console import announce, progress
from invertible.data import Normalize, PointSet
from invertible.errors import ConfigError, ConvergenceError, NonFiniteError, NotInImageError
from invertible.layers import Residual
from invertible.models import Classifier
from invertible.train.evaluate import evaluate_classifier, evaluate_reconstruction
from invertible.train.feed import Feed
from invertible.train.objective import Classification
from invertible.train.prepare import Data, Images, Splits
from invertible.train.recipe import TrainingConfig
from invertible.train.reconstruct import reconstruct_images
from invertible.train.run import EVALUATION_BATCH, Run, load_run
from invertible.train.task import Task


class ClassificationTask(Task):
    """Labels from images."""

    monitor = "accuracy"
    curves = MappingProxyType({"loss": "nats", "accuracy": "share"})
    tested = ("accuracy", "loss")
    pictures = ("reconstruction.png",)
    evaluation_batch = EVALUATION_BATCH

    def normalization(self, splits: Splits) -> Normalize | None:
        """As measured on the training images; see `Task`.

        Args:
            splits: The data.

        Returns:
            The normalisation.
        """
        return splits.normalize

    def begin(self, model: nn.Module, splits: Splits, training: TrainingConfig) -> None:
        """One image through the untrained network: wrong shapes and too few logits show before the first step.

        Args:
            model: The network.
            splits: The data.
            training: Not needed.

        Raises:
            ConfigError: If they do not fit.
        """
        if splits.normalize is None:
            hint = "--model.name spline_flow, which learns their density"
            raise ConfigError("classifiers take images", expected="images", got=splits.train.name, hint=hint)
        image = splits.normalize(splits.train.batch([0]))
        with torch.no_grad():
            logits = model.eval()(image)
        n_classes = len(splits.train.classes)
        if logits.shape != (1, n_classes):
            hint, got = f"model.arguments.n_classes: {n_classes}", tuple(logits.shape)
            raise ConfigError("model and data disagree", expected=f"{n_classes} logits", got=got, hint=hint)

    def objective(self, model: nn.Module, training: TrainingConfig) -> nn.Module:
        """Cross-entropy; see `Task`.

        Args:
            model: The network.
            training: Has the label smoothing.

        Returns:
            The objective.
        """
        return Classification(model, training.label_smoothing)

    def evaluate(
        self, model: nn.Module, batches: Feed, reduce: Callable[[Tensor], Tensor] | None = None
    ) -> dict[str, float]:
        """Accuracy and loss; see `Task`.

        Args:
            model: The network, in eval mode.
            batches: Images, in evaluation order.
            reduce: Sums a tensor over all processes.

        Returns:
            "accuracy" and "loss".
        """
        return evaluate_classifier(model, batches, reduce)

    def assess(self, run: Run, data: Data) -> dict[str, Any]:
        """Accuracy, and for an invertible network how exactly each image comes back; see `assess.assess`.

        Args:
            run: The run.
            data: Images not seen in training.

        Returns:
            Figures.
        """
        batches = run.batches(data)
        is_invertible = isinstance(run.model, Classifier)
        with progress() as display:
            task = display.add_task("evaluating", total=len(batches) * (1 + is_invertible))

            def on_step() -> None:
                display.advance(task)

            figures: dict[str, Any] = evaluate_classifier(run.model, batches, on_step=on_step)
            if is_invertible:
                figures |= _reconstruction(run, batches, on_step)
        return figures

    def draw(self, run: Run, data: Data, figures: Mapping[str, Any]) -> None:
        """Originals beside their reconstructions, if the network is invertible.

        Args:
            run: The run.
            data: Images not seen in training.
            figures: What `assess` returned.
        """
        came_back = figures.get("reconstruction_converges", True)
        if isinstance(run.model, Classifier) and came_back and not isinstance(data, PointSet):
            images: Images = data
            exact_run = load_run(run.folder, dtype=figures["reconstruction_dtype"])
            reconstruct_images(exact_run, images, run.folder / "reconstruction.png")


def _reconstruction(run: Run, batches: Feed, on_step: Any) -> dict[str, Any]:
    try:
        errors = _errors(run, batches, on_step)
    except (ConvergenceError, NonFiniteError, NotInImageError) as error:
        if not any(isinstance(part, Residual) and part.lipschitz == "unknown" for part in run.model.modules()):
            raise
        announce(f"note: without a constraint there may be no inverse, and here there is none: {error}")
        return {"reconstruction_converges": False}
    is_exact = errors.pop("bit_exact")
    return {"bit_exact": is_exact, **{f"reconstruction_{name}": value for name, value in errors.items()}}


def _errors(run: Run, batches: Feed, on_step: Any) -> dict[str, Any]:
    classifier = run.classifier
    dtype = next(classifier.parameters()).dtype
    try:
        errors = evaluate_reconstruction(classifier, batches, run.normalize, on_step)
    except NotInImageError as error:
        if dtype == torch.float64:
            raise
        announce(f"note: {error.problem} in {dtype} ({error.got} where zero should be); measured in float64 instead")
        dtype = torch.float64
        errors = evaluate_reconstruction(copy.deepcopy(classifier).double(), batches, run.normalize, on_step)
    return {**errors, "dtype": str(dtype).removeprefix("torch.")}

"""Everything a run is judged by, on images it has not seen."""

from __future__ import annotations

import copy
from typing import Any

import torch

from invertible._console import announce, progress
from invertible.data import Batches
from invertible.errors import NotInImageError
from invertible.models import Classifier
from invertible.train.evaluate import evaluate_classifier, evaluate_reconstruction
from invertible.train.prepare import Images
from invertible.train.run import Run


def assess(run: Run, images: Images) -> dict[str, Any]:
    """Accuracy, and for an invertible network how exactly each image comes back.

    Args:
        run: A trained network.
        images: As `run.test_images()` returns them.

    Returns:
        "accuracy" (0 to 1), "loss" (nats), and where the network is invertible "reconstruction_max_abs_error",
        "reconstruction_mean_abs_error" (units of the pixel range), "reconstruction_n", "reconstruction_dtype" and
        "bit_exact": whether every image came back to the last bit, as `evaluate.Comparison` defines it.
        If rounding explodes in the inverse so far that padding is not zero any more, the reconstruction is measured in
        float64 instead, and that is announced; it cannot happen to an exact network.
    """
    batches = run.batches(images)
    is_invertible = isinstance(run.model, Classifier)
    with progress() as display:
        task = display.add_task("evaluating", total=len(batches) * (1 + is_invertible))

        def on_step() -> None:
            display.advance(task)

        figures: dict[str, Any] = evaluate_classifier(run.model, batches, on_step=on_step)
        if isinstance(run.model, Classifier):
            errors = _reconstruction(run, batches, on_step)
            figures["bit_exact"] = errors.pop("bit_exact")
            figures |= {f"reconstruction_{name}": value for name, value in errors.items()}
    return figures


def _reconstruction(run: Run, batches: Batches, on_step: Any) -> dict[str, Any]:
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

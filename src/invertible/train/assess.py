"""Everything a run is judged by, on images or points it has not seen."""

from __future__ import annotations

from typing import Any

from invertible.train.choose import task_of
from invertible.train.prepare import Data
from invertible.train.run import Run


def assess(run: Run, data: Data) -> dict[str, Any]:
    """Accuracy of a classifier or likelihood of a flow, and for an invertible network how exactly data come back.

    Args:
        run: A trained network.
        data: As `run.test_data()` or `run.test_images()` returns them.

    Returns:
        Of classifiers "accuracy" (0 to 1), "loss" (nats), and where the network is invertible
        "reconstruction_max_abs_error", "reconstruction_mean_abs_error" (units of the pixel range), "reconstruction_n",
        "reconstruction_dtype" and "bit_exact": whether every image came back to the last bit, as `evaluate.Comparison`
        defines it. If rounding explodes in the inverse so far that padding is not zero any more, the reconstruction is
        measured in float64 instead, and that is announced; it cannot happen to an exact network.

        Of flows "nats" (log-likelihood per example, larger is better), "nats_standard_error", for images "bits_per_dim"
        (smaller is better) and "pixels_equal" (whether all pixels came back), and the same reconstruction figures.
    """
    return task_of(run.model, run.scaling).assess(run, data)

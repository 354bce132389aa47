"""Images from their representations: a picture and the figures."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from invertible.data import image_file
from invertible.flow import Flow
from invertible.models import Hybrid
from invertible.train.density import round_trip
from invertible.train.evaluate import compare
from invertible.train.figures import save_reconstructions, spread
from invertible.train.prepare import Images
from invertible.train.run import Run

N_SHOWN = 8


def reconstruct_images(run: Run, images: Images, path: Path) -> dict[str, float | bool]:
    """Reconstruct a few images, spread over the set, and draw them.

    Args:
        run: A trained network.
        images: As `run.test_images()` returns them.
        path: The PNG file.

    Returns:
        "max_abs_error" and "mean_abs_error" of those drawn, in units of the pixel range, and "bit_exact", for a flow
        "pixels_equal".
    """
    rows = spread(len(images), N_SHOWN)
    return _reconstruct(run, images.batch(rows), images.labels[rows], path)


def reconstruct_file(run: Run, image: str | Path, path: Path) -> tuple[dict[str, float | bool], str | None]:
    """Reconstruct a picture from a file.

    Args:
        run: A trained network.
        image: Any picture; it is brought to the network's size and channels.
        path: The PNG file to draw.

    Returns:
        "max_abs_error", "mean_abs_error" in units of the pixel range and "bit_exact", and a note on what was changed,
        or None.
    """
    max_value = run.normalize.max_value  # a run on points has none, and says so
    channels, height, width = run.record["in_shape"]
    pixels, note = image_file(image, (channels, height, width), max_value)
    return _reconstruct(run, pixels, torch.zeros(1, dtype=torch.int64), path), note


def _reconstruct(run: Run, pixels: Tensor, labels: Tensor, path: Path) -> dict[str, float | bool]:
    if isinstance(run.model, Flow | Hybrid):
        return _reconstruct_with_flow(run, pixels, labels, path)
    normalize = run.normalize
    result = compare(run.classifier, run.prepare(pixels), normalize)
    errors = {"max_abs_error": result.error.max().item(), "mean_abs_error": result.error.double().mean().item()}
    n = f"{len(pixels)} image{'s' * (len(pixels) > 1)}"
    title = _title(n, errors)
    title = f"{n}: bit-exact" if result.is_bit_exact else title
    save_reconstructions(normalize.inverse(result.before), normalize.inverse(result.after), path, title)
    return {**errors, "bit_exact": result.is_bit_exact}


def _reconstruct_with_flow(run: Run, pixels: Tensor, labels: Tensor, path: Path) -> dict[str, float | bool]:
    x = run.prepare(pixels)
    trip = round_trip(run.flow, x, labels.to(x.device))
    errors = {"max_abs_error": trip.error.max().item(), "mean_abs_error": trip.error.double().mean().item()}
    title = _title(f"{len(pixels)} image{'s' * (len(pixels) > 1)}", errors)
    save_reconstructions(trip.before, trip.after, path, title)
    return {**errors, "pixels_equal": bool(trip.pixels_equal)}


def _title(n: str, errors: dict[str, float]) -> str:
    return "{}: largest error {:.2g}, mean {:.2g} of the pixel range".format(n, *errors.values())

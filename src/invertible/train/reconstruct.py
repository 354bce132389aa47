"""Images from their representations: a picture and the figures."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from invertible.data import image_file
from invertible.train.evaluate import reconstruction_error
from invertible.train.figures import save_reconstructions, spread
from invertible.train.prepare import Images
from invertible.train.run import Run

N_SHOWN = 8


def reconstruct_images(run: Run, images: Images, path: Path) -> dict[str, float]:
    """Reconstruct a few images, spread over the set, and draw them.

    Args:
        run: A trained network.
        images: As `run.test_images()` returns them.
        path: The PNG file.

    Returns:
        "max_abs_error" and "mean_abs_error" of those drawn, in units of the pixel range.
    """
    return _reconstruct(run, images.batch(spread(len(images), N_SHOWN)), path)


def reconstruct_file(run: Run, image: str | Path, path: Path) -> tuple[dict[str, float], str | None]:
    """Reconstruct a picture from a file.

    Args:
        run: A trained network.
        image: Any picture; it is brought to the network's size and channels.
        path: The PNG file to draw.

    Returns:
        "max_abs_error" and "mean_abs_error" in units of the pixel range, and a note on what was changed, or None.
    """
    channels, height, width = run.record["in_shape"]
    pixels, note = image_file(image, (channels, height, width), run.normalize.max_value)
    return _reconstruct(run, pixels, path), note


@torch.no_grad()
def _reconstruct(run: Run, pixels: Tensor, path: Path) -> dict[str, float]:
    classifier, normalize = run.classifier, run.normalize
    x = run.prepare(pixels)
    back = classifier.reconstruct(classifier.representation(x))
    error = reconstruction_error(x, back, normalize)
    figures = {"max_abs_error": error.max().item(), "mean_abs_error": error.double().mean().item()}
    title = "{} images: largest error {:.2g}, mean {:.2g} of the pixel range".format(len(x), *figures.values())
    save_reconstructions(normalize.inverse(x), normalize.inverse(back), path, title)
    return figures

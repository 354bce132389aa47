"""Images from their representations: a picture and the figures."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from invertible.data import image_file
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
        "max_abs_error" and "mean_abs_error" of those drawn, in units of the pixel range, and "bit_exact".
    """
    return _reconstruct(run, images.batch(spread(len(images), N_SHOWN)), path)


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
    channels, height, width = run.record["in_shape"]
    pixels, note = image_file(image, (channels, height, width), run.normalize.max_value)
    return _reconstruct(run, pixels, path), note


def _reconstruct(run: Run, pixels: Tensor, path: Path) -> dict[str, float | bool]:
    normalize = run.normalize
    result = compare(run.classifier, run.prepare(pixels), normalize)
    errors = {"max_abs_error": result.error.max().item(), "mean_abs_error": result.error.double().mean().item()}
    n = f"{len(pixels)} image{'s' * (len(pixels) > 1)}"
    title = "{}: largest error {:.2g}, mean {:.2g} of the pixel range".format(n, *errors.values())
    title = f"{n}: bit-exact" if result.is_bit_exact else title
    save_reconstructions(normalize.inverse(result.before), normalize.inverse(result.after), path, title)
    return {**errors, "bit_exact": result.is_bit_exact}

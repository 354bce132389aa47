"""Masks as people draw them: which pixels of a photograph are missing."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from torch import Tensor

from invertible.errors import ConfigError, DataError
from invertible.restore.images import Photo, read_image

Marks = Literal["missing", "known"]
HARD = 0.02
"""Values this close to black or white count as drawn without smoothing."""


def read_mask(path: str | Path, size: tuple[int, int], marks: Marks = "missing") -> tuple[Tensor, list[str]]:
    """Read a mask.

    Where the file has transparency and one colour only, what is opaque is marked; otherwise what is white, with what is
    transparent counting as black.

    Args:
        path: A picture of the photograph's size.
        size: (height, width) of the photograph, pixels.
        marks: What white means: "missing", to be filled in, as in most tools; or "known".

    Returns:
        Which pixels are known: booleans of shape (height, width); and notes on what was done to get there.

    Raises:
        ConfigError: If nothing is missing.
        DataError: If it is no picture or of another size.
    """
    photo = read_image(path)
    if photo.size != size:
        expected, got = f"{size[1]}x{size[0]} pixels, as the photograph", f"{photo.size[1]}x{photo.size[0]}"
        hint = "draw it on a copy of the photograph"
        raise DataError(f"{path}: a mask of another size", expected=expected, got=got, hint=hint)
    values, notes = _marked(photo)
    if ((values > HARD) & (values < 1 - HARD)).any():
        notes.append("the mask has grey values: cut at the middle between black and white")
    marked = values > 0.5
    known = ~marked if marks == "missing" else marked
    if known.all():
        other = "known" if marks == "missing" else "missing"
        hint = f"--mask-marks {other} if it is the wrong way round"
        raise ConfigError("the mask leaves nothing to fill in", expected="missing pixels", got="none", hint=hint)
    return known, notes


def _marked(photo: Photo) -> tuple[Tensor, list[str]]:
    # How much each pixel is marked, shape (height, width), in [0, 1].
    grey = photo.pixels.mean(0)
    if photo.alpha is None or bool((photo.alpha == 1).all()):
        return grey, list(photo.notes)
    visible = grey[photo.alpha[0] > 0.5]
    if not visible.numel() or visible.max() - visible.min() < HARD:
        return photo.alpha[0].clone(), [*photo.notes, "the mask has one colour: what is opaque in it is marked"]
    return grey * photo.alpha[0], [*photo.notes, "what is transparent in the mask counts as black"]

"""Pictures whose every pixel counts: read without loss or not at all, written to formats that keep them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from invertible._files import write_atomically
from invertible.data.pictures import EXIF_ORIENTATION, reading
from invertible.errors import ConfigError, DataError

if TYPE_CHECKING:
    from PIL.Image import Image

MODES = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}  # bands of 8 bits
SUFFIXES = (".png", ".tif", ".tiff")


def read_lossless(path: Path) -> tuple[Tensor, str, list[str]]:
    """Read a picture as 8-bit pixels, upright as its EXIF says, and lose none.

    Args:
        path: Grey or RGB, with or without alpha, 8 bits; palettes are looked up, 1 bit becomes black and white. What a
            JPEG has lost it has lost already: its pixels are those it decodes to.

    Returns:
        uint8 of shape (bands, height, width), the mode ("L", "LA", "RGB" or "RGBA"), and what was changed.

    Raises:
        DataError: If the file is no picture, has more than one, or its pixels do not fit 8 bits without loss.
    """
    from PIL import Image, ImageOps

    with reading(path), Image.open(path) as picture:
        _check(picture, path)
        changes = ["turned upright as its EXIF says"] if picture.getexif().get(EXIF_ORIENTATION, 1) != 1 else []
        mode = _target(picture)
        if mode != picture.mode:
            changes.append(f"converted from mode {picture.mode} to {mode}, all colours kept")
        upright = ImageOps.exif_transpose(picture)
        pixels = np.array(upright.convert(mode)).reshape(upright.height, upright.width, MODES[mode])
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), mode, changes


def write_lossless(pixels: Tensor, mode: str, path: Path) -> None:
    """Write a picture, whole or not at all.

    Args:
        pixels: uint8 of shape (bands, height, width).
        mode: "L", "LA", "RGB" or "RGBA".
        path: A PNG or TIFF file.
    """
    from PIL import Image

    check_lossless_suffix(path)
    values = pixels.permute(1, 2, 0).contiguous().numpy()
    picture = Image.fromarray(values[:, :, 0] if mode == "L" else values)
    write_atomically(path, picture.save)


def check_lossless_suffix(path: Path) -> None:
    """Refuse to write formats that lose pixels.

    Args:
        path: Where a picture shall go.

    Raises:
        ConfigError: If it is no PNG or TIFF file.
    """
    if path.suffix.lower() not in SUFFIXES:
        hint = f"--out {path.stem or 'picture'}.png"
        raise ConfigError("every pixel is to be kept", expected="a PNG or TIFF file", got=str(path), hint=hint)


def _check(picture: Image, path: Path) -> None:
    if getattr(picture, "n_frames", 1) > 1:
        got = f"{getattr(picture, 'n_frames', 1)} pictures in one file"
        raise DataError(f"{path}: too many pictures", expected="one", got=got, hint="save each as a PNG")
    # Pillow reads colours of 16 bits as 8 without a word; only the name of the decoder's mode gives them away.
    is_deep = any(";16" in str(tile[-1]) for tile in getattr(picture, "tile", []))
    if is_deep or picture.mode not in (*MODES, "1", "P", "PA"):
        got = f"{picture.mode}, 16 bits" if is_deep and ";" not in picture.mode else picture.mode
        hint = "save it with 8 bits a channel, if you can do without the rest"
        expected = "8 bits, grey or RGB, with or without alpha"
        raise DataError(f"{path}: its pixels would not survive", expected=expected, got=f"mode {got}", hint=hint)


def _target(picture: Image) -> str:
    if picture.mode in ("LA", "RGBA"):
        return picture.mode
    is_grey = picture.mode in ("1", "L")
    return ("LA" if is_grey else "RGBA") if picture.has_transparency_data else ("L" if is_grey else "RGB")

"""Any picture on disk as 8-bit pixels: PNG, JPEG, WebP, BMP, TIFF; palettes, transparency, 16 bits, EXIF."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from invertible.errors import ConfigError, DataError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
MODES = {1: "L", 3: "RGB"}
GREY_MODES = ("1", "L", "LA", "La", "I", "F")
EXIF_ORIENTATION, EXIF_SIDEWAYS = 0x0112, (5, 6, 7, 8)
BROKEN = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error, zlib.error)


class Header(NamedTuple):
    """What a picture's header says, after EXIF rotation; lengths in pixels."""

    height: int
    width: int
    is_grey: bool


def read_header(path: Path) -> Header:
    """Read size and kind without decoding the pixels.

    Args:
        path: The picture.

    Returns:
        Height and width as they are seen, and whether it is grey.
    """
    from PIL import Image

    with reading(path), Image.open(path) as picture:
        (width, height), mode = picture.size, picture.mode
        sideways = picture.getexif().get(EXIF_ORIENTATION) in EXIF_SIDEWAYS
    is_grey = mode in GREY_MODES or mode.startswith("I;")
    return Header(width, height, is_grey) if sideways else Header(height, width, is_grey)


def read_picture(path: Path) -> tuple[Image, list[str]]:
    """Decode a picture to 8 bits, upright and opaque.

    Args:
        path: The picture.

    Returns:
        An image of mode ``"L"`` or ``"RGB"`` and what was changed to get there.
    """
    from PIL import Image, ImageOps

    with reading(path), Image.open(path) as picture:
        turned = picture.getexif().get(EXIF_ORIENTATION, 1) != 1
        changes = ["turned upright as its EXIF says"] if turned else []
        return _to_8_bits(ImageOps.exif_transpose(picture), changes, path)


def fit(picture: Image, channels: int, size: tuple[int, int]) -> tuple[Tensor, list[str]]:
    """Convert to the wanted channels; cut the centre to the wanted aspect and resize (bicubic, antialiased).

    Args:
        picture: Mode ``"L"`` or ``"RGB"``.
        channels: 1 or 3.
        size: (height, width) in pixels.

    Returns:
        uint8 tensor of shape (channels, height, width), and what was changed; sizes there are width x height.
    """
    from PIL import Image, ImageOps

    height, width = size
    changes = _size_changes(picture.size, (width, height))
    if picture.mode != MODES[channels]:
        changes.append("converted from colour to grey" if channels == 1 else "converted from grey to colour")
        picture = picture.convert(MODES[channels])
    if picture.size != (width, height):
        picture = ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(picture)).view(height, width, channels)
    return pixels.permute(2, 0, 1).contiguous(), changes


def image_file(path: str | Path, shape: tuple[int, int, int], max_value: int = 255) -> tuple[Tensor, str | None]:
    """Read one picture of any kind and size as a batch of one.

    Args:
        path: The picture.
        shape: The wanted (channels, height, width); 1 or 3 channels.
        max_value: The pixel value that means white, 16 for the embedded digits.

    Returns:
        uint8 tensor of shape (1, channels, height, width), and a note that says what was changed (sizes in
        width x height), or None if nothing was.

    Raises:
        ConfigError: If the wanted shape is impossible.
        DataError: If the file is missing or no image.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (512, 512), (255, 0, 0)).save(f"{folder}/red.png")
        ...     pixels, note = image_file(f"{folder}/red.png", (3, 32, 32))
        >>> pixels.shape, note
        (torch.Size([1, 3, 32, 32]), 'resized from 512x512 to 32x32')
    """
    channels, height, width = shape
    if channels not in MODES or height < 1 or width < 1:
        expected = "(1 or 3, height, width)"
        raise ConfigError("bad image shape", expected=expected, got=tuple(shape), hint="the model's input shape")
    picture, changes = read_picture(Path(path))
    pixels, more = fit(picture, channels, (height, width))
    if max_value != 255:
        more.append(f"scaled to 0..{max_value}")
        pixels = (pixels.float() * (max_value / 255)).round().to(torch.uint8)
    return pixels.unsqueeze(0), "; ".join(changes + more) or None


def _to_8_bits(picture: Image, changes: list[str], path: Path) -> tuple[Image, list[str]]:
    # To mode L or RGB: 16 bits scaled, transparency composited on black, palettes looked up.
    if picture.mode == "I" or picture.mode.startswith("I;"):
        return _from_16_bits(picture, path), [*changes, "scaled from 16 to 8 bits"]
    if picture.mode == "F":
        hint = "save it with 8 or 16 bits: the range of its values is unknown"
        raise DataError(f"{path}: unknown pixel range", expected="8 or 16 bits", got="floating point", hint=hint)
    target = "L" if picture.mode in GREY_MODES else "RGB"
    if picture.has_transparency_data:
        return _on_black(picture).convert(target), [*changes, "transparency put on black"]
    return picture.convert(target), changes


def _from_16_bits(picture: Image, path: Path) -> Image:
    from PIL import Image

    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        got = f"{values.min()} to {values.max()}"
        raise DataError(f"{path}: unknown pixel range", expected="0 to 65535", got=got, hint="save it with 8 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _on_black(picture: Image) -> Image:
    from PIL import Image

    coloured = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", coloured.size, (0, 0, 0, 255)), coloured).convert("RGB")


def _size_changes(size: tuple[int, int], wanted: tuple[int, int]) -> list[str]:
    """Return what ``fit`` does, in words; both sizes are (width, height)."""
    if size == wanted:
        return []
    scale = min(size[0] / wanted[0], size[1] / wanted[1])
    cut = round(wanted[0] * scale), round(wanted[1] * scale)
    changes = [] if cut == size else [f"cut to its centre {cut[0]}x{cut[1]} of {size[0]}x{size[1]}"]
    return changes if cut == wanted else [*changes, f"resized from {cut[0]}x{cut[1]} to {wanted[0]}x{wanted[1]}"]


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what decoders raise on a damaged file, which is almost anything, into one error with the file's name.

    Args:
        path: The picture that is read inside.

    Yields:
        Nothing.

    Raises:
        DataError: If reading fails.
    """
    from PIL.Image import DecompressionBombError

    try:
        yield
    except DataError:
        raise
    except (FileNotFoundError, IsADirectoryError) as error:
        expected, hint = "a picture", "check the path"
        raise DataError(f"{path}: no such file", expected=expected, got=error.strerror, hint=hint) from error
    except (*BROKEN, DecompressionBombError) as error:
        expected, hint = "PNG, JPEG, WebP, BMP or TIFF", "open it in a viewer; remove or replace it"
        raise DataError(f"{path}: not a readable image", expected=expected, got=error, hint=hint) from error

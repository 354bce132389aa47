"""Photographs as tensors and back, with what their owner expects to be kept: depth, alpha, profile, upright."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from invertible._checks import check_finite, check_floating, describe
from invertible.data.pictures import GREY_MODES, reading
from invertible.errors import ConfigError, DataError, ShapeError
from invertible.instruments._write import write_whole
from invertible.restore._metadata import Metadata, read_metadata
from invertible.restore._orientation import upright
from invertible.restore._writers import JPEG, writer_of

if TYPE_CHECKING:
    from PIL.Image import Image

DEEP = (".png", ".tif", ".tiff")
WRITABLE = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Photo:
    """A photograph.

    Args:
        pixels: Shape (1 or 3, height, width), float32 in [0, 1], upright.
        alpha: Shape (1, height, width) likewise; None if it is opaque.
        bits: 8 or 16 per value, as in its file.
        metadata: Colour profile, EXIF without orientation, resolution.
        notes: What was changed to get there.
    """

    pixels: Tensor
    alpha: Tensor | None = None
    bits: int = 8
    metadata: Metadata = field(default_factory=Metadata)
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.pixels.shape[1], self.pixels.shape[2]


def read_image(path: str | Path) -> Photo:
    """Read a photograph: PNG, JPEG, TIFF, WebP; 8 or 16 bits; grey, coloured or with a palette; with or without alpha.

    Args:
        path: The file.

    Returns:
        The photograph, turned upright as its EXIF says.

    Raises:
        DataError: If there is no such file, it is no picture or it is damaged.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_image(f"{folder}/a.png", torch.full((3, 4, 6), 0.2))
        ...     photo = read_image(f"{folder}/a.png")
        >>> photo.size, photo.bits, photo.alpha is None
        ((4, 6), 8, True)
    """
    from PIL import Image

    path = Path(path)
    with reading(path), Image.open(path) as picture, Image.open(path) as again, Image.open(path) as described:
        metadata, orientation, notes = read_metadata(described)  # may decode it
        values, bits = _decode(picture, again, path)
        left = 1 if picture.format == "TIFF" else orientation  # Pillow turns a TIFF when it decodes it
        frames = int(getattr(picture, "n_frames", 1)) if picture.format != "MPO" else 1
    notes += ["turned upright as its EXIF says"] if orientation != 1 else []
    notes += [f"the first of {frames} pictures in the file"] if frames > 1 else []
    planes = upright(torch.from_numpy(values).permute(2, 0, 1), left).contiguous()
    pixels, alpha = (planes[:-1], planes[-1:]) if len(planes) in (2, 4) else (planes, None)
    return Photo(pixels.clone(), None if alpha is None else alpha.clone(), bits, metadata, tuple(notes))


def write_image(path: str | Path, pixels: Tensor, like: Photo | None = None, bits: int | None = None) -> None:
    """Write a photograph, whole or not at all.

    JPEG and WebP are written with quality 95, JPEG without subsampling of colour. Values outside [0, 1] are cut.

    Args:
        path: The file: .png, .jpg, .tif or .webp.
        pixels: Shape (1 or 3, height, width), real numbers in [0, 1].
        like: The photograph it was made of: its alpha (enlarged if need be), metadata and depth are kept.
        bits: 8 or 16; None: those of `like`, or 8.

    Raises:
        ConfigError: If such a file cannot hold it: 16 bits or alpha in a JPEG.
        DataError: If it cannot be written.
        NonFiniteError: If a value is NaN or infinite.
        ShapeError: If it is no picture.
    """
    path, like = Path(path), like or Photo(pixels)
    _check_pixels(pixels)
    bits = like.bits if bits is None else bits
    check_suffix(path, bits, like.alpha is not None)
    planes = pixels.detach().to("cpu", torch.float64)
    if like.alpha is not None:
        planes = torch.cat([planes, resized(like.alpha, (pixels.shape[1], pixels.shape[2])).double()])
    levels = 2**bits - 1
    values = (planes.clamp(0, 1) * levels).round().permute(1, 2, 0).numpy().astype(np.uint16 if bits > 8 else np.uint8)
    metadata = like.metadata
    write_whole(path, lambda temporary: writer_of(path, bits)(temporary, values, metadata))


def resized(plane: Tensor, size: tuple[int, int]) -> Tensor:
    """Resample an alpha channel.

    Args:
        plane: Shape (channels, height, width), in [0, 1].
        size: The wanted (height, width).

    Returns:
        Shape (channels, *size); the same values if the size is its own.
    """
    if tuple(plane.shape[1:]) == size:
        return plane
    large = torch.nn.functional.interpolate(
        plane.unsqueeze(0), size=size, mode="bicubic", antialias=True, align_corners=False
    )
    return large[0].clamp(0, 1)


def check_suffix(path: Path, bits: int = 8, has_alpha: bool = False) -> None:
    """Refuse a kind of file that cannot hold a photograph.

    Args:
        path: Where it shall go.
        bits: 8 or 16 per value.
        has_alpha: Whether parts of it are transparent.

    Raises:
        ConfigError: If its suffix is unknown or means a file without 16 bits or without alpha.
    """
    suffix = path.suffix.lower()
    if bits not in (8, 16):
        raise ConfigError("no such depth", expected="8 or 16 bits", got=bits)
    if suffix not in WRITABLE:
        raise ConfigError("unknown kind of picture", expected=", ".join(WRITABLE), got=str(path))
    if bits > 8 and suffix not in DEEP:
        expected, hint = "NAME.png or NAME.tif", "or --bits 8 (bits=8)"
        raise ConfigError(f"a {suffix} file holds no 16 bits", expected=expected, got=str(path), hint=hint)
    if has_alpha and suffix in JPEG:
        expected = "NAME.png, NAME.tif or NAME.webp"
        raise ConfigError("a JPEG file holds no transparency", expected=expected, got=str(path))


def check_writable(path: Path) -> None:
    """Find out whether a file could be written, before hours of work; nothing is left behind.

    Args:
        path: Where it shall go. Its folder may not be there yet.

    Raises:
        DataError: If it is a folder, or its folder cannot be made or written to.
    """
    if path.is_dir():
        raise DataError(f"cannot write {path}", expected="the name of a file", got="a folder")
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        hint = "another folder, or its permissions and free space"
        raise DataError(f"cannot write {path}", got=f"{folder}: {error.strerror}", hint=hint) from error


def _check_pixels(pixels: Tensor) -> None:
    check_floating(pixels, "write_image")
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3) or not pixels.numel():
        expected, hint = "(1 or 3, height, width)", "image[0] of a batch of one"
        raise ShapeError("write_image got no picture", expected=expected, got=describe(pixels), hint=hint)
    check_finite(pixels, "a picture to write")


def _decode(picture: Image, again: Image, path: Path) -> tuple[np.ndarray, int]:
    # float32 of shape (height, width, 1 to 4) in [0, 1], and the depth.
    from invertible.restore._deep import deep_pixels, is_deep

    if is_deep(picture):
        return deep_pixels(picture, again).astype(np.float32) / 65535, 16
    picture.load()
    if picture.mode == "I" or picture.mode.startswith("I;"):
        return _deep_grey(np.asarray(picture), path), 16
    if picture.mode == "F":
        hint = "save it with 8 or 16 bits: the range of its values is unknown"
        raise DataError(f"{path}: unknown pixel range", expected="8 or 16 bits", got="floating point", hint=hint)
    mode = "L" if picture.mode in GREY_MODES else "RGB"
    mode = {"L": "LA", "RGB": "RGBA"}[mode] if picture.has_transparency_data else mode
    values = np.asarray(picture if picture.mode == mode else picture.convert(mode))
    return values.reshape(*values.shape[:2], -1).astype(np.float32) / 255, 8


def _deep_grey(values: np.ndarray, path: Path) -> np.ndarray:
    if values.min() < 0 or values.max() > 65535:
        got, hint = f"{values.min()} to {values.max()}", "save it with 8 or 16 bits"
        raise DataError(f"{path}: unknown pixel range", expected="0 to 65535", got=got, hint=hint)
    return values[..., None].astype(np.float32) / 65535

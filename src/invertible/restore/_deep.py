"""All 16 bits of coloured pictures, of which Pillow hands out the upper 8.

Pillow decodes such files whole and drops one byte of two at the last step, by a "raw mode" that says which byte comes
first. Told the other order it hands out the lower 8 bits: so a file is decoded twice.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

OTHER_ORDER = {"B": "L", "L": "B"}
PNG_COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
METRES_PER_INCH = 0.0254


def is_deep(picture: Image) -> bool:
    """Tell whether a picture is coloured (or has alpha) and has 16 bits.

    Args:
        picture: Opened and not yet loaded.

    Returns:
        False for grey pictures of 16 bits, which Pillow keeps whole.
    """
    return picture.mode in ("RGB", "RGBA") and any(";16" in _raw_mode(tile) for tile in _tiles(picture))


def deep_pixels(picture: Image, again: Image) -> np.ndarray:
    """Decode all 16 bits.

    Args:
        picture: Opened and not yet loaded; it is loaded.
        again: The same file, opened a second time.

    Returns:
        uint16 of shape (height, width, 2 to 4); two: grey and alpha.
    """
    if _raw_mode(_tiles(picture)[0]) == "LA;16B":  # four bytes a pixel, as RGBA with 8 bits has
        _set_raw_modes(picture, lambda _: "RGBA")
        four = np.asarray(picture).astype(np.uint16)
        return np.stack([four[..., 0] << 8 | four[..., 1], four[..., 2] << 8 | four[..., 3]], -1)
    _set_raw_modes(again, _swapped)
    upper, lower = np.asarray(picture).astype(np.uint16), np.asarray(again).astype(np.uint16)
    return upper << 8 | lower


def _swapped(mode: str) -> str:
    native, other = ("L", "B") if struct.pack("=H", 1) == b"\1\0" else ("B", "L")
    base, _, order = mode.partition(";16")
    return f"{base};16{other if order == 'N' else OTHER_ORDER.get(order, native)}"


def _tiles(picture: Image) -> list[tuple]:
    return list(cast("Any", picture).tile)


def _raw_mode(tile: tuple) -> str:
    args = tile[3]
    return args if isinstance(args, str) else str(args[0]) if args else ""


def _set_raw_modes(picture: Image, change: Callable[[str], str]) -> None:
    changed = []
    for tile in _tiles(picture):
        mode, args = change(_raw_mode(tile)), tile[3]
        args = mode if isinstance(args, str) else (mode, *args[1:])
        is_named = type(tile) is not tuple  # since Pillow 11
        changed.append(cast("Any", tile)._replace(args=args) if is_named else (*tile[:3], args))
    cast("Any", picture).tile = changed


def write_deep_png(
    path: Path, pixels: np.ndarray, icc: bytes | None, exif: bytes | None, dpi: tuple[float, float] | None
) -> None:
    """Write a PNG with 16 bits, which Pillow cannot for colours.

    Args:
        path: The file.
        pixels: uint16 of shape (height, width, 1 to 4).
        icc: A colour profile.
        exif: EXIF data, beginning with its TIFF header.
        dpi: Pixels per inch, across and down.

    Source: Portable Network Graphics (ISO/IEC 15948), sections 9 and 11.
    """
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, PNG_COLOURS[channels], 0, 0, 0)
    with path.open("wb") as file:
        file.write(PNG_SIGNATURE + _chunk(b"IHDR", header))
        if icc:
            file.write(_chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc)))
        if dpi:
            per_metre = (round(value / METRES_PER_INCH) for value in dpi)
            file.write(_chunk(b"pHYs", struct.pack(">IIB", *per_metre, 1)))
        if exif:
            file.write(_chunk(b"eXIf", exif.removeprefix(b"Exif\0\0")))
        file.write(_chunk(b"IDAT", _compressed(pixels)) + _chunk(b"IEND", b""))


def _compressed(pixels: np.ndarray) -> bytes:
    # Each row begins with the number of its filter: 1, differences from the pixel on the left, byte by byte.
    height, _, channels = pixels.shape
    row = np.ascontiguousarray(pixels, ">u2").view(np.uint8).reshape(height, -1)
    row = row - np.pad(row, ((0, 0), (2 * channels, 0)))[:, : row.shape[1]]
    return zlib.compress(np.pad(row, ((0, 0), (1, 0)), constant_values=1).tobytes(), 6)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

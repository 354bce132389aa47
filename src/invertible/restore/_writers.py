"""Pixels into files: who writes which kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from invertible.restore._deep import write_deep_png
from invertible.restore._metadata import Metadata

JPEG, TIFF = (".jpg", ".jpeg"), (".tif", ".tiff")
QUALITY = 95


def writer_of(path: Path, bits: int) -> Callable[[Path, np.ndarray, Metadata], None]:
    """Choose who writes a kind of file.

    Args:
        path: The file; its suffix counts.
        bits: 8 or 16 per value.

    Returns:
        A function of a path, pixels of shape (height, width, 1 to 4) and metadata.
    """
    if path.suffix.lower() in TIFF:
        return _write_tiff
    return _write_with_pillow if bits == 8 else _write_deep_png


def _write_with_pillow(path: Path, values: np.ndarray, metadata: Metadata) -> None:
    from PIL import Image

    options: dict[str, object] = {"icc_profile": metadata.icc, "exif": metadata.exif, "dpi": metadata.dpi}
    if path.suffix.lower() in JPEG:
        options |= {"quality": QUALITY, "subsampling": 0}
    elif path.suffix.lower() == ".webp":
        options |= {"quality": QUALITY, "exact": True}
    given = {name: value for name, value in options.items() if value is not None}
    values = values[..., 0] if values.shape[2] == 1 else values
    Image.fromarray(values).save(path, **given)  # pyright: ignore[reportArgumentType]


def _write_deep_png(path: Path, values: np.ndarray, metadata: Metadata) -> None:
    write_deep_png(path, values, metadata.icc, metadata.exif, metadata.dpi)


def _write_tiff(path: Path, values: np.ndarray, metadata: Metadata) -> None:
    import tifffile

    if values.shape[2] == 2:  # few readers know grey with alpha
        values = np.concatenate([values[..., :1].repeat(3, 2), values[..., 1:]], 2)
    is_grey, has_alpha = values.shape[2] == 1, values.shape[2] == 4
    tifffile.imwrite(
        path,
        values[..., 0] if is_grey else values,
        photometric="minisblack" if is_grey else "rgb",
        compression="zlib",
        extrasamples=("unassalpha",) if has_alpha else None,
        iccprofile=metadata.icc,
        resolution=metadata.dpi,
        resolutionunit="INCH" if metadata.dpi else None,
        extratags=[(tag, "s", 0, text, True) for tag, text in metadata.texts.items()],
        software=False,
        metadata=None,
    )

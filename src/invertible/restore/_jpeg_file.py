"""What a JPEG file says of the picture it was made from: tables, subsampling, and the quantised coefficients.

Image libraries hand out decoded pixels only. Brightness is read from those; colour of a file with subsampling 4:2:0
from a decoding at half the size, where colour needs no interpolation. Both are rounded to 8 bits, which is less than
half a quantisation step for all but the finest tables, so the coefficients come out as they are in the file.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from invertible.data.pictures import EXIF_ORIENTATION, reading
from invertible.errors import ConfigError, DataError
from invertible.restore._jpeg_blocks import SIDE, to_coefficients, to_pixels

if TYPE_CHECKING:
    from PIL.JpegImagePlugin import JpegImageFile

SAMPLINGS = {"4:4:4": (1, 1), "4:2:2": (1, 2), "4:2:0": (2, 2)}
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # start-of-frame markers, ISO/IEC 10918-1, table B.1
SEQUENTIAL = {0xC0, 0xC1}
N_REFINEMENTS = 30


@dataclass(frozen=True)
class JpegFile:
    """What a file says.

    Args:
        tables: A quantisation table of shape (8, 8) per plane, in grey levels.
        sampling: Pixels of brightness per pixel of colour, (down, across).
        orientation: EXIF's value.
        size: (height, width) as stored, pixels.
        coefficients: Per plane, whole numbers of shape (blocks down, blocks across, 8, 8): multiples of the table.
    """

    tables: tuple[Tensor, ...]
    sampling: tuple[int, int]
    orientation: int
    size: tuple[int, int]
    coefficients: tuple[Tensor, ...]


def read_jpeg(path: Path) -> JpegFile:
    """Read a file.

    Args:
        path: A JPEG, grey or YCbCr, 4:4:4, 4:2:2 or 4:2:0; baseline or progressive.

    Returns:
        Its tables, subsampling, orientation and coefficients.

    Raises:
        DataError: If it is no such file.
    """
    with reading(path):
        content = path.read_bytes()
        picture = _open(content, path)
        tables, sampling = _tables(picture), _sampling(picture, path)
        orientation = picture.getexif().get(EXIF_ORIENTATION, 1)
        width, height = picture.size
        planes = _planes(_whole_blocks(content, sampling), sampling, len(tables), path)
    shapes = _block_counts((height, width), sampling, len(tables))
    coefficients = tuple(
        _quantised(plane, table)[:down, :across]
        for plane, table, (down, across) in zip(planes, tables, shapes, strict=True)
    )
    return JpegFile(tables, sampling, orientation if orientation in range(1, 9) else 1, (height, width), coefficients)


def standard_tables(quality: int) -> tuple[Tensor, Tensor]:
    """The tables that the common encoder uses for a quality.

    Args:
        quality: 1 to 100.

    Returns:
        For brightness and for colour, shape (8, 8), in grey levels.

    Raises:
        ConfigError: If there is no such quality.
    """
    from PIL import Image

    if not 1 <= quality <= 100:
        raise ConfigError("JPEG has no such quality", expected="a whole number from 1 to 100", got=quality)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", quality=quality)
    brightness, colour, _ = _tables(_open(file.getvalue(), Path("standard.jpg")))
    return brightness, colour


def _open(content: bytes, path: Path) -> JpegImageFile:
    from PIL.JpegImagePlugin import JpegImageFile

    if content[:2] != b"\xff\xd8":
        hint = "--task denoise for a picture that was a JPEG once and was saved as something else"
        raise DataError(f"{path}: no JPEG file", expected="a file that begins as JPEG does", got="another", hint=hint)
    return JpegImageFile(io.BytesIO(content), str(path))


def _tables(picture: JpegImageFile) -> tuple[Tensor, ...]:
    found = [picture.quantization[layer[3]] for layer in picture.layer]
    return tuple(torch.tensor(table, dtype=torch.float64).view(SIDE, SIDE) for table in found)


def _sampling(picture: JpegImageFile, path: Path) -> tuple[int, int]:
    layers, hint = picture.layer, "--task denoise, which takes any picture"
    expected = "grey, or YCbCr with subsampling 4:4:4, 4:2:2 or 4:2:0"
    if len(layers) == 1:
        return 1, 1
    is_rgb = picture.info.get("adobe_transform") == 0 or bytes(layer[0] for layer in layers) == b"RGB"
    if len(layers) != 3 or is_rgb:
        got = "RGB" if is_rgb and len(layers) == 3 else f"{len(layers)} planes"
        raise DataError(f"{path}: unusual JPEG", expected=expected, got=got, hint=hint)
    (_, across, down, _), *colours = layers
    if (down, across) not in SAMPLINGS.values() or any(layer[1:3] != (1, 1) for layer in colours):
        got = ", ".join(f"{layer[1]}x{layer[2]}" for layer in layers)
        raise DataError(f"{path}: unusual subsampling", expected=expected, got=f"factors {got}", hint=hint)
    return down, across


def _whole_blocks(content: bytes, sampling: tuple[int, int]) -> bytes:
    # The file with a size in its header that shows the pixels which encoders put in to fill the last blocks.
    at = 2
    while content[at + 1] not in FRAMES:
        at += 2 + int.from_bytes(content[at + 2 : at + 4])
    height, width = (int.from_bytes(content[at + i : at + i + 2]) for i in (5, 7))
    # In files of several scans the number of blocks in a scan follows from the size, so no block may be added there.
    down, across = sampling if content[at + 1] in SEQUENTIAL and _is_interleaved(content, at) else (1, 1)
    larger = [-(-n // unit) * unit for n, unit in ((height, SIDE * down), (width, SIDE * across))]
    if max(larger) > 65535:
        return content
    return content[: at + 5] + b"".join(n.to_bytes(2) for n in larger) + content[at + 9 :]


def _is_interleaved(content: bytes, frame: int) -> bool:
    at = frame
    while content[at + 1] != 0xDA:  # the first start of scan
        at += 2 + int.from_bytes(content[at + 2 : at + 4])
    return content[at + 4] == content[frame + 9]


def _planes(content: bytes, sampling: tuple[int, int], n_planes: int, path: Path) -> list[np.ndarray]:
    picture = _open(content, path)
    if n_planes == 1:
        return [np.asarray(picture)]
    picture.draft("YCbCr", picture.size)
    full = np.asarray(picture)
    if sampling == (2, 2):
        small = _open(content, path)
        small.draft("YCbCr", (small.size[0] // 2, small.size[1] // 2))
        colours = np.asarray(small)[..., 1:]
    else:
        colours = _without_interpolation(full[..., 1:]) if sampling == (1, 2) else full[..., 1:]
    return [full[..., 0], colours[..., 0], colours[..., 1]]


def _without_interpolation(colours: np.ndarray) -> np.ndarray:
    # Decoders interpolate colour across: a pair of pixels is (3 c_i + c_i-1) / 4, (3 c_i + c_i+1) / 4. Least squares
    # for c, of shape (height, width / 2, 2).
    from scipy.linalg import solveh_banded

    n = colours.shape[1] // 2
    left, right = (colours[:, i::2].astype(np.float64).transpose(1, 0, 2).reshape(n, -1) for i in (0, 1))
    diagonal = np.full(n, (9 + 1 + 9 + 1) / 16)
    diagonal[0] = diagonal[-1] = (16 + 9 + 1) / 16 if n > 1 else 2.0
    target = 3 / 4 * (left + right)
    target[0] += left[0] / 4
    target[-1] += right[-1] / 4
    target[:-1] += left[1:] / 4
    target[1:] += right[:-1] / 4
    beside = np.full(n, (3 + 3) / 16)
    solved = solveh_banded(np.stack([diagonal, beside]), target, lower=True)
    return solved.reshape(n, colours.shape[0], 2).transpose(1, 0, 2)


def _block_counts(size: tuple[int, int], sampling: tuple[int, int], n_planes: int) -> list[tuple[int, int]]:
    height, width = size
    down, across = sampling
    colour = (-(-height // (SIDE * down)), -(-width // (SIDE * across)))
    return [(-(-height // SIDE), -(-width // SIDE)), colour, colour][:n_planes]


def _quantised(plane: np.ndarray, table: Tensor) -> Tensor:
    # Where the decoder cut at black and white, the coefficients are those of a picture that went on beyond.
    shown = torch.from_numpy(plane.astype(np.float64)).unsqueeze(0)
    whole = (to_coefficients(shown - 128) / table).round()
    padded = to_pixels(whole).shape[1:]
    shown = to_pixels(to_coefficients(shown)) if shown.shape[1:] != padded else shown
    black, white = shown < 0.5, shown > 254.5
    for _ in range(N_REFINEMENTS if (black | white).any() else 0):
        decoded = to_pixels(whole * table) + 128
        beyond = (black & (decoded < 0)) | (white & (decoded > 255))
        again = (to_coefficients(torch.where(beyond, decoded, shown) - 128) / table).round()
        if torch.equal(again, whole):
            break
        whole = again
    return whole[0]

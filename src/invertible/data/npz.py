"""NumPy archives of one array, as Kuzushiji-49 publishes them; never unpickled."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from invertible.errors import DataError


def read_npz(path: Path, n_dims: int, key: str = "arr_0") -> Tensor:
    """Read one array of unsigned bytes.

    Args:
        path: The ``.npz`` file.
        n_dims: How many axes it must have: 3 for images, 1 for labels.
        key: The array's name inside the file.

    Returns:
        uint8 tensor.

    Raises:
        DataError: If the file is truncated, holds pickled objects, or its array has another type or shape.
    """
    array = _array(path, key)
    if array.dtype != np.uint8 or array.ndim != n_dims:
        expected, got = f"uint8 with {n_dims} axes", f"{array.dtype} with {array.ndim}"
        hint = "are the files of images and labels swapped?"
        raise DataError(f"{path}: wrong array", expected=expected, got=got, hint=hint)
    return torch.from_numpy(array)


def _array(path: Path, key: str) -> np.ndarray:
    try:
        with (
            path.open("rb") as stream,
            zipfile.ZipFile(stream) as archive,
            archive.open(f"{key}.npy") as member,
        ):
            return np.lib.format.read_array(member, allow_pickle=False)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        hint = "the file is damaged or another one: fetch it again"
        expected = f"an .npz file with the array {key!r}"
        raise DataError(f"{path}: cannot be read", expected=expected, got=error, hint=hint) from error

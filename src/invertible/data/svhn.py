"""Street View House Numbers, cropped, in MATLAB's format (http://ufldl.stanford.edu/housenumbers/)."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invertible.errors import DataError


def read_svhn(path: Path) -> tuple[Tensor, Tensor]:
    """Read images and labels; the publisher's label 10 is the digit 0.

    Args:
        path: ``train_32x32.mat`` or ``test_32x32.mat``.

    Returns:
        uint8 images of shape (n, 3, 32, 32) and int64 labels of shape (n,).

    Raises:
        DataError: If the file is truncated, of another version, or its arrays do not fit.
    """
    content = _load(path)
    images, labels = content["X"], content["y"].reshape(-1)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (32, 32, 3):
        got = f"{images.dtype} {images.shape}"
        raise DataError(f"{path}: wrong images", expected="uint8 (32, 32, 3, n)", got=got, hint="fetch it again")
    if labels.size and not (labels.min() >= 1 and labels.max() <= 10):
        got = f"{labels.min()} to {labels.max()}"
        raise DataError(f"{path}: label out of range", expected="1 to 10", got=got, hint="fetch it again")
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(3, 2, 0, 1)))
    return pixels, torch.from_numpy(labels.astype(np.int64) % 10)


def _load(path: Path) -> dict[str, Any]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    broken = (OSError, ValueError, TypeError, KeyError, IndexError, EOFError, NotImplementedError)
    hint = "the file is damaged or another one: fetch it again"
    try:
        content = loadmat(str(path), variable_names=["X", "y"])
        return {key: content[key] for key in ("X", "y")}
    except (*broken, MatReadError, struct.error, zlib.error) as error:
        got = f"{type(error).__name__}: {error}"
        raise DataError(f"{path}: cannot be read", expected="X and y in a .mat file", got=got, hint=hint) from error

"""The IDX format of MNIST and its kin, plain or gzipped (http://yann.lecun.com/exdb/mnist/)."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import torch
from torch import Tensor

from invertible.data._bytes import read_bytes
from invertible.errors import DataError

UNSIGNED_BYTE = 0x08


def read_idx(path: Path, n_dims: int) -> Tensor:
    """Read an IDX file of unsigned bytes.

    Args:
        path: The file, gzipped or not (told by its content, not by its name).
        n_dims: How many axes the file must have: 3 for images, 1 for labels.

    Returns:
        uint8 tensor of the shape in the file's header.

    Raises:
        DataError: If the file is truncated, corrupt, or of another type.
    """
    content = read_bytes(path)
    shape = _header(path, content, n_dims)
    start = 4 + 4 * n_dims
    expected = start + math.prod(shape)
    if len(content) != expected:
        hint = "the file is truncated or damaged: fetch it again"
        raise DataError(f"{path}: wrong length", expected=f"{expected} bytes", got=f"{len(content)} bytes", hint=hint)
    return torch.frombuffer(bytearray(content[start:] or b"\0"), dtype=torch.uint8)[: math.prod(shape)].view(shape)


def _header(path: Path, content: bytes, n_dims: int) -> tuple[int, ...]:
    # The magic number is two zero bytes, the type, the number of axes; then come the axes' lengths.
    expected = (UNSIGNED_BYTE << 8) | n_dims
    if len(content) < 4 + 4 * n_dims:
        length = f"at least {4 + 4 * n_dims} bytes"
        raise DataError(f"{path}: no IDX header", expected=length, got=f"{len(content)} bytes", hint="fetch it again")
    (magic,) = struct.unpack(">I", content[:4])
    if magic != expected:
        what = "images" if n_dims == 3 else "labels"
        hint = f"is this the file of {what}?"
        raise DataError(f"{path}: wrong magic number", expected=f"{expected:#010x}", got=f"{magic:#010x}", hint=hint)
    return struct.unpack(f">{n_dims}I", content[4 : 4 + 4 * n_dims])

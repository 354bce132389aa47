"""CIFAR's binary form: records of label bytes and 3072 pixels (https://www.cs.toronto.edu/~kriz/cifar.html)."""

from __future__ import annotations

import tarfile
import zlib
from pathlib import Path

import torch
from torch import Tensor

from invertible.data._bytes import read_bytes
from invertible.errors import DataError

SHAPE = (3, 32, 32)
N_PIXELS = 3 * 32 * 32
AGAIN = "the file is truncated or damaged: fetch it again"


def parse_records(content: bytes, where: str, n_label_bytes: int, n_records: int) -> tuple[Tensor, Tensor]:
    """Split records into images and labels.

    Args:
        content: The records, nothing between them.
        where: The file's name, for the error.
        n_label_bytes: 1 for CIFAR-10; 2 for CIFAR-100, whose second byte is the fine label.
        n_records: How many records there must be.

    Returns:
        uint8 images of shape (n_records, 3, 32, 32) and int64 labels of shape (n_records,).

    Raises:
        DataError: If the length is not that of ``n_records`` records.
    """
    expected = n_records * (n_label_bytes + N_PIXELS)
    if len(content) != expected:
        got = f"{len(content)} bytes"
        raise DataError(f"{where}: wrong length", expected=f"{expected} bytes", got=got, hint=AGAIN)
    records = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(n_records, -1)
    images = records[:, n_label_bytes:].reshape(n_records, *SHAPE)
    return images, records[:, n_label_bytes - 1].to(torch.int64)


def read_cifar(path: Path, members: tuple[str, ...], n_label_bytes: int, n_records: int) -> tuple[Tensor, Tensor]:
    """Read some members of the archive, or of the folder it unpacks to.

    Args:
        path: ``cifar-10-binary.tar.gz`` or a folder with the ``.bin`` files; nothing is written.
        members: Names of the ``.bin`` files.
        n_label_bytes: 1 for CIFAR-10, 2 for CIFAR-100.
        n_records: How many records each member must have.

    Returns:
        uint8 images of shape (n, 3, 32, 32) and int64 labels of shape (n,), in the members' order.
    """
    contents = {name: read_bytes(path / name) for name in members} if path.is_dir() else _unpack(path, members)
    parts = [parse_records(contents[name], f"{path}: {name}", n_label_bytes, n_records) for name in members]
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


def _unpack(path: Path, members: tuple[str, ...]) -> dict[str, bytes]:
    # One pass over the archive, into memory: nothing an archive says can write to disk.
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:*") as archive:
            for entry in archive:
                name = Path(entry.name).name
                stream = archive.extractfile(entry) if name in members else None
                if stream is not None:
                    contents[name] = stream.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read", expected="a whole .tar.gz", got=error, hint=AGAIN) from error
    missing = sorted(set(members) - set(contents))
    if missing:
        hint = "use CIFAR's binary version, not the python one"
        raise DataError(f"{path}: wrong archive", expected=", ".join(members), got=f"no {missing[0]}", hint=hint)
    return contents

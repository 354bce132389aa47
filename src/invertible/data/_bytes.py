"""A whole file in memory, gzipped or not, or an error that names it."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from invertible.errors import DataError

GZIP_MAGIC = b"\x1f\x8b"


def read_bytes(path: Path) -> bytes:
    """Read a whole file, unpacking gzip where it is gzip.

    Args:
        path: The file.

    Returns:
        Its content, unpacked.

    Raises:
        DataError: If it cannot be read or its gzip stream is broken.
    """
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content.startswith(GZIP_MAGIC) else content
    except (OSError, EOFError, zlib.error) as error:
        hint = "the file is truncated or damaged: fetch it again"
        raise DataError(f"{path}: cannot be read", expected="a whole file", got=error, hint=hint) from error

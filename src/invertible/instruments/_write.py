"""Files of results, each whole or not at all."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from invertible._files import write_atomically
from invertible.errors import CheckpointError, DataError


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its place, then put it there.

    Args:
        path: The file; its folder is made if need be.
        write: Writes to the path it is given.

    Raises:
        DataError: If that fails; an old file is as it was then.
    """
    try:
        write_atomically(path, write)
    except CheckpointError as error:
        hint = "another folder, or its permissions and free space"
        raise DataError(error.problem, got=error.got, hint=hint) from error


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    r"""Rows as CSV, with all digits; None is an empty cell.

    Args:
        rows: All with the same columns.

    Returns:
        One line per row, with a head; nothing if there are no rows.

    Example:
        >>> as_csv([{"name": "a", "value": 0.5}, {"name": "b", "value": None}])
        'name,value\na,0.5\nb,\n'
    """
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
    return text.getvalue()

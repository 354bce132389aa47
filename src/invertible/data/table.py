"""Tables of your own: rows of numbers from .npy or .csv files."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch

from invertible.data.points import PointSet
from invertible.data.splits import TEST_FRACTION, TEST_SEED
from invertible.data.steps import seeded_generator
from invertible.errors import DataError

SUFFIXES = (".npy", ".csv")
TABLE = "table"


def read_rows(path: str | Path) -> torch.Tensor:
    """Read rows of numbers.

    Args:
        path: A NumPy file with an array of shape (n, d) or (d,), or a CSV file with commas, with or without a header.

    Returns:
        float32, shape (n, d).

    Raises:
        DataError: If the file is missing, no table of numbers, or a number is not finite in float32.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file", expected="a .npy or .csv file")
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path}: not a table", expected="a .npy or .csv file", got=path.suffix or "no suffix")
    try:
        array = np.load(path, allow_pickle=False) if path.suffix.lower() == ".npy" else _read_csv(path)
        values = np.atleast_2d(array).astype(np.float64)
    except (ValueError, TypeError, OSError, EOFError, UnicodeDecodeError) as error:
        text = " ".join(str(error).split())
        raise DataError(f"{path}: not a table of numbers", expected="rows of numbers", got=text) from error
    if values.ndim != 2 or not values.size:
        raise DataError(f"{path}: not a table", expected="shape (n, d)", got=values.shape, hint="one row per point")
    rows = torch.from_numpy(values).float()
    bad = (~torch.isfinite(rows)).nonzero()
    if len(bad):
        row, column = bad[0].tolist()
        value = float(values[row, column])
        text = f"{value:g} is out of the range of float32" if np.isfinite(value) else f"{value:g}"
        got = f"{len(bad)} that are not, the first in row {row}, column {column}: {text}"
        raise DataError(f"{path}: bad numbers", expected="finite numbers", got=got, hint="leave such rows out")
    return rows


def read_table(folder: str | Path | None, split: str) -> PointSet:
    """Read one part of a folder of tables.

    Args:
        folder: It holds train.npy (or .csv) and test.npy (or .csv), or a single file, of which a quarter is the test
            part, the same rows every time.
        split: "train" or "test".

    Returns:
        The points, of one class.

    Raises:
        DataError: If there is no such folder or file.
    """
    if folder is None or not Path(folder).is_dir():
        expected = "data_dir, a folder with train.npy and test.npy (or .csv), or with one such file"
        raise DataError("table: no folder", expected=expected, got=folder, hint="--data-dir FOLDER")
    files = [path for path in sorted(Path(folder).iterdir()) if path.suffix.lower() in SUFFIXES]
    named = [path for path in files if path.stem == split]
    if len(named) == 1:
        rows = read_rows(named[0])
    elif len(files) == 1:
        rows = _part(read_rows(files[0]), split)
    else:
        got = ", ".join(path.name for path in files) or "no .npy or .csv file"
        expected = f"one file {split}.npy or {split}.csv, or a single table"
        raise DataError(f"{folder}: no tables", expected=expected, got=got)
    return PointSet(rows, torch.zeros(len(rows), dtype=torch.int64), ("all",), TABLE)


def _part(rows: torch.Tensor, split: str) -> torch.Tensor:
    order = torch.randperm(len(rows), generator=seeded_generator(TEST_SEED, len(rows)))
    n_test = round(TEST_FRACTION * len(rows))
    wanted = order[:n_test] if split == "test" else order[n_test:]
    return rows[wanted.sort().values]


def _read_csv(path: Path) -> np.ndarray:
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if any(cell.strip() for cell in row)]
    if rows and not all(map(_is_number, rows[0])):
        rows = rows[1:]
    return np.array([[float(cell) for cell in row] for row in rows])


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True

"""How likely a trained flow finds files: bits per dimension of pictures, nats of points, outliers first."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from invertible._console import progress
from invertible._files import write_json, write_text
from invertible.data import PointSet, image_file, read_rows
from invertible.data.pictures import SUFFIXES as PICTURES
from invertible.data.pictures import read_header
from invertible.data.table import SUFFIXES as TABLES
from invertible.errors import ConfigError, DataError, ShapeError
from invertible.train.density import bits_per_dim, check_label, dtype_and_device, log_density
from invertible.train.prepare import Data
from invertible.train.randomness import seeded
from invertible.train.run import EVALUATION_BATCH, Run

N_REFERENCE = 1000


@dataclass(frozen=True)
class Scored:
    """What is to be scored.

    Args:
        names: One per picture or point.
        data: uint8 pictures, shape (n, channels, height, width), or float32 points, shape (n, d).
        notes: What was changed to make pictures fit.
    """

    names: tuple[str, ...]
    data: Tensor
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Score:
    """One picture or point.

    Args:
        name: File, or file and row, or place in the test set; rows and places count from 0, as in errors.
        nats: Log-likelihood, mean over the draws of the noise.
        bits_per_dim: The same in bits per number, negated; None for points.
        standard_error: Of the mean over the draws, in the unit of the scores; 0 if there is no noise, None if a
            single draw leaves it unknown.
        test_share: Share of the test set that is as unlikely or more so; None: the test set is not at hand.
    """

    name: str
    nats: float
    bits_per_dim: float | None
    standard_error: float | None
    test_share: float | None = None


@dataclass(frozen=True)
class Scores:
    """Scores, the most unlikely first.

    Args:
        rows: One per picture or point.
        unit: "bits/dim" (the larger, the more unlikely) or "nats" (the smaller, the more unlikely).
        n_draws: Draws of the noise per picture; 1 if there is no noise.
        condition: What the density is of: all data, a class, or the even mixture of all classes.
    """

    rows: tuple[Score, ...]
    unit: str
    n_draws: int
    condition: str

    @property
    def values(self) -> list[float]:
        """Scores in their unit."""
        return [_value(row) for row in self.rows]

    @property
    def table(self) -> list[dict[str, Any]]:
        """One dictionary per row, as in the CSV file."""
        return [{key: value for key, value in asdict(row).items() if value is not None} for row in self.rows]

    def save(self, path: Path) -> Path:
        """Write NAME.csv, and NAME.json with everything else.

        Args:
            path: The CSV file.

        Returns:
            The JSON file.

        Raises:
            ConfigError: If the path does not end in .csv.
        """
        if path.suffix.lower() != ".csv":
            raise ConfigError("scores are a table", expected="NAME.csv", got=str(path), hint=f"{path.stem}.csv")
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list(self.table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.table)
        write_text(path, buffer.getvalue())
        about = {"unit": self.unit, "n_draws": self.n_draws, "condition": self.condition, "scores": self.table}
        write_json(path.with_suffix(".json"), about)
        return path.with_suffix(".json")


def read_files(run: Run, files: Sequence[Path]) -> Scored:
    """Read pictures, or tables of points, as a run's network takes them.

    Args:
        run: A trained flow.
        files: Pictures or folders of pictures; for runs on points .npy or .csv files. Pictures must have the size that
            the run's images had before padding (if its recipe resizes, any size is resized the same way).

    Returns:
        What they hold.

    Raises:
        DataError: If a file cannot be read, or a folder holds none.
        ShapeError: If a picture or a row has another size.
    """
    paths = _expanded(files, TABLES if run.scaling is None else PICTURES)
    if run.scaling is not None:
        pictures = [_read_picture(run, path) for path in paths]
        notes = tuple(f"{path}: {note}" for path, (_, note) in zip(paths, pictures, strict=True) if note)
        return Scored(tuple(map(str, paths)), torch.cat([pixels for pixels, _ in pictures]), notes)
    tables = [_read_points(run, path) for path in paths]
    names = [f"{path} row {i}" for path, rows in zip(paths, tables, strict=True) for i in range(len(rows))]
    return Scored(tuple(names), torch.cat(tables))


def of_test_data(data: Data) -> Scored:
    """A run's test data, to be scored.

    Args:
        data: As `run.test_data()` returns them.

    Returns:
        All of them.
    """
    names = [f"test {i} ({data.classes[k]})" for i, k in enumerate(data.labels.tolist())]
    if isinstance(data, PointSet):
        names = [f"test {i}" for i in range(len(data))]
    return Scored(tuple(names), data.batch(range(len(data))))


def score(run: Run, scored: Scored, n_draws: int = 8, label: int | None = None, seed: int = 0) -> Scores:
    """Score pictures or points.

    Args:
        run: A trained flow.
        scored: What.
        n_draws: How often noise (of dequantisation, of a trace's estimate) is drawn, at least 2 for a standard error;
            where there is none, one evaluation is what counts.
        label: For class-conditional flows; None: the even mixture of the classes.
        seed: Of the noise.

    Returns:
        The scores, the most unlikely first.

    Raises:
        ConfigError: If a number is out of range.
    """
    if n_draws < 1:
        raise ConfigError("--draws is out of range", expected="at least 1", got=n_draws)
    check_label(run.flow, run.n_classes, label)
    nats = _draws(run, scored.data, n_draws, label, seed)
    is_known, n_draws = n_draws > 1, len(nats)
    is_image = run.flow.dequantization is not None
    scale = bits_per_dim(run.flow, -1.0) if is_image else 1.0
    mean, errors = nats.mean(0).tolist(), (nats.std(0, unbiased=n_draws > 1) / math.sqrt(n_draws) * scale).tolist()
    rows = [
        Score(name, value, -value * scale if is_image else None, error if is_known else None)
        for name, value, error in zip(scored.names, mean, errors, strict=True)
    ]
    rows.sort(key=lambda row: row.nats)
    condition = "the even mixture of all classes" if run.flow.takes_context and label is None else "all data"
    condition = condition if label is None else f"class {run.record['classes'][label]}"
    return Scores(tuple(rows), "bits/dim" if is_image else "nats", n_draws, condition)


def reference(run: Run, data: Data, label: int | None = None) -> Scores:
    """Scores of at most 1,000 test images or points, to hold others against.

    Args:
        run: A trained flow.
        data: As `run.test_data()` returns them.
        label: As in `score`.

    Returns:
        Their scores, with one draw of the noise each.
    """
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:N_REFERENCE]
    return score(run, of_test_data(data.subset(order.sort().values)), 1, label)


def compared(scores: Scores, test: Scores) -> Scores:
    """Add to each score what share of the test set is as unlikely or more so.

    Args:
        scores: The scores.
        test: Those of the test set.

    Returns:
        The same with `test_share`.
    """
    nats = torch.tensor([row.nats for row in test.rows], dtype=torch.float64).sort().values
    own = torch.tensor([row.nats for row in scores.rows], dtype=torch.float64)
    shares = (torch.searchsorted(nats, own, right=True).double() / len(nats)).tolist()
    rows = [replace(row, test_share=share) for row, share in zip(scores.rows, shares, strict=True)]
    return replace(scores, rows=tuple(rows))


def _value(row: Score) -> float:
    return row.nats if row.bits_per_dim is None else row.bits_per_dim


def _draws(run: Run, data: Tensor, n_draws: int, label: int | None, seed: int) -> Tensor:
    device = dtype_and_device(run.model)[1]
    parts = data.split(EVALUATION_BATCH if run.scaling is not None else N_REFERENCE)
    out = []
    with progress() as display:
        task = display.add_task("scoring", total=n_draws * len(parts))
        for draw in range(n_draws):
            nats = []
            for i, part in enumerate(parts):
                with seeded(device, seed, draw, i):
                    nats.append(log_density(run.flow, run.prepare(part), run.n_classes, label).double().cpu())
                display.advance(task)
            out.append(torch.cat(nats))
            if draw == 1 and torch.equal(out[0], out[1]):
                return out[0][None]  # there is no noise
    return torch.stack(out)


def _expanded(files: Sequence[Path], suffixes: tuple[str, ...]) -> list[Path]:
    found = []
    for path in files:
        inside = [p for p in sorted(path.rglob("*")) if p.suffix.lower() in suffixes] if path.is_dir() else [path]
        if not inside:
            raise DataError(f"{path} holds nothing to score", expected=f"files {', '.join(suffixes)}", got="none")
        found += inside
    return found


def _read_picture(run: Run, path: Path) -> tuple[Tensor, str | None]:
    (channels, height, width), pad = run.record["in_shape"], run.recipe.data.pad
    height, width = height - 2 * pad, width - 2 * pad
    header = read_header(path)
    if run.recipe.data.size is None and (header.height, header.width) != (height, width):
        expected, got = f"{width}x{height} pixels, as the run's images", f"{header.width}x{header.height}"
        hint = "resize it (scores of resized pictures are lower: they are smoother)"
        raise ShapeError(f"{path} has the wrong size", expected=expected, got=got, hint=hint)
    pixels, note = image_file(path, (channels, height, width), run.normalize.max_value)
    return functional.pad(pixels, [pad] * 4), note


def _read_points(run: Run, path: Path) -> Tensor:
    rows, (n,) = read_rows(path), run.record["in_shape"]
    if rows.shape[1] != n:
        raise ShapeError(f"{path} has the wrong shape", expected=f"{n} numbers a row", got=rows.shape[1])
    return rows

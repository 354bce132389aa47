"""An experiment's files: JSON for programs, CSV, pictures and a report for people; all of them or none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from invertible._files import write_json, write_text
from invertible.errors import CheckpointError
from invertible.train.experiment_report import ExperimentReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULT, TABLE, PICTURE, REPORT, RECORD = "result.json", "table.csv", "picture.png", "report.md", "experiment.json"


def write_experiment(report: ExperimentReport, folder: Path) -> ExperimentReport:
    """Write everything beside its place, then put it there.

    Args:
        report: What was found.
        folder: Where to; made if needed.

    Returns:
        The report, with the names of its files.

    Raises:
        CheckpointError: If the folder cannot be written to; nothing is written then.
    """
    for abandoned in folder.glob(".partial-*"):  # by a process that was killed while it wrote
        shutil.rmtree(abandoned, ignore_errors=True)
    temporary = folder / f".partial-{os.getpid()}"
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        found = _write(report, temporary)
        for name in sorted(found.files, key=lambda name: name == RECORD):  # which says that the others are there
            (temporary / name).replace(folder / name)
    except OSError as error:
        hint = "another output folder (--out), or its permissions and free space"
        raise CheckpointError(f"cannot write {folder}", got=error.strerror or str(error), hint=hint) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return found


def _write(report: ExperimentReport, folder: Path) -> ExperimentReport:
    result = report.result
    result.save(folder / RESULT)
    result.save_csv(folder / TABLE)
    result.save_plot(folder / PICTURE)
    for name, draw in result.pictures.items():
        _save_picture(draw, folder / f"{name}.png")
    write_json(folder / RECORD, report.as_json())
    found = replace(report, files=tuple(sorted([*(path.name for path in folder.iterdir()), REPORT])))
    write_text(folder / REPORT, found.markdown())
    return found


def _save_picture(draw: Callable[[], Figure], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure = draw()
    try:
        figure.savefig(path, dpi=120, bbox_inches="tight")
    finally:
        plt.close(figure)

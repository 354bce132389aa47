"""What a run tells while it goes: a progress bar or a line per epoch, a CSV file, TensorBoard if it is installed."""

from __future__ import annotations

import csv
import importlib.util
import io
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from invertible._files import write_text

console = Console(stderr=True, highlight=False)


def history_csv(rows: list[dict[str, float]]) -> str:
    r"""Rows as CSV.

    Args:
        rows: One dictionary per epoch; columns in the order they first appear.

    Returns:
        The text of the file.

    Example:
        >>> history_csv([{"epoch": 1, "train_loss": 0.5}])
        'epoch,train_loss\n1,0.5\n'
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


class RunLog:
    """Shows a run's progress and keeps its history on disk. Use it as a context manager.

    Args:
        folder: The run's folder; None writes nothing.
        n_steps: Optimiser steps in the whole run.
        first_step: Steps done before this sitting.
        quiet: Show nothing.
    """

    def __init__(self, folder: Path | None, n_steps: int, first_step: int = 0, quiet: bool = False) -> None:
        self.folder, self.quiet = folder, quiet
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        live = TextColumn("{task.fields[metrics]}")
        self._bar = Progress(*columns, live, console=console, disable=quiet or not console.is_terminal)
        self._task = self._bar.add_task("training", total=n_steps, completed=first_step, metrics="")
        self._board = self._open_board()
        self._shown = 0.0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._board is not None:
            self._board.close()

    def step(self, done: int, epoch: int, metrics: dict[str, float]) -> None:
        """Move the bar.

        Args:
            done: Steps done.
            epoch: The epoch under way, from 1.
            metrics: Live values.
        """
        text = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self._bar.update(self._task, completed=done, description=f"epoch {epoch}", metrics=text)
        if not self.quiet and not console.is_terminal and time.monotonic() - self._shown > 30:
            self._line(f"epoch {epoch}  step {done}  {text}")

    def epoch(self, rows: list[dict[str, float]]) -> None:
        """Record an epoch that is over.

        Args:
            rows: The history, this epoch last.
        """
        if self.folder is not None:
            write_text(self.folder / "history.csv", history_csv(rows))
        last = rows[-1]
        if self._board is not None:
            for name, value in last.items():
                self._board.add_scalar(name, value, int(last["step"]))
        if not self.quiet:
            self._line("  ".join(f"{name} {value:.4g}" for name, value in last.items() if name != "step"))

    def _line(self, text: str) -> None:
        self._shown = time.monotonic()
        self._bar.console.print(text, soft_wrap=True)

    def _open_board(self) -> Any:
        if self.folder is None or importlib.util.find_spec("tensorboard") is None:
            return None
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.folder / "tensorboard"))

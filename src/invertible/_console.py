"""Progress and announcements on standard error, so that results on standard output stay clean."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


def announce(message: str) -> None:
    """Tell the user something that changes how long a command takes.

    Args:
        message: One sentence.
    """
    from rich.console import Console

    Console(stderr=True).print(message, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress() -> Iterator[Progress]:
    """Show progress bars, on a terminal only.

    Yields:
        A started ``rich`` progress display; it disappears at the end.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as display:
        yield display


class DownloadBar:
    """The progress bar that pooch asks for: ``total``, ``update``, ``reset``, ``close``.

    Args:
        display: A started progress display.
        description: What is being fetched.
    """

    def __init__(self, display: Progress, description: str) -> None:
        self.total, self._display = 0, display
        self._task = display.add_task(description, total=None)

    def update(self, n_bytes: int) -> None:
        """Add ``n_bytes`` received bytes."""
        self._display.update(self._task, advance=n_bytes, total=self.total or None)

    def reset(self) -> None:
        """Start from zero: pooch calls this before it marks the file as complete."""
        self._display.reset(self._task)

    def close(self) -> None:
        """Do nothing: the display closes the bar."""

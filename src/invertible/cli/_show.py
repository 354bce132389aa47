"""What commands print, and checks of options that several have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from invertible.errors import ConfigError, DataError

PICTURES = (".png", ".pdf", ".svg", ".jpg")
NAMES = {"bit_exact": "bit-exact", "test_nats": "test nats (log-likelihood)", "nats": "nats (log-likelihood)"}


def show(content: object, is_error: bool = False) -> None:
    """Print a text or a table.

    Args:
        content: What.
        is_error: Whether it goes to standard error.
    """
    from rich.console import Console

    console = Console(stderr=is_error, highlight=False, soft_wrap=isinstance(content, str))
    console.print(content, markup=False)


def show_table(figures: dict[str, Any], title: str) -> None:
    """Print figures.

    Args:
        figures: By name.
        title: Above them.
    """
    from rich.table import Table

    show(title)  # not the table's own title, which would break a long path in two
    table = Table("figure", "value")
    for name, value in figures.items():
        table.add_row(NAMES.get(name, name.replace("_", " ")), in_words(value))
    show(table)


def in_words(value: object) -> str:
    """A figure as it is printed.

    Args:
        value: A number, a truth value or anything else.

    Returns:
        Text.

    Example:
        >>> in_words(True), in_words(12345), in_words(0.123456)
        ('yes', '12,345', '0.1235')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def check_data_dir(data_dir: str | None) -> None:
    """Refuse a folder that is not there.

    Args:
        data_dir: The option; None is fine.

    Raises:
        DataError: If there is no such folder.
    """
    if data_dir is not None and not Path(data_dir).expanduser().is_dir():
        raise DataError("no such --data-dir", expected="a folder", got=data_dir, hint="its path, or leave it out")


def check_picture(path: Path) -> None:
    """Refuse to draw into a file of another kind.

    Args:
        path: Where a picture shall go.

    Raises:
        ConfigError: If its suffix is none of a picture.
    """
    if path.suffix.lower() not in PICTURES:
        raise ConfigError("unknown kind of picture", expected="--out NAME.png (or .pdf, .svg, .jpg)", got=str(path))

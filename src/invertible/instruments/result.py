"""The frozen base of what every instrument returns, and its JSON file."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar, cast

from invertible.errors import DataError
from invertible.instruments._compare_plot import Curve, draw_compared
from invertible.instruments._result_json import FORMAT, from_json, read_result, to_json
from invertible.instruments._write import as_csv, write_whole
from invertible.instruments.provenance import Provenance

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Severity = Literal["error", "warning", "note"]
Row = dict[str, str | int | float | bool | None]
R = TypeVar("R", bound="Result")

_RANK = {"error": 0, "warning": 1, "note": 2}


@dataclass(frozen=True)
class Finding:
    """One thing a result tells, in words.

    Args:
        severity: "error" (do not trust this), "warning" (about to go wrong) or "note".
        sentence: What was found, and what to do about it.
        row: Which row of the result's `.table` supports it; None: all of it.
    """

    severity: Severity
    sentence: str
    row: int | None = None


@dataclass(frozen=True)
class Result(ABC):
    """What an instrument found. Abstract: add typed fields, `table` and `plot`.

    Fields hold numbers, texts, booleans, None, and tuples, string-keyed dicts and dataclasses of those; a field's
    annotation tells how it is read back. No `Any`, and no text beside a number in one annotation.

    Args:
        findings: Worst first, whatever order they come in.
        provenance: What it was measured with; None if nobody wrote that down. Passed by name.

    Example:
        >>> @dataclass(frozen=True)
        ... class Lengths(Result):
        ...     metres: tuple[float, ...] = ()
        ...     table = property(lambda self: [{"metres": length} for length in self.metres])
        ...     def plot(self, ax=None): ...
        >>> Lengths((Finding("note", "Short."), Finding("error", "Below zero.", row=1)), (1.5, -1.0)).findings[0]
        Finding(severity='error', sentence='Below zero.', row=1)
    """

    findings: tuple[Finding, ...]
    provenance: Provenance | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        ranked = sorted(self.findings, key=lambda finding: _RANK[finding.severity])
        object.__setattr__(self, "findings", tuple(ranked))

    @property
    @abstractmethod
    def table(self) -> list[Row]:
        """Rows of plain Python values, all with the same columns, ready for CSV."""

    @abstractmethod
    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the result.

        Args:
            ax: Where; None: on a new figure.

        Returns:
            The axes.
        """

    @property
    def curves(self) -> Mapping[str, Curve]:
        """What `compare` can draw, by name; the first is what it draws unasked. None, unless an instrument has some."""
        return {}

    @property
    def pictures(self) -> Mapping[str, Callable[[], Figure]]:
        """What there is to see beside `plot`, by the name of its file: functions that draw it. Nothing, unless told."""
        return {}

    @property
    def is_partial(self) -> bool:
        """Whether a budget ended the measurement early; `provenance.stopped` tells which."""
        return self.provenance is not None and bool(self.provenance.stopped)

    def compare(
        self, *others: Result, labels: Sequence[str] | None = None, curve: str | None = None, ax: Axes | None = None
    ) -> Axes:
        """Draw this result and others of its kind on one axes.

        Args:
            *others: The others.
            labels: One per result, this one first; None: numbers.
            curve: Which of `curves`; None: the first.
            ax: Where; None: on a new figure.

        Returns:
            The axes.

        Raises:
            ConfigError: If the kinds differ, one has no such curve, or the labels do not fit.
        """
        return draw_compared((self, *others), labels, curve, ax)

    def save_csv(self, path: str | Path) -> None:
        """Write `table` as a CSV file, whole or not at all.

        Args:
            path: The file; its folder is made if need be.
        """
        write_whole(Path(path), lambda temporary: temporary.write_text(as_csv(self.table), encoding="utf-8"))

    def save_plot(self, path: str | Path, dpi: int = 120) -> None:
        """Draw `plot` into a picture, whole or not at all.

        Args:
            path: The file; its suffix (.png, .pdf, .svg) says of which kind.
            dpi: Pixels per inch.
        """
        import matplotlib.pyplot as plt

        figure = cast("Figure", self.plot().figure)
        try:
            write_whole(Path(path), lambda temporary: figure.savefig(temporary, dpi=dpi, bbox_inches="tight"))
        finally:
            plt.close(figure)

    def save(self, path: str | Path) -> None:
        """Write a JSON file, whole or not at all. NaN and infinity become texts, as JSON has no numbers for them.

        Args:
            path: The file; its folder is made if need be.
        """
        content = {"format": FORMAT, "kind": type(self).__name__, "fields": to_json(self)}
        text = json.dumps(content, indent=1, allow_nan=False) + "\n"
        write_whole(Path(path), lambda temporary: temporary.write_text(text, encoding="utf-8"))

    @classmethod
    def load(cls: type[R], path: str | Path) -> R:
        """Read what `save` wrote. `Result.load` takes any kind that has been imported, a subclass only its own.

        Args:
            path: The file.

        Returns:
            A result with the values of the saved one.

        Raises:
            DataError: If the file is missing, corrupt or of another kind.
        """
        content = read_result(Path(path))
        kinds = {kind.__name__: kind for kind in _with_subclasses(cls)}
        kind = kinds.get(str(content.get("kind")))
        if kind is None:
            hint = "Result.load(path), once the module of that instrument is imported"
            expected = f"one of {', '.join(sorted(set(kinds) - {'Result'}))}"
            raise DataError(f"{path} is another instrument's", expected=expected, got=content.get("kind"), hint=hint)
        try:
            return from_json(content.get("fields"), kind)
        except (TypeError, ValueError, KeyError) as error:
            raise DataError(f"{path} is corrupt", expected=f"a {kind.__name__}", got=str(error)) from error


def _with_subclasses(kind: type[R]) -> Iterable[type[R]]:
    yield kind
    for subclass in kind.__subclasses__():
        yield from _with_subclasses(subclass)

"""Figures of an experiment: found in its result, beside the paper's and what was measured before."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from invertible.instruments.result import Result, Row
from invertible.train.compare_result import in_words
from invertible.train.experiment_recipe import SoughtFigure

Value = float | bool | str
_OF: Mapping[str, Callable[[list[Any]], Any]] = {"mean": statistics.fmean, "min": min, "max": max}
SHARE = 0.03  # of a figure, that the next run's may differ by


@dataclass(frozen=True)
class FoundFigure:
    """One figure.

    Args:
        name: What it is called.
        unit: "%", or "".
        ours: What was found, as it is shown; None: nothing.
        missing: Why there is nothing; "": there is.
        paper: The paper's; None: it has none.
        within: How near the paper's ours has to be to count as it; None: that is not said.
        kept: Ours as measured before; None: it was not, or otherwise.
        tolerance: How far ours may be from that.
    """

    name: str
    unit: str
    ours: Value | None
    missing: str
    paper: float | str | None
    within: float | None
    kept: Value | None
    tolerance: float | None

    @property
    def is_the_papers(self) -> bool | None:
        """Whether ours is as near the paper's as it has to be; None: nothing says how near."""
        if self.within is None or not isinstance(self.paper, int | float):
            return None
        return isinstance(self.ours, int | float) and abs(self.ours - self.paper) <= self.within

    @property
    def is_held(self) -> bool | None:
        """Whether ours is what was measured before, within the tolerance; None: nothing was."""
        if self.kept is None:
            return None
        if isinstance(self.kept, bool | str) or isinstance(self.ours, bool | str) or self.ours is None:
            return self.ours == self.kept
        if not math.isfinite(self.kept):
            return str(self.ours) == str(self.kept)
        return abs(self.ours - self.kept) <= (self.tolerance or 0.0)

    def shown(self, value: Value | None) -> str:
        """A value as it is printed.

        Args:
            value: Ours, the paper's or the kept one.

        Returns:
            Text; "" of None.
        """
        return figure_in_words(value, self.unit)


def find_figure(sought: SoughtFigure, result: Result, kept: Mapping[str, Any] | None) -> FoundFigure:
    """Find a figure in a result.

    Args:
        sought: Which.
        result: Where.
        kept: Its entry in expected.json; None: there is none.

    Returns:
        What was found; `missing` says why if nothing was.
    """
    try:
        ours, missing = _shown(_value(sought, result), sought.show), ""
    except LookupError as error:
        ours, missing = None, str(error.args[0])
    before, tolerance = (kept["ours"], kept["tolerance"]) if kept else (None, None)
    before = float(before) if before in ("nan", "inf", "-inf") else before  # which JSON has as texts
    unit = "" if sought.show == "value" else "%"
    return FoundFigure(sought.name, unit, ours, missing, sought.paper, sought.within, before, tolerance)


def tolerance_of(sought: SoughtFigure, ours: Value) -> float | None:
    """How far the next run's figure may be from this one's.

    Args:
        sought: The figure.
        ours: As it is shown.

    Returns:
        What the recipe says, or 3 % of it; None for truth values and texts, which have to be equal.
    """
    if isinstance(ours, bool | str):
        return None
    if sought.tolerance is not None:
        return sought.tolerance
    return SHARE * abs(ours) if math.isfinite(ours) else 0.0


def figure_in_words(value: Value | None, unit: str = "") -> str:
    """A figure as it is printed.

    Args:
        value: A number, a truth value or a text; None: there is none.
        unit: "%", or "".

    Returns:
        Text.

    Example:
        >>> figure_in_words(98.887, "%"), figure_in_words(True), figure_in_words("about 4"), figure_in_words(None)
        ('98.89 %', 'yes', 'about 4', '')
    """
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{in_words(value)} {unit}".strip()


def _value(sought: SoughtFigure, result: Result) -> Any:
    if sought.property:
        names = [name for name in dir(result) if not name.startswith("_")]
        if sought.property not in names:
            raise LookupError(f"the result has no property {sought.property!r}, but {', '.join(names)}")
        return getattr(result, sought.property)
    values = [row[sought.column] for row in _rows(sought, result.table)]
    if len(values) == 1:
        return values[0]
    if sought.of == "one":
        raise LookupError(f"{len(values)} rows with {_words(sought.where)}, where one should be")
    known = [value for value in values if value is not None]
    return _OF[sought.of](known) if known else None


def _rows(sought: SoughtFigure, table: list[Row]) -> list[Row]:
    columns = list(table[0]) if table else []
    for column in (sought.column, *sought.where):
        if column not in columns:
            raise LookupError(f"the table has no column {column!r}, but {', '.join(columns)}")
    rows = [row for row in table if all(row[key] == value for key, value in sought.where.items())]
    if not rows:
        raise LookupError(f"no row with {_words(sought.where)}")
    return rows


def _words(where: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in where.items()) or "no condition"


def _shown(value: Any, show: str) -> Value:
    if value is None:
        raise LookupError("it was not measured")
    if isinstance(value, bool | str):
        return value
    if not isinstance(value, int | float):
        raise LookupError(f"it is no number, truth value or text, but {type(value).__name__}")
    return float({"value": value, "%": 100 * value, "error %": 100 * (1 - value)}[show])

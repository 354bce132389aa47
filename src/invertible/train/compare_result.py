"""What a comparison found: each row's figures over its seeds beside the paper's, as table, text and picture."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Literal

from invertible.instruments.result import Finding, Result, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class ComparedFigure:
    """A figure that rows were compared by.

    Args:
        name: What it is called.
        better: Which way is better; None: neither.
    """

    name: str
    better: Literal["smaller", "larger"] | None


@dataclass(frozen=True)
class ComparedRun:
    """One row trained with one seed.

    Args:
        seed: The seed.
        folder: Of the run, within the comparison's folder.
        epochs: How many it was trained for; None: it never began.
        figures: By name, as they are shown.
        error: Why there are none; None: there are.
    """

    seed: int
    folder: str
    epochs: int | None
    figures: dict[str, float]
    error: str | None


@dataclass(frozen=True)
class ComparedRow:
    """A row over its seeds.

    Args:
        name: What it is called.
        recipe: What it trains.
        paper: The paper's figures, by name.
        runs: One per seed, as far as there are.
        seconds: How long it was to be trained; None: by epochs.
        seconds_per_epoch: As measured before training, where `seconds` is given.
    """

    name: str
    recipe: str
    paper: dict[str, float]
    runs: tuple[ComparedRun, ...]
    seconds: float | None = None
    seconds_per_epoch: float | None = None

    def values(self, figure: str) -> list[float]:
        """A figure's values over the seeds.

        Args:
            figure: Its name.

        Returns:
            One for each run that has it.
        """
        return [run.figures[figure] for run in self.runs if figure in run.figures]

    def mean(self, figure: str) -> float | None:
        """A figure's mean over the seeds.

        Args:
            figure: Its name.

        Returns:
            The mean; None: no run has it.
        """
        values = self.values(figure)
        return statistics.fmean(values) if values else None

    def deviation(self, figure: str) -> float | None:
        """A figure's standard deviation over the seeds (with n - 1).

        Args:
            figure: Its name.

        Returns:
            The deviation; None: fewer than two runs have it.
        """
        values = self.values(figure)
        if len(values) < 2:
            return None
        return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan

    def shown(self, figure: str) -> str:
        """A figure as it is printed.

        Args:
            figure: Its name.

        Returns:
            Mean and deviation; nothing if no run has it.

        Example:
            >>> runs = tuple(ComparedRun(k, f"a-seed{k}", 1, {"bits/dim": 2.0 + k / 10}, None) for k in (0, 1))
            >>> ComparedRow("a", "glow/digits", {}, runs).shown("bits/dim")
            '2.050 ± 0.071'
        """
        mean, deviation = self.mean(figure), self.deviation(figure)
        if mean is None:
            return ""
        return in_words(mean) if not deviation else _with_deviation(mean, deviation)

    def epochs(self) -> int | None:
        """How many epochs its runs took.

        Returns:
            The number, the same for each seed; None: no run has begun.
        """
        return next((run.epochs for run in self.runs if run.epochs is not None), None)


@dataclass(frozen=True)
class Comparison(Result):
    """A table, ours beside the paper's.

    Args:
        findings: Runs that failed, and whether the paper's order came out.
        title: What is compared.
        paper: Where it comes from.
        figures: What by; the first is the one that matters.
        rows: In the table's order.
        note: What a reader has to know.
        conditions: Data, hardware and versions, by name.
    """

    title: str
    paper: str
    figures: tuple[ComparedFigure, ...]
    rows: tuple[ComparedRow, ...]
    note: str
    conditions: dict[str, str]

    @property
    def columns(self) -> list[str]:
        """The paper's figures, by name, in order of appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row.paper))

    @property
    def errors(self) -> list[str]:
        """What went wrong, one sentence per run."""
        return [f"{row.name}, seed {run.seed}: {run.error}" for row in self.rows for run in row.runs if run.error]

    @property
    def table(self) -> list[Row]:
        """One row per row: ours with standard deviation over the seeds, the paper's figures, epochs, errors."""
        return [self._cells(row) for row in self.rows]

    def _cells(self, row: ComparedRow) -> Row:
        cells: Row = {"row": row.name, "recipe": row.recipe}
        for figure in self.figures:
            cells[figure.name] = row.mean(figure.name)
            cells[f"{figure.name}, standard deviation"] = row.deviation(figure.name)
        cells |= {f"paper: {name}": row.paper.get(name) for name in self.columns}
        done = [str(run.seed) for run in row.runs if run.error is None]
        cells |= {"seeds": " ".join(done), "epochs": row.epochs()}
        return cells | {"errors": "; ".join(run.error for run in row.runs if run.error)}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the first figure, ours with standard deviation. `compare_figure.draw` makes the whole picture.

        Args:
            ax: Where; None: on a new figure.

        Returns:
            The axes.
        """
        from invertible.train.compare_figure import draw_ours
        from invertible.train.figures import new_figure

        axes = new_figure(6, 0.4 * len(self.rows) + 1).subplots() if ax is None else ax
        draw_ours(axes, self, self.figures[0])
        axes.set_yticks(range(len(self.rows)), [row.name for row in self.rows])
        return axes


def ranks(values: Sequence[float | None], better: str | None) -> list[int | None]:
    """Places of values, the best first.

    Args:
        values: None where there is none.
        better: "smaller", "larger", or None.

    Returns:
        1 for the best, equal places for equal values; None without a value or if no way is better.

    Example:
        >>> ranks([3.0, None, 1.0, 3.0], "smaller")
        [2, None, 1, 2]
    """
    sign = 1 if better == "smaller" else -1
    there = [v for v in values if v is not None and not math.isnan(v)]
    if better is None:
        return [None] * len(values)
    return [None if v is None or math.isnan(v) else 1 + sum(sign * w < sign * v for w in there) for v in values]


def figure_of(column: str, figures: Sequence[ComparedFigure]) -> ComparedFigure:
    """Which of ours a figure of the paper's is to be held against.

    Args:
        column: The paper's figure.
        figures: Ours.

    Returns:
        The one whose name the column ends with, else the first.

    Example:
        >>> ours = [ComparedFigure("bits/dim", "smaller"), ComparedFigure("parameters", None)]
        >>> figure_of("MNIST parameters", ours).name, figure_of("MNIST nats", ours).name
        ('parameters', 'bits/dim')
    """
    return next((figure for figure in figures if column.endswith(figure.name)), figures[0])


def findings_of(rows: Sequence[ComparedRow], figures: Sequence[ComparedFigure]) -> tuple[Finding, ...]:
    """What a table tells.

    Args:
        rows: Its rows.
        figures: What they are compared by.

    Returns:
        Errors, figures that no run has, and for each figure of the paper's whether its order came out.
    """
    found = [
        Finding("error", f"{row.name}, seed {run.seed}, failed: {run.error}", row=i)
        for i, row in enumerate(rows)
        for run in row.runs
        if run.error
    ]
    is_any_done = any(run.error is None for row in rows for run in row.runs)
    for figure in figures:
        if is_any_done and not any(row.values(figure.name) for row in rows):
            found.append(Finding("error", f"no run's metrics.json has what {figure.name!r} asks for"))
    columns = dict.fromkeys(name for row in rows for name in row.paper)
    orders = [_order(column, figure_of(column, figures), rows) for column in columns]
    return (*found, *(order for order in orders if order is not None))


def _order(column: str, figure: ComparedFigure, rows: Sequence[ComparedRow]) -> Finding | None:
    known = [
        (row.name, row.paper[column], mean, row.deviation(figure.name) or 0.0)
        for row in rows
        if column in row.paper and (mean := row.mean(figure.name)) is not None
    ]
    pairs = [(a, b) for a, b in combinations(known, 2) if a[1] != b[1]]
    swapped = [(a, b) for a, b in pairs if (a[1] < b[1]) != (a[2] < b[2])]
    if not pairs:
        return None
    far = [pair for pair in swapped if abs(pair[0][2] - pair[1][2]) > math.hypot(pair[0][3], pair[1][3])]
    text = f"{len(pairs) - len(swapped)} of {len(pairs)} pairs stand in the paper's order of {column}"
    names = [f"{a[0]} and {b[0]}" + ("" if (a, b) in far else " (within the spread of seeds)") for a, b in swapped]
    return Finding("warning" if far else "note", f"{text}; not: {', '.join(names)}" if names else text)


def in_words(value: float) -> str:
    """A number as it is printed.

    Args:
        value: The number.

    Returns:
        Four digits; whole numbers in full.

    Example:
        >>> in_words(337226.0), in_words(2.43449), in_words(1.9e-06)
        ('337,226', '2.434', '1.9e-06')
    """
    if math.isfinite(value) and value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.4g}"


def _with_deviation(mean: float, deviation: float) -> str:
    # Two digits of the deviation, and as many places of the mean.
    if not (math.isfinite(mean) and math.isfinite(deviation)):
        return f"{mean:.4g} ± {deviation:.2g}"
    places = 1 - math.floor(math.log10(deviation))
    if places > 6:
        return f"{mean:.4g} ± {deviation:.2g}"
    return f"{mean:,.{max(places, 0)}f} ± {deviation:,.{max(places, 0)}f}"

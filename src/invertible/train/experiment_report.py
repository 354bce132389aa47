"""What an experiment found: its result, the paper's figures beside ours, and the circumstances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from invertible.instruments.result import Result
from invertible.train.compare_result import in_words
from invertible.train.experiment_figures import FoundFigure, figure_in_words, tolerance_of
from invertible.train.experiment_recipe import ExperimentRecipe

MAX_ROWS, MAX_COLUMNS = 40, 12  # of a result's table that a report shows


@dataclass(frozen=True)
class ExperimentReport:
    """An experiment that was carried out.

    Args:
        recipe: What it was.
        result: What it found.
        figures: The recipe's, found in the result.
        conditions: Hardware, threads, versions, seconds.
        command: That makes it again.
        overrides: Of the recipe's options, as on the command line.
        files: What was written, by name.
    """

    recipe: ExperimentRecipe
    result: Result
    figures: tuple[FoundFigure, ...]
    conditions: dict[str, Any]
    command: str
    overrides: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    @property
    def is_held(self) -> bool | None:
        """Whether all figures are what was measured before; None: nothing was, with these options."""
        known = [figure.is_held for figure in self.figures if figure.is_held is not None]
        return all(known) if known else None

    @property
    def complaints(self) -> list[str]:
        """Each figure that is not what was measured before, in words."""
        return [
            f"{figure.name}: {figure.shown(figure.ours) or figure.missing}, measured before {figure.shown(figure.kept)}"
            f"{'' if figure.tolerance is None else f' ± {in_words(figure.tolerance)}'}"
            for figure in self.figures
            if figure.is_held is False
        ]

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """The figures as a table of texts.

        Returns:
            Heads, and rows: the name, the paper's, ours, and where there is one what was measured before.
        """
        heads = ["", "the paper's", "ours", "measured before"]
        rows = [
            [figure.name, figure.shown(figure.paper) or "-", _ours(figure), _kept(figure)] for figure in self.figures
        ]
        has_kept = any(figure.kept is not None for figure in self.figures)
        return (heads, rows) if has_kept else (heads[:3], [row[:3] for row in rows])

    def markdown(self) -> str:
        """The report: figures, pictures, findings, the result's table if it is short, circumstances.

        Returns:
            Text.
        """
        recipe, (heads, cells) = self.recipe, self.cells()
        told = [f"- {finding.severity}: {finding.sentence}" for finding in self.result.findings]
        known = "; ".join(f"{key.replace('_', ' ')}: {value}" for key, value in self.conditions.items())
        pictures = [f"![{name}]({name})" for name in self.files if name.endswith(".png")]
        parts = [
            [f"# {recipe.title}", "", recipe.paper],
            _table(heads, cells) if cells else [],
            told,
            pictures,
            self._rows(),
            [recipe.about],
            [f"`{self.command}`", "", known],
        ]
        return "\n".join("\n".join([*part, ""]) for part in parts if any(part))

    def _rows(self) -> list[str]:
        table = self.result.table
        if not table or len(table) > MAX_ROWS or len(table[0]) > MAX_COLUMNS:
            return ["All rows are in table.csv."] if table else []
        return _table(list(table[0]), [[figure_in_words(value) for value in row.values()] for row in table])

    def as_json(self) -> dict[str, Any]:
        """What experiment.json holds.

        Returns:
            Plain values.
        """
        return {
            "title": self.recipe.title,
            "paper": self.recipe.paper,
            "experiment": self.recipe.experiment,
            "options": self.recipe.plain_options(),
            "figures": {
                figure.name: {"paper": figure.paper, "ours": _plain(figure.ours), "held": figure.is_held}
                for figure in self.figures
            },
            "conditions": self.conditions,
            "command": self.command,
        }

    def expectation(self) -> dict[str, Any]:
        """What `experiments/expected.json` keeps, for `make reproduce` to hold the next run against.

        Returns:
            The entry.
        """
        options = self.recipe.plain_options()
        sought = {figure.name: figure for figure in self.recipe.figures}
        data = options.get("data", {})
        return {
            "data": data.get("name") if isinstance(data, dict) else data,
            "seeds": options.get("seeds", [options["seed"]] if "seed" in options else []),
            "hardware": self.conditions["hardware"],
            "seconds": self.conditions["seconds"],
            "command": self.command,
            "overrides": list(self.overrides),
            "options": options,
            "figures": {
                found.name: {
                    "ours": _rounded(found.ours),
                    "tolerance": _rounded(tolerance_of(sought[found.name], found.ours)),
                }
                for found in self.figures
                if found.ours is not None
            },
        }


def _ours(figure: FoundFigure) -> str:
    if figure.ours is None:
        return f"not found: {figure.missing}"
    notes = {True: f" (the paper's ± {in_words(figure.within or 0)})", False: " (not the paper's)", None: ""}
    return figure.shown(figure.ours) + notes[figure.is_the_papers]


def _kept(figure: FoundFigure) -> str:
    if figure.kept is None:
        return "-"
    allowed = "" if figure.tolerance is None else f" ± {in_words(figure.tolerance)}"
    return f"{figure.shown(figure.kept)}{allowed}{'' if figure.is_held else ': NOT HELD'}"


def _rounded(value: float | bool | str | None) -> float | bool | str | None:
    return _plain(float(f"{value:.4g}")) if isinstance(value, float) else value


def _plain(value: float | bool | str | None) -> float | bool | str | None:
    # JSON has no NaN and no infinity.
    is_odd = isinstance(value, float) and (value != value or value in (float("inf"), float("-inf")))
    return str(value) if is_odd else value


def _table(heads: list[str], rows: list[list[str]]) -> list[str]:
    return [_line(heads), _line(["---"] * len(heads)), *(_line(row) for row in rows)]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"

"""What can be reproduced: every recipe, table and figure, the papers' figures beside ours, and the command."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from invertible.errors import ConfigError
from invertible.train.compare_result import in_words
from invertible.train.compare_table import FigureConfig, TableRecipe, folder_name, read_table_recipe, table_names
from invertible.train.read_recipe import nearest, read_recipe, recipe_names

ROOT = Path(str(files("invertible") / "recipes"))
EXPECTED = "expected.json"


@dataclass(frozen=True)
class CatalogueFigure:
    """One figure.

    Args:
        name: What it is; in a table, of which row.
        paper: The paper's, as text; empty: it has none.
        ours: Ours, as text; empty: not measured.
    """

    name: str
    paper: str
    ours: str


@dataclass(frozen=True)
class CatalogueEntry:
    """Something that can be reproduced.

    Args:
        kind: A recipe (one run), a table (several), or a figure (whatever its command does).
        name: Which.
        title: What it is.
        source: The paper.
        figures: The paper's and ours.
        command: That makes it.
        about: Data, length, seed and hardware.
        ours: Ours in a few words.
    """

    kind: Literal["recipe", "table", "figure"]
    name: str
    title: str
    source: str
    figures: tuple[CatalogueFigure, ...]
    command: str
    about: str
    ours: str

    @property
    def status(self) -> Literal["measured", "not run"]:
        """Whether there are figures of ours."""
        return "measured" if self.ours else "not run"

    @property
    def paper(self) -> str:
        """The folder that it lies in."""
        return self.name.split("/")[0]


def catalogue(paper: str | None = None) -> list[CatalogueEntry]:
    """List what ships.

    Args:
        paper: Only what lies in this folder, e.g. "glow"; None: everything.

    Returns:
        Recipes, then tables, then figures.

    Raises:
        ConfigError: If there is no such folder.

    Example:
        >>> [(entry.name, entry.ours) for entry in catalogue("glow") if entry.name == "glow/digits"]
        [('glow/digits', '2.411 bits/dim')]
    """
    papers = sorted({name.split("/")[0] for name in recipe_names()})
    if paper is not None and paper not in papers:
        near = nearest(paper, papers)
        hint = f"{near!r}" if near else "`invertible recipes` without it"
        raise ConfigError("no such paper", expected=", ".join(papers), got=repr(paper), hint=hint)

    def wanted(name: str) -> bool:
        return paper is None or name.split("/")[0] == paper

    entries = [_recipe(name) for name in recipe_names() if wanted(name)]
    entries += [_table(name) for name in table_names() if wanted(name)]
    return entries + [entry for folder in papers if wanted(folder) for entry in _figures(folder)]


def in_short(metric: str, value: float | bool) -> str:
    """A figure in a few words.

    Args:
        metric: Its name in metrics.json.
        value: The figure.

    Returns:
        Text with its unit.

    Example:
        >>> in_short("test_accuracy", 0.9889), in_short("test_nats", -2.432), in_short("bit_exact", True)
        ('98.89 % accuracy', '-2.432 nats', 'bit exact')
    """
    if isinstance(value, bool):
        return ("" if value else "not ") + metric.replace("_", " ")
    name = FigureConfig(metric).name().removeprefix("test ")
    return f"{100 * value:.2f} % {name}" if metric.endswith("accuracy") else f"{in_words(value)} {name}"


def _recipe(name: str) -> CatalogueEntry:
    recipe, entry = read_recipe(name), _expected(f"{name.split('/')[0]}/{EXPECTED}").get(name.split("/")[1], {})
    figures = tuple(
        CatalogueFigure(FigureConfig(metric).name(), _text(metric, figure["paper"]), _text(metric, figure["ours"]))
        for metric, figure in entry.get("figures", {}).items()
    )
    ours = next((figure.ours for figure in figures if figure.ours), "")
    circumstances = f"; seed {entry['seed']}; {entry['hardware']}" if ours else ""
    about = f"{recipe.data.name}; {recipe.training.epochs:,} epochs{circumstances}"
    command = entry.get("command") or f"invertible train {name}"
    return CatalogueEntry("recipe", name, recipe.title, recipe.paper, figures, command, about, ours)


def _text(metric: str, value: float | bool | None) -> str:
    return "" if value is None else in_short(metric, value)


def _table(name: str) -> CatalogueEntry:
    table = read_table_recipe(name)
    entry = _expected(f"{name.rsplit('/', 1)[0]}/{EXPECTED}").get(name.rsplit("/", 1)[1], {})
    figures = tuple(_table_figures(table, entry.get("rows", {})))
    first = table.figures[0].name()
    values = [row[first]["ours"] for row in entry.get("rows", {}).values() if first in row]
    ours = f"{in_words(min(values))} to {in_words(max(values))} {first}" if values else ""
    data = ", ".join(dict.fromkeys(table.recipe_of(row).data.name for row in table.rows))
    length = f"about {table.seconds:g} s a run" if table.seconds else "by epochs"
    about = f"{data}; {len(table.rows)} rows; {length}; seeds {', '.join(map(str, entry.get('seeds', table.seeds)))}"
    about += f"; {entry['hardware']}" if ours else ""
    command = entry.get("command") or f"invertible compare {name} --out runs/{folder_name(name)}"
    return CatalogueEntry("table", name, table.title, table.paper, figures, command, about, ours)


def _table_figures(table: TableRecipe, expected: dict[str, Any]) -> list[CatalogueFigure]:
    first, found = table.figures[0].name(), []
    for row in table.rows:
        paper = ", ".join(f"{in_words(value)} {name}" for name, value in row.paper.items())
        ours = expected.get(row.name, {}).get(first)
        deviation = f" ± {in_words(ours['deviation'])}" if ours and ours.get("deviation") else ""
        found.append(CatalogueFigure(row.name, paper, f"{in_words(ours['ours'])}{deviation} {first}" if ours else ""))
    return found


def _figures(folder: str) -> list[CatalogueEntry]:
    # figures.json: {"figure-1": {"title", "source", "paper", "ours", "command", "about"}}, all texts.
    return [
        CatalogueEntry(
            "figure",
            f"{folder}/{name}",
            entry["title"],
            entry["source"],
            (CatalogueFigure(name, entry["paper"], entry["ours"]),),
            entry["command"],
            entry["about"],
            entry["ours"],
        )
        for name, entry in _expected(f"{folder}/figures.json").items()
    ]


@cache
def _expected(path: str) -> dict[str, Any]:
    file = ROOT / path
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

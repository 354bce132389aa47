"""What can be reproduced: recipes, tables, experiments, figures; the papers' figures beside ours, and the command."""

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
from invertible.train.experiment_figures import figure_in_words
from invertible.train.experiment_recipe import experiment_names, read_experiment
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
        kind: A recipe (one run), a table (several), an experiment (more than that), or a figure (whatever its command
            does).
        name: Which.
        title: What it is.
        source: The paper.
        figures: The paper's and ours.
        command: That makes it.
        about: Data, length, seed and hardware.
        theirs: The paper's in a few words.
        ours: Ours in a few words.
    """

    kind: Literal["recipe", "table", "experiment", "figure"]
    name: str
    title: str
    source: str
    figures: tuple[CatalogueFigure, ...]
    command: str
    about: str
    theirs: str
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
        Recipes, then tables, experiments and figures.

    Raises:
        ConfigError: If there is no such folder.

    Example:
        >>> [(entry.name, entry.ours) for entry in catalogue("glow") if entry.name == "glow/digits"]
        [('glow/digits', '2.411 bits/dim')]
    """
    papers = paper_names()
    if paper is not None and paper not in papers:
        near = nearest(paper, papers)
        hint = f"{near!r}" if near else "`invertible recipes` without it"
        raise ConfigError("no such paper", expected=", ".join(papers), got=repr(paper), hint=hint)

    def wanted(name: str) -> bool:
        return paper is None or name.split("/")[0] == paper

    entries = [_recipe(name) for name in recipe_names() if wanted(name)]
    entries += [_table(name) for name in table_names() if wanted(name)]
    entries += [_experiment(name) for name in experiment_names() if wanted(name)]
    return entries + [entry for folder in papers if wanted(folder) for entry in _figures(folder)]


def paper_names() -> list[str]:
    """The papers of which something can be reproduced.

    Returns:
        Their folders' names.

    Example:
        >>> "random_like" in paper_names()
        True
    """
    names = [*recipe_names(), *table_names(), *experiment_names()]
    return sorted({name.split("/")[0] for name in names} | {path.parent.name for path in ROOT.glob("*/figures.json")})


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
    theirs, ours = (next((text for text in texts if text), "") for texts in _columns(figures))
    circumstances = f"; seed {entry['seed']}; {entry['hardware']}" if ours else ""
    about = f"{recipe.data.name}; {recipe.training.epochs:,} epochs{circumstances}"
    command = entry.get("command") or f"invertible train {name}"
    return CatalogueEntry("recipe", name, recipe.title, recipe.paper, figures, command, about, theirs, ours)


def _columns(figures: tuple[CatalogueFigure, ...]) -> tuple[list[str], list[str]]:
    return [figure.paper for figure in figures], [figure.ours for figure in figures]


def _text(metric: str, value: float | bool | None) -> str:
    return "" if value is None else in_short(metric, value)


def _table(name: str) -> CatalogueEntry:
    table = read_table_recipe(name)
    entry = _expected(f"{name.rsplit('/', 1)[0]}/{EXPECTED}").get(name.rsplit("/", 1)[1], {})
    figures = tuple(_table_figures(table, entry.get("rows", {})))
    first = table.figures[0].name()
    values = [row[first]["ours"] for row in entry.get("rows", {}).values() if first in row]
    ours = _range(values, first)
    papers = {column: [row.paper[column] for row in table.rows if column in row.paper] for column in table.columns()}
    theirs = "; ".join(_range(found, column) for column, found in papers.items())
    data = ", ".join(dict.fromkeys(table.recipe_of(row).data.name for row in table.rows))
    length = f"about {table.seconds:g} s a run" if table.seconds else "by epochs"
    about = f"{data}; {len(table.rows)} rows; {length}; seeds {', '.join(map(str, entry.get('seeds', table.seeds)))}"
    about += f"; {entry['hardware']}" if ours else ""
    command = entry.get("command") or f"invertible compare {name} --out runs/{folder_name(name)}"
    return CatalogueEntry("table", name, table.title, table.paper, figures, command, about, theirs, ours)


def _range(values: list[float], name: str) -> str:
    if not values:
        return ""
    low, high = in_words(min(values)), in_words(max(values))
    return f"{low} {name}" if low == high else f"{low} to {high} {name}"


def _table_figures(table: TableRecipe, expected: dict[str, Any]) -> list[CatalogueFigure]:
    first, found = table.figures[0].name(), []
    for row in table.rows:
        paper = ", ".join(f"{in_words(value)} {name}" for name, value in row.paper.items())
        ours = expected.get(row.name, {}).get(first)
        deviation = f" ± {in_words(ours['deviation'])}" if ours and ours.get("deviation") else ""
        found.append(CatalogueFigure(row.name, paper, f"{in_words(ours['ours'])}{deviation} {first}" if ours else ""))
    return found


def _experiment(name: str) -> CatalogueEntry:
    recipe, (folder, stem) = read_experiment(name), name.rsplit("/", 1)
    entry = _expected(f"{folder}/{EXPECTED}").get(stem, {})
    kept = entry.get("figures", {})
    units = {figure.name: "" if figure.show == "value" else "%" for figure in recipe.figures}
    figures = tuple(
        CatalogueFigure(
            figure.name,
            figure_in_words(figure.paper, units[figure.name]),
            figure_in_words(kept.get(figure.name, {}).get("ours"), units[figure.name]),
        )
        for figure in recipe.figures
    )
    chosen = max(figures, key=lambda figure: (bool(figure.ours), bool(figure.paper)), default=None)
    theirs, ours = (chosen.paper, f"{chosen.ours} ({chosen.name})" if chosen.ours else "") if chosen else ("", "")
    data = entry.get("data") or recipe.plain_options().get("data", {}).get("name", "no data")
    seeds = f"; seeds {', '.join(map(str, entry['seeds']))}" if entry.get("seeds") else ""
    measured = f"{seeds}; {entry['hardware']}, {entry['seconds']:,.0f} s" if entry else ""
    about = "; ".join(text for text in (f"{data}{measured}", recipe.about) if text)
    command = entry.get("command") or f"invertible experiment {name.replace('/experiments/', '/')}"
    return CatalogueEntry("experiment", name, recipe.title, recipe.paper, figures, command, about, theirs, ours)


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
            entry["paper"],
            entry["ours"],
        )
        for name, entry in _expected(f"{folder}/figures.json").items()
    ]


@cache
def _expected(path: str) -> dict[str, Any]:
    file = ROOT / path
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

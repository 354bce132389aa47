"""The commands for reproductions: `compare` trains a table, `recipes` lists what there is."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from invertible.cli._show import check_data_dir, show
from invertible.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from invertible.train.catalogue import CatalogueEntry
    from invertible.train.compare_result import Comparison

KEYS = """A table is a YAML file:

  title: Two learning rates
  paper: where it is from
  figures:                 # names from metrics.json; show: value, % or "error %"; the first is what matters
    - {metric: test_accuracy, show: error %}
    - {metric: train_seconds}
  seeds: [0, 1, 2]         # each row is trained with each
  seconds: 20              # train about so long, instead of the recipe's epochs (optional; a row may have its own)
  overrides: {data.n_train: 500}               # of all rows' recipes
  rows:
    - {name: slow, recipe: irevnet/digits, overrides: {optimizer.lr: 0.005}}
    - {name: fast, recipe: irevnet/digits, paper: {CIFAR-10 error %: 6.78}}
  note: what a reader has to know

Any key of a recipe overrides all rows: --training.epochs 1 (`invertible train --help` lists them)."""


def add_compare(command: argparse.ArgumentParser) -> None:
    """Options of `compare`.

    Args:
        command: Its parser.
    """
    command.add_argument("table", metavar="TABLE", help="a name from `invertible recipes`, or a YAML file")
    command.add_argument("--out", type=Path, help="folder to write to (default: runs/TABLE); stopped, it goes on there")
    command.add_argument("--seeds", metavar="K,K", help="instead of the table's, e.g. 0,1,2")
    command.add_argument("--overwrite", action="store_true", help="train again what is there with another recipe")
    command.add_argument("--data-dir", help="where data files already on disk lie")
    command.epilog = KEYS


def compare(options: argparse.Namespace, rest: list[str]) -> None:
    """Train a table, ours beside the paper's.

    Args:
        options: Parsed.
        rest: Overrides of every row's recipe.

    Raises:
        CheckpointError: In the end, if runs failed.
        KeyboardInterrupt: If it was stopped, after saying how it goes on.
    """
    from invertible.train.compare import compare as train_table
    from invertible.train.compare_table import folder_name

    check_data_dir(options.data_dir)
    overrides = [*rest, "--data.data_dir", options.data_dir] if options.data_dir else rest
    folder = options.out or Path("runs") / folder_name(options.table.removesuffix(".yaml"))
    try:
        found = train_table(options.table, folder, _seeds(options.seeds), overrides, overwrite=options.overwrite)
    except KeyboardInterrupt:
        if folder.is_dir():
            show("The same command again goes on where it was.", is_error=True)
        raise
    _report(found, folder)
    if found.errors:
        n = sum(len(row.runs) for row in found.rows)
        hint = "the same command again tries these, and keeps the others"
        got = found.errors[0] + (f"; and {len(found.errors) - 1} more, above" if len(found.errors) > 1 else "")
        raise CheckpointError(f"{len(found.errors)} of {n} runs failed", got=got, hint=hint)


def _seeds(text: str | None) -> list[int] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts):
        raise ConfigError("seeds are whole numbers", expected="--seeds 0,1,2", got=repr(text))
    return [int(part) for part in parts]


def _report(found: Comparison, folder: Path) -> None:
    from rich.table import Table
    from rich.text import Text

    from invertible.train.compare_write import table_cells

    heads, rows = table_cells(found)
    table = Table()
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i else "left", overflow="fold")
    for cells in rows:
        table.add_row(*(Text(text, "bold" if is_best else "") for text, is_best in cells))
    show(found.title)
    show(table)
    for finding in found.findings:
        show(f"{finding.severity}: {finding.sentence}")
    if found.note:
        show(f"note: {found.note}")
    show(f"Table: {folder}/table.md   .csv   .json   picture: {folder}/table.png")


def add_recipes(command: argparse.ArgumentParser) -> None:
    """Options of `recipes`.

    Args:
        command: Its parser.
    """
    command.add_argument("paper", nargs="?", metavar="PAPER", help="one paper's in detail, e.g. glow")
    command.add_argument("--all", action="store_true", help="all of them in detail")


def recipes(options: argparse.Namespace, rest: list[str]) -> None:
    """List recipes, tables, experiments and figures.

    Args:
        options: Parsed.
        rest: Nothing.
    """
    from invertible.train.catalogue import catalogue

    entries = catalogue(options.paper)
    if options.paper or options.all:
        for entry in entries:
            _detail(entry)
        return
    for kind in ("recipe", "table", "experiment", "figure"):
        _overview(kind, [entry for entry in entries if entry.kind == kind])
    show("`invertible recipes PAPER` (or --all): the papers' figures beside ours, circumstances and commands.")
    show("Run one: `invertible train RECIPE`, `invertible compare TABLE`, `invertible experiment NAME`.")


def _overview(kind: str, entries: list[CatalogueEntry]) -> None:
    from rich.table import Table
    from rich.text import Text

    if not entries:
        return
    table = Table()
    table.add_column(kind, no_wrap=True, min_width=max(len(entry.name) for entry in entries))
    for head in ("what", "the paper's", "ours"):
        table.add_column(head, overflow="fold")
    for entry in entries:
        table.add_row(*map(Text, (entry.name, entry.title, entry.theirs or "-", entry.ours or entry.status)))
    show(table)


def _detail(entry: CatalogueEntry) -> None:
    from rich.table import Table
    from rich.text import Text

    show(f"{entry.name}: {entry.title}")
    show(f"  {entry.source}")
    show(f"  {entry.status}; {entry.about}")
    if entry.figures:
        table = Table("figure" if entry.kind != "table" else "row", "the paper's", "ours")
        for figure in entry.figures:
            table.add_row(*map(Text, (figure.name, figure.paper or "-", figure.ours or "-")))
        show(table)
    show(f"  {entry.command}\n")

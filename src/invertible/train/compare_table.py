"""A paper's table as data: which recipes make its rows, which figures are compared, and what the paper has."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from invertible.errors import ConfigError
from invertible.train.read_recipe import check_items, check_shape, nearest, parse_yaml, read_recipe
from invertible.train.recipe import Recipe

HELP = "`invertible compare --help`"
LABELS = {"test_bits_per_dim": "bits/dim", "train_seconds": "training (s)", "n_parameters": "parameters"}
SMALLER, LARGER = ("bits_per_dim", "loss", "error"), ("accuracy", "nats")


@dataclass
class FigureConfig:
    """A figure that rows are compared by.

    Args:
        metric: Its name in a run's metrics.json.
        show: As it is ("value"), a share as "%", or what a share lacks to one as "error %".
        label: What it is called; empty: made from the metric's name.
        better: Which way is better; null: known from the metric's name, or neither.
    """

    metric: str
    show: Literal["value", "%", "error %"] = "value"
    label: str = ""
    better: Literal["smaller", "larger"] | None = None

    def name(self) -> str:
        """What it is called.

        Returns:
            The label.

        Example:
            >>> FigureConfig("test_accuracy", "error %").name(), FigureConfig("test_bits_per_dim").name()
            ('test error %', 'bits/dim')
        """
        plain = LABELS.get(self.metric, self.metric.replace("_", " "))
        if self.show == "value":
            return self.label or plain
        return self.label or (plain.removesuffix("accuracy") if self.show == "error %" else f"{plain} ") + self.show

    def of(self, metrics: Mapping[str, Any]) -> float | None:
        """The figure of one run.

        Args:
            metrics: The contents of its metrics.json.

        Returns:
            The number as it is shown; None if the run has no such figure.

        Example:
            >>> FigureConfig("test_accuracy", "error %").of({"test_accuracy": 0.75})
            25.0
        """
        value = metrics.get(self.metric)
        if not isinstance(value, int | float):
            return None
        return float({"value": value, "%": 100 * value, "error %": 100 * (1 - value)}[self.show])

    def direction(self) -> Literal["smaller", "larger"] | None:
        """Which way is better.

        Returns:
            "smaller", "larger", or None if neither.

        Example:
            >>> FigureConfig("test_accuracy").direction(), FigureConfig("test_accuracy", "error %").direction()
            ('larger', 'smaller')
        """
        if self.better is not None or self.show == "error %":
            return self.better or "smaller"
        if any(word in self.metric for word in SMALLER):
            return "smaller"
        return "larger" if any(word in self.metric for word in LARGER) else None


@dataclass
class RowConfig:
    """A row of a table.

    Args:
        name: What it is called.
        recipe: A shipped recipe's name, or a YAML file: its path from the table's folder or the current one.
        overrides: Of the recipe, by key: `model.arguments.n_blocks: 4`.
        paper: The paper's figures, by what they are called: `CIFAR-10 error %: 6.78`.
        seconds: Train for about so long instead of the recipe's epochs; null: the table's.
    """

    name: str
    recipe: str
    overrides: dict[str, Any] = field(default_factory=dict)
    paper: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None


@dataclass
class TableRecipe:
    """A table: recipes that are trained alike and compared.

    Args:
        title: One line that says what it is.
        paper: Where it comes from, with the table's number.
        figures: What is compared; the first is the one that matters.
        rows: What is trained.
        seeds: Each row is trained once with each.
        overrides: For all rows, by key: `data.n_train: 1000`. A row's own ones win.
        seconds: Train each row for about so long instead of its recipe's epochs; null: by epochs.
        note: What a reader has to know, e.g. which of the paper's figures are unverified.

    Raises:
        ConfigError: If something is missing, out of range or there twice.
    """

    title: str = ""
    paper: str = ""
    figures: list[FigureConfig] = field(default_factory=list)
    rows: list[RowConfig] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0])
    overrides: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        times = [self.seconds, *(row.seconds for row in self.rows)]
        rules = [
            ("figures", bool(self.figures), "at least one", "none"),
            ("rows", bool(self.rows), "at least one", "none"),
            ("seeds", bool(self.seeds) and min(self.seeds) >= 0, "at least one, each at least 0", self.seeds),
            ("seeds", len(set(self.seeds)) == len(self.seeds), "each once", self.seeds),
            ("seconds", all(time is None or time > 0 for time in times), "above 0, or null", times),
        ]
        for key, is_fine, expected, got in rules:
            if not is_fine:
                raise ConfigError(f"{key} of a table is out of range", expected=expected, got=got)
        _check_once("rows", [folder_name(row.name) for row in self.rows])
        _check_once("figures", [figure.name() for figure in self.figures])

    def columns(self) -> list[str]:
        """The paper's figures that any row has.

        Returns:
            Their names, in order of appearance.
        """
        return list(dict.fromkeys(name for row in self.rows for name in row.paper))

    def seconds_of(self, row: RowConfig, overrides: Sequence[str] = ()) -> float | None:
        """How long a row is to be trained.

        Args:
            row: One of the rows.
            overrides: Of all rows, from the command line.

        Returns:
            Seconds; None: for as many epochs as its recipe says. Epochs on the command line win.
        """
        if any(re.match(r"--training\.epochs(=|$)", text) for text in overrides):
            return None
        return row.seconds or self.seconds

    def recipe_of(self, row: RowConfig, overrides: Sequence[str] = ()) -> Recipe:
        """What a row trains.

        Args:
            row: One of the rows.
            overrides: More, which win.

        Returns:
            The recipe, with the table's overrides, then the row's, then these.

        Raises:
            ConfigError: If there is no such recipe, or a key or value does not fit; it names the row.
        """
        own = self.overrides | row.overrides
        _check_keys_of_overrides(own, row, is_timed=(row.seconds or self.seconds) is not None)
        try:
            return read_recipe(row.recipe, [*as_options(own), *overrides])
        except ConfigError as error:
            error.problem = f"row {row.name!r}: {error.problem}"
            raise


def table_names() -> list[str]:
    """The tables that ship with the library.

    Returns:
        Names such as "irevnet/tables/digits".

    Example:
        >>> "irevnet/tables/digits" in table_names()
        True
    """
    root = Path(str(files("invertible") / "recipes"))
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.glob("*/tables/*.yaml"))


def read_table_recipe(name: str | Path) -> TableRecipe:
    """Read a table, and check each of its rows' recipes.

    Args:
        name: A shipped table's name ("irevnet/tables/digits", or "irevnet/digits" for short) or a YAML file.

    Returns:
        The table.

    Raises:
        ConfigError: If there is no such table, a key is unknown or a value does not fit.

    Example:
        >>> [row.name for row in read_table_recipe("irevnet/tables/digits").rows]
        ['ResNet', 'i-RevNet', 'i-RevNet, exact']
    """
    from jsonargparse import ArgumentParser

    path = _find(str(name))
    content = check_shape(path, TableRecipe, "table", HELP)
    check_items(content.get("figures"), "figures", FigureConfig, "table", HELP)
    check_items(content.get("rows"), "rows", RowConfig, "table", HELP)
    parser = ArgumentParser(exit_on_error=False, add_help=False, allow_abbrev=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(TableRecipe, as_group=False, instantiate=True)
    table = TableRecipe(**parse_yaml(parser, TableRecipe, path, what=("table", "a table"), help_command=HELP))
    for row in table.rows:
        beside = path.parent / row.recipe  # so that a table and its recipes can be moved together
        row.recipe = str(beside) if beside.is_file() else row.recipe
        table.recipe_of(row)
    return table


def folder_name(text: str) -> str:
    """A name that any file system takes.

    Args:
        text: What something is called.

    Returns:
        Its letters, digits, points and hyphens, in lower case.

    Example:
        >>> folder_name("i-ResNet, c = 0.9")
        'i-resnet-c-0.9'
    """
    return re.sub(r"[^\w.]+", "-", text.lower()).strip("-.")


def as_options(overrides: Mapping[str, Any]) -> list[str]:
    """Overrides as on the command line.

    Args:
        overrides: By key.

    Returns:
        One option each.

    Example:
        >>> as_options({"optimizer.lr": 0.1, "model.exact": True, "schedule.name": "step"})
        ['--optimizer.lr=0.1', '--model.exact=true', '--schedule.name=step']
    """
    return [f"--{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in overrides.items()]


def _find(name: str) -> Path:
    root = Path(str(files("invertible") / "recipes"))
    if Path(name).is_file():
        return Path(name)
    short = name.removesuffix(".yaml")
    for candidate in (short, "/tables/".join(short.split("/", 1))):
        if candidate in table_names():
            return root / f"{candidate}.yaml"
    near = nearest(name, table_names())
    hint = f"{near!r}" if near else "`invertible recipes` lists them"
    raise ConfigError("unknown table", expected="a YAML file or a shipped table", got=repr(name), hint=hint)


def _check_keys_of_overrides(overrides: Mapping[str, Any], row: RowConfig, is_timed: bool) -> None:
    reasons = {"training.seed": "the table's seeds"} | ({"training.epochs": "its seconds"} if is_timed else {})
    for key, reason in reasons.items():
        if key in overrides:
            hint = f"leave {key} out, or the other"
            raise ConfigError(f"row {row.name!r}: set twice", expected=f"{reason} to decide", got=key, hint=hint)


def _check_once(key: str, names: Sequence[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1 or not name]
    if twice:
        raise ConfigError(f"{key} of a table need names of their own", expected="each once", got=", ".join(twice))

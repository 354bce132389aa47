"""An experiment as data: which one, with which options, and which of its figures stand beside the paper's."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, make_dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from invertible.errors import ConfigError
from invertible.train.compare_table import as_options
from invertible.train.experiments import Experiment, experiment
from invertible.train.read_recipe import check_items, check_shape, nearest, parse_yaml

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

HELP = "`invertible experiment --help`"
FOLDER = "experiments"


@dataclass
class SoughtFigure:
    """A figure of an experiment: the paper's, and where ours is found in the result.

    Args:
        name: What it is called.
        column: Of the result's table; or else `property`.
        where: Which row or rows: values of other columns.
        of: What is taken of several rows; "one": there has to be one.
        property: A property or field of the result that holds a number, a truth value or a text.
        show: As it is ("value"), a share as "%", or what a share lacks to one as "error %".
        paper: The paper's, as it is shown: a number or a text; null: it has none.
        within: Ours counts as the paper's if it is no further from it; null: that is not said.
        tolerance: How far ours may be from what was measured before, as it is shown; null: 3 % of it.
    """

    name: str
    column: str = ""
    where: dict[str, Any] = field(default_factory=dict)
    of: Literal["one", "mean", "min", "max"] = "one"
    property: str = ""
    show: Literal["value", "%", "error %"] = "value"
    paper: float | str | None = None
    within: float | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        is_number = isinstance(self.paper, int | float)
        rules = [
            (bool(self.column) != bool(self.property), "column or property, one of them"),
            (not self.where or bool(self.column), "where only with column"),
            (self.within is None or (is_number and self.within >= 0), "within at least 0, and paper a number"),
            (self.tolerance is None or self.tolerance >= 0, "tolerance at least 0, or null"),
        ]
        for is_fine, expected in rules:
            if not is_fine:
                raise ConfigError(f"figure {self.name!r} of an experiment", expected=expected, got=_given(self))


@dataclass
class ExperimentRecipe:
    """An experiment with its options.

    Args:
        title: One line that says what it is.
        paper: Where it comes from, with the figure's or table's number.
        experiment: A name from `invertible.train.experiments.EXPERIMENTS`.
        options: Of that experiment: a dataclass of its own.
        figures: What is compared and listed.
        quick: Overrides of options, by key (`data.n_train: 64`), that make a run of seconds.
        about: What a reader has to know.

    Raises:
        ConfigError: If a figure is there twice.
    """

    title: str = ""
    paper: str = ""
    experiment: str = ""
    options: Any = None
    figures: list[SoughtFigure] = field(default_factory=list)
    quick: dict[str, Any] = field(default_factory=dict)
    about: str = ""

    def __post_init__(self) -> None:
        names = [figure.name for figure in self.figures]
        if len(set(names)) < len(names):
            raise ConfigError("figures of an experiment need names of their own", expected="each once", got=names)

    def plain_options(self) -> dict[str, Any]:
        """The options as JSON has them, without the places of files.

        Returns:
            Nested dictionaries.
        """
        return _without_places(json.loads(json.dumps(asdict(self.options))))


def experiment_names() -> list[str]:
    """The experiments that ship with the library.

    Returns:
        Names such as "random_like/experiments/spectra".

    Example:
        >>> "random_like/experiments/spectra" in experiment_names()
        True
    """
    root = Path(str(files("invertible") / "recipes"))
    return sorted(str(path.relative_to(root).with_suffix("")) for path in root.glob(f"*/{FOLDER}/*.yaml"))


def read_experiment(name: str | Path, overrides: Sequence[str] = (), *, is_quick: bool = False) -> ExperimentRecipe:
    """Read an experiment.

    Args:
        name: A shipped one's ("random_like/experiments/spectra", or "random_like/spectra" for short) or a YAML file.
        overrides: As on the command line: `["--options.seed", "1"]`.
        is_quick: Whether its `quick` overrides come before those.

    Returns:
        It, its options typed.

    Raises:
        ConfigError: If there is no such experiment, a key is unknown or a value does not fit.

    Example:
        >>> read_experiment("random_like/spectra", ["--options.seed", "3"]).options.seed
        3
    """
    path = find_experiment(name)
    content = check_shape(path, ExperimentRecipe, "experiment", HELP)
    known = experiment(str(content.get("experiment", "")))
    check_items(content.get("figures", []), "figures", SoughtFigure, "experiment", HELP)
    quick = content.get("quick", {}) if is_quick else {}
    if not isinstance(quick, dict):
        raise ConfigError("quick of an experiment", expected="keys of options and values", got=repr(quick))
    words = [*as_options({f"options.{key}": value for key, value in quick.items()}), *overrides]
    what = ("experiment", "an experiment or its overrides")
    parsed = parse_yaml(_parser(known.name), _kind(known.name), path, words, what, f"`invertible experiment {name} -h`")
    return ExperimentRecipe(**parsed)


def find_experiment(name: str | Path) -> Path:
    """The file of an experiment.

    Args:
        name: As `read_experiment` takes it.

    Returns:
        Its path.

    Raises:
        ConfigError: If there is none.
    """
    root, name = Path(str(files("invertible") / "recipes")), str(name)
    if Path(name).is_file():
        return Path(name)
    short = name.removesuffix(".yaml")
    for candidate in (short, f"/{FOLDER}/".join(short.split("/", 1))):
        if candidate in experiment_names():
            return root / f"{candidate}.yaml"
    near = nearest(name, experiment_names())
    hint = f"{near!r}" if near else "`invertible recipes` lists them"
    raise ConfigError("unknown experiment", expected="a YAML file or a shipped experiment", got=repr(name), hint=hint)


def options_help(known: Experiment) -> str:
    """Every option of an experiment, for `--help`.

    Args:
        known: The experiment.

    Returns:
        Text.
    """
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False, add_help=False)
    parser.add_class_arguments(known.options, "options")
    return parser.format_help().split("\n\n", 1)[-1]


@functools.cache
def _kind(name: str) -> Any:
    # The recipe's dataclass, with the type of its options.
    options = experiment(name).options
    section = ("options", options, field(default_factory=options))
    return make_dataclass("TypedRecipe", [section], bases=(ExperimentRecipe,))


@functools.cache
def _parser(name: str) -> ArgumentParser:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False, add_help=False, allow_abbrev=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(_kind(name), as_group=False, instantiate=True)
    return parser


def _given(figure: SoughtFigure) -> str:
    return ", ".join(f"{key}: {value}" for key, value in asdict(figure).items() if value and key != "name")


def _without_places(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_places(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_places(item) for key, item in value.items() if key != "data_dir"}
    return value

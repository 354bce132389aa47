"""An experiment, carried out: its files whole or not at all; goes on where it was stopped."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from invertible._files import read_json, write_json
from invertible.errors import CheckpointError, ConfigError
from invertible.instruments.result import Result
from invertible.train.experiment_figures import find_figure
from invertible.train.experiment_recipe import ExperimentRecipe, find_experiment, read_experiment
from invertible.train.experiment_report import ExperimentReport
from invertible.train.experiment_write import RECORD, RESULT, write_experiment
from invertible.train.experiments import experiment

WORK, STAMP = "work", "options.json"
EXPECTED = "expected.json"
DATA_DIRS = ("--options.data.data_dir", "--options.data_dir")


def run_experiment(
    name: str | Path,
    folder: str | Path,
    overrides: Sequence[str] = (),
    *,
    is_quick: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> ExperimentReport:
    """Carry out an experiment and write what it found.

    A finished one in the folder, with the same options, is not repeated but reported again. One that was stopped goes
    on, as far as the experiment can. Written are result.json, table.csv, picture.png and further pictures, report.md
    and experiment.json: all of them, or none if anything goes wrong.

    Args:
        name: A shipped experiment's name or a YAML file.
        folder: Where to; made if needed.
        overrides: As on the command line: `["--options.seed", "1"]`.
        is_quick: Carry it out at the size that the recipe calls quick: to see that it works, not what comes out.
        overwrite: Carry it out again, whatever is there.
        quiet: Show no progress.

    Returns:
        The report.

    Raises:
        ConfigError: If name or options are wrong. Nothing is done then.
        CheckpointError: If the folder holds something else, or cannot be written to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = run_experiment("random_like/spectra", folder, is_quick=True, quiet=True)
        >>> report.files
        ('experiment.json', 'picture.png', 'report.md', 'result.json', 'table.csv')
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("an experiment runs in one process", expected="WORLD_SIZE 1", got="more", hint="no torchrun")
    recipe, folder = read_experiment(name, overrides, is_quick=is_quick), Path(folder)
    stamp = {"experiment": recipe.experiment, "options": recipe.plain_options()}
    if overwrite:
        _start_over(folder, stamp)
    else:
        _check_same(folder / RECORD, stamp)
        _check_same(folder / WORK / STAMP, stamp)
    is_there = (folder / RECORD).is_file() and not overwrite
    result, conditions = _load(folder, recipe) if is_there else _carry_out(recipe, folder / WORK, stamp, quiet)
    kept = kept_figures(name, stamp["options"])
    figures = tuple(find_figure(sought, result, kept.get(sought.name)) for sought in recipe.figures)
    command = _command(name, overrides, is_quick)
    report = ExperimentReport(recipe, result, figures, conditions, command, tuple(_without_places(overrides)))
    report = write_experiment(report, folder)
    shutil.rmtree(folder / WORK, ignore_errors=True)
    return report


def data_dir_option(name: str | Path, data_dir: str) -> list[str]:
    """The override that says where data files lie.

    Args:
        name: The experiment's name or YAML file.
        data_dir: The folder.

    Returns:
        One option: of its options' `data` if they have such a section, else their own.
    """
    recipe = read_experiment(name)
    has_section = "data" in recipe.plain_options()
    return [f"{DATA_DIRS[0] if has_section else DATA_DIRS[1]}={data_dir}"]


def kept_figures(name: str | Path, options: dict[str, Any]) -> dict[str, Any]:
    """What was measured before with these options, in expected.json beside the recipe.

    Args:
        name: The experiment's name or YAML file.
        options: Plain ones, in full.

    Returns:
        Entries by figure; none if nothing was measured, or with other options.
    """
    path = find_experiment(name)
    beside = path.with_name(EXPECTED)
    entry = read_json(beside).get(path.stem, {}) if beside.is_file() else {}
    return entry.get("figures", {}) if _is_part(entry.get("options", {}), options) else {}


def keep_expectation(report: ExperimentReport, name: str | Path, file: Path) -> None:
    """Enter what was found into a file of expectations.

    Args:
        report: Of the experiment.
        name: Its name or YAML file; the entry has the file's name.
        file: An expected.json; made if needed.
    """
    entries = read_json(file) if file.is_file() else {}
    write_json(file, entries | {find_experiment(name).stem: report.expectation()})


def _carry_out(
    recipe: ExperimentRecipe, work: Path, stamp: dict[str, Any], quiet: bool
) -> tuple[Result, dict[str, Any]]:
    before = read_json(work / STAMP).get("seconds", 0.0) if (work / STAMP).is_file() else 0.0
    write_json(work / STAMP, stamp | {"seconds": before})
    began = time.monotonic()
    try:
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices):
            result = experiment(recipe.experiment).function(recipe.options, out=work, quiet=quiet)
    finally:  # what a sitting took that was stopped counts
        seconds = round(before + time.monotonic() - began, 1)
        write_json(work / STAMP, stamp | {"seconds": seconds})
    return result, _conditions(seconds, recipe.plain_options().get("threads"))


def _conditions(seconds: float, threads: int | None) -> dict[str, Any]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "hardware": f"{device}, {os.cpu_count()} cores",
        "threads": threads or torch.get_num_threads(),
        "seconds": seconds,
        "torch": str(torch.__version__),
        "invertible": version("invertible"),
        "python": platform.python_version(),
    }


def _load(folder: Path, recipe: ExperimentRecipe) -> tuple[Result, dict[str, Any]]:
    _ = experiment(recipe.experiment).function  # its module defines the result's kind
    return Result.load(folder / RESULT), read_json(folder / RECORD)["conditions"]


def _start_over(folder: Path, stamp: dict[str, Any]) -> None:
    # What was begun goes, unless it was itself begun to replace a finished one: then the same command goes on.
    path = folder / WORK / STAMP
    begun = {key: value for key, value in read_json(path).items() if key in stamp} if path.is_file() else {}
    if begun != stamp or not (folder / RECORD).is_file():
        shutil.rmtree(folder / WORK, ignore_errors=True)


def _check_same(path: Path, stamp: dict[str, Any]) -> None:
    if not path.is_file():
        return
    there = read_json(path)
    hint = "another --out, or --overwrite to do it again"
    if there.get("experiment") != stamp["experiment"]:
        expected, got = stamp["experiment"], there.get("experiment")
        raise CheckpointError(f"{path.parent} holds another experiment", expected=expected, got=got, hint=hint)
    old, new = flat(there.get("options", {})), flat(stamp["options"])
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if changed:
        expected = ", ".join(f"{key}={new.get(key)}" for key in changed)
        got = ", ".join(f"{key}={old.get(key)}" for key in changed)
        raise CheckpointError(f"{path.parent} was begun with other options", expected=expected, got=got, hint=hint)


def _command(name: str | Path, overrides: Sequence[str], is_quick: bool) -> str:
    plain = _without_places(overrides)
    place = ["--data-dir FOLDER"] if len(plain) < len(overrides) else []
    quick = ["--quick"] if is_quick else []
    return " ".join(["invertible experiment", shlex.quote(str(name)), *quick, *map(shlex.quote, plain), *place])


def _without_places(overrides: Sequence[str]) -> list[str]:
    # Where files lie is no matter of what is measured.
    places = [i for i, word in enumerate(overrides) if word.split("=")[0] in DATA_DIRS]
    values = [i + 1 for i in places if "=" not in overrides[i]]
    return [word for i, word in enumerate(overrides) if i not in (*places, *values)]


def _is_part(some: dict[str, Any], everything: dict[str, Any]) -> bool:
    # An option that came later does not make what was measured before worthless.
    known = flat(everything)
    return all(known.get(key) == value for key, value in flat(some).items())


def flat(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options by dotted key.

    Args:
        options: Nested dictionaries.
        prefix: Before each key.

    Returns:
        One entry per value.

    Example:
        >>> flat({"data": {"name": "digits"}, "seed": 0})
        {'data.name': 'digits', 'seed': 0}
    """
    found = {}
    for key, value in options.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found

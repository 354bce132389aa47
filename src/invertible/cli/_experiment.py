"""The command `experiment`: carries one out, ours beside the paper's figures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invertible.cli._show import check_data_dir, show
from invertible.errors import ConfigError, RangeError

if TYPE_CHECKING:
    from invertible.train.experiment_report import ExperimentReport

KEYS = """An experiment is a YAML file:

  title: The spectra of a wider network
  paper: where it is from
  experiment: spectra_over_training          # EXPERIMENTS
  options:                                   # of that experiment; `invertible experiment FILE --help` lists them
    widths: [512]
    epochs: [0, 5]
  figures:                                   # what is compared; show: value, % or "error %"
    - {name: outliers, column: n_outliers, where: {epoch: 5, layer: 1}, paper: 3, within: 2, tolerance: 1}
    - {name: test accuracy, column: test_accuracy, where: {epoch: 5}, of: mean, show: "%"}
  quick: {widths: [16], epochs: [0, 1]}      # what --quick makes of the options
  about: what a reader has to know

A figure is looked for in a column of the result's table, in the row (or of: mean, min, max of the rows) with the values
of where, or as a property of the result. Options can be overridden: --options.seed 1."""


def add_experiment(command: argparse.ArgumentParser) -> None:
    """Options of `experiment`.

    Args:
        command: Its parser.
    """
    command.add_argument("name", metavar="EXPERIMENT", help="a name from `invertible recipes`, or a YAML file")
    text = (
        "folder to write to (default: runs/EXPERIMENT, with --quick runs/EXPERIMENT-quick); stopped, it goes on there"
    )
    command.add_argument("--out", type=Path, help=text)
    text = "at the size that the experiment calls quick: to see that it works, not what comes out"
    command.add_argument("--quick", action="store_true", help=text)
    command.add_argument("--held", action="store_true", help="fail if a figure is not what was measured before")
    command.add_argument("--overwrite", action="store_true", help="do it again, whatever is in the folder")
    command.add_argument("--data-dir", help="where data files already on disk lie")
    text = "enter what was measured into this expected.json, for later runs to be held to"
    command.add_argument("--expect", type=Path, metavar="FILE", help=text)
    text = "this text; after EXPERIMENT its options too"
    command.add_argument("-h", "--help", action=_ExperimentHelp, nargs=0, help=text)


class _ExperimentHelp(argparse.Action):
    """Help of `experiment`: its own options, then those of the experiment that was named before."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: Any) -> None:
        from invertible.train.experiment_recipe import options_help, read_experiment
        from invertible.train.experiments import EXPERIMENTS, experiment

        show(parser.format_help())
        if getattr(namespace, "name", None):
            show(options_help(experiment(read_experiment(namespace.name).experiment)))
        else:
            lines = [f"  {known.name}: {known.about}" for known in EXPERIMENTS.values()]
            show(KEYS.replace("EXPERIMENTS", "one of those below") + "\n\n" + "\n".join(lines))
        parser.exit()


def experiment(options: argparse.Namespace, rest: list[str]) -> None:
    """Carry out an experiment.

    Args:
        options: Parsed.
        rest: Overrides of its options.

    Raises:
        RangeError: In the end, if it shall be held to what was measured before and is not.
        KeyboardInterrupt: If it was stopped, after saying how it goes on.
    """
    import matplotlib as mpl

    from invertible.train.compare_table import folder_name
    from invertible.train.experiment_run import data_dir_option, keep_expectation, run_experiment

    mpl.use("Agg")
    check_data_dir(options.data_dir)
    _check(options)
    overrides = [*rest, *(data_dir_option(options.name, options.data_dir) if options.data_dir else [])]
    name = folder_name(options.name.removesuffix(".yaml")) + ("-quick" if options.quick else "")
    folder = options.out or Path("runs") / name
    try:
        report = run_experiment(options.name, folder, overrides, is_quick=options.quick, overwrite=options.overwrite)
    except KeyboardInterrupt:
        if folder.is_dir():
            show("The same command again goes on where it was, as far as that was saved.", is_error=True)
        raise
    _tell(report, folder)
    if options.expect:
        keep_expectation(report, options.name, options.expect)
        show(f"Entered into {options.expect}")
    if options.held:
        _hold(report)


def _check(options: argparse.Namespace) -> None:
    clash = next((name for name in ("held", "expect") if options.quick and getattr(options, name)), None)
    if clash:
        hint = f"--quick or --{clash}"
        raise ConfigError("a quick run measures nothing", expected="the whole experiment", got=f"--{clash}", hint=hint)


def _hold(report: ExperimentReport) -> None:
    if report.is_held is None:
        hint = "its own options, or --expect FILE to keep what was measured now"
        raise ConfigError(
            "nothing to hold it to", expected="figures measured with these options", got="none", hint=hint
        )
    if not report.is_held:
        hint = "`invertible recipes` says on what hardware; more seeds"
        expected = "what was measured before, within the tolerance"
        raise RangeError("it did not come out again", expected=expected, got="; ".join(report.complaints), hint=hint)
    show("Held: every figure is what was measured before, within its tolerance.")


def _tell(report: ExperimentReport, folder: Path) -> None:
    from rich.table import Table
    from rich.text import Text

    heads, rows = report.cells()
    table = Table()
    for i, head in enumerate(heads):
        table.add_column(head, overflow="fold", justify="right" if i else "left")
    for cells in rows:
        table.add_row(*map(Text, cells))
    show(report.recipe.title)
    if rows:
        show(table)
    for finding in report.result.findings:
        show(f"{finding.severity}: {finding.sentence}")
    if report.recipe.about:
        show(f"note: {report.recipe.about}")
    pictures = "   ".join(f"{folder}/{name}" for name in report.files if name.endswith(".png"))
    show(f"Report: {folder}/report.md   table.csv   result.json   pictures: {pictures}")

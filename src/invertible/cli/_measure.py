"""The commands for instruments: `measure` runs one, `checkup` those that fit a budget."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from invertible._console import progress
from invertible.cli._show import show
from invertible.errors import ConfigError, InvertibleError

if TYPE_CHECKING:
    from invertible.cli._measured import Measured
    from invertible.instruments import Instrument, Result

_RANK = {"error": 0, "warning": 1, "note": 2}


def add_measure(command: argparse.ArgumentParser) -> None:
    """Options of `measure`.

    Args:
        command: Its parser.
    """
    command.add_argument("name", metavar="NAME", help="an instrument; `invertible checkup --list` lists them")
    _add_target(command)
    command.add_argument("-h", "--help", action=_InstrumentHelp, nargs=0, help="this text; after NAME its options too")
    command.epilog = "Any option of the instrument may follow, as in `--seconds 10 --channel-axis -1`."


class _InstrumentHelp(argparse.Action):
    """Help of `measure`: its own options, then those of the instrument that was named before."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: Any) -> None:
        show(parser.format_help())
        if getattr(namespace, "name", None):
            show_options(namespace.name)
        parser.exit()


def add_checkup(command: argparse.ArgumentParser) -> None:
    """Options of `checkup`.

    Args:
        command: Its parser.
    """
    _add_target(command, is_needed=False)
    text = "about so long for all of them; what would take longer is left out (default: %(default)s)"
    command.add_argument("--seconds", type=float, default=60.0, help=text)
    command.add_argument("--list", action="store_true", dest="wants_list", help="list the instruments")


def _add_target(command: argparse.ArgumentParser, is_needed: bool = True) -> None:
    text = "the folder of a run, or package.module:factory, a function without arguments that makes a network"
    command.add_argument("target", metavar="RUN_OR_MODULE", nargs=None if is_needed else "?", help=text)
    text = (
        "a shape for N(0, 1) noise (16,3,32,32), a data set's name, FILE.npy, or package.module:function that returns"
    )
    command.add_argument("--data", help=f"{text} batches; default: a run's test data")
    command.add_argument("--data-dir", help="where data files already on disk lie")
    text = "folder for NAME.json, .csv and .png (default: RUN/measurements, or measurements/MODULE)"
    command.add_argument("--out", type=Path, help=text)


def measure(options: argparse.Namespace, rest: list[str]) -> None:
    """Run one instrument.

    Args:
        options: Parsed.
        rest: The instrument's own options.

    Raises:
        ConfigError: If the instrument does not fit.
    """
    from invertible.cli._measured import find_measured
    from invertible.cli._options import parse_options
    from invertible.instruments import instrument

    chosen = instrument(options.name)
    own = parse_options(chosen.function, rest)
    measured = find_measured(options.target, options.data, options.data_dir)
    reason = _refusal(chosen, measured)
    if reason:
        hint = "--data 16,3,32,32 for noise of that shape" if measured.data is None else ""
        raise ConfigError(f"{chosen.name} cannot measure {options.target}", got=reason, hint=hint)
    result = _run(chosen, measured, own)
    _tell([(chosen.name, result)])
    files = write_result(result, options.out or measured.folder, chosen.name)
    show(files)


def write_result(result: Result, folder: Path, name: str) -> str:
    """Write a result's JSON, table and picture, each whole or not at all.

    Args:
        result: What was found.
        folder: Where to.
        name: Of the files.

    Returns:
        A line that says where they are.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    result.save(folder / f"{name}.json")
    result.save_csv(folder / f"{name}.csv")
    result.save_plot(folder / f"{name}.png")
    return f"Result: {folder / name}.json   .csv   picture: {folder / name}.png"


def checkup(options: argparse.Namespace, rest: list[str]) -> None:
    """Run the instruments that fit the budget; findings worst first.

    Args:
        options: Parsed.
        rest: None.

    Raises:
        ConfigError: If there is nothing to measure.
    """
    from invertible.cli._measured import find_measured
    from invertible.instruments import INSTRUMENTS

    if options.wants_list:
        for known in INSTRUMENTS.values():
            show(f"{known.name}: {known.about} (needs {', '.join(sorted(known.needs)) or 'nothing'})")
        return
    if options.target is None or not options.seconds > 0:
        got = f"--seconds {options.seconds:g}" if options.target else "no RUN_OR_MODULE"
        raise ConfigError("nothing to check", expected="a run or module, and --seconds above 0", got=got)
    measured = find_measured(options.target, options.data, options.data_dir)
    folder = options.out or measured.folder
    found = _check_all(measured, options.seconds, folder)
    _tell(found)
    show(f"Results: {folder}/ (NAME.json, .csv, .png)" if found else "No instrument could measure this.")


def _check_all(measured: Measured, seconds: float, folder: Path) -> list[tuple[str, Result]]:
    from invertible.instruments import INSTRUMENTS

    deadline, found = time.monotonic() + seconds, []
    pass_seconds = _pass_seconds(measured)
    queue = sorted(INSTRUMENTS.values(), key=lambda known: known.n_passes)
    for i, known in enumerate(queue):
        left = deadline - time.monotonic()
        reason = _refusal(known, measured) or _too_long(known, pass_seconds, left)
        if reason:
            show(f"{known.name}: left out, {reason}", is_error=True)
            continue
        share = {"seconds": max(left / (len(queue) - i), 0.1)} if known.has_budget else {}
        try:
            result = _run(known, measured, share)
        except InvertibleError as error:
            show(f"{known.name}: {error}", is_error=True)
            continue
        write_result(result, folder, known.name)
        found.append((known.name, result))
    return found


def _run(known: Instrument, measured: Measured, options: dict[str, Any]) -> Result:
    with ExitStack() as stack:
        if not known.has_budget:  # the others show how far they are themselves
            stack.enter_context(progress()).add_task(known.name, total=None)
        return _explained(lambda: known.measure(measured.model, measured.data, **options))


T = TypeVar("T")


def _explained(act: Callable[[], T]) -> T:
    # What a user's network raises, as one line of ours (INVERTIBLE_TRACEBACK=1 shows where it came from).
    try:
        return act()
    except InvertibleError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        notes = " ".join(getattr(error, "__notes__", []))
        got = f"{type(error).__name__}: {error}"
        raise ConfigError("the network failed on the data", got=got, hint=f"other --data. {notes}") from error


def _refusal(known: Instrument, measured: Measured) -> str:
    return known.refusal(measured.model, measured.data is not None, measured.has_labels)


def _pass_seconds(measured: Measured) -> float:
    # Of one batch, to guess how long instruments take.
    if measured.data is None:
        return 0.0
    from invertible.instruments import measuring
    from invertible.instruments.feeding import Feed

    with measuring(measured.model) as network:
        first = Feed("checkup", network, measured.data, batches=1, quiet=True).first
        start = time.monotonic()
        _explained(lambda: first.run(network))
        return time.monotonic() - start


def _too_long(known: Instrument, pass_seconds: float, left: float) -> str:
    guess = known.n_passes * pass_seconds
    return f"it would take about {guess:.0f} s: --seconds" if guess > left else ""


def _tell(results: list[tuple[str, Result]]) -> None:
    found = [(name, finding) for name, result in results for finding in result.findings]
    for name, finding in sorted(found, key=lambda item: _RANK[item[1].severity]):
        show(f"{finding.severity}: {name}: {finding.sentence}")


def show_options(name: str) -> None:
    """Print an instrument's own options.

    Args:
        name: The instrument.
    """
    from invertible.cli._options import help_of
    from invertible.instruments import instrument

    chosen = instrument(name)
    show(f"{chosen.name}: {chosen.about}\n\n{help_of(chosen.function)}")

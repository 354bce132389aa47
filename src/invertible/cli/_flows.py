"""The commands for densities: `sample` and `score`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from invertible.cli._show import check_data_dir, check_picture, show
from invertible.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

    from invertible.train.run import Run
    from invertible.train.score import Scores

N_LISTED = 20
N_DRAWN = 400
N_NOTES = 5


def add_sample(command: argparse.ArgumentParser) -> None:
    """Options of `sample`.

    Args:
        command: Its parser.
    """
    command.add_argument("folder", type=Path, metavar="RUN", help="the folder of a run whose network is a flow")
    command.add_argument("-n", type=int, default=64, help="how many (default: %(default)s)")
    text = "multiplies the standard deviation of the latents; below 1: more typical, less varied (default: 1)"
    command.add_argument("--temperature", type=float, default=1.0, help=text)
    command.add_argument("--class", dest="label", metavar="K", help="name or number of a class; default: all, in turn")
    command.add_argument("--seed", type=int, default=0, help="decides which samples (default: %(default)s)")
    command.add_argument("-o", "--out", type=Path, help="the picture to write (default: RUN/sample.png)")
    command.add_argument("--save", type=Path, metavar="FILE", help="write the numbers too: NAME.npy")


def add_score(command: argparse.ArgumentParser) -> None:
    """Options of `score`.

    Args:
        command: Its parser.
    """
    command.add_argument("folder", type=Path, metavar="RUN", help="the folder of a run whose network is a flow")
    text = "pictures, folders of pictures, or for points .npy or .csv files with one point a row; none: the test data"
    command.add_argument("files", type=Path, nargs="*", metavar="FILES", help=text)
    text = "how often the noise of dequantisation is drawn (default: %(default)s)"
    command.add_argument("--draws", type=int, default=8, help=text)
    text = "name or number of a class; default: the even mixture of all classes"
    command.add_argument("--class", dest="label", metavar="K", help=text)
    command.add_argument("--seed", type=int, default=0, help="of the noise (default: %(default)s)")
    text = "the table to write; a JSON file and a picture of the same name go beside it (default: RUN/scores.csv)"
    command.add_argument("-o", "--out", type=Path, metavar="FILE", help=text)
    command.add_argument("--data-dir", help="where data files already on disk lie")


def sample(options: argparse.Namespace, rest: list[str]) -> None:
    """Draw from a run's flow.

    Args:
        options: As parsed.
        rest: None.

    Raises:
        ConfigError: If an option does not fit.
    """
    from invertible.train.density import check_label
    from invertible.train.flow_figures import draw_samples
    from invertible.train.run import load_run

    path = options.out or options.folder / "sample.png"
    check_picture(path)
    if options.save is not None and options.save.suffix != ".npy":
        raise ConfigError("unknown kind of file", expected="--save NAME.npy", got=str(options.save))
    if options.n < 1 or options.seed < 0:
        raise ConfigError("-n or --seed is out of range", expected="-n at least 1, --seed at least 0",
                          got=f"{options.n} and {options.seed}")  # fmt: skip
    run = load_run(options.folder)
    flow, label = run.flow, _label(run, options.label)
    check_label(flow, run.n_classes, label)
    samples = draw_samples(run, options.n, options.temperature, label, options.seed)
    _draw(run, samples, path, options.temperature, label)
    if options.save is not None:
        _save(samples, options.save)


def _draw(run: Run, samples: Tensor, path: Path, temperature: float, label: int | None) -> None:
    from invertible.data import PointSet
    from invertible.train.flow_figures import save_density, save_samples

    if run.scaling is not None:
        save_samples(run, samples[:N_DRAWN], path, temperature, label)
        shown = min(len(samples), N_DRAWN)
    else:
        data = run.test_data()
        if not isinstance(data, PointSet):
            raise DataError("the run's points are gone", expected="points", got=data.name)
        save_density(run, data, samples, path, temperature, label)
        shown = len(samples)
    show(f"{shown:,} sample{'s' * (shown != 1)} at temperature {temperature:g}. Picture: {path}")


def _save(samples: Tensor, path: Path) -> None:
    import numpy as np

    from invertible._files import write_atomically

    write_atomically(path, lambda temporary: np.save(temporary, samples.numpy()))
    show(f"{tuple(samples.shape)} numbers: {path}")


def score(options: argparse.Namespace, rest: list[str]) -> None:
    """Score files, or a run's test data.

    Args:
        options: As parsed.
        rest: None.

    Raises:
        ConfigError: If an option does not fit.
    """
    from invertible.train.run import load_run
    from invertible.train.score import of_test_data, read_files
    from invertible.train.score import score as score_all
    from invertible.train.score_figure import save_scores

    out = options.out or options.folder / "scores.csv"
    if out.suffix.lower() != ".csv":
        raise ConfigError("scores are a table", expected="--out NAME.csv", got=str(out))
    check_data_dir(options.data_dir)
    run = load_run(options.folder)
    _ = run.flow
    label = _label(run, options.label)
    scored = read_files(run, options.files) if options.files else of_test_data(run.test_data(options.data_dir))
    _tell(scored.notes)
    scores = score_all(run, scored, options.draws, label, options.seed)
    scores, test = _with_reference(run, scores, options, label)
    _list(scores)
    about, picture = scores.save(out), out.with_suffix(".png")
    save_scores(run, scores, scored, test, picture)
    show(f"Table: {out}   {about}   picture: {picture}")


def _tell(notes: tuple[str, ...]) -> None:
    for note in notes[:N_NOTES]:
        show(f"note: {note}")
    if len(notes) > N_NOTES:
        show(f"note: and {len(notes) - N_NOTES:,} more pictures were changed to fit")


def _with_reference(
    run: Run, scores: Scores, options: argparse.Namespace, label: int | None
) -> tuple[Scores, Scores | None]:
    from invertible.train.score import compared, reference

    if not options.files:
        scores = compared(scores, scores)
        return scores, scores
    try:
        test = reference(run, run.test_data(options.data_dir), label)
    except DataError as error:
        show(f"note: the test set is not at hand to compare with: {error}", is_error=True)
        return scores, None
    return compared(scores, test), test


def _list(scores: Scores) -> None:
    from rich.table import Table

    worse = "larger" if scores.unit == "bits/dim" else "smaller"
    noise = f"mean of {scores.n_draws} draws of the noise" if scores.n_draws > 1 else "one evaluation"
    show(f"{len(scores.rows):,} scored, in {scores.unit} of {scores.condition} ({worse} is more unlikely; {noise})")
    table = Table()
    table.add_column("name", overflow="fold")
    for title in (scores.unit, "standard error", "test data as unlikely"):
        table.add_column(title, justify="right")
    for row, value in list(zip(scores.rows, scores.values, strict=True))[:N_LISTED]:
        share = "" if row.test_share is None else f"{row.test_share:.2%}"
        error = "unknown" if row.standard_error is None else f"{row.standard_error:.2g}"
        table.add_row(row.name, f"{value:.4f}", error, share)
    show(table)
    if len(scores.rows) > N_LISTED:
        show(f"... and {len(scores.rows) - N_LISTED:,} more in the table")


def _label(run: Run, text: str | None) -> int | None:
    if text is None:
        return None
    classes = run.record["classes"]
    if text in classes:
        return classes.index(text)
    if text.isdigit():
        return int(text)
    raise ConfigError("no such class", expected=", ".join(map(str, classes)), got=repr(text))

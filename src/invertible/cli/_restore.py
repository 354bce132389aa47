"""`invertible restore`: a photograph without noise, holes, blocks or coarse pixels, from nothing but itself."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from invertible._console import announce, progress
from invertible.cli._show import show
from invertible.errors import ConfigError

if TYPE_CHECKING:
    from invertible.restore.engine import Progress
    from invertible.restore.job import Prepared
    from invertible.restore.run_job import Outcome
    from invertible.restore.tiles import Place

ANNOUNCED = 10


def add_restore(command: argparse.ArgumentParser) -> None:
    """Options of `restore`.

    Args:
        command: Its parser.
    """
    text = "the photograph: PNG, JPEG, TIFF or WebP; 8 or 16 bits; grey, colour, alpha; any size"
    command.add_argument("image", type=Path, metavar="IMAGE", help=text)
    text = "the restored photograph: .png, .jpg, .tif or .webp; beside it pictures of before and after and of the way"
    command.add_argument("-o", "--out", type=Path, required=True, help=text)
    text = "what is wrong with it: noise, missing pixels, too few pixels, or JPEG's blocks"
    command.add_argument("--task", choices=["denoise", "inpaint", "superres", "jpeg"], required=True, help=text)
    command.add_argument("--mask", type=Path, help="for inpaint: a picture of the same size that marks pixels")
    text = "what white in the mask means: fill in (missing, the default) or keep (known)"
    command.add_argument("--mask-marks", choices=["missing", "known"], default="missing", help=text)
    text = "for superres: how many times larger, along each axis (default: 4)"
    command.add_argument("--factor", type=int, default=4, help=text)
    text = "standard deviation of the noise, grey levels of 255, or auto (default: auto for denoise, else no noise)"
    command.add_argument("--sigma", type=_sigma, help=text)
    command.add_argument("--seconds", type=float, metavar="N", help="stop after so long (default: when it is done)")
    text = "so many runs, averaged: each takes as long as one, their mean is better (default: 1)"
    command.add_argument("--seeds", type=int, default=1, metavar="K", help=text)
    text = "the undamaged photograph, if you have it: PSNR and SSIM are measured against it"
    command.add_argument("--truth", type=Path, metavar="IMAGE", help=text)
    command.add_argument("--bits", type=int, choices=[8, 16], help="per value of the result (default: as IMAGE has)")
    text = "side of the tiles in which a large picture is restored (default: what memory allows)"
    command.add_argument("--tile", type=int, metavar="PIXELS", help=text)
    command.add_argument("--device", help="cpu, cuda or cuda:1 (default: a GPU if there is one)")


def restore(options: argparse.Namespace, rest: list[str]) -> None:
    """Restore a photograph.

    Args:
        options: Parsed.
        rest: None.
    """
    from invertible.restore.restore import restore as restorer

    restore_with(options, restorer)


def restore_with(options: argparse.Namespace, restorer: Callable[..., object]) -> None:
    """Restore a photograph by a function with the arguments of `invertible.restore.restore`.

    Args:
        options: Parsed.
        restorer: The function.

    Raises:
        KeyboardInterrupt: After Ctrl-C, when the best so far has been written, if there was any.
    """
    from invertible.restore.images import check_writable, write_image
    from invertible.restore.job import Job, beside, prepare
    from invertible.restore.run_job import Effort, run_job

    names = ("image", "out", "task", "mask", "mask_marks", "factor", "sigma", "truth", "bits")
    job = Job(**{name: getattr(options, name) for name in names})
    effort = Effort(options.seconds, options.seeds, options.tile, _device(options.device))
    prepared = prepare(job)
    for path in beside(job.out):
        check_writable(path)
    for note in prepared.notes:
        show(f"note: {note}")
    with _live(options.seconds) as on_step:
        outcome = run_job(prepared, effort, on_step, restorer)  # pyright: ignore[reportArgumentType]
    write_image(job.out, outcome.image, prepared.photo, prepared.bits)
    _draw(prepared, outcome, job.out)
    _tell(prepared, outcome, job.out)
    if outcome.is_interrupted:
        show(f"stopped by Ctrl-C: {job.out} is the best so far", is_error=True)
        raise KeyboardInterrupt


def _sigma(text: str) -> float | Literal["auto"]:
    if text == "auto":
        return "auto"
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor auto") from None


def _device(name: str | None) -> str | None:
    import torch

    try:
        device = None if name is None else torch.device(name)
    except RuntimeError as error:
        raise ConfigError("no such --device", expected="cpu or cuda", got=name) from error
    if device is not None and device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("no such --device", expected="cpu: this machine has no GPU", got=name)
    return name


def _draw(prepared: Prepared, outcome: Outcome, out: Path) -> None:
    from invertible.restore.figures import save_figure, strip, trajectory_figure
    from invertible.restore.job import beside
    from invertible.restore.run_job import longest

    before_after, way, _ = beside(out)
    save_figure(strip({"input": prepared.before, "restored": outcome.image}, prepared.truth), before_after)
    shown = longest(outcome.parts)
    if shown is not None:
        save_figure(trajectory_figure(shown.trajectory), way)
        shown.trajectory.save(way.with_suffix(".json"))


def _tell(prepared: Prepared, outcome: Outcome, out: Path) -> None:
    from invertible.restore.job import beside
    from invertible.restore.quality import quality

    if len(outcome.parts) == 1:
        part = outcome.parts[0]
        show(f"kept the picture of step {part.stop_step} after {part.seconds:.0f} s: {part.stop_reason}")
    elif outcome.parts:
        n_seconds = sum(part.seconds for part in outcome.parts)
        show(f"{len(outcome.parts)} tiles in {n_seconds:.0f} s; the trajectory is that of the longest")
    warnings = {f.sentence for part in outcome.parts for f in part.trajectory.findings if f.severity == "warning"}
    for sentence in sorted(warnings):
        show(f"warning: {sentence}", is_error=True)
    if prepared.truth is not None:
        before, after = (quality(picture, prepared.truth) for picture in (prepared.before, outcome.image))
        show(f"against the truth: input {before}; restored {after}")
    before_after, way, _ = beside(out)
    show(f"restored: {out}   before and after: {before_after}   the way: {way}")


@contextmanager
def _live(seconds: float | None) -> Iterator[Callable[[Progress, Place], None]]:
    # A bar on a terminal; elsewhere a line now and then.
    with progress() as display:
        bar = display.add_task("preparing", total=None)
        told: set[tuple[int, int, int]] = set()

        def on_step(now: Progress, place: Place) -> None:
            line = _line(now, place, seconds)
            display.update(bar, description=line, completed=now.step, total=now.max_steps)
            tenth = (place.number, now.seed, ANNOUNCED * now.step // max(now.max_steps, 1))
            if display.disable and tenth not in told:
                told.add(tenth)
                announce(line)

        yield on_step


def _line(now: Progress, place: Place, seconds: float | None) -> str:
    tile = f"tile {place.number} of {place.n_tiles}, " if place.n_tiles > 1 else ""
    left = now.seconds / max(now.step, 1) * (now.max_steps - now.step)
    left = left if seconds is None else max(min(left, seconds / place.n_tiles - now.seconds), 0)
    parts = [f"{tile}step {now.step} of {now.max_steps}"]
    parts += [f"at most {left:.0f} s left"] if now.step > 1 else []  # the first step is slow and tells nothing
    parts += [f"loss {now.loss:.2e}"]
    parts += [] if math.isnan(now.statistic) else [f"stopping statistic {now.statistic:.3g}"]
    parts += [] if now.psnr is None else [f"PSNR {now.psnr:.2f} dB"]
    return ", ".join(parts)

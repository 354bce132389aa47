"""`invertible interpolate`: what a trained network has between two images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from invertible.cli._show import check_data_dir, check_picture, show
from invertible.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from invertible.instruments import Interpolation
    from invertible.train.run import Run

N_PAIRS = 4


def add_interpolate(command: argparse.ArgumentParser) -> None:
    """Options of `interpolate`.

    Args:
        command: Its parser.
    """
    command.add_argument("folder", type=Path, metavar="RUN", help="the folder of a run with an invertible network")
    text = "an even number of pictures of yours, a pair each; default: pairs spread over the test images"
    command.add_argument("--images", type=Path, nargs="+", metavar="PICTURE", help=text)
    command.add_argument("--steps", type=int, default=9, help="images on a line, both ends included (default: 9)")
    command.add_argument("--data-dir", help="where data files already on disk lie")
    text = "the picture to write, its figures beside it as .json (default: RUN/interpolation.png)"
    command.add_argument("-o", "--out", type=Path, help=text)


def interpolate(options: argparse.Namespace, rest: list[str]) -> None:
    """Decode images between images; write picture and figures.

    Args:
        options: Parsed.
        rest: None.

    Raises:
        ConfigError: If the picture would replace one of the user's, or their number is odd.
    """
    import matplotlib as mpl

    from invertible.train.run import load_run

    check_data_dir(options.data_dir)
    path = options.out or options.folder / "interpolation.png"
    check_picture(path)
    own = options.images or []
    if len(own) % 2:
        raise ConfigError("--images takes pairs", expected="an even number of pictures", got=len(own))
    if path.resolve() in {image.resolve() for image in own}:
        raise ConfigError("--out would replace one of --images", expected="another file", got=str(path))
    run = load_run(options.folder)
    pixels, notes = _pictures(run, own) if own else (_test_pixels(run, options.data_dir), [])
    for note in notes:
        show(f"note: {note}")
    found = _interpolation(run, pixels, options.steps)
    for finding in found.findings:
        show(f"{finding.severity}: {finding.sentence}")
    mpl.use("Agg")
    found.save_plot(path)
    found.save(path.with_suffix(".json"))
    show(f"picture: {path}   figures: {path.with_suffix('.json')}")


def _pictures(run: Run, paths: list[Path]) -> tuple[Tensor, list[str]]:
    import torch

    from invertible.data import image_file

    max_value = run.normalize.max_value  # a run on points has none, and says so
    channels, height, width = run.record["in_shape"]
    found = [image_file(path, (channels, height, width), max_value) for path in paths]
    return torch.cat([pixels for pixels, _ in found]), [note for _, note in found if note]


def _test_pixels(run: Run, data_dir: str | None) -> Tensor:
    from invertible.train.figures import spread

    images = run.test_images(data_dir)
    return images.batch(spread(len(images), 2 * N_PAIRS))


def _interpolation(run: Run, pixels: Tensor, n_steps: int) -> Interpolation:
    from invertible.flow import Flow
    from invertible.instruments import interpolation
    from invertible.models import Hybrid

    n_pairs = len(pixels) // 2
    if isinstance(run.model, Flow | Hybrid):
        flow = run.flow
        if flow.takes_context:
            hint = "`invertible sample RUN`, which draws given a class"
            raise ConfigError("a conditional flow has no one inverse", expected="one without context", hint=hint)
        whole = flow.dequantization  # whole numbers are moved to the middle of their level, not blurred
        x = run.prepare(pixels)
        x = x if whole is None else (x + 0.5) / whole.n_levels
        return interpolation(flow.bijection, x, n_pairs=n_pairs, n_steps=n_steps)
    display = run.normalize.inverse
    return interpolation(run.classifier, run.prepare(pixels), n_pairs=n_pairs, n_steps=n_steps, display=display)

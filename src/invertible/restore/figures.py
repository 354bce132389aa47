"""Pictures of a restoration: before and after, with a detail enlarged; and what happened on the way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional

from invertible.errors import ShapeError
from invertible.instruments._write import write_whole
from invertible.restore.quality import quality
from invertible.restore.trajectory import Run, Trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LARGEST = 900
DETAIL = 5
COLUMN = 3.6


def strip(pictures: Mapping[str, Tensor], truth: Tensor | None = None) -> Figure:
    """Pictures side by side, and below each the same detail enlarged.

    Args:
        pictures: By title, shape (1 or 3, height, width) each, in [0, 1]; all of one size.
        truth: Shown last, and what PSNR and SSIM in the titles are against; None: not known.

    Returns:
        The figure.

    Raises:
        ShapeError: If the sizes differ.

    Example:
        >>> import torch
        >>> figure = strip({"input": torch.rand(3, 20, 30), "restored": torch.rand(3, 20, 30)})
        >>> len(figure.axes)
        4
    """
    from matplotlib.figure import Figure

    shown = {**pictures, "truth": truth} if truth is not None else dict(pictures)
    sizes = {tuple(picture.shape[1:]) for picture in shown.values()}
    if len(sizes) != 1:
        raise ShapeError("pictures of different sizes", expected="one size", got=sorted(sizes))
    height, width = sizes.pop()
    top, left, side = detail(list(shown.values())[-1], next(iter(shown.values())))
    ratio = [height / width, 1.0]
    figure = Figure(figsize=(COLUMN * len(shown), COLUMN * sum(ratio) + 0.5), layout="constrained")
    axes = figure.subplots(2, len(shown), squeeze=False, height_ratios=ratio)
    for column, (name, picture) in enumerate(shown.items()):
        about = "" if truth is None or name == "truth" else f"\n{quality(picture, truth)}"
        _draw(axes[0, column], picture, name + about)
        _frame(axes[0, column], top, left, side)
        _draw(axes[1, column], picture[:, top : top + side, left : left + side], "", nearest=True)
    return figure


def detail(image: Tensor, before: Tensor | None = None) -> tuple[int, int, int]:
    """Find the square with the most detail, a fifth of the picture's shorter side but at least 16 pixels.

    Args:
        image: Shape (channels, height, width).
        before: The same picture before: then detail counts by how much has changed there; None: all counts.

    Returns:
        Its top, left and side, pixels.
    """
    grey = image.detach().cpu().float().mean(0)
    side = min(max(min(grey.shape) // DETAIL, 16), *grey.shape)
    down, across = (grey.diff(dim=dim).abs() for dim in (0, 1))
    strength = functional.pad(down, (0, 0, 0, 1)) + functional.pad(across, (0, 1))
    step = max(side // 4, 1)
    mean = functional.avg_pool2d(strength[None, None], side, stride=step)[0, 0]
    if before is not None and (change := (image - before).detach().cpu().float().abs().mean(0)).any():
        mean = mean * functional.avg_pool2d(change[None, None], side, stride=step)[0, 0]
    best = int(mean.argmax())
    return best // mean.shape[1] * step, best % mean.shape[1] * step, side


def trajectory_figure(trajectory: Trajectory) -> Figure:
    """Loss, stopping statistic and, where the truth is known, PSNR against the step; where each run stopped, and why.

    Args:
        trajectory: Of a restoration.

    Returns:
        The figure, one panel each.
    """
    from matplotlib.figure import Figure

    moments = trajectory.moments
    wanted = [("loss", "loss (mean squared error)", True), _second(trajectory)]
    wanted += [("psnr", "PSNR (dB)", False)] if any(moment.psnr is not None for moment in moments) else []
    figure = Figure(figsize=(8, 2.4 * len(wanted) + 0.6), layout="constrained")
    panels = figure.subplots(len(wanted), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (column, label, is_log) in zip(panels, wanted, strict=True):
        _curves(axes, trajectory, column, is_log)
        axes.set_ylabel(label)
    panels[-1].set_xlabel("step")
    panels[0].set_title("\n".join(_how_it_ended(run, len(trajectory.runs)) for run in trajectory.runs[:4]), fontsize=9)
    return figure


def _second(trajectory: Trajectory) -> tuple[str, str, bool]:
    if any(moment.discrepancy is not None for moment in trajectory.moments):
        return "discrepancy", "error left / noise", True
    return "statistic", trajectory.rule or "statistic", True


def save_figure(figure: Figure, path: Path, dpi: int = 150) -> None:
    """Write a figure, whole or not at all.

    Args:
        figure: What `strip` or `trajectory_figure` made.
        path: The file, .png or another that matplotlib writes.
        dpi: Pixels per inch.
    """
    write_whole(path, lambda temporary: figure.savefig(temporary, dpi=dpi))


def _draw(axes: Axes, picture: Tensor, title: str, nearest: bool = False) -> None:
    pixels = picture.detach().cpu().float().clamp(0, 1)
    while max(pixels.shape[1:]) > LARGEST:
        pixels = functional.avg_pool2d(pixels, 2, ceil_mode=True)
    extent = (-0.5, picture.shape[2] - 0.5, picture.shape[1] - 0.5, -0.5)
    values = pixels.permute(1, 2, 0).expand(-1, -1, 3).numpy()
    axes.imshow(values, extent=extent, interpolation="nearest" if nearest else "antialiased")
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()


def _frame(axes: Axes, top: int, left: int, side: int) -> None:
    from matplotlib.patches import Rectangle

    for colour, width in (("black", 2.0), ("white", 1.0)):
        corner = (left - 0.5, top - 0.5)
        axes.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=colour, linewidth=width))


def _curves(axes: Axes, trajectory: Trajectory, column: str, is_log: bool) -> None:
    for number, run in enumerate(trajectory.runs):
        points = [(step, value) for seed, step, value in _values(trajectory, column) if seed == run.seed]
        colour = f"C{number % 10}"
        axes.plot(*zip(*points, strict=True) if points else ([], []), color=colour, linewidth=1)
        axes.axvline(run.stop_step, color=colour, linestyle=":", linewidth=1)
    values = [value for _, _, value in _values(trajectory, column)]
    if is_log and values and min(values) > 0:
        axes.set_yscale("log")


def _values(trajectory: Trajectory, column: str) -> list[tuple[int, int, float]]:
    # Seed, step and value of every moment that has one.
    found = [(moment.seed, moment.step, getattr(moment, column)) for moment in trajectory.moments]
    return [(seed, step, float(value)) for seed, step, value in found if value is not None]


def _how_it_ended(run: Run, n_runs: int) -> str:
    who = f"seed {run.seed}: " if n_runs > 1 else ""
    psnr = f", {run.psnr:.2f} dB (peak {run.peak_psnr:.2f})" if run.psnr is not None and run.peak_psnr else ""
    return f"{who}kept step {run.stop_step} of {run.last_step}{psnr}: {run.reason}"

"""Pictures of a density: of points its values beside samples and data; of images samples, temperatures, morphs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from invertible._console import announce, progress
from invertible._files import write_atomically
from invertible.data import PointSet
from invertible.errors import NonFiniteError
from invertible.train.density import dtype_and_device, labels_for, log_density
from invertible.train.figures import new_figure, spread
from invertible.train.prepare import Data, Images
from invertible.train.randomness import seeded
from invertible.train.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURES = ("density.png", "samples.png", "temperatures.png", "interpolations.png")
TEMPERATURES = (0.0, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
N_AT_ONCE = 256
GROUND = 0.88  # light grey, so that black as well as white images have an edge
MOST_UNEQUAL = 5  # widths of two columns that are drawn to one scale
N_SIDE, N_COLUMNS, N_MORPHS, N_GRID, N_DOTS, CHUNK = 8, 20, 6, 200, 5000, 4000


def draw_flow(run: Run, data: Data) -> None:
    """Draw what a flow has learned, into the run's folder.

    Args:
        run: A trained flow.
        data: As `run.test_data()` returns them.
    """
    if isinstance(data, PointSet):
        save_density(run, data, draw_samples(run, min(N_DOTS, len(data))), run.folder / "density.png")
        return
    n_columns = run.n_classes if run.flow.takes_context and run.n_classes <= N_COLUMNS else N_SIDE
    save_samples(run, draw_samples(run, N_SIDE * n_columns), run.folder / "samples.png")
    with progress() as display:
        task = display.add_task("drawing", total=2)
        save_temperatures(run, run.folder / "temperatures.png")
        display.advance(task)
        save_interpolations(run, data, run.folder / "interpolations.png")


def draw_samples(run: Run, n: int, temperature: float = 1.0, label: int | None = None, seed: int = 0) -> Tensor:
    """Sample from a trained flow.

    Args:
        run: The run.
        n: How many.
        temperature: Multiplies the standard deviation of the latents.
        label: Of a class-conditional flow; None: all classes, in turn.
        seed: Decides which samples; the global random state is left alone.

    Returns:
        Points, shape (n, d), or whole-numbered pixels, shape (n, channels, height, width); on the CPU.
    """
    _, device = dtype_and_device(run.model)
    labels = torch.arange(n, device=device) % run.n_classes if label is None else torch.full((n,), label, device=device)
    parts = []
    with seeded(device, seed), progress() as display:
        task = display.add_task("sampling", total=n)
        for part in labels.split(N_AT_ONCE):
            conditions = {"n": (), "context": part} if run.flow.takes_context else {"n": len(part)}
            parts.append(run.flow.sample(**conditions, temperature=temperature).cpu())
            display.advance(task, len(part))
    return torch.cat(parts)


def save_samples(run: Run, samples: Tensor, path: Path, temperature: float = 1.0, label: int | None = None) -> None:
    """Draw samples of images as a square grid; of a class-conditional flow one column per class.

    Args:
        run: The run.
        samples: As `draw_samples` returns them.
        path: The picture.
        temperature: They were drawn at, for the title.
        label: Their class; None: of all.
    """
    by_class = run.flow.takes_context and label is None and run.n_classes <= min(N_COLUMNS, len(samples))
    of_class = f" of class {run.record['classes'][label]}" if label is not None else ""
    title = f"{run.recipe.title}: samples{of_class} at temperature {temperature:g}" + ", by class" * by_class
    n_columns = run.n_classes if by_class else _side(len(samples))
    save_grid(run.normalize.inverse(samples), n_columns, path, title)


def save_temperatures(run: Run, path: Path) -> None:
    """Draw one row of samples per temperature, the same latent directions in each row.

    Args:
        run: The run.
        path: The picture.
    """
    drawn = {t: _finite_samples(run, N_SIDE, t) for t in TEMPERATURES}
    rows = {f"T = {t:g}": samples for t, samples in drawn.items() if samples is not None}
    images = run.normalize.inverse(torch.cat(list(rows.values())))
    save_grid(images, N_SIDE, path, f"{run.recipe.title}: samples at rising temperature", list(rows))


def save_interpolations(run: Run, images: Images, path: Path) -> None:
    """Draw rows that lead from one test image to another along a straight line between their latents.

    Args:
        run: The run.
        images: Test images.
        path: The picture.
    """
    first, second = _pairs(run, images)
    dtype, device = dtype_and_device(run.model)
    labels = images.labels[first].to(device)
    with seeded(device, 0), torch.no_grad():
        a, b = (run.flow.encode(run.prepare(images.batch(k)), labels_for(run.flow, labels)) for k in (first, second))
        steps = torch.linspace(0, 1, N_SIDE, dtype=dtype, device=device)
        try:
            columns = [run.flow.decode(torch.lerp(a, b, t), labels_for(run.flow, labels)) for t in steps]
        except NonFiniteError as error:
            announce(f"note: no {path.name}: {error}")
            return
    grid = torch.stack(columns, dim=1).flatten(0, 1).cpu()
    title = f"{run.recipe.title}: test images (first and last column) and the line between their latents"
    save_grid(run.normalize.inverse(grid), N_SIDE, path, title)


def save_grid(
    images: Tensor, n_columns: int, path: Path, title: str, row_labels: Sequence[str] = (), captions: Sequence[str] = ()
) -> None:
    """Draw images side by side.

    Args:
        images: Shape (n, channels, height, width), black 0, white 1.
        n_columns: How many in a row.
        path: The picture.
        title: Above it.
        row_labels: One per row, or none.
        captions: One per image, below it, or none.
    """
    n_rows = math.ceil(len(images) / n_columns)
    cell = 0.62 if not captions else 0.95
    figure = new_figure(max(cell * n_columns + (0.7 if row_labels else 0.1), 3.6), cell * n_rows + 0.4)
    figure.suptitle(_short(title, figure.get_figwidth()), fontsize=8)
    axes = figure.add_subplot()
    draw_tiles(axes, images, n_columns, row_labels, captions)
    write_atomically(path, figure.savefig)


def draw_tiles(
    axes: Axes, images: Tensor, n_columns: int, row_labels: Sequence[str] = (), captions: Sequence[str] = ()
) -> None:
    """Put images side by side into one pair of axes.

    Args:
        axes: Where.
        images: Shape (n, channels, height, width), black 0, white 1.
        n_columns: How many in a row.
        row_labels: One per row, or none.
        captions: One per image, below it, or none.
    """
    height, width = images.shape[2], images.shape[3]
    gap = max(1, round(width / 16))
    below = gap + (round(0.3 * height) if captions else 0)
    sheet = _sheet(images, n_columns, gap, below)
    axes.imshow(sheet, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()
    for i, text in enumerate(row_labels):
        axes.text(-gap, i * (height + below) + height / 2, text, ha="right", va="center", fontsize=7)
    for i, text in enumerate(captions):
        x, y = i % n_columns * (width + gap) + width / 2, i // n_columns * (height + below) + height + 0.15 * height
        axes.text(x, y, text, ha="center", va="center", fontsize=6)


def _sheet(images: Tensor, n_columns: int, gap: int, below: int) -> Any:
    n, channels, height, width = images.shape
    n_rows = math.ceil(n / n_columns)
    shape = (channels, n_rows * (height + below) - gap * (below == gap), n_columns * (width + gap) - gap)
    sheet = torch.full(shape, GROUND)
    for i, image in enumerate(images.detach().float().clamp(0, 1)):
        y, x = i // n_columns * (height + below), i % n_columns * (width + gap)
        sheet[:, y : y + height, x : x + width] = image
    sheet = sheet.mul(255).round().div(255)  # imshow would cut 207.9999 to 207
    return (sheet[0] if channels == 1 else sheet[:3].permute(1, 2, 0)).numpy()


def save_density(
    run: Run, data: PointSet, samples: Tensor, path: Path, temperature: float = 1.0, label: int | None = None
) -> None:
    """Draw data, density and samples side by side; of points in more than two dimensions the first two, no density.

    Args:
        run: The run.
        data: Test points.
        samples: As `draw_samples` returns them.
        path: The picture.
        temperature: The samples were drawn at, for the title.
        label: The class whose density is drawn; None: all of them.
    """
    data = data if label is None else data.subset((data.labels == label).nonzero()[:, 0])
    points = data.batch(spread(len(data), N_DOTS)).cpu()
    figure = new_figure(9.6, 3.5)
    figure.suptitle(run.recipe.title, fontsize=9)
    left, middle, right = figure.subplots(1, 3)
    if points.shape[1] == 1:
        _draw_line(run, (left, middle, right), points, samples, label)
    else:
        _draw_plane(run, (left, middle, right), points, samples, label)
    names = (f"data ({data.name})", "density", f"samples at temperature {temperature:g}")
    for axes, name in zip((left, middle, right), names, strict=True):
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
    write_atomically(path, figure.savefig)


def _draw_plane(run: Run, panels: Sequence[Axes], points: Tensor, samples: Tensor, label: int | None) -> None:
    low, high = _limits(points[:, :2])
    extent = (low[0], high[0], low[1], high[1])
    for axes, dots in ((panels[0], points), (panels[2], samples)):
        size, alpha = (1.5, 0.4) if len(dots) > 1000 else (6, 0.7)
        axes.scatter(dots[:, 0], dots[:, 1], s=size, alpha=alpha, linewidths=0, color="tab:blue", rasterized=True)
    if points.shape[1] == 2:
        density = _on_grid(run, low, high, label)
        panels[1].imshow(density, origin="lower", extent=extent, cmap="viridis", vmin=0)
    else:
        panels[1].text(0.5, 0.5, f"{points.shape[1]} dimensions", ha="center", transform=panels[1].transAxes)
    for axes in panels:
        axes.set(xlim=extent[:2], ylim=extent[2:], aspect=_aspect(high[0] - low[0], high[1] - low[1]))


def _aspect(width: float, height: float) -> str:
    return "equal" if math.isclose(width, height, rel_tol=1e-6) else "auto"


def _draw_line(run: Run, panels: Sequence[Axes], points: Tensor, samples: Tensor, label: int | None) -> None:
    low, high = _limits(points)
    x = torch.linspace(low[0], high[0], 500).view(-1, 1)
    panels[1].plot(x[:, 0], _values(run, x, label))
    for axes, numbers in ((panels[0], points), (panels[2], samples)):
        axes.hist(numbers[:, 0].numpy(), bins=100, range=(low[0], high[0]), density=True)


def _on_grid(run: Run, low: list[float], high: list[float], label: int | None) -> Any:
    x, y = (torch.linspace(a, b, N_GRID) for a, b in zip(low, high, strict=True))
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return _values(run, torch.stack([columns.flatten(), rows.flatten()], dim=1), label).view(N_GRID, N_GRID).numpy()


def _values(run: Run, x: Tensor, label: int | None) -> Tensor:
    # In chunks: a grid is larger than any batch of training. Far from the data a density may not be representable.
    with seeded(dtype_and_device(run.model)[1], 0):
        parts = [log_density(run.flow, run.prepare(part), run.n_classes, label) for part in x.split(CHUNK)]
    return torch.cat(parts).exp().float().cpu()


def _limits(points: Tensor) -> tuple[list[float], list[float]]:
    # A square about all but the outermost points; where columns differ so much in size that one scale for both would
    # leave a line of the picture, each has its own.
    low, high = points.double().quantile(0.001, dim=0), points.double().quantile(0.999, dim=0)
    centre, width = (low + high) / 2, high - low
    width = width.where(width > 0, centre.abs().clamp(min=1e-6))
    side = 0.58 * (width.max().expand_as(width) if width.max() < MOST_UNEQUAL * width.min() else width)
    return (centre - side).tolist(), (centre + side).tolist()


def _finite_samples(run: Run, n: int, temperature: float) -> Tensor | None:
    try:
        return draw_samples(run, n, temperature)
    except NonFiniteError as error:
        announce(f"note: no samples at temperature {temperature:g}: {error}")
        return None


def _pairs(run: Run, images: Images) -> tuple[list[int], list[int]]:
    # Conditional flows can only morph within a class.
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1)).tolist()
    first = order[:N_MORPHS]
    if not run.flow.takes_context:
        return first, (order[N_MORPHS:] + order)[: len(first)]
    same = [[k for k in order if images.labels[k] == images.labels[i] and k != i] for i in first]
    return first, [k[0] if k else i for i, k in zip(first, same, strict=True)]


def _side(n: int) -> int:
    return max(1, math.ceil(math.sqrt(n)))


def _short(text: str, inches: float) -> str:
    # Wraps a title to the width of its figure.
    import textwrap

    return "\n".join(textwrap.wrap(text, max(20, round(inches * 16))))

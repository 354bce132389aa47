"""Single examples with what was found of them, as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from invertible.instruments._pictures import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Shown:
    """An example.

    Args:
        example: Which of the set, from 0.
        label: Its class.
        caption: What was found of it.
        picture: Its input.
    """

    example: int
    label: int
    caption: str
    picture: Picture


def shown(x: Tensor, labels: Tensor, examples: Sequence[int], captions: Sequence[str]) -> tuple[Shown, ...]:
    """Keep some examples.

    Args:
        x: All inputs.
        labels: All labels.
        examples: Which.
        captions: One for each.

    Returns:
        They.
    """
    pairs = zip(examples, captions, strict=True)
    return tuple(Shown(int(i), int(labels[i]), caption, Picture.of(x[i])) for i, caption in pairs)


def draw_with_examples(
    rows: Sequence[tuple[str, Sequence[Shown]]], title: str, n_columns: int = 10
) -> tuple[Axes, list[Axes]]:
    """Make a figure: room for a histogram, and rows of examples below.

    Args:
        rows: A name and examples for each row.
        title: Of the figure.
        n_columns: Examples per row.

    Returns:
        Axes of the histogram, and those of examples.
    """
    import matplotlib.pyplot as plt

    rows = [(name, examples) for name, examples in rows if examples]
    n_columns = max([1, *(min(len(examples), n_columns) for _, examples in rows)])
    heights = [2.4] + [1.0] * len(rows)
    figure = plt.figure(figsize=(10, 3.0 + 1.35 * len(rows)), layout="constrained")
    figure.suptitle(title)
    grid = figure.add_gridspec(1 + len(rows), n_columns, height_ratios=heights)
    found = []
    for i, (name, examples) in enumerate(rows):
        for k, example in enumerate(examples[:n_columns]):
            axes = figure.add_subplot(grid[i + 1, k])
            _draw_one(axes, example)
            if k == 0:
                axes.set_ylabel(name, fontsize=8)
            found.append(axes)
    return figure.add_subplot(grid[0, :]), found


def _draw_one(axes: Axes, example: Shown) -> None:
    image = example.picture.tensor
    if image.ndim == 3:
        spread = (image - image.min()) / (image.max() - image.min()).clamp(min=1e-12)
        is_colour = image.shape[0] == 3
        axes.imshow(spread.permute(1, 2, 0).numpy() if is_colour else spread[0].numpy(), cmap="gray", vmin=0, vmax=1)
    else:
        axes.plot(image.flatten().numpy(), linewidth=0.8)
    axes.set(xticks=[], yticks=[])
    axes.set_title(f"{example.example}: class {example.label}\n{example.caption}", fontsize=6)

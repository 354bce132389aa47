"""Loss surfaces of networks with and without shortcuts (Li et al. 2018)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torch import nn

from invertible.errors import ConfigError
from invertible.instruments import LossSlice, loss_slice, top_eigenvectors
from invertible.instruments.result import Finding, Result, Row
from invertible.train.experiments._fit_small import FitConfig, accuracy, fit, made, small_network
from invertible.train.experiments._images import Labelled, train_and_test
from invertible.train.figures import new_figure
from invertible.train.recipe import DataConfig
from invertible.train.threads import use_threads

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass
class SliceOptions:
    """Options of `slices_by_shortcut`.

    Args:
        data: Images with ten classes.
        depths: Layers with weights, of each network.
        width: Channels.
        n_examples: Training images the loss is computed on.
        n_lines: Random directions.
        n_points: Per line.
        n_plane: Per axis of the plane.
        fit: How the networks are trained.
        seed: Of weights, order and directions.
        threads: Of the CPU.
    """

    data: DataConfig = field(default_factory=DataConfig)
    depths: list[int] = field(default_factory=lambda: [8, 32])
    width: int = 8
    n_examples: int = 300
    n_lines: int = 5
    n_points: int = 21
    n_plane: int = 15
    fit: FitConfig = field(default_factory=lambda: FitConfig(weight_decay=5e-4))
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        if not self.depths:
            raise ConfigError("no networks to train", expected="one depth or more", got=self.depths)


@dataclass(frozen=True)
class SlicesByShortcut(Result):
    """What `slices_by_shortcut` found.

    Args:
        findings: Worst first.
        networks: Of each: "plain" or "residual".
        depths: Of each.
        accuracies: Of each, on the test images (0 to 1).
        bends: Of each, the smallest eigenvalue of the Hessian over the largest.
        lines: Of each, the loss along random lines.
        planes: Of each, on a random plane.
    """

    networks: tuple[str, ...]
    depths: tuple[int, ...]
    accuracies: tuple[float, ...]
    bends: tuple[float, ...]
    lines: tuple[LossSlice, ...]
    planes: tuple[LossSlice, ...]

    @property
    def table(self) -> list[Row]:
        """One row per network."""
        return [
            {
                "network": network,
                "depth": depth,
                "test_error": 1 - score,
                "loss": line.loss,
                "rise_mean": sum(line.rises) / max(len(line.rises), 1),
                "rise_largest": max(line.rises, default=math.nan),
                "lines_with_several_minima": sum(one.n_minima > 1 for one in line.slices) / len(line.slices),
                "share_of_plane_within_1": _low_share(plane),
                "smallest_over_largest": bend,
            }
            for network, depth, score, bend, line, plane in zip(
                self.networks, self.depths, self.accuracies, self.bends, self.lines, self.planes, strict=True
            )
        ]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the loss along random lines, mean over them, a network a line.

        Args:
            ax: Where; None: on a new figure.

        Returns:
            The axes.
        """
        axes = new_figure(6, 4).subplots() if ax is None else ax
        first, *others = self.lines
        first.compare(*others, labels=self._names, curve="loss", ax=axes)
        axes.set(yscale="symlog", xlabel="coordinate along random directions, filter-normalised")
        return axes

    @property
    def pictures(self) -> dict[str, Callable[[], Figure]]:
        """The planes as contours."""
        return {"planes": self._planes}

    def _planes(self) -> Figure:
        figure = new_figure(4.4 * len(self.planes), 4)
        for axes, plane, name in zip(
            figure.subplots(1, len(self.planes), squeeze=False)[0], self.planes, self._names, strict=True
        ):
            plane.plot(cast("Axes", axes))
            axes.set_title(f"{name}: {plane.loss:.2g} at the star")
        return figure

    @property
    def _names(self) -> list[str]:
        return [f"{network}, {depth} layers" for network, depth in zip(self.networks, self.depths, strict=True)]


def _low_share(plane: LossSlice) -> float:
    losses = plane.slices[0].losses
    return sum(loss < plane.loss + 1 for loss in losses) / len(losses)


def slices_by_shortcut(options: SliceOptions, *, out: Path | None = None, quiet: bool = False) -> SlicesByShortcut:
    """Train networks of equal size with and without shortcuts, and cut their losses along random directions.

    Args:
        options: What to train and where to cut.
        out: Not needed: it takes a few minutes.
        quiet: Show no progress.

    Returns:
        Slices and accuracies.

    Source: Li, Xu, Taylor, Studer and Goldstein 2018, "Visualizing the loss landscape of neural nets", figures 1 and 5
    to 7.

    Example:
        >>> few = SliceOptions(DataConfig("digits", n_train=32), [4], 4, 16, 1, 3, 3, FitConfig(epochs=0))
        >>> [(row["network"], row["depth"]) for row in slices_by_shortcut(few, quiet=True).table]
        [('plain', 4), ('residual', 4)]
    """
    train, test = train_and_test(options.data)
    rows = []
    with use_threads(options.threads):
        for depth in options.depths:
            for name in ("plain", "residual"):
                has_shortcut = name == "residual"
                rows.append((name, depth, *_measured(train, test, depth, has_shortcut, options, quiet)))
    names, depths, scores, bends, lines, planes = zip(*rows, strict=True)
    origin = planes[-1].provenance
    result = SlicesByShortcut((), names, depths, scores, bends, lines, planes, provenance=origin)
    return replace(result, findings=_findings(result))


def _measured(
    train: Labelled, test: Labelled, depth: int, has_shortcut: bool, options: SliceOptions, quiet: bool
) -> tuple[float, float, LossSlice, LossSlice]:
    (x, y), shape = train, tuple(train[0].shape[1:])
    network: nn.Module = made(lambda: small_network(shape, options.width, depth, True, has_shortcut), options.seed)
    fit(network, x, y, options.fit, options.seed)
    few = x[: options.n_examples], y[: options.n_examples]
    seed = options.seed
    lines = loss_slice(network, few, n_slices=options.n_lines, n_points=options.n_points, seed=seed, quiet=quiet)
    plane = loss_slice(network, few, n_dims=2, n_slices=1, n_points=options.n_plane, seed=seed, quiet=quiet)
    ends = top_eigenvectors(network, few, n_largest=1, n_smallest=1, tolerance=1e-2, seed=seed).eigenvalues
    return accuracy(network, *test), ends[1].value / ends[0].value, lines, plane


def _findings(result: SlicesByShortcut) -> tuple[Finding, ...]:
    deepest = max(result.depths)
    kinds = list(zip(result.networks, result.depths, strict=True))
    plain, residual = kinds.index(("plain", deepest)), kinds.index(("residual", deepest))
    text = f"With {deepest} layers the test error is {1 - result.accuracies[plain]:.1%} without shortcuts"
    text += f" and {1 - result.accuracies[residual]:.1%} with them"
    share = f"{_low_share(result.planes[plain]):.0%} and {_low_share(result.planes[residual]):.0%}"
    return (Finding("note", f"{text}; {share} of the plane is within 1 of the network's loss.", plain),)

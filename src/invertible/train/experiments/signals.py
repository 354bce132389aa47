"""Signal propagation plots (Brock, De and Smith 2021): mean and variance in networks of 600 layers, beside theory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import torch

from invertible._console import progress
from invertible.errors import ConfigError
from invertible.instruments import SignalPropagation, signal_propagation
from invertible.instruments.result import Finding, Result, Row
from invertible.models import signal_networks
from invertible.models.signal_networks import NAMES, Size
from invertible.train.figures import new_figure
from invertible.train.randomness import seeded
from invertible.train.threads import use_threads

if TYPE_CHECKING:
    from matplotlib.axes import Axes

QUANTITIES = ("squared_mean", "variance", "residual_variance")
NORMALIZER_FREE = "nf_scaled_ws"


@dataclass
class SignalOptions:
    """Options of `signal_plots`.

    Args:
        networks: Of `invertible.models.signal_networks`.
        n_blocks: Bottlenecks in each stage, three layers each.
        channels: Of the 3x3 convolutions in each stage.
        n_images: Of noise.
        side: Their height and width.
        padding: Of convolutions; zeros at the border have no variance, and theory knows no borders.
        seed: Of weights and noise.
        threads: Of the CPU.
    """

    networks: list[str] = field(default_factory=lambda: list(NAMES))
    n_blocks: list[int] = field(default_factory=lambda: [50, 50, 50, 50])
    channels: list[int] = field(default_factory=lambda: [32, 64, 128, 256])
    n_images: int = 8
    side: int = 32
    padding: Literal["circular", "zeros"] = "circular"
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        unknown = [name for name in self.networks if name not in NAMES]
        if unknown or not self.networks:
            got = ", ".join(unknown) or "none"
            raise ConfigError("networks of signal plots", expected=f"some of {', '.join(NAMES)}", got=got)


@dataclass(frozen=True)
class SignalRow:
    """One block of one network.

    Args:
        network: Its name.
        block: From 1.
        squared_mean: Average over the channels of the squared mean of the block's output.
        theory_squared_mean: In an infinitely wide network.
        variance: Average over the channels of the variance of the block's output.
        theory_variance: In an infinitely wide network.
        residual_variance: The same at the end of the residual branch.
        theory_residual_variance: In an infinitely wide network.
    """

    network: str
    block: int
    squared_mean: float
    theory_squared_mean: float
    variance: float
    theory_variance: float
    residual_variance: float
    theory_residual_variance: float


@dataclass(frozen=True)
class SignalPlots(Result):
    """What `signal_plots` found.

    Args:
        findings: Worst first, each with its network's name.
        rows: Network by network, block by block.
    """

    rows: tuple[SignalRow, ...]

    @property
    def table(self) -> list[Row]:
        """One row per network and block: the fields of `SignalRow`."""
        return [asdict(row) for row in self.rows]

    @property
    def variance_off_recursion(self) -> float | None:
        """How far the variance of the normalizer-free network is from the recursion of beta at most, as a share."""
        shares = [abs(r.variance / r.theory_variance - 1) for r in self.rows if r.network == NORMALIZER_FREE]
        return max(shares, default=None)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the three quantities of each network, theory dashed.

        Args:
            ax: Where; then the variances only. None: on a new figure, with all of it.

        Returns:
            The axes, or the first.
        """
        names = list(dict.fromkeys(row.network for row in self.rows))
        if ax is not None:
            for name in names:
                ax.plot([row.variance for row in self.rows if row.network == name], label=name)
            ax.set(yscale="log", xlabel="block", ylabel="variance")
            ax.legend(frameon=False)
            return ax
        axes = new_figure(2.6 * len(names), 6.6).subplots(3, len(names), squeeze=False, sharex=True)
        for i, name in enumerate(names):
            for panel, quantity in zip(axes[:, i], QUANTITIES, strict=True):
                _draw(panel, [row for row in self.rows if row.network == name], quantity)
            axes[0, i].set_title(name, fontsize=9)
        for panel, quantity in zip(axes[:, 0], QUANTITIES, strict=True):
            panel.set_ylabel(quantity.replace("_", " "))
        axes[0, 0].legend(frameon=False)
        return axes[0, 0]


def signal_plots(options: SignalOptions, *, out: Path | None = None, quiet: bool = False) -> SignalPlots:
    """Measure mean and variance of noise from block to block in untrained networks, beside theory.

    Args:
        options: Which networks, and how large.
        out: Not needed: it takes a minute.
        quiet: Show no progress.

    Returns:
        Figures per network and block.

    Source: Brock, De and Smith 2021, "Characterizing signal propagation to close the performance gap in unnormalized
    ResNets", sections 3 and 4.

    Example:
        >>> small = SignalOptions(["bn_relu_conv"], [2, 1], [8, 8], n_images=8, side=8)
        >>> [(row.block, round(row.theory_variance, 2)) for row in signal_plots(small, quiet=True).rows]
        [(1, 1.36), (2, 2.05), (3, 1.36)]
    """
    found: dict[str, SignalPropagation] = {}
    with use_threads(options.threads), progress() as display:
        bar = display.add_task("signals", total=len(options.networks), visible=not quiet)
        for name in options.networks:
            found[name] = _measure(name, options)
            display.advance(bar)
    findings = [
        replace(finding, sentence=f"{name}: {finding.sentence}", row=None)
        for name, result in found.items()
        for finding in result.findings
    ]
    rows = tuple(row for name, result in found.items() for row in _rows(name, result, options))
    plots = SignalPlots(tuple(findings), rows, provenance=next(iter(found.values())).provenance)
    return replace(plots, findings=(*_agreement(plots), *plots.findings))


def _measure(name: str, options: SignalOptions) -> SignalPropagation:
    shape = (3, options.side, options.side)
    make = cast("Callable[[Size], torch.nn.Module]", getattr(signal_networks, name))
    with seeded(torch.device("cpu"), options.seed):
        network = make(Size(options.n_blocks, options.channels, shape, options.padding))
    return signal_propagation(network, (options.n_images, *shape), mode="train", seed=options.seed, quiet=True)


def _rows(name: str, result: SignalPropagation, options: SignalOptions) -> list[SignalRow]:
    pairs = zip(result.blocks[1:], signal_networks.theory(name, options.n_blocks), strict=True)
    rows = []
    for i, (block, theory) in enumerate(pairs):
        values = [(getattr(block, quantity), getattr(theory, quantity)) for quantity in QUANTITIES]
        rows.append(SignalRow(name, i + 1, *(value for pair in values for value in pair)))
    return rows


def _agreement(plots: SignalPlots) -> tuple[Finding, ...]:
    share = plots.variance_off_recursion
    text = f"The variance of {NORMALIZER_FREE} follows the recursion of beta to {100 * (share or 0.0):.1f} %."
    return () if share is None else (Finding("note", text),)


def _draw(ax: Axes, rows: list[SignalRow], quantity: str) -> None:
    ax.plot([getattr(row, quantity) for row in rows], label="measured")
    ax.plot([getattr(row, f"theory_{quantity}") for row in rows], "k--", lw=1, label="theory")
    ax.grid(alpha=0.25)
    if max(getattr(row, f"theory_{quantity}") for row in rows) > 1e3:
        ax.set_yscale("log")
    else:
        ax.set_ylim(bottom=0)

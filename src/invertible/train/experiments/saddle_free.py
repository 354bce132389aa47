"""Saddle-free Newton beside SGD, from next to the saddle at zero (Dauphin et al. 2014, figures 3 and 4)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from invertible._console import progress
from invertible.errors import ConfigError
from invertible.instruments._labelled import reduced
from invertible.instruments.provenance import Stopwatch, provenance
from invertible.instruments.result import Finding, Result, Row
from invertible.train.experiments._images import train_and_test
from invertible.train.figures import new_figure
from invertible.train.randomness import seeded
from invertible.train.recipe import DataConfig
from invertible.train.saddle_free_newton import SaddleFreeNewton
from invertible.train.threads import use_threads

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS = "saddle-free Newton"
COST_OF_PRODUCT, COST_OF_LOSS = 2.0, 1 / 3
"""In gradients: a product with the Hessian is about two, a forward pass a third of one."""


@dataclass
class EscapeOptions:
    """Options of `saddle_escape`.

    Args:
        data: Images; `n_train` of them are trained on.
        side: They are averaged down to so many pixels a side; null: as they are.
        hidden: Units of each hidden layer, tanh.
        init_scale: Standard deviation of the initial weights: small, so that training begins next to the saddle at 0.
        n_gradients: What each method may spend, in gradients of all training images.
        rates: Learning rates of SGD, momentum 0.9; the one that ends lowest is compared.
        batch_size: Of SGD; saddle-free Newton takes all images.
        rank: Size of the Krylov space.
        seed: Of weights and batches.
    """

    data: DataConfig = field(default_factory=lambda: DataConfig("digits", n_train=1000))
    side: int | None = None
    hidden: list[int] = field(default_factory=lambda: [20, 20])
    init_scale: float = 0.01
    n_gradients: int = 600
    rates: list[float] = field(default_factory=lambda: [0.01, 0.03, 0.1])
    batch_size: int = 100
    rank: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.rates or min(self.rates) <= 0 or self.n_gradients < 1 or self.batch_size < 1:
            got = f"rates {self.rates}, n_gradients {self.n_gradients}, batch_size {self.batch_size}"
            raise ConfigError("bad size of the experiment", expected="above 0", got=got)


@dataclass(frozen=True)
class Track:
    """One run.

    Args:
        method: "SGD" or "saddle-free Newton".
        lr: Learning rate; of ours 1, which is Newton's.
        costs: Spent so far, in gradients of all training images.
        steps: Made so far.
        losses: Training loss then, on all training images.
        test_error: At the end, share of the test images.
        seconds: Wall-clock, without measuring.
    """

    method: str
    lr: float
    costs: tuple[float, ...]
    steps: tuple[float, ...]
    losses: tuple[float, ...]
    test_error: float
    seconds: float = field(compare=False)

    @property
    def escape(self) -> float:
        """Cost until the loss is below half of where it began; infinite if it never is."""
        return self._until(self.costs)

    @property
    def escape_steps(self) -> float:
        """Steps until then; of SGD to the next whole epoch."""
        return self._until(self.steps)

    def _until(self, counts: tuple[float, ...]) -> float:
        below = (count for count, loss in zip(counts, self.losses, strict=True) if loss < self.losses[0] / 2)
        return next(below, math.inf)


@dataclass(frozen=True)
class SaddleEscape(Result):
    """What `saddle_escape` found.

    Args:
        findings: What is to be said.
        tracks: Ours first, then SGD at each rate.
    """

    tracks: tuple[Track, ...]

    @property
    def best(self) -> Track:
        """SGD at the rate that ends lowest."""
        return min(self.tracks[1:], key=lambda track: track.losses[-1])

    @property
    def table(self) -> list[Row]:
        """One row per run."""
        return [
            {
                "method": track.method,
                "lr": track.lr,
                "is_best": track in (self.tracks[0], self.best),
                "escape_cost": track.escape,
                "escape_steps": track.escape_steps,
                "loss": track.losses[-1],
                "test_error": track.test_error,
                "seconds": track.seconds,
            }
            for track in self.tracks
        ]

    @property
    def soonest(self) -> Track:
        """SGD at the rate that escapes at the least cost."""
        return min(self.tracks[1:], key=lambda track: track.escape)

    @property
    def cost_ratio(self) -> float:
        """Cost of our escape over that of SGD at the rate that escapes soonest."""
        return self.tracks[0].escape / self.soonest.escape

    @property
    def step_ratio(self) -> float:
        """Steps of SGD's escape, at the rate that escapes soonest, over ours."""
        return self.soonest.escape_steps / self.tracks[0].escape_steps

    @property
    def final_ratio(self) -> float:
        """Training loss of SGD at the end, at its best rate, over ours."""
        return self.best.losses[-1] / max(self.tracks[0].losses[-1], 1e-300)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the training loss against what was spent.

        Args:
            ax: Where; None: on a new figure.

        Returns:
            The axes.
        """
        axes = new_figure(7, 4.2).subplots() if ax is None else ax
        for track in self.tracks[1:]:
            label = f"SGD, rate {track.lr:g}" if track is self.best else None
            axes.plot(track.costs, track.losses, color="C0" if label else "0.8", label=label, zorder=2 if label else 1)
        axes.plot(self.tracks[0].costs, self.tracks[0].losses, color="C1", label=OURS, zorder=3)
        axes.set(xlabel="cost, in gradients of all images", ylabel="training loss, nats", xscale="log", yscale="log")
        axes.set_title("From next to the saddle at zero; grey: SGD at other rates")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
        return axes


def saddle_escape(options: EscapeOptions, *, out: Path | None = None, quiet: bool = False) -> SaddleEscape:
    """Train one network by both methods from the same small weights, at equal cost.

    Args:
        options: Which network, and what may be spent.
        out: Not needed: it takes a minute.
        quiet: Show no progress.

    Returns:
        A track per run.

    Source: Dauphin et al. 2014, "Identifying and attacking the saddle point problem in high-dimensional non-convex
    optimization", section 7.

    Example:
        >>> few = EscapeOptions(DataConfig("digits", n_train=60), hidden=[4], n_gradients=40, rates=[0.1])
        >>> [row["method"] for row in saddle_escape(few, quiet=True).table]
        ['saddle-free Newton', 'SGD']
    """
    watch, (train, test) = Stopwatch(), train_and_test(options.data)
    parts = [_rows(images, options.side) for images, _ in (train, test)]
    mean, scale = parts[0].mean(), parts[0].std()
    x, test_x = ((part - mean) / scale for part in parts)
    runs: list[tuple[str, float]] = [(OURS, 1.0), *(("SGD", rate) for rate in options.rates)]
    tracks: list[Track] = []
    with progress() as bar, use_threads(1):  # networks this small only wait for other threads
        task = None if quiet else bar.add_task("saddle escape", total=len(runs))
        for method, lr in runs:
            tracks.append(_run(method, lr, (x, train[1]), (test_x, test[1]), options))
            if task is not None:
                bar.advance(task)
    origin = provenance(nn.Identity(), watch, seed=options.seed, n_examples=len(x))
    bare = SaddleEscape((), tuple(tracks))
    return SaddleEscape(_findings(bare), bare.tracks, provenance=origin)


def _run(
    method: str, lr: float, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], options: EscapeOptions
) -> Track:
    with seeded(torch.device("cpu"), options.seed):
        net = _network(train[0].shape[1], int(train[1].max()) + 1, options)
        steps = _ours(net, train, options) if method == OURS else _sgd(net, train, lr, options)
        costs, counts, losses, seconds = [0.0], [0.0], [_loss(net, train)], 0.0
        while costs[-1] < options.n_gradients:
            start = time.perf_counter()
            cost, n_steps = next(steps)
            seconds += time.perf_counter() - start
            costs.append(costs[-1] + cost)
            counts.append(counts[-1] + n_steps)
            losses.append(_loss(net, train))
            if not math.isfinite(losses[-1]):
                break
    with torch.no_grad():
        error = (net(test[0]).argmax(1) != test[1]).double().mean().item()
    finite = [loss if math.isfinite(loss) else math.inf for loss in losses]
    return Track(method, lr, tuple(costs), tuple(counts), tuple(finite), error, round(seconds, 3))


def _ours(net: nn.Module, train: tuple[Tensor, Tensor], options: EscapeOptions) -> Iterator[tuple[float, int]]:
    (x, y), optimizer, calls = train, SaddleFreeNewton(net.parameters(), rank=options.rank), [0]

    def closure() -> Tensor:
        calls[0] += 1
        return nn.functional.cross_entropy(net(x), y)

    while True:
        before = calls[0]
        optimizer.step(closure)
        yield 1 + COST_OF_PRODUCT * options.rank + COST_OF_LOSS * (calls[0] - before - 1), 1


def _sgd(
    net: nn.Module, train: tuple[Tensor, Tensor], lr: float, options: EscapeOptions
) -> Iterator[tuple[float, int]]:
    (x, y), optimizer = train, torch.optim.SGD(net.parameters(), lr, momentum=0.9)
    while True:
        for rows in torch.randperm(len(x)).split(options.batch_size):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
        yield 1.0, -(-len(x) // options.batch_size)


def _network(n_in: int, n_out: int, options: EscapeOptions) -> nn.Sequential:
    members: list[nn.Module] = []
    for width in options.hidden:
        members += [nn.Linear(n_in, width), nn.Tanh()]
        n_in = width
    net = nn.Sequential(*members, nn.Linear(n_in, n_out))
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=options.init_scale)
    return net


def _rows(images: Tensor, side: int | None) -> Tensor:
    return (images if side is None else reduced(images, side)).flatten(1)


@torch.no_grad()
def _loss(net: Callable[[Tensor], Tensor], data: tuple[Tensor, Tensor]) -> float:
    return nn.functional.cross_entropy(net(data[0]), data[1]).item()


def _findings(found: SaddleEscape) -> tuple[Finding, ...]:
    ours, best, soonest = found.tracks[0], found.best, found.soonest
    if math.isinf(ours.escape) or math.isinf(soonest.escape):
        stuck = OURS if math.isinf(ours.escape) else "SGD at any rate"
        return (Finding("warning", f"{stuck} did not leave the saddle. Try: a larger n_gradients.", 0),)
    text = (
        f"Half of the loss was gone after {ours.escape_steps:g} steps of {OURS}, which cost {ours.escape:.3g} gradients"
    )
    other = f"after {soonest.escape_steps:g} steps of SGD, which cost {soonest.escape:.3g} (rate {soonest.lr:g})"
    end = (
        f"At the end the loss is {ours.losses[-1]:.2g} (test error {ours.test_error:.1%}) against {best.losses[-1]:.2g}"
    )
    return (
        Finding("note", f"{text}, and {other}."),
        Finding("note", f"{end} ({best.test_error:.1%}, rate {best.lr:g}) at equal cost."),
    )

"""Critical points of tiny networks on reduced images (Dauphin et al. 2014, figure 1), from several initialisations."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from invertible.errors import ConfigError
from invertible.instruments._labelled import reduced
from invertible.instruments.critical_points import CriticalPoints, critical_points
from invertible.train.experiments._images import train_and_test
from invertible.train.randomness import seeded
from invertible.train.recipe import DataConfig
from invertible.train.threads import use_threads


@dataclass
class CriticalOptions:
    """Options of `index_by_loss`; see `invertible.instruments.critical_points`.

    Args:
        data: Images; `n_train` of them make the loss.
        side: They are averaged down to so many pixels a side.
        hidden: Units of the one hidden layer, tanh.
        weight_decay: Of the loss.
        n_iterates: Points of the path from which searches begin.
        n_steps: Length of the path.
        amplitudes: Of the noise that is added there.
        n_iterations: Hessians that a search may take.
        seeds: One network each.
    """

    data: DataConfig = field(default_factory=lambda: DataConfig("digits", n_train=300))
    side: int = 3
    hidden: int = 4
    weight_decay: float = 0.01
    n_iterates: int = 8
    n_steps: int = 1000
    amplitudes: list[float] = field(default_factory=lambda: [0.0, 0.1, 0.3])
    n_iterations: int = 150
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])

    def __post_init__(self) -> None:
        if not self.seeds or self.hidden < 1 or self.side < 1:
            got = f"seeds {self.seeds}, hidden {self.hidden}, side {self.side}"
            raise ConfigError("bad size of the experiment", expected="1 or more", got=got)


def index_by_loss(options: CriticalOptions, *, out: Path | None = None, quiet: bool = False) -> CriticalPoints:
    """Search for critical points of small networks, and count the directions that go down from each.

    Args:
        options: Which networks, and how to search.
        out: Finished networks are kept there.
        quiet: Show no progress.

    Returns:
        All ends of searches, and which are critical points.

    Source: Dauphin et al. 2014, "Identifying and attacking the saddle point problem in high-dimensional non-convex
    optimization", section 4 and figure 1.

    Example:
        >>> few = CriticalOptions(DataConfig("digits", n_train=30), hidden=2, n_iterates=1, n_steps=0, seeds=[0])
        >>> len(index_by_loss(few, quiet=True).points)
        6
    """
    (images, labels), _ = train_and_test(options.data)
    x = reduced(images, options.side).flatten(1)
    x = (x - x.mean()) / x.std()
    parts: list[CriticalPoints] = []
    for seed in options.seeds:
        kept = None if out is None else out / f"seed-{seed}.json"
        if kept is not None and kept.is_file():
            parts.append(CriticalPoints.load(kept))
            continue
        with seeded(torch.device("cpu"), seed):
            n_classes = int(labels.max()) + 1
            net = nn.Sequential(nn.Linear(x.shape[1], options.hidden), nn.Tanh(), nn.Linear(options.hidden, n_classes))
        with use_threads(1):  # networks this small only wait for other threads
            part = critical_points(
                net, (x, labels), weight_decay=options.weight_decay, n_iterates=options.n_iterates,
                n_steps=options.n_steps, amplitudes=options.amplitudes, n_iterations=options.n_iterations, seed=seed,
                quiet=quiet,
            )  # fmt: skip
        parts.append(part)
        if kept is not None:
            part.save(kept)
    return parts[0].joined(*parts[1:])

"""Where many networks of each width end (Choromanska et al. 2015), width by width."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from invertible.instruments.loss_spread import WIDTHS, LossSpread, loss_spread
from invertible.train.experiments._images import train_and_test
from invertible.train.recipe import DataConfig


@dataclass
class SpreadOptions:
    """Options of `losses_by_width`; see `invertible.instruments.loss_spread`.

    Args:
        data: Images; `n_train` of them are trained on.
        n_test: Test images; null: all.
        side: Images are averaged down to so many pixels a side; null: as they are.
        widths: Units of the hidden layer.
        n_networks: Per width.
        epochs: Passes of each network over its data.
        lr: Learning rate of the first epoch.
        decay: The rate is multiplied by it after every epoch.
        batch_size: Examples per step.
        n_index: At how many networks per width the Hessian is built, where it has at most 3,000 rows.
        seed: Of weights and orders.
    """

    data: DataConfig = field(default_factory=lambda: DataConfig("digits"))
    n_test: int | None = None
    side: int | None = None
    widths: list[int] = field(default_factory=lambda: list(WIDTHS))
    n_networks: int = 1000
    epochs: int = 20
    lr: float = 0.1
    decay: float = 0.8
    batch_size: int = 100
    n_index: int = 3
    seed: int = 0


def losses_by_width(options: SpreadOptions, *, out: Path | None = None, quiet: bool = False) -> LossSpread:
    """Train many networks of each width and compare where they end.

    Args:
        options: Which, and how.
        out: Finished widths are kept there.
        quiet: Show no progress.

    Returns:
        Spread and correlation by width.

    Source: Choromanska et al. 2015, "The loss surfaces of multilayer networks", section 5.

    Example:
        >>> few = SpreadOptions(DataConfig("digits", n_train=50), widths=[2, 4], n_networks=9, epochs=1, n_index=0)
        >>> [row["width"] for row in losses_by_width(few, quiet=True).table]
        [2, 4]
    """
    train, test = train_and_test(options.data, options.n_test)
    parts: list[LossSpread] = []
    for width in options.widths:
        kept = None if out is None else out / f"width-{width}.json"
        if kept is not None and kept.is_file():
            parts.append(LossSpread.load(kept))
            continue
        part = loss_spread(
            train, test, widths=[width], n_networks=options.n_networks, side=options.side, n_epochs=options.epochs,
            lr=options.lr, decay=options.decay, batch_size=options.batch_size, n_index=options.n_index,
            seed=options.seed, quiet=quiet,
        )  # fmt: skip
        parts.append(part)
        if kept is not None:
            part.save(kept)
    return parts[0].joined(*parts[1:])

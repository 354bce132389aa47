"""A prepared photograph through the restoration, in tiles if it is large; Ctrl-C keeps what there is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from invertible.errors import ConfigError
from invertible.restore.engine import INTERRUPTED, Progress
from invertible.restore.job import Prepared
from invertible.restore.operators import Jpeg, Mask, Operator
from invertible.restore.restore import Restored, restore
from invertible.restore.tiles import Place, tile_side, tiled

BYTES_PER_PIXEL = 2500
"""Of a run with the default network; measured: 1,300 to 2,200."""
OVERLAP = 32
ALIGNED = 16


@dataclass(frozen=True)
class Effort:
    """How much to spend.

    Args:
        seconds: For everything; None: as long as it takes.
        n_seeds: How many runs are averaged.
        tile: Side of a tile, pixels of the wanted picture; None: as large as memory allows.
        device: Where to compute; None: a GPU if there is one.

    Raises:
        ConfigError: If a number is out of its range.
    """

    seconds: float | None = None
    n_seeds: int = 1
    tile: int | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        if self.seconds is not None and not 0 < self.seconds < float("inf"):
            raise ConfigError("no time", expected="--seconds above 0", got=self.seconds)
        if self.n_seeds < 1:
            raise ConfigError("nothing to do", expected="--seeds 1 or more", got=self.n_seeds)
        if self.tile is not None and self.tile < 2 * OVERLAP:
            raise ConfigError("tiles too small", expected=f"--tile {2 * OVERLAP} or more", got=self.tile)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of it.

    Args:
        image: The restored picture, shape (channels, height, width), on the CPU.
        parts: What each tile's restoration returned, in order; tiles that needed none are left out.
        is_interrupted: Whether Ctrl-C ended it.
    """

    image: Tensor
    parts: tuple[Restored, ...]
    is_interrupted: bool


@dataclass(eq=False)
class _Run:
    prepared: Prepared
    effort: Effort
    restorer: Callable[..., Restored]
    on_step: Callable[[Progress, Place], None] | None
    device: torch.device
    parts: list[Restored] = field(default_factory=list)
    is_interrupted: bool = False
    began: float = field(default_factory=time.perf_counter)

    def one(self, piece: Tensor, place: Place) -> Tensor:
        rows, columns = place.enlarged(self.prepared.scale)
        try:
            operator = self._operator(rows, columns, place)
            if operator is None or self.is_interrupted or self._is_late() or _is_constant(piece, operator):
                return self._as_it_is(piece, rows, columns)
            return self._restored(piece, operator, rows, columns, place)
        except KeyboardInterrupt:
            if not self.parts:  # nothing worth keeping
                raise
            self.is_interrupted = True
            return self._as_it_is(piece, rows, columns)

    def _restored(self, piece: Tensor, operator: Operator, rows: slice, columns: slice, place: Place) -> Tensor:
        truth, effort, on_step = self.prepared.truth, self.effort, self.on_step
        found = self.restorer(
            piece.to(self.device),
            operator.to(self.device),
            sigma=self.prepared.sigma,
            n_seeds=effort.n_seeds,
            seconds=self._seconds(place),
            truth=None if truth is None else truth[:, rows, columns].to(self.device),
            on_step=None if on_step is None else lambda progress: on_step(progress, place),
        )
        self.parts.append(found)
        self.is_interrupted = found.stop_reason == INTERRUPTED
        return found.image.cpu()

    def _seconds(self, place: Place) -> float | None:
        # What is left, in equal parts: a tile that is done early leaves its time to the others.
        if self.effort.seconds is None:
            return None
        left = self.effort.seconds - (time.perf_counter() - self.began)
        return left / (place.n_tiles - place.number + 1)

    def _is_late(self) -> bool:
        return self.effort.seconds is not None and time.perf_counter() - self.began >= self.effort.seconds

    def _operator(self, rows: slice, columns: slice, place: Place) -> Operator | None:
        # None: nothing is missing here.
        whole = self.prepared.operator
        if place.n_tiles == 1:
            return whole
        if isinstance(whole, Mask) and whole.known[..., rows, columns].all() and self.prepared.sigma is None:
            return None
        if isinstance(whole, Mask) and not whole.known[..., rows, columns].any():
            hint = "a larger --tile: one must show something of what is round the hole"
            raise ConfigError("a hole as large as a tile", expected="known pixels", got="none", hint=hint)
        return whole.crop(rows, columns)

    def _as_it_is(self, piece: Tensor, rows: slice, columns: slice) -> Tensor:
        return self.prepared.before[:, rows, columns]


def run_job(
    prepared: Prepared,
    effort: Effort,
    on_step: Callable[[Progress, Place], None] | None = None,
    restorer: Callable[..., Restored] = restore,
) -> Outcome:
    """Restore a prepared photograph; one that memory does not hold in tiles, which is announced.

    Args:
        prepared: What `prepare` returned.
        effort: How much to spend.
        on_step: Called with the progress and the tile it is of.
        restorer: What restores one picture, with the arguments of `restore`.

    Returns:
        The restored picture. After Ctrl-C the best so far; tiles that were not begun are as they came.

    Raises:
        ConfigError: If memory does not suffice for the smallest tile.
        KeyboardInterrupt: If Ctrl-C was pressed before there was anything to keep.
    """
    name = effort.device or ("cuda" if torch.cuda.is_available() else "cpu")
    run = _Run(prepared, effort, restorer, on_step, torch.device(name))
    scale = prepared.scale
    side = (effort.tile or _side(run.device)) // scale
    overlap = min(max(OVERLAP // scale, 1), side // 4)
    multiple = ALIGNED if isinstance(prepared.operator, Jpeg) else 1
    image = tiled(prepared.photo.pixels, run.one, side, overlap, factor=scale, multiple=multiple)
    return Outcome(image, tuple(run.parts), run.is_interrupted)


def _side(device: torch.device) -> int:
    free = torch.cuda.mem_get_info(device)[0] / 2 if device.type == "cuda" else None
    return tile_side(BYTES_PER_PIXEL, free)


def _is_constant(piece: Tensor, operator: Operator) -> bool:
    # A blown-out sky fills tiles, and there is nothing to restore in them.
    start = operator.start(piece.unsqueeze(0))
    return bool(start.min() == start.max())


def longest(parts: Sequence[Restored]) -> Restored | None:
    """Return the tile whose trajectory is shown: the one that took most steps; None if there is none."""
    return max(parts, key=lambda part: part.stop_step, default=None)

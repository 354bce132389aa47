"""Pictures larger than memory: overlapping tiles, restored one by one and blended."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from invertible._checks import check_finite, check_floating, check_n_dims, describe
from invertible._console import announce
from invertible.errors import ConfigError, ShapeError

SMALLEST = 32
SHARE_OF_MEMORY = 0.5
CGROUP = Path("/sys/fs/cgroup")


class Place(NamedTuple):
    """Where a tile lies in the picture at hand.

    Args:
        rows: Its rows, with start and stop.
        columns: Its columns.
        number: Counted from 1.
        n_tiles: How many there are.
    """

    rows: slice
    columns: slice
    number: int
    n_tiles: int

    def enlarged(self, factor: int) -> tuple[slice, slice]:
        """Return rows and columns of the same place in a picture `factor` times as large."""
        return _times(self.rows, factor), _times(self.columns, factor)


def tiled(
    image: Tensor,
    restore_one: Callable[[Tensor, Place], Tensor],
    tile: int,
    overlap: int,
    *,
    factor: int = 1,
    multiple: int = 1,
    quiet: bool = False,
) -> Tensor:
    """Restore a picture tile by tile. Where tiles overlap, one fades into the other; equal values stay what they are.

    Args:
        image: The picture at hand, shape (channels, height, width); any size. One that fits in a tile is one.
        restore_one: From a piece of it, shape (channels, h, w), and its place, to the restored piece, shape
            (channels, factor h, factor w).
        tile: Height and width of a tile, pixels of the picture at hand.
        overlap: How many pixels neighbours share, at least.
        factor: How many times larger the restored picture is, along each axis.
        multiple: Tiles begin at multiples of this: 16 for JPEG's blocks.
        quiet: Do not say on standard error that there are tiles.

    Returns:
        The restored picture, shape (channels, factor height, factor width).

    Raises:
        ConfigError: If tile and overlap do not fit together.
        ShapeError: If a piece comes back with another shape.

    Example:
        >>> image = torch.rand(3, 50, 70)
        >>> torch.equal(tiled(image, lambda piece, place: piece, tile=32, overlap=8, quiet=True), image)
        True
    """
    check_floating(image, "tiled")
    check_n_dims(image, 3, "tiled")
    down = tile_pieces(image.shape[1], tile, overlap, multiple)
    across = tile_pieces(image.shape[2], tile, overlap, multiple)
    n_tiles = len(down) * len(across)
    if n_tiles > 1 and not quiet:
        size = f"{image.shape[2]}x{image.shape[1]}"
        announce(f"{size} pixels at a time would be too many: {n_tiles} tiles of {tile}x{tile}, one after the other")
    strips = []
    for i, rows in enumerate(down):
        places = [Place(rows, columns, i * len(across) + j + 1, n_tiles) for j, columns in enumerate(across)]
        pieces = [_one(image, restore_one, place, factor) for place in places]
        strips.append(_blended(pieces, across, factor, dim=2))
    return _blended(strips, down, factor, dim=1)


def tile_pieces(length: int, tile: int, overlap: int, multiple: int = 1) -> list[slice]:
    """Cut one axis into overlapping pieces, as even as can be.

    Args:
        length: Pixels along the axis.
        tile: Pixels of a piece; the last may be up to `multiple` - 1 longer.
        overlap: How many pixels neighbours share, at least.
        multiple: Pieces begin at multiples of this.

    Returns:
        The pieces, in order.

    Raises:
        ConfigError: If tile and overlap do not fit together.

    Example:
        >>> tile_pieces(100, 48, 16)
        [slice(0, 48, None), slice(26, 74, None), slice(52, 100, None)]
    """
    step = (tile - overlap) // multiple * multiple if multiple > 0 else 0
    if overlap < 0 or step < 1:
        expected = f"0 <= overlap <= tile - {max(multiple, 1)}"
        raise ConfigError("tiles that do not fit", expected=expected, got=f"tile {tile}, overlap {overlap}")
    if length <= tile:
        return [slice(0, length)]
    n_steps = math.ceil((length - tile) / step)
    starts = sorted({i * (length - tile) // n_steps // multiple * multiple for i in range(n_steps + 1)})
    return [slice(start, start + tile) for start in starts[:-1]] + [slice(starts[-1], length)]


def tile_side(bytes_per_pixel: float, memory: float | None = None) -> int:
    """The largest square tile that fits in memory.

    Args:
        bytes_per_pixel: What restoring needs per pixel of the tile.
        memory: Bytes that may be used; None: half of what is free.

    Returns:
        Its side, a multiple of 16 pixels.

    Raises:
        ConfigError: If not even the smallest tile fits.

    Example:
        >>> tile_side(10_000, 4e9)
        624
    """
    available = SHARE_OF_MEMORY * free_memory() if memory is None else memory
    side = math.isqrt(max(int(available / bytes_per_pixel), 0)) // 16 * 16
    if side < SMALLEST:
        needed = f"{SMALLEST**2 * bytes_per_pixel / 1e6:.0f} MB"
        hint = "a smaller network, or close other programs"
        raise ConfigError("too little memory", expected=needed, got=f"{available / 1e6:.0f} MB", hint=hint)
    return side


def free_memory() -> int:
    """Return the memory that could be used now, bytes: the machine's, or the container's if that is less."""
    import psutil

    free = psutil.virtual_memory().available
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()).isdigit():
        free = min(free, int(text) - int(used.read_text()))
    return max(free, 0)


def _times(piece: slice, factor: int) -> slice:
    return slice(piece.start * factor, piece.stop * factor)


def _one(image: Tensor, restore_one: Callable[[Tensor, Place], Tensor], place: Place, factor: int) -> Tensor:
    piece = image[:, place.rows, place.columns]
    restored = restore_one(piece, place)
    expected = (piece.shape[0], piece.shape[1] * factor, piece.shape[2] * factor)
    if tuple(restored.shape) != expected:
        raise ShapeError("a tile came back with another shape", expected=expected, got=describe(restored))
    check_finite(restored, f"tile {place.number} of {place.n_tiles}")
    return restored.detach()


def _blended(pieces: list[Tensor], places: list[slice], factor: int, dim: int) -> Tensor:
    # Each piece is laid over those before it. a + w (b - a) and not a weighted mean: where a = b it is exactly a.
    shape = list(pieces[0].shape)
    shape[dim] = places[-1].stop * factor
    whole, end = pieces[0].new_zeros(shape), 0
    for piece, place in zip(pieces, places, strict=True):
        start, stop = place.start * factor, place.stop * factor
        shared = end - start
        weight = torch.ones(stop - start, dtype=piece.dtype, device=piece.device)
        weight[:shared] = (torch.arange(shared).to(weight) + 0.5) / max(shared, 1)
        below = torch.narrow(whole, dim, start, stop - start)
        weight = weight.unsqueeze(1) if dim == 1 else weight
        below.copy_(torch.where(weight == 1, piece, below + weight * (piece - below)))
        end = stop
    return whole

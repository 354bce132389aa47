"""Pictures of any size as tiles of one size, and back."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def n_tiles(bands: int, size: tuple[int, int], shape: tuple[int, int, int]) -> int:
    """How many tiles a picture is cut into.

    Args:
        bands: Of the picture.
        size: Its height and width in pixels.
        shape: Channels, height and width of a tile.

    Returns:
        Their number.

    Example:
        >>> n_tiles(3, (131, 200), (1, 8, 8))
        1275
    """
    return math.prod(_grid(bands, size, shape))


def cut(pixels: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Cut a picture into tiles. What is missing at an edge repeats the last row, column or band.

    Args:
        pixels: Shape (bands, height, width).
        shape: Channels, height and width of a tile. Bands are dealt out in groups of so many channels: a network with
            one channel gets each band for itself, one with three gets red, green and blue together.

    Returns:
        Shape (tiles, channels, height of a tile, width of a tile).

    Example:
        >>> cut(torch.arange(6).view(1, 2, 3), (1, 2, 2)).tolist()
        [[[[0, 1], [3, 4]]], [[[2, 2], [5, 5]]]]
    """
    grid = _grid(pixels.shape[0], (pixels.shape[1], pixels.shape[2]), shape)
    for dim, (n, length) in enumerate(zip(grid, shape, strict=True)):
        wanted = torch.arange(n * length, device=pixels.device).clamp_max(pixels.shape[dim] - 1)
        pixels = pixels.index_select(dim, wanted)
    (groups, rows, columns), (channels, height, width) = grid, shape
    blocks = pixels.view(groups, channels, rows, height, columns, width)
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(-1, *shape)


def join(tiles: Tensor, bands: int, size: tuple[int, int]) -> Tensor:
    """Undo `cut`.

    Args:
        tiles: Shape (tiles, channels, height of a tile, width of a tile).
        bands: Of the picture.
        size: Its height and width in pixels.

    Returns:
        Shape (bands, height, width).

    Example:
        >>> picture = torch.arange(35).view(1, 5, 7)
        >>> torch.equal(join(cut(picture, (1, 2, 3)), 1, (5, 7)), picture)
        True
    """
    channels, height, width = tiles.shape[1:]
    groups, rows, columns = _grid(bands, size, (channels, height, width))
    blocks = tiles.view(groups, rows, columns, channels, height, width).permute(0, 3, 1, 4, 2, 5)
    whole = blocks.reshape(groups * channels, rows * height, columns * width)
    return whole[:bands, : size[0], : size[1]].contiguous()


def batch_of(tiles: Tensor, start: int, batch_size: int) -> Tensor:
    """A batch of exactly this size; after the last tile it repeats that one.

    Args:
        tiles: All of them.
        start: The first one wanted.
        batch_size: How many.

    Returns:
        Shape (batch_size, ...).

    Example:
        >>> batch_of(torch.arange(5), 3, 4).tolist()
        [3, 4, 4, 4]
    """
    return tiles[torch.arange(start, start + batch_size).clamp_max(len(tiles) - 1)]


def _grid(bands: int, size: tuple[int, int], shape: tuple[int, int, int]) -> tuple[int, int, int]:
    (height, width), (channels, tile_height, tile_width) = size, shape
    return -(-bands // channels), -(-height // tile_height), -(-width // tile_width)

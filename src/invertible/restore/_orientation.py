"""EXIF orientation as turns of tensors: how a stored picture becomes the upright one, and back."""

from __future__ import annotations

from torch import Tensor

# Per EXIF value: whether rows and columns are exchanged; then whether rows, and whether columns, are reversed.
TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


def upright(image: Tensor, orientation: int) -> Tensor:
    """Turn a stored picture as its EXIF says.

    Args:
        image: Shape (..., height, width), as stored.
        orientation: EXIF's value, 1 to 8.

    Returns:
        As it is to be looked at.
    """
    exchanged, rows, columns = TURNS[orientation]
    image = image.mT if exchanged else image
    return image.flip([dim for dim, turned in ((-2, rows), (-1, columns)) if turned])


def as_stored(image: Tensor, orientation: int) -> Tensor:
    """Undo `upright`.

    Args:
        image: Shape (..., height, width), as it is looked at.
        orientation: EXIF's value, 1 to 8.

    Returns:
        As it is stored.
    """
    exchanged, rows, columns = TURNS[orientation]
    image = image.flip([dim for dim, turned in ((-2, rows), (-1, columns)) if turned])
    return image.mT if exchanged else image


def stored_piece(rows: slice, columns: slice, size: tuple[int, int], orientation: int) -> tuple[slice, slice]:
    """Where a piece of the upright picture lies in the stored one.

    Args:
        rows: Of the upright picture, with start and stop.
        columns: Likewise.
        size: (height, width) of the upright picture, pixels.
        orientation: EXIF's value, 1 to 8.

    Returns:
        Rows and columns of the stored picture.

    Example:
        >>> stored_piece(slice(0, 2), slice(1, 4), (5, 9), 6)
        (slice(5, 8, None), slice(0, 2, None))
    """
    exchanged, rows_turned, columns_turned = TURNS[orientation]
    if rows_turned:
        rows = slice(size[0] - rows.stop, size[0] - rows.start)
    if columns_turned:
        columns = slice(size[1] - columns.stop, size[1] - columns.start)
    return (columns, rows) if exchanged else (rows, columns)

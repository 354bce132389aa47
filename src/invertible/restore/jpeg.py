"""JPEG compression: every picture that compresses to the same file fits equally well."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from invertible._checks import describe
from invertible.errors import ConfigError, ShapeError
from invertible.restore._jpeg_blocks import SIDE, to_coefficients, to_planes
from invertible.restore._jpeg_file import SAMPLINGS, JpegFile, read_jpeg, standard_tables
from invertible.restore._orientation import as_stored, stored_piece
from invertible.restore.operator import Operator, check_image

Subsampling = Literal["4:4:4", "4:2:2", "4:2:0"]
Piece = tuple[slice, slice]


class Jpeg(Operator):
    """JPEG compression as intervals: each cosine coefficient is known up to the width of its quantisation step.

    `forward` returns coefficients, `misfit` how far they lie outside the intervals of the file; inside it is zero, so
    the file's original has misfit zero as well (up to the encoder's rounding to 8 bits). Distances between
    coefficients are distances between pixels of brightness and (subsampled) colour, in units of the pixel range.

    Args:
        quality: The encoder's quality, 1 to 100, or its quantisation tables in grey levels, shape (8, 8) each: one
            for a grey picture, two (brightness, colour) or three for a coloured one.
        subsampling: Of colour.
        pull: Weight of the squared distance from the middle of the interval, added to `misfit`: the decoded picture is
            the better guess the nearer to it, which the interval alone does not say.

    `Jpeg.from_file` takes tables, subsampling and the intervals themselves from a file: exact, where intervals found
    from decoded pixels are off where colour was interpolated or brightness cut at white.

    Raises:
        ConfigError: If an argument is out of its range.
        ShapeError: When called: if the picture has neither one nor three channels, or not the file's size.

    Source: the quantisation constraint set of Zakhor 1992; ISO/IEC 10918-1, A.3.

    Example:
        >>> jpeg, image = Jpeg(10, "4:4:4"), torch.rand(1, 3, 16, 16)
        >>> float(jpeg.misfit(jpeg(image), image).sum())
        0.0
    """

    def __init__(self, quality: int | Sequence[Tensor], subsampling: Subsampling = "4:2:0", pull: float = 0.0) -> None:
        super().__init__()
        if not 0 <= pull < math.inf:
            raise ConfigError("JPEG has no such pull", expected="pull >= 0", got=pull)
        self.pull = pull
        if subsampling not in SAMPLINGS:
            expected = ", ".join(SAMPLINGS)
            raise ConfigError("JPEG has no such subsampling", expected=expected, got=repr(subsampling))
        tables = standard_tables(quality) if isinstance(quality, int) else tuple(quality)
        _check_tables(tables)
        self.register_buffer("tables", torch.stack(list(tables)).double() / 255, persistent=False)
        self.sampling = SAMPLINGS[subsampling]
        self._file: JpegFile | None = None
        self._piece: Piece | None = None

    tables: Tensor

    @classmethod
    def from_file(cls, path: str | Path, pull: float = 0.0) -> Jpeg:
        """The compression of one file, with its own intervals.

        Args:
            path: A JPEG, grey or YCbCr.
            pull: As above.

        Returns:
            An operator for the picture in that file, turned upright as `read_image` turns it.

        Raises:
            DataError: If it is no such file.
        """
        file = read_jpeg(Path(path))
        made = cls(file.tables, _name(file.sampling), pull)
        made._file = file
        return made

    def forward(self, image: Tensor) -> Tensor:
        """Return the cosine coefficients, shape (batch, n_coefficients)."""
        return torch.cat([c.flatten(1) for c in self._coefficients(image)], 1)

    def misfit(self, predicted: Tensor, measured: Tensor) -> Tensor:
        """Return squared distances from the intervals, zero inside unless there is a pull to the middle."""
        middles, halves = self._intervals(measured)
        _check_same(predicted, middles)
        outside = (predicted - predicted.detach().clamp(middles - halves, middles + halves)) ** 2
        return outside + self.pull * (predicted - middles) ** 2 if self.pull else outside

    def n_measured(self, measured: Tensor) -> int:
        """Return how many coefficients there are."""
        return self._intervals(measured)[0].numel()

    def crop(self, rows: slice, columns: slice) -> Jpeg:
        """The compression of a piece; only whole blocks in it count (without a file: it must begin at one).

        Args:
            rows: Of the upright picture, with start and stop.
            columns: Likewise.

        Returns:
            An operator for that piece.

        Raises:
            ConfigError: If this is a piece already.
        """
        if self._piece is not None:
            raise ConfigError("a piece of a piece", expected="the whole picture's operator", got="a piece's")
        piece = Jpeg([table * 255 for table in self.tables], _name(self.sampling), self.pull)
        piece._file, piece._piece = self._file, self._stored(rows, columns)
        return piece.to(self.tables.device)

    def _stored(self, rows: slice, columns: slice) -> Piece:
        if self._file is None:
            return rows, columns
        height, width = self._file.size
        size = (height, width) if self._file.orientation < 5 else (width, height)
        return stored_piece(rows, columns, size, self._file.orientation)

    def _coefficients(self, image: Tensor) -> list[Tensor]:
        image = self._whole_blocks(check_image(image, "Jpeg"))
        n_planes = image.shape[1]
        if n_planes not in (1, 3) or (self._file is not None and n_planes != len(self._file.tables)):
            expected = "1 (grey) or 3 channels" if self._file is None else f"{len(self._file.tables)} channels"
            raise ShapeError("JPEG has no such planes", expected=expected, got=describe(image))
        return [to_coefficients(plane) for plane in to_planes(image, self.sampling)]

    def _whole_blocks(self, image: Tensor) -> Tensor:
        # What of a (piece of a) picture, turned as stored, lies in whole blocks of every plane.
        image = image if self._file is None else as_stored(image, self._file.orientation)
        size = (image.shape[2], image.shape[3]) if self._file is None else self._file.size
        rows, columns = self._piece or (slice(0, size[0]), slice(0, size[1]))
        if image.shape[2:] != (rows.stop - rows.start, columns.stop - columns.start):
            expected = f"{columns.stop - columns.start}x{rows.stop - rows.start} pixels, as stored"
            raise ShapeError("not the size of this JPEG", expected=expected, got=describe(image))
        inner_rows, inner_columns = self._inner(rows, 0), self._inner(columns, 1)
        return image[
            :, :, inner_rows.start - rows.start : inner_rows.stop - rows.start,
            inner_columns.start - columns.start : inner_columns.stop - columns.start,
        ]  # fmt: skip

    def _inner(self, piece: slice, axis: int) -> slice:
        unit = SIDE * self.sampling[axis]
        start, stop = -(-piece.start // unit) * unit, piece.stop
        if self._file is not None and stop != self._file.size[axis]:
            stop = stop // unit * unit
        if start >= stop:
            expected = f"at least one whole block of {unit} pixels"
            raise ShapeError("a piece too small for JPEG", expected=expected, got=f"{piece.start} to {piece.stop}")
        return slice(start, stop)

    @torch.no_grad()
    def _intervals(self, measured: Tensor) -> tuple[Tensor, Tensor]:
        # Middle and half width of each coefficient's interval, shape (batch, n_coefficients).
        steps = [self._table(i).to(measured) for i in range(3)]
        if self._file is None:
            found = self._coefficients(measured)
            whole = [(c / step).round() for c, step in zip(found, steps, strict=False)]
        else:
            whole = [c.to(measured).expand(len(measured), *c.shape) for c in self._of_file(self._file)]
        middles = torch.cat([(c * step).flatten(1) for c, step in zip(whole, steps, strict=False)], 1)
        halves = [(step / 2).expand(c.shape).flatten(1) for c, step in zip(whole, steps, strict=False)]
        return middles, torch.cat(halves, 1)

    def _of_file(self, file: JpegFile) -> list[Tensor]:
        rows, columns = self._piece or (slice(0, file.size[0]), slice(0, file.size[1]))
        rows, columns = self._inner(rows, 0), self._inner(columns, 1)
        pieces = []
        for plane, coefficients in enumerate(file.coefficients):
            down, across = (SIDE, SIDE) if plane == 0 else (SIDE * self.sampling[0], SIDE * self.sampling[1])
            blocks = slice(rows.start // down, -(-rows.stop // down))
            pieces.append(coefficients[blocks, columns.start // across : -(-columns.stop // across)])
        return pieces

    def _table(self, plane: int) -> Tensor:
        return self.tables[min(plane, len(self.tables) - 1)]


def _check_tables(tables: tuple[Tensor, ...]) -> None:
    if len(tables) not in (1, 2, 3) or any(table.shape != (SIDE, SIDE) for table in tables):
        got = ", ".join(describe(table) for table in tables) or "none"
        raise ConfigError("JPEG has no such tables", expected="one to three of shape (8, 8)", got=got)
    if not all(((table >= 1) & (table <= 65535)).all() for table in tables):
        raise ConfigError("JPEG has no such tables", expected="steps from 1 to 65535 grey levels", got="others")


def _check_same(predicted: Tensor, middles: Tensor) -> None:
    if predicted.shape != middles.shape:
        raise ShapeError("not the same picture", expected=describe(middles), got=describe(predicted))


def _name(sampling: tuple[int, int]) -> Subsampling:
    return next(name for name in get_args(Subsampling) if SAMPLINGS[name] == sampling)

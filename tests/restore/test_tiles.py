"""Tiles: exact where nothing changes, smooth where something does, any size."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from invertible.errors import ConfigError, NonFiniteError, ShapeError
from invertible.restore import tiles
from invertible.restore.operators import Downsample, Jpeg
from invertible.restore.tiles import Place, free_memory, tile_pieces, tile_side, tiled


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(16, 16), (64, 64), (65, 97), (33, 400), (1, 130), (200, 47)])
@pytest.mark.parametrize(("tile", "overlap", "multiple"), [(64, 16, 1), (48, 0, 1), (64, 16, 16), (32, 15, 4)])
def test_the_identity_is_exact(size: tuple, tile: int, overlap: int, multiple: int, dtype: torch.dtype) -> None:
    image = torch.rand(3, *size, dtype=dtype)
    back = tiled(image, lambda piece, _: piece, tile, overlap, multiple=multiple, quiet=True)
    assert torch.equal(back, image)


@pytest.mark.parametrize("length", [1, 16, 47, 48, 49, 95, 96, 100, 1000, 4001])
@pytest.mark.parametrize(("tile", "overlap", "multiple"), [(48, 16, 1), (48, 16, 16), (48, 7, 8), (48, 32, 16)])
def test_pieces_cover_everything(length: int, tile: int, overlap: int, multiple: int) -> None:
    pieces = tile_pieces(length, tile, overlap, multiple)
    assert pieces[0].start == 0
    assert pieces[-1].stop == length
    assert all(piece.start % multiple == 0 for piece in pieces)
    assert all(piece.stop - piece.start < tile + multiple for piece in pieces)
    pairs = list(itertools.pairwise(pieces))
    assert all(before.stop - after.start >= overlap for before, after in pairs)
    assert all(before.start < after.start for before, after in pairs)


def test_super_resolution_through_tiles() -> None:
    image, down = torch.rand(3, 40, 61), Downsample(4)
    whole = down.start(image.unsqueeze(0))[0]
    back = tiled(image, lambda piece, _: down.start(piece.unsqueeze(0))[0], 32, 14, factor=4, quiet=True)
    assert back.shape == (3, 160, 244)
    assert (back - whole).abs().mean() < 0.002  # tiles differ at their rims only, where they weigh little


def test_a_tile_fades_into_the_next() -> None:
    def numbered(piece: Tensor, place: Place) -> Tensor:
        return torch.full_like(piece, float(place.number))

    back = tiled(torch.zeros(1, 100, 100), numbered, 60, 20, quiet=True)
    assert {float(back[0, i, j]) for i in (0, -1) for j in (0, -1)} == {1.0, 2.0, 3.0, 4.0}
    steps = torch.cat([back.diff(dim=1).abs().flatten(), back.diff(dim=2).abs().flatten()])
    assert steps.max() < 0.2


def test_a_place_in_the_wanted_picture() -> None:
    place = Place(slice(2, 5), slice(0, 7), 1, 1)
    assert place.enlarged(4) == (slice(8, 20), slice(0, 28))


def test_jpeg_s_blocks_through_tiles() -> None:
    jpeg, image = Jpeg(30), torch.rand(3, 90, 70)

    def moved(piece: Tensor, place: Place) -> Tensor:
        part = jpeg.crop(place.rows, place.columns)
        assert part.misfit(part(piece.unsqueeze(0)), piece.unsqueeze(0)).max() == 0
        return piece

    assert torch.equal(tiled(image, moved, 48, 16, multiple=16, quiet=True), image)


def test_tiles_are_announced(capsys: pytest.CaptureFixture[str]) -> None:
    tiled(torch.zeros(1, 64, 100), lambda piece, _: piece, 64, 16)
    assert "100x64 pixels at a time would be too many: 2 tiles of 64x64" in capsys.readouterr().err
    tiled(torch.zeros(1, 64, 64), lambda piece, _: piece, 64, 16)
    assert not capsys.readouterr().err


def test_what_is_refused() -> None:
    image = torch.zeros(1, 64, 64)
    for tile, overlap, multiple in ((16, 16, 1), (16, -1, 1), (32, 20, 16), (16, 4, 0)):
        with pytest.raises(ConfigError, match="do not fit"):
            tiled(image, lambda piece, _: piece, tile, overlap, multiple=multiple)
    with pytest.raises(ShapeError, match="another shape"):
        tiled(image, lambda piece, _: piece[:, 1:], 48, 16, quiet=True)
    with pytest.raises(NonFiniteError, match="tile 1 of 4"):
        tiled(image, lambda piece, _: piece / 0, 48, 16, quiet=True)
    with pytest.raises(ShapeError, match="wrong rank"):
        tiled(image[0], lambda piece, _: piece, 48, 16)


def test_the_side_of_a_tile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tile_side(1000, 256**2 * 1000) == 256
    assert tile_side(1, None) > 256
    with pytest.raises(ConfigError, match="too little memory"):
        tile_side(1e6, 1e6)
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("2000\n")
    monkeypatch.setattr(tiles, "CGROUP", tmp_path)
    assert free_memory() == 3000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory() > 3000

"""Masks as people draw them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from invertible.errors import ConfigError, DataError
from invertible.restore.masks import read_mask

HOLE = np.zeros((6, 8), bool)
HOLE[2:4, 3:6] = True
KNOWN = torch.from_numpy(~HOLE)


def mask_file(folder: Path, values: np.ndarray) -> Path:
    Image.fromarray(values.astype(np.uint8)).save(folder / "mask.png")
    return folder / "mask.png"


def test_white_is_missing_unless_said_otherwise(tmp_path: Path) -> None:
    known, notes = read_mask(mask_file(tmp_path, 255 * HOLE), (6, 8))
    assert torch.equal(known, KNOWN)
    assert notes == []
    known, _ = read_mask(mask_file(tmp_path, 255 * ~HOLE), (6, 8), "known")
    assert torch.equal(known, KNOWN)
    coloured = np.stack([255 * HOLE] * 3, -1)
    assert torch.equal(read_mask(mask_file(tmp_path, coloured), (6, 8))[0], KNOWN)


def test_smooth_edges_are_cut(tmp_path: Path) -> None:
    values = 255 * HOLE
    values[2, 2], values[2, 6] = 100, 200
    known, notes = read_mask(mask_file(tmp_path, values), (6, 8))
    assert known[2, 2]
    assert not known[2, 6]
    assert "grey values" in notes[0]


def test_a_mask_drawn_on_a_transparent_layer(tmp_path: Path) -> None:
    layer = np.zeros((6, 8, 4))
    layer[HOLE] = (0, 0, 0, 255)  # black ink
    known, notes = read_mask(mask_file(tmp_path, layer), (6, 8))
    assert torch.equal(known, KNOWN)
    assert "opaque" in notes[0]


def test_transparent_parts_of_a_mask_are_black(tmp_path: Path) -> None:
    layer = np.full((6, 8, 4), 255)
    layer[~HOLE] = (0, 0, 0, 255)
    layer[0, 0] = (255, 255, 255, 0)
    known, notes = read_mask(mask_file(tmp_path, layer), (6, 8))
    assert torch.equal(known, KNOWN)
    assert "counts as black" in notes[0]


def test_masks_that_are_refused(tmp_path: Path) -> None:
    path = mask_file(tmp_path, 255 * HOLE)
    with pytest.raises(DataError, match=r"another size.*6x8 pixels.*8x6"):
        read_mask(path, (8, 6))
    with pytest.raises(DataError, match="no such file"):
        read_mask(tmp_path / "none.png", (6, 8))
    with pytest.raises(ConfigError, match=r"nothing to fill in.*--mask-marks known"):
        read_mask(mask_file(tmp_path, 0 * HOLE), (6, 8))
    with pytest.raises(ConfigError, match=r"nothing to fill in.*--mask-marks missing"):
        read_mask(mask_file(tmp_path, 255 * np.ones_like(HOLE)), (6, 8), "known")

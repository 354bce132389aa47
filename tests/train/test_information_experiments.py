"""The information plane's experiments: what they keep, and that a small one shows the plane's turn."""

from __future__ import annotations

from pathlib import Path

import pytest

from invertible.errors import ConfigError
from invertible.instruments import Result
from invertible.train.experiments.information_images import ImagesOptions
from invertible.train.experiments.information_plane import BitsOptions, Condition, information_plane_of_bits

FEW = {"n_networks": 2, "n_bins": [30], "sigma2": [1e-3], "n_kernel": 64}


def test_a_finished_condition_is_not_trained_again(tmp_path: Path) -> None:
    options = BitsOptions([Condition("a"), Condition("b", "relu", 0.3, None)], epochs=2, **FEW)
    first = information_plane_of_bits(options, out=tmp_path, quiet=True)
    (tmp_path / "condition-1.json").unlink()
    stamp = (tmp_path / "condition-0.json").stat().st_mtime_ns
    again = information_plane_of_bits(options, out=tmp_path, quiet=True)
    assert (tmp_path / "condition-0.json").stat().st_mtime_ns == stamp
    assert again == first
    assert [part.trajectory.epochs for part in first.parts] == [(0, 1, 2)] * 2
    assert first.parts[0].trajectory.snapshots[0].gradients
    assert not first.parts[1].trajectory.snapshots[0].gradients  # full batch: no deviation
    first.save(tmp_path / "all.json")
    assert Result.load(tmp_path / "all.json") == first


def test_seeds_are_the_same_whatever_stands_beside_them() -> None:
    alone = information_plane_of_bits(BitsOptions([Condition("a")], epochs=1, **FEW), quiet=True)
    beside = information_plane_of_bits(
        BitsOptions([Condition("b", lr=0.1), Condition("a")], epochs=1, **FEW), quiet=True
    )
    assert alone.parts[0] == beside.parts[1]


def test_options_are_checked() -> None:
    for bad in ({"conditions": []}, {"conditions": [Condition(), Condition()]}, {"epochs": 0}, {"widths": [3, 2]}):
        with pytest.raises(ConfigError, match="bad"):
            BitsOptions(**bad)
    with pytest.raises(ConfigError, match="ascending"):
        ImagesOptions(measured=[3, 1])

"""Toys, tables and batches of points: what is drawn, that it is always the same, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from invertible.data import PointBatches, PointSet, read_rows, read_table, toy, toy_names, toy_set, train_validation
from invertible.errors import ConfigError, DataError, DtypeError, ShapeError

N = 20_000


def points(n: int = 11) -> PointSet:
    rows = torch.arange(2.0 * n).view(n, 2)
    return PointSet(rows, torch.arange(n) % 2, ("even", "odd"), "mine")


@pytest.mark.parametrize("name", toy_names())
def test_a_toy_depends_on_its_seed_alone(name: str) -> None:
    state = torch.get_rng_state()
    a, b, c = toy(name, 500), toy(name, 500), toy(name, 500, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert (a.shape, a.dtype) == ((500, 2), torch.float64)
    assert 1 < a.abs().max() < 5


def test_toys_differ_and_may_be_empty() -> None:
    first = [tuple(toy(name, 3)[0].tolist()) for name in toy_names()]
    assert len(set(first)) == len(toy_names()) == 8
    assert toy("moons", 0).shape == (0, 2)


def test_moments_of_eight_gaussians() -> None:
    # Centres on a circle of radius r: each coordinate has variance r^2 / 2 + s^2.
    x = toy("8gaussians", N)
    variance = (4 / 1.414) ** 2 / 2 + (0.5 / 1.414) ** 2
    assert x.mean(0).abs().max() < 0.06
    assert x.var(0).sub(variance).abs().max() < 0.1


def test_radii_of_circles_and_rings() -> None:
    circles, rings = toy("circles", N).norm(dim=1), toy("rings", N).norm(dim=1)
    # Noise of standard deviation s adds s^2 to each squared coordinate.
    assert circles.square().mean() == pytest.approx((9 + 2.25) / 2 + 2 * 0.24**2, abs=0.1)
    assert rings.square().mean() == pytest.approx((9 + 2.25**2 + 1.5**2 + 0.75**2) / 4 + 2 * 0.08**2, abs=0.08)
    gaps = torch.tensor([1.125, 1.875, 2.625])
    assert ((rings[:, None] - gaps).abs() < 0.05).double().mean() < 1e-3, "no points between rings"


def test_the_checkerboard_is_uniform_on_its_dark_squares() -> None:
    x = toy("checkerboard", N)
    square = ((x + 4) / 2).floor().long()
    assert square.min() == 0
    assert square.max() == 3
    assert ((square.sum(1) % 2) == 0).all(), "dark: column and row are both even or both odd"
    shares = torch.bincount(square[:, 0] * 4 + square[:, 1], minlength=16).double() / N
    assert shares[shares > 0].sub(1 / 8).abs().max() < 0.01
    within = ((x + 4) / 2) % 1
    assert within.mean(0).sub(0.5).abs().max() < 0.01
    assert within.var(0).sub(1 / 12).abs().max() < 0.002


def test_moons_spirals_swissroll_and_pinwheel_have_their_shape() -> None:
    moons = (toy("moons", N) + torch.tensor([1.0, 0.2], dtype=torch.float64)) / 2
    to_arc = torch.minimum((moons.norm(dim=1) - 1).abs(), ((moons - moons.new_tensor([1, 0.5])).norm(dim=1) - 1).abs())
    assert to_arc.square().mean().sqrt() < 0.11
    spirals = toy("2spirals", N)
    assert spirals.mean(0).abs().max() < 0.05, "the two arms are each other's mirror image"
    roll = toy("swissroll", N) * 5
    radius, angle = roll.norm(dim=1), torch.atan2(roll[:, 1], roll[:, 0])
    turns = (radius - angle) / (2 * math.pi)
    assert (turns - turns.round()).abs().mean() < 0.2, "radius and angle are equal but for whole turns and noise"
    pinwheel = torch.view_as_complex(toy("pinwheel", N))
    assert abs((pinwheel / pinwheel.abs()).pow(5).mean()) > 5 * abs((pinwheel / pinwheel.abs()).mean())


def test_labels_name_the_part() -> None:
    rings = toy_set("rings", "test")
    radius = rings.points.norm(dim=1)
    means = [radius[rings.labels == k].mean().item() for k in range(4)]
    assert means == pytest.approx([3, 2.25, 1.5, 0.75], abs=0.01)


def test_the_parts_of_a_toy_set_are_fixed_and_disjoint() -> None:
    train, test = toy_set("pinwheel"), toy_set("pinwheel", "test")
    assert (len(train), len(test), train.name) == (20_000, 10_000, "toy/pinwheel")
    assert train.fingerprint() == toy_set("pinwheel").fingerprint() != test.fingerprint()
    both = torch.cat([train.points, test.points])
    assert len(both.unique(dim=0)) == len(both)
    kept, held = train_validation(train, 0.1)
    assert (len(kept), len(held)) == (18_000, 2_000)
    shares = torch.bincount(held.labels).double() / len(held)
    assert shares.sub(0.2).abs().max() < 0.02


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: toy("moon", 3), "unknown toy: expected swissroll, .*, got 'moon'. Try: 'moons'"),
        (lambda: toy("moons", -1), "n and seed at least 0, got n -1, seed 0"),
        (lambda: toy("moons", 1, seed=-1), "n and seed at least 0"),
        (lambda: toy_set("moons", "validation"), "unknown split"),
    ],
)
def test_toys_refuse(call, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        call()


def test_point_sets_refuse_what_is_no_points() -> None:
    labels = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(DtypeError, match="float32 points, int64 labels"):
        PointSet(torch.zeros(2, 2, dtype=torch.float64), labels, ("a",), "mine")
    for bad in (torch.zeros(2), torch.zeros(3, 2), torch.zeros(2, 0)):
        with pytest.raises(ShapeError, match="mine: bad points"):
            PointSet(bad, labels, ("a",), "mine")
    with pytest.raises(DataError, match="label out of range: expected 0 to 0, got 0 to 1"):
        PointSet(torch.zeros(2, 2), torch.tensor([0, 1]), ("a",), "mine")
    with pytest.raises(DataError, match="1 that are not, the first in row 1, column 0"):
        PointSet(torch.tensor([[0.0, 0.0], [math.inf, 0.0]]), labels, ("a",), "mine")


def test_subset_batch_and_fingerprint() -> None:
    data = points()
    some = data.subset([3, 1])
    assert some.batch([0, 1]).tolist() == data.batch([3, 1]).tolist() == [[6, 7], [2, 3]]
    assert some.labels.tolist() == [1, 1]
    assert data.to("cpu").fingerprint() == data.fingerprint() != some.fingerprint()
    assert data.shape == (2,)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_together_see_what_one_process_sees(shuffle: bool, world_size: int) -> None:
    size = 6
    ranks = [
        PointBatches(points(), size, seed=3, shuffle=shuffle, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    one = [torch.cat([x for x, _ in step]) for step in zip(*(b.epoch(2) for b in ranks), strict=True)]
    alone = PointBatches(points(), size, seed=3, shuffle=shuffle)
    for ours, (x, y) in zip(one, alone.epoch(2), strict=True):
        assert torch.equal(ours, x[: len(ours)])
        assert torch.equal(y, (x[:, 0] / 2).long() % 2)
    if not shuffle:
        assert torch.equal(torch.cat(one), points().points)


def test_epochs_differ_and_a_start_goes_on() -> None:
    batches = PointBatches(points(), 4, seed=1, drop_last=True)
    assert len(batches) == 2
    epochs = [torch.cat([x for x, _ in batches.epoch(k)]) for k in (0, 1, 0)]
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(epochs[0], epochs[2])
    assert torch.equal(next(batches.epoch(0, start=1))[0], epochs[0][4:])


@pytest.mark.parametrize(
    "options",
    [{"rank": 1}, {"seed": -1}, {"batch_size": 0}, {"batch_size": 3, "world_size": 2}, {"batch_size": 99}],
)
def test_batches_refuse(options: dict[str, Any]) -> None:
    options = {"batch_size": 2, **options}
    with pytest.raises(ConfigError):
        PointBatches(points(), drop_last=True, **options)
    with pytest.raises(ConfigError, match="no such step"):
        PointBatches(points(), 2).epoch(0, start=7)


def test_tables(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(8, 3))
    np.save(tmp_path / "a.npy", rows)
    np.savetxt(tmp_path / "b.csv", rows, delimiter=",", header="x,y,z", comments="")
    np.savetxt(tmp_path / "c.csv", rows, delimiter=",")
    wanted = torch.from_numpy(rows).float()
    assert all(torch.equal(read_rows(tmp_path / name), wanted) for name in ("a.npy", "b.csv", "c.csv"))
    np.save(tmp_path / "a.npy", rows[0])
    assert read_rows(tmp_path / "a.npy").shape == (1, 3)


def test_a_folder_of_tables(tmp_path: Path) -> None:
    rows = np.arange(40.0).reshape(20, 2)
    np.save(tmp_path / "mine.npy", rows)
    train, test = read_table(tmp_path, "train"), read_table(tmp_path, "test")
    assert (len(train), len(test), train.name) == (15, 5, "table")
    assert sorted(torch.cat([train.points, test.points])[:, 0].tolist()) == rows[:, 0].tolist()
    np.save(tmp_path / "train.npy", rows[:12])
    np.save(tmp_path / "test.npy", rows[12:])
    assert len(read_table(tmp_path, "train")) == 12
    assert len(read_table(tmp_path, "test")) == 8
    (tmp_path / "test.csv").write_text("1,2\n")
    with pytest.raises(DataError, match=r"no tables: expected one file test\.npy or test\.csv"):
        read_table(tmp_path, "test")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", "1,2", "not a table: expected a .npy or .csv file, got .txt"),
        ("a.csv", "1,2\n3\n", "not a table of numbers"),
        ("a.csv", "x,y\n1,two\n", "not a table of numbers: .*two"),
        ("a.csv", "x,y\n", "not a table: expected shape"),
        ("a.csv", "1,2\nnan,4\n", "bad numbers: .* the first in row 1, column 0"),
        ("a.npy", "no numpy", "not a table of numbers"),
        ("b.csv", None, "no such file"),
    ],
)
def test_no_table(tmp_path: Path, name: str, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=words):
        read_rows(tmp_path / name)


def test_no_folder_of_tables(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        read_table(None, "train")
    with pytest.raises(DataError, match="no tables"):
        read_table(tmp_path, "train")

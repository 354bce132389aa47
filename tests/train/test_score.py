"""Samples and scores of a trained flow."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from invertible.data import PointSet, load
from invertible.errors import ConfigError, DataError, ShapeError
from invertible.train import Run, draw_samples, load_run, read_files, read_recipe, score, train
from invertible.train.flow_figures import _limits, draw_tiles, save_grid, save_samples
from invertible.train.recipe import ModelConfig
from invertible.train.score import Scored, compared, of_test_data, reference
from invertible.train.score_figure import save_scores


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("scores") / "plane"
    recipe = read_recipe("realnvp/toys", ["--data.n_train=600", "--training.epochs=1", "--training.threads=1"])
    recipe.model = ModelConfig("realnvp_table", {"n_couplings": 2, "hidden": [8]})
    train(recipe, folder, quiet=True)
    return load_run(folder)


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Digits padded to 10x10, conditional on the class."""
    folder = tmp_path_factory.mktemp("scores") / "digits"
    recipe = read_recipe("nice/digits", ["--data.n_train=300", "--training.epochs=4", "--data.pad=1"])
    arguments = {"in_shape": [1, 10, 10], "n_couplings": 2, "hidden": [32], "n_levels": 17, "n_classes": 10}
    recipe.model = ModelConfig("nice", arguments)
    recipe.training.threads = 1
    train(recipe, folder, quiet=True)
    return load_run(folder)


@pytest.mark.parametrize(("size", "is_square"), [(2.0, True), (1e6, False), (1e-9, False)])
def test_pictures_of_columns_of_very_different_size_have_a_scale_for_each(size: float, is_square: bool) -> None:
    points = torch.rand(500, 2, dtype=torch.float64) * torch.tensor([1.0, size]).double()
    low, high = _limits(points)
    widths = [b - a for a, b in zip(low, high, strict=True)]
    expected = [max(1.0, size)] * 2 if is_square else [1.0, size]
    assert widths == pytest.approx([1.16 * width for width in expected], rel=0.1)


# Samples ------------------------------------------------------------------------------------------------------------


def test_samples_depend_on_their_seed_alone(plane: Run, padded: Run) -> None:
    state = torch.get_rng_state()
    for run, shape in ((plane, (2,)), (padded, (1, 10, 10))):
        a, b, c = draw_samples(run, 12), draw_samples(run, 12), draw_samples(run, 12, seed=1)
        assert a.shape == (12, *shape)
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), state)


def test_samples_of_images_are_pixels_of_the_class_asked_for(padded: Run) -> None:
    samples = draw_samples(padded, 7, label=3)
    assert torch.equal(samples, samples.round())
    assert samples.min() >= 0
    assert samples.max() <= 16
    everything = draw_samples(padded, 10)
    assert torch.equal(everything[3], draw_samples(padded, 10, label=3)[3])
    assert not torch.equal(everything[4], draw_samples(padded, 10, label=3)[4])


def test_temperature_zero_is_one_point(plane: Run) -> None:
    cold = draw_samples(plane, 5, temperature=0.0)
    assert torch.equal(cold, cold[:1].expand(5, 2))
    assert draw_samples(plane, 400, temperature=0.5).std() < draw_samples(plane, 400).std()


def test_a_grid_of_images(tmp_path: Path, padded: Run) -> None:
    from invertible.train.figures import new_figure

    images = torch.rand(5, 1, 4, 4)
    axes = new_figure(2, 2).add_subplot()
    draw_tiles(axes, images, 3, ["a", "b"])
    sheet = axes.get_images()[0].get_array()
    assert sheet is not None
    assert sheet.shape == (9, 14)
    assert np.abs(np.asarray(sheet[5:9, 5:9]) - images[4, 0].numpy()).max() <= 0.5 / 255 + 1e-6
    ground = np.asarray(sheet[5:9, 10:14])
    assert 0.8 < ground.min() == ground.max() < 1, "the missing sixth is light grey"
    save_grid(torch.rand(4, 3, 8, 8), 2, tmp_path / "colour.png", "colours", captions=["a", "b", "c", "d"])
    save_samples(padded, draw_samples(padded, 13), tmp_path / "samples.png")
    for name in ("colour.png", "samples.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 100


# Scores -------------------------------------------------------------------------------------------------------------


def test_scores_of_points_are_their_log_density(plane: Run) -> None:
    rows = torch.tensor([[0.0, 0.0], [40.0, 0.0], [1.0, 0.5]])
    scores = score(plane, Scored(("a", "far", "c"), rows))
    with torch.no_grad():
        exact = dict(zip(("a", "far", "c"), plane.flow.log_prob(rows).tolist(), strict=True))
    assert {row.name: row.nats for row in scores.rows} == pytest.approx(exact, rel=1e-5)
    assert scores.rows[0].name == "far", "the most unlikely first"
    assert (scores.unit, scores.n_draws, scores.rows[0].standard_error) == ("nats", 1, 0)
    assert scores.rows[0].bits_per_dim is None
    assert scores.values == sorted(scores.values)


def test_scores_of_pictures_are_means_over_draws_with_their_standard_error(padded: Run) -> None:
    images = padded.test_images()
    scored = of_test_data(images.subset([0, 1, 2]))
    assert scored.names[0] == f"test 0 ({images.classes[int(images.labels[0])]})"
    scores = score(padded, scored, 16)
    assert scores.values == sorted(scores.values, reverse=True)
    for row in scores.rows:
        assert row.bits_per_dim == pytest.approx(-row.nats / (100 * math.log(2)), rel=1e-9)
    singles = [score(padded, scored, 1, seed=seed) for seed in range(1, 17)]
    named = [{row.name: row.bits_per_dim for row in single.rows} for single in singles]
    for row in scores.rows:
        values = torch.tensor([one[row.name] for one in named], dtype=torch.float64)
        assert row.bits_per_dim == pytest.approx(values.mean().item(), abs=6 * row.standard_error)
        assert row.standard_error == pytest.approx(values.std().item() / 4, rel=0.6)
    assert score(padded, scored, 16) == scores
    assert singles[0].rows[0].standard_error is None, "one draw leaves it unknown"
    assert "standard_error" not in singles[0].table[0]


def test_scores_of_one_class_and_of_all(padded: Run) -> None:
    scored = of_test_data(padded.test_images().subset(range(3)))
    each = [{row.name: row.nats for row in score(padded, scored, 1, k).rows} for k in range(10)]
    both = score(padded, scored, 1)
    for row in both.rows:
        mean = torch.tensor([one[row.name] for one in each], dtype=torch.float64).logsumexp(0) - math.log(10)
        assert row.nats == pytest.approx(mean.item(), abs=1e-3)
    assert both.condition == "the even mixture of all classes"
    assert score(padded, scored, 1, 4).condition == f"class {padded.record['classes'][4]}"
    with pytest.raises(ConfigError, match="no such class: expected 0 to 9, got 10"):
        score(padded, scored, 1, 10)
    with pytest.raises(ConfigError, match="--draws is out of range"):
        score(padded, scored, 0)


def test_outliers_stand_out_against_the_test_set(plane: Run, tmp_path: Path) -> None:
    test = reference(plane, plane.test_data())
    assert len(test.rows) == 1000
    rows = torch.tensor([[30.0, 30.0], [-1.0, 1.8]])
    scored = Scored(("out", "in"), rows)
    scores = compared(score(plane, scored), test)
    shares = {row.name: row.test_share for row in scores.rows}
    assert shares["out"] == 0
    assert shares["in"] is not None
    assert shares["in"] > 0.05
    again = compared(test, test).rows
    assert (again[0].test_share, again[-1].test_share) == (1 / 1000, 1)
    save_scores(plane, scores, scored, test, tmp_path / "scores.png")
    save_scores(plane, scores, scored, None, tmp_path / "alone.png")
    assert (tmp_path / "scores.png").stat().st_size > (tmp_path / "alone.png").stat().st_size > 10_000


def test_scores_on_disk(padded: Run, tmp_path: Path) -> None:
    scores = score(padded, of_test_data(padded.test_images().subset(range(4))), 2)
    about = json.loads(scores.save(tmp_path / "s.csv").read_text())
    assert about["scores"] == scores.table
    assert (about["unit"], about["n_draws"]) == ("bits/dim", 2)
    with (tmp_path / "s.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [row.name for row in scores.rows]
    assert [float(row["bits_per_dim"]) for row in rows] == scores.values
    with pytest.raises(ConfigError, match=r"NAME\.csv"):
        scores.save(tmp_path / "s.txt")


# Files --------------------------------------------------------------------------------------------------------------


def test_pictures_are_brought_to_the_network_as_in_training(padded: Run, tmp_path: Path) -> None:
    digits = load("digits", "test")
    for i in range(2):
        # 16 is white there, 255 in a PNG.
        grey = (digits.batch([i])[0, 0].double() * 255 / 16).round().to(torch.uint8)
        Image.fromarray(grey.numpy()).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    scored = read_files(padded, [tmp_path])
    assert torch.equal(scored.data, padded.test_images().batch([0, 1]))
    assert scored.names == (str(tmp_path / "0.png"), str(tmp_path / "1.png"))
    assert all("scaled to 0..16" in note for note in scored.notes)


def test_pictures_of_another_size_are_refused(padded: Run, tmp_path: Path) -> None:
    Image.new("L", (10, 10)).save(tmp_path / "a.png")
    words = r"a\.png has the wrong size: expected 8x8 pixels, as the run's images, got 10x10"
    with pytest.raises(ShapeError, match=words):
        read_files(padded, [tmp_path / "a.png"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds nothing to score: expected files \.png"):
        read_files(padded, [tmp_path / "empty"])
    with pytest.raises(DataError, match="no such file"):
        read_files(padded, [tmp_path / "b.png"])


def test_rows_of_tables(plane: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(6.0).reshape(3, 2))
    (tmp_path / "b.csv").write_text("x,y\n7,8\n")
    scored = read_files(plane, [tmp_path / "a.npy", tmp_path / "b.csv"])
    assert scored.data.tolist() == [[0, 1], [2, 3], [4, 5], [7, 8]]
    assert scored.names == (*(f"{tmp_path}/a.npy row {i}" for i in (0, 1, 2)), f"{tmp_path}/b.csv row 0")
    np.save(tmp_path / "a.npy", np.zeros((3, 5)))
    with pytest.raises(ShapeError, match=r"a\.npy has the wrong shape: expected 2 numbers a row, got 5"):
        read_files(plane, [tmp_path / "a.npy"])


def test_only_flows_can_be_asked(plane: Run) -> None:
    data = plane.test_data()
    assert isinstance(data, PointSet)
    classifier = Run(plane.folder, plane.recipe, torch.nn.Linear(2, 2), None, plane.record)
    with pytest.raises(ConfigError, match=r"this network is no density: expected a Flow.*spline_flow/toys"):
        draw_samples(classifier, 3)

"""Flows in training: what the loss is, what reaches the flow, what a run leaves, and what is refused."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from invertible.bijection import VolumePreserving
from invertible.chain import Chain
from invertible.data import Normalize, PointSet, toy
from invertible.errors import ConfigError, NonFiniteError
from invertible.flow import ClassNormal, Flow, StandardNormal, UniformDequantization
from invertible.train import (
    Likelihood,
    Recipe,
    Run,
    assess,
    evaluate_likelihood,
    load_run,
    read_recipe,
    resume,
    train,
)
from invertible.train.density import log_density, round_trip
from invertible.train.likelihood import whole_pixels
from invertible.train.prepare import prepare_data
from invertible.train.recipe import DataConfig, ModelConfig

POINTS = {"n_couplings": 2, "hidden": [8]}
IMAGES = {"in_shape": [1, 8, 8], "n_couplings": 2, "hidden": [8], "n_levels": 17}


def points_recipe(*overrides: str, **arguments: Any) -> Recipe:
    base = ["--data.n_train=600", "--training.epochs=2", "--training.threads=1", *overrides]
    made = read_recipe("realnvp/toys", base)
    made.model = ModelConfig("realnvp_table", POINTS | arguments)
    return made


def images_recipe(*overrides: str, **arguments: Any) -> Recipe:
    base = ["--data.n_train=200", "--training.epochs=2", "--training.threads=1", *overrides]
    made = read_recipe("nice/digits", base)
    made.model = ModelConfig("nice", IMAGES | arguments)
    return made


def history(folder: Path) -> list[dict[str, float]]:
    with (folder / "history.csv").open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than these small trainings."""
    monkeypatch.setattr("invertible.train.likelihood.draw_flow", lambda run, data: None)


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("flows") / "plane"
    metrics = train(points_recipe(), folder, quiet=True)
    return load_run(folder), metrics


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("flows") / "digits"
    metrics = train(images_recipe(n_classes=10), folder, quiet=True)
    return load_run(folder), metrics


# The objective ------------------------------------------------------------------------------------------------------


def test_the_loss_of_points_is_their_mean_negative_log_likelihood() -> None:
    x = torch.randn(50, 3, dtype=torch.float64)
    loss, metrics = Likelihood(Flow(Chain(), 3).double())(x, torch.zeros(50, dtype=torch.int64))
    exact = (0.5 * x.square().sum(1) + 1.5 * math.log(2 * math.pi)).mean()
    assert loss.item() == pytest.approx(exact.item(), rel=1e-12)
    assert metrics["nats"].item() == pytest.approx(-exact.item(), rel=1e-12)


def test_the_loss_of_images_is_in_bits_per_dimension() -> None:
    # A uniform density on [0, 1) says log2(n_levels) bits for every pixel.
    class Uniform(StandardNormal):
        def log_prob(self, z: Tensor, context: Any = None) -> Tensor:
            return z.new_zeros(len(z))

    flow = Flow(Chain(), Uniform((1, 4, 4)), dequantization=UniformDequantization(16))
    loss, metrics = Likelihood(flow)(torch.full((7, 1, 4, 4), 3.0), torch.zeros(7, dtype=torch.int64))
    assert loss.item() == pytest.approx(4, rel=1e-6)
    assert metrics["bits_per_dim"].item() == pytest.approx(4, rel=1e-6)
    assert metrics["nats"].item() == pytest.approx(-16 * math.log(16), rel=1e-6)


def test_conditional_flows_get_the_labels() -> None:
    base = ClassNormal(2, 1)
    base.means.data[1] = 5.0
    flow = Flow(Chain(), base)
    x = torch.tensor([[0.0], [5.0]])
    right, _ = Likelihood(flow)(x, torch.tensor([0, 1]))
    wrong, _ = Likelihood(flow)(x, torch.tensor([1, 0]))
    assert right.item() == pytest.approx(0.5 * math.log(2 * math.pi), rel=1e-6)
    assert wrong.item() == pytest.approx(right.item() + 12.5, rel=1e-6)


@pytest.mark.parametrize("max_value", [1, 7, 16, 49, 100, 253, 255])
def test_pixels_reach_the_flow_as_they_are(max_value: int) -> None:
    pixels = torch.arange(max_value + 1, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 1, 1)
    normalize = whole_pixels(Normalize((0.2,) * 3, (0.4,) * 3, max_value))
    assert torch.equal(normalize(pixels), pixels.float())
    assert torch.equal(Normalize.from_dict(json.loads(json.dumps(normalize.to_dict())))(pixels), pixels.float())
    assert torch.equal(normalize.to_uint8(pixels.float()), pixels)


# Evaluation ---------------------------------------------------------------------------------------------------------


def test_mean_and_standard_error_of_the_log_likelihood(plane: tuple[Run, dict[str, Any]]) -> None:
    run, metrics = plane
    data = run.test_data()
    assert isinstance(data, PointSet)
    nats = run.flow.double().log_prob(data.points.double()).detach()
    run.flow.float()
    assert metrics["test_nats"] == pytest.approx(nats.mean().item(), abs=1e-4)
    error = nats.std(unbiased=False).item() / math.sqrt(len(nats) - 1)
    assert metrics["test_nats_standard_error"] == pytest.approx(error, rel=1e-3)
    assert "test_bits_per_dim" not in metrics


def test_evaluation_draws_the_same_noise_and_leaves_the_random_state(digits: tuple[Run, dict[str, Any]]) -> None:
    run, metrics = digits
    batches = run.batches(run.test_images())
    state = torch.get_rng_state()
    first = evaluate_likelihood(run.flow, batches)
    assert torch.equal(torch.get_rng_state(), state)
    assert evaluate_likelihood(run.flow, batches) == first
    assert first["nats"] == metrics["test_nats"]
    assert evaluate_likelihood(run.flow, batches, seed=1) != first
    bits = -first["nats"] / (64 * math.log(2))
    assert first["bits_per_dim"] == pytest.approx(bits, rel=1e-12)


def test_the_mixture_of_classes() -> None:
    base = ClassNormal(3, 2)
    base.means.data.normal_()
    flow = Flow(Chain(), base).double()
    x = torch.randn(5, 2, dtype=torch.float64)
    each = torch.stack([log_density(flow, x, 3, k) for k in range(3)])
    assert torch.allclose(each[1], flow.log_prob(x, torch.ones(5, dtype=torch.int64)))
    assert torch.allclose(log_density(flow, x, 3).exp(), each.exp().mean(0), rtol=1e-12)
    with pytest.raises(ConfigError, match="no such class: expected 0 to 2, got 3"):
        log_density(flow, x, 3, 3)
    with pytest.raises(ConfigError, match="this flow knows no classes"):
        log_density(Flow(Chain(), 2), x.float(), 3, 0)


class Forgetful(VolumePreserving):
    """An inverse that is wrong by 0.25."""

    def _forward(self, x: Tensor, context: Any) -> Tensor:
        return 2 * x

    def _inverse(self, y: Tensor, context: Any) -> Tensor:
        return y / 2 + 0.25


def test_a_wrong_inverse_is_measured() -> None:
    labels = torch.zeros(4, dtype=torch.int64)
    trip = round_trip(Flow(Chain(Forgetful()), 3), torch.randn(4, 3), labels)
    assert torch.allclose(trip.error, torch.full((4, 3), 0.25), atol=1e-6)
    assert trip.pixels_equal is None
    pixels = torch.arange(4.0).view(4, 1)
    for bijection, is_equal in ((Chain(), True), (Forgetful(), False)):
        flow = Flow(bijection, 1, dequantization=UniformDequantization(4))
        trip = round_trip(flow, pixels, labels)
        assert trip.before.tolist() == [[0.125], [0.375], [0.625], [0.875]]
        assert trip.pixels_equal is is_equal


# Runs ---------------------------------------------------------------------------------------------------------------


def test_what_a_run_on_points_leaves(plane: tuple[Run, dict[str, Any]]) -> None:
    run, metrics = plane
    names = {path.name for path in run.folder.iterdir()} - {"tensorboard"}
    assert names == {
        *("recipe.yaml", "origin.json", "model.safetensors", "model.json", "metrics.json", "history.csv"),
        *("curves.png", "density.png", "checkpoint"),
    }
    assert json.loads((run.folder / "metrics.json").read_text()) == metrics
    rows = history(run.folder)
    best = max(rows, key=lambda row: row["validation_nats"])
    assert metrics["best_epoch"] == best["epoch"]
    assert rows[0]["train_loss"] == -rows[0]["train_nats"]
    assert rows[-1]["train_nats"] > rows[0]["train_nats"]
    assert metrics["reconstruction_max_abs_error"] < 1e-4
    assert (metrics["n_train"], metrics["n_test"], metrics["reconstruction_n"]) == (600, 10_000, 1000)
    assert run.scaling is None
    with pytest.raises(ConfigError, match="this run has no images"):
        run.test_images()


def test_what_a_run_on_images_leaves(digits: tuple[Run, dict[str, Any]]) -> None:
    run, metrics = digits
    pictures = {path.name for path in run.folder.glob("*.png")}
    assert pictures == {"curves.png", "samples.png", "temperatures.png", "interpolations.png"}
    bits = -metrics["test_nats"] / (64 * math.log(2))
    assert metrics["test_bits_per_dim"] == pytest.approx(bits, rel=1e-12)
    rows = history(run.folder)
    assert rows[1]["validation_bits_per_dim"] < rows[0]["validation_bits_per_dim"]
    assert metrics["pixels_equal"] is True
    assert assess(run, run.test_images())["nats"] == metrics["test_nats"]
    assert run.flow.takes_context


@pytest.mark.usefixtures("no_pictures")
def test_a_flow_is_trained_by_its_recipe_alone(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(hash(name) % 1000)
        train(images_recipe(f"--training.seed={seed}"), tmp_path / name, quiet=True)
    a, b, c = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


@pytest.mark.usefixtures("no_pictures")
def test_a_stopped_run_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from invertible.train.run import save_model

    recipe = images_recipe("--training.ema=0.9")
    train(recipe, tmp_path / "whole", quiet=True)

    def crash(folder: Path, model: torch.nn.Module, record: dict[str, Any]) -> None:
        if record["epoch"] == 2:
            raise KeyboardInterrupt
        save_model(folder, model, record)

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["invertible.train.train"], "save_model", crash)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "stopped", quiet=True)
    assert resume(tmp_path / "stopped", quiet=True)["test_nats"]
    whole, stopped = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


def test_layers_that_look_at_data_are_set_before_training() -> None:
    from invertible.train.choose import task_of
    from invertible.train.run import build_model

    recipe = read_recipe("glow/digits")
    recipe.model = ModelConfig(
        "glow", {"in_shape": [1, 8, 8], "n_scales": 2, "n_steps": 1, "hidden": 4, "n_levels": 17}
    )
    splits = prepare_data(recipe.data)
    flows = [build_model(recipe) for _ in range(2)]
    for flow in flows:
        task = task_of(flow, splits.normalize)
        task.begin(flow, splits.__class__(splits.train, None, splits.test, task.normalization(splits)), recipe.training)
    states = [flow.state_dict() for flow in flows]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    flags = [bool(value) for key, value in states[0].items() if key.endswith("initialised")]
    assert flags
    assert all(flags)


@pytest.mark.usefixtures("no_pictures")
def test_a_table_of_any_scale(tmp_path: Path) -> None:
    # Nats of a table in other units are the same but for the units: the flow standardises.
    rows = toy("moons", 800).numpy()
    metrics = []
    for name, scale in (("a", 1.0), ("b", 1000.0)):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "rows.npy", rows * scale + 7 * (scale - 1))
        recipe = points_recipe(f"--data.data_dir={tmp_path / name}", "--data.name=table", "--data.n_train=null")
        recipe.model = ModelConfig("spline_flow", {"n_couplings": 2, "hidden": [8], "standardize": True})
        metrics.append(train(recipe, tmp_path / f"{name}-run", quiet=True))
    assert metrics[0]["n_train"] == 540
    shift = 2 * math.log(1000)
    assert metrics[1]["test_nats"] == pytest.approx(metrics[0]["test_nats"] - shift, abs=1e-2)


@pytest.mark.parametrize("n_dims", [1, 3])
def test_points_of_other_dimensions_are_drawn_too(tmp_path: Path, n_dims: int) -> None:
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(200, n_dims)))
    recipe = points_recipe("--data.name=table", f"--data.data_dir={tmp_path}", "--data.n_train=null")
    recipe.model = ModelConfig("spline_flow", {"in_shape": [n_dims], "n_couplings": 2, "hidden": [8]})
    train(recipe, tmp_path / "run", quiet=True)
    assert (tmp_path / "run" / "density.png").stat().st_size > 10_000


@pytest.mark.usefixtures("no_pictures")
def test_continuous_flows_say_what_they_cost(tmp_path: Path) -> None:
    recipe = points_recipe("--training.epochs=1", "--data.n_train=100", "--data.validation_fraction=0")
    recipe.model = ModelConfig("ffjord_table", {"n_dims": 2, "hidden": [4], "tolerance": 1e-2})
    metrics = train(recipe, tmp_path, quiet=True)
    # 10,000 test points in 5 batches; a Dormand-Prince step costs 6 evaluations at least.
    assert metrics["n_evaluations"] >= 6
    assert history(tmp_path)[0]["test_n_evaluations"] == metrics["n_evaluations"]


@pytest.mark.usefixtures("no_pictures")
def test_a_density_that_breaks_names_the_step(tmp_path: Path) -> None:
    with pytest.raises(
        NonFiniteError, match=r"at step \d+: .*a smaller learning rate, warm-up, or optimizer.clip_norm"
    ):
        train(points_recipe("--optimizer.lr=1e30", "--optimizer.clip_norm=null"), tmp_path, quiet=True)


# Misfits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (
            lambda: images_recipe(n_levels=256),
            "model and data disagree: expected 17 grey levels to dequantise, got 256. Try: .*n_levels 17",
        ),
        (lambda: images_recipe(n_levels=None), "expected 17 grey levels to dequantise, got none"),
        (
            lambda: images_recipe(in_shape=[1, 12, 12]),
            r"expected data of shape \(1, 12, 12\), got digits with \(1, 8, 8\). Try: .*data.pad",
        ),
        (lambda: images_recipe(n_classes=9), "expected labels 0 to 9 as context.*n_classes: 10"),
        (lambda: points_recipe(n_dims=3), r"expected data of shape \(3,\), got toy/moons with \(2,\)"),
        (lambda: points_recipe("--data.name=digits"), "model and data disagree"),
        (lambda: points_recipe("--data.name=toy/moon"), "unknown toy: .*'moons'"),
        (lambda: points_recipe("--data.pad=2"), "points have no pixels: expected images, got data.pad for toy/moons"),
        (
            lambda: Recipe(model=ModelConfig("irevnet_digits"), data=DataConfig("toy/moons")),
            "classifiers take images",
        ),
    ],
)
def test_models_that_do_not_fit_their_data(tmp_path: Path, recipe: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        train(recipe(), tmp_path / "run", quiet=True)
    assert list(tmp_path.iterdir()) == []

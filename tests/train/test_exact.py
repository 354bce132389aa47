"""Exact networks in training and evaluation: what "bit-exact" means, and that every recipe can be trained so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from invertible._files import read_json, write_json
from invertible.data import Batches, Normalize
from invertible.errors import CheckpointError
from invertible.models import Classifier, RevNet
from invertible.train import load_run, read_recipe, resume, train
from invertible.train.evaluate import compare, evaluate_reconstruction
from invertible.train.prepare import prepare_data
from invertible.train.recipe import ModelConfig, Recipe
from invertible.train.reconstruct import reconstruct_images
from invertible.train.run import build_model

NORMALIZE = Normalize((0.305,), (0.376,), 16)
EVERY_PIXEL = torch.arange(64, dtype=torch.uint8).remainder(17).view(1, 1, 8, 8)


class Shifted(Classifier):
    """Gives back something else than went in."""

    shift: float = 0.0

    def reconstruct(self, representation: Tensor) -> Tensor:
        return super().reconstruct(representation) + self.shift


def shifted(exact: bool | int, shift: float) -> Classifier:
    made = build_model(Recipe(model=ModelConfig(exact=exact)))
    model = Shifted(made.body, made.head, made.in_shape).eval()
    model.shift = shift
    return model


# What bit-exact means -----------------------------------------------------------------------------------------------


def test_an_exact_network_is_measured_on_its_lattice() -> None:
    x = NORMALIZE(EVERY_PIXEL)
    model = shifted(True, 0.0)
    result = compare(model, x, NORMALIZE)
    assert result.is_bit_exact
    assert result.error.max() == 0
    assert torch.equal(result.before, model.body.lattice.quantise(x))
    assert not torch.equal(result.before, x), "the test needs images off the lattice"
    assert torch.equal(NORMALIZE.to_uint8(result.after), EVERY_PIXEL)


@pytest.mark.parametrize("exact", [True, False])
def test_one_step_off_is_not_bit_exact_though_the_pixels_are_the_same(exact: bool) -> None:
    x = NORMALIZE(EVERY_PIXEL)
    result = compare(shifted(exact, 2.0**-18), x, NORMALIZE)
    assert torch.equal(NORMALIZE.to_uint8(result.after), EVERY_PIXEL)
    assert not result.is_bit_exact
    assert result.error.max().item() == pytest.approx(2.0**-18 * 0.376, rel=0.3)


def test_a_lattice_that_loses_pixels_is_not_bit_exact_though_its_floats_come_back() -> None:
    x = NORMALIZE(EVERY_PIXEL)
    result = compare(shifted(1, 0.0), x, NORMALIZE)  # steps of a half
    assert torch.equal(result.before, result.after)
    assert not result.is_bit_exact
    lost = (NORMALIZE.to_uint8(result.after).float() - EVERY_PIXEL.float()).abs() / 16
    assert torch.equal(result.error, lost)
    assert lost.max() >= 1 / 16


def test_one_image_that_differs_spoils_the_set() -> None:
    splits = prepare_data(read_recipe("irevnet/digits").data)
    batches = Batches(splits.test.subset(range(20)), 8, shuffle=False, normalize=splits.normalize)
    good, model = shifted(True, 0.0), shifted(True, 0.0)
    figures = evaluate_reconstruction(good, batches, splits.normalize)
    assert figures == {"max_abs_error": 0, "mean_abs_error": 0, "n": 20, "bit_exact": True}
    calls = []
    first = Shifted.reconstruct

    def last_batch_off(self: Shifted, z: Tensor) -> Tensor:
        calls.append(len(z))
        x = first(self, z)
        x[-1, -1, -1, -1] += 2.0**-18 if len(calls) == 3 else 0.0
        return x

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shifted, "reconstruct", last_batch_off)
        figures = evaluate_reconstruction(model, batches, splits.normalize)
    assert calls == [8, 8, 4]
    assert figures["bit_exact"] is False
    assert 0 < figures["max_abs_error"] < 1e-5


# Training -----------------------------------------------------------------------------------------------------------


def small(*overrides: str) -> Recipe:
    return read_recipe("irevnet/digits", ["--training.epochs=1", "--data.n_train=128", *overrides])


def test_memory_does_not_change_what_an_exact_network_learns(tmp_path: Path) -> None:
    for memory in ("store", "checkpoint", "reconstruct"):
        metrics = train(small(f"--model.memory={memory}"), tmp_path / memory, quiet=True)
        assert metrics["bit_exact"] is True
    weights = [load_file(tmp_path / memory / "model.safetensors") for memory in ("store", "checkpoint", "reconstruct")]
    for other in weights[1:]:
        assert all(torch.equal(weights[0][name], other[name]) for name in weights[0])
    assert load_run(tmp_path / "reconstruct").classifier.body.memory == "reconstruct"


@pytest.mark.parametrize("options", [["--training.ema=0.9"], ["--training.micro_batches=2"]])
def test_with_the_rest_of_a_recipe(options: list[str], tmp_path: Path) -> None:
    metrics = train(small("--model.memory=reconstruct", *options), tmp_path, quiet=True)
    assert metrics["bit_exact"] is True
    assert metrics["reconstruction_max_abs_error"] == 0


def test_under_bfloat16_autocast(tmp_path: Path) -> None:
    metrics = train(small("--model.memory=reconstruct", "--training.precision=bfloat16"), tmp_path, quiet=True)
    assert metrics["bit_exact"] is True


@pytest.mark.parametrize(
    "name", ["irevnet/digits", "irevnet/fashion-mnist", "irevnet/cifar10", "irevnet/cifar10-eighth"]
)
def test_every_i_revnet_recipe_can_be_exact(name: str) -> None:
    recipe = read_recipe(name, ["--model.exact", "true", "--model.memory", "reconstruct"])
    with torch.device("meta"):  # however large
        model = build_model(recipe)
    assert isinstance(model, Classifier)
    assert (model.body.lattice.k, model.body.memory) == (18, "reconstruct")
    plain = build_model(read_recipe(name, ["--model.exact", "false"])) if "digits" in name else model
    assert list(plain.state_dict()) == list(model.state_dict())


def test_a_revnet_s_memory(tmp_path: Path) -> None:
    recipe = small("--model.exact=false", "--model.memory=store")
    recipe.model.name = "revnet"
    recipe.model.arguments = {"in_shape": [1, 8, 8], "n_blocks": [2, 2], "channels": [8, 16], "strides": [1, 2]}
    model = build_model(recipe)
    assert isinstance(model, RevNet)
    assert [stage.memory for stage in model.stages] == ["store", "store"]
    recipe.model.memory = None
    assert [stage.memory for stage in build_model(recipe).stages] == ["reconstruct", "reconstruct"]
    recipe.model.exact = 16
    assert "reconstruction_n" not in train(recipe, tmp_path, quiet=True)
    assert load_run(tmp_path).model.stages[0].lattice.k == 16


def test_the_picture_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(small(), tmp_path / "run", quiet=True)
    run, titles = load_run(tmp_path / "run"), []

    def keep(before: Tensor, after: Tensor, path: Path, title: str) -> int:
        titles.append(title)
        return 0

    monkeypatch.setattr("invertible.train.reconstruct.save_reconstructions", keep)
    figures = reconstruct_images(run, run.test_images(), tmp_path / "a.png")
    assert figures == {"max_abs_error": 0, "mean_abs_error": 0, "bit_exact": True}
    assert titles == ["8 images: bit-exact"]


def test_a_run_begun_before_there_were_these_keys_goes_on(tmp_path: Path) -> None:
    train(small("--model.exact=false"), tmp_path, quiet=True)
    origin = read_json(tmp_path / "origin.json")
    for key in ("model.exact", "model.memory"):
        del origin["recipe"][key]
    write_json(tmp_path / "origin.json", origin)
    resume(tmp_path, quiet=True)
    text = (tmp_path / "recipe.yaml").read_text()
    (tmp_path / "recipe.yaml").write_text(text.replace("exact: false", "exact: true"))
    with pytest.raises(CheckpointError, match=r"another recipe: expected model\.exact=False, got model\.exact=True"):
        resume(tmp_path, quiet=True)

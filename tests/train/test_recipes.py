"""Recipes: the shipped ones, YAML both ways, overrides, and what is said about mistakes."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from invertible.cli import main
from invertible.data import describe, toy_set
from invertible.errors import ConfigError
from invertible.flow import Flow
from invertible.models import Hybrid, build, names
from invertible.train import Recipe, read_recipe, recipe_names
from invertible.train.read_recipe import write_recipe
from invertible.train.recipe import ModelConfig


def leaves(kind: Any = Recipe, prefix: str = "") -> list[str]:
    found = []
    for item in fields(kind):
        inner = item.default_factory if is_dataclass(item.default_factory) else None
        found += leaves(inner, f"{prefix}{item.name}.") if inner else [prefix + item.name]
    return found


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


shipped = pytest.mark.parametrize("name", recipe_names())


def test_recipes_ship() -> None:
    assert "irevnet/digits" in recipe_names()


@shipped
def test_a_shipped_recipe_survives_yaml(name: str, tmp_path: Path) -> None:
    recipe = read_recipe(name)
    assert read_recipe(write(tmp_path, write_recipe(recipe))) == recipe
    assert recipe.title
    assert recipe.paper


@shipped
def test_a_shipped_recipe_builds_a_model_for_its_data(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe.model.name in names()
    with torch.device("meta"):  # however large
        model = build(recipe.model.name, **recipe.model.arguments).eval()
    assert sum(p.numel() for p in model.parameters()) > 0
    model = model.flow if isinstance(model, Hybrid) else model
    shape = model.event_shape if isinstance(model, Flow) else model.in_shape
    if recipe.data.name.startswith("toy/"):
        assert shape == toy_set(recipe.data.name.removeprefix("toy/"), "test").shape
        return
    channels, height, width = describe(recipe.data.name).shape
    if channels:
        pad = 2 * recipe.data.pad
        assert shape == (channels, height + pad, width + pad)
    if isinstance(model, Flow):
        assert model.dequantization is not None
        assert model.dequantization.n_levels == (17 if recipe.data.name == "digits" else 256)


@shipped
def test_a_shipped_recipe_is_taken_by_its_file_too(name: str) -> None:
    import invertible

    path = Path(invertible.__file__).parent / "recipes" / f"{name}.yaml"
    assert read_recipe(path) == read_recipe(name)


def test_overrides_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, "optimizer: {lr: 0.5, momentum: 0.8}\nmodel: {name: resnet, arguments: {n_classes: 7}}\n")
    overrides = ["--optimizer.lr", "0.25", "--data.crop=2", "--training.ema", "0.9", "--schedule.milestones", "[1,2]"]
    recipe = read_recipe(path, overrides)
    assert (recipe.optimizer.lr, recipe.optimizer.momentum, recipe.data.crop) == (0.25, 0.8, 2)
    assert (recipe.training.ema, recipe.schedule.milestones) == (0.9, [1, 2])
    assert recipe.model.arguments == {"n_classes": 7}
    assert recipe.training.batch_size == Recipe().training.batch_size


def test_an_override_of_one_argument_keeps_the_others(tmp_path: Path) -> None:
    path = write(tmp_path, "model: {name: resnet, arguments: {n_classes: 7, block: basic}}\n")
    assert read_recipe(path, ["--model.arguments.n_classes", "5"]).model.arguments == {"n_classes": 5, "block": "basic"}


def test_null_and_auto(tmp_path: Path) -> None:
    path = write(tmp_path, "training: {ema: 0.5, threads: 3}\n")
    recipe = read_recipe(path, ["--training.ema", "null", "--training.threads", "auto"])
    assert (recipe.training.ema, recipe.training.threads) == (None, "auto")


@pytest.mark.parametrize(
    ("overrides", "key", "hint"),
    [
        (["--optimzer.lr", "1"], "optimzer.lr", "optimizer.lr"),
        (["--optimizer.learning_rat", "1"], "optimizer.learning_rat", None),
        (["--training.epoch", "1"], "training.epoch", "training.epochs"),
        (["--epochs", "1"], "epochs", "training.epochs"),
        (["--batch_size", "1"], "batch_size", "training.batch_size"),
        (["--data.pading=1"], "data.pading", "data.pad"),
    ],
)
def test_a_typo_in_an_override_suggests_the_key(overrides: list[str], key: str, hint: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        read_recipe("irevnet/digits", overrides)
    assert str(caught.value).startswith(f"unknown key in a recipe or its overrides: got {key!r}. Try: ")
    assert caught.value.hint == (repr(hint) if hint else caught.value.hint)


@pytest.mark.parametrize(
    ("text", "key", "hint"),
    [
        ("optimzer:\n  lr: 1\n", "optimzer", "optimizer"),
        ("optimizer:\n  lrr: 1\n", "optimizer.lrr", "optimizer.lr"),
        ("training: {epochss: 3}\n", "training.epochss", "training.epochs"),
        ("model: {nme: resnet}\n", "model.nme", "model.name"),
        ("titel: x\n", "titel", "title"),
    ],
)
def test_a_typo_in_yaml_suggests_the_key(tmp_path: Path, text: str, key: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown key in a recipe or its overrides: got '{key}") as caught:
        read_recipe(write(tmp_path, text))
    assert caught.value.hint.strip("'").startswith(hint)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--optimizer.lr", "fast"], "optimizer.lr.*float.*fast"),
        (["--training.epochs", "1.5"], "training.epochs.*int.*1.5"),
        (["--optimizer.name", "rmsprop"], "optimizer.name.*'sgd', 'adam', 'adamw', 'adamax'.*rmsprop"),
        (["--training.precision", "float64"], "training.precision.*'float32', 'bfloat16', 'float16'.*float64"),
        (["--data.flip", "2"], "data.flip.*bool.*2"),
        (["--training.threads", "many"], "training.threads.*many"),
        (["--schedule.milestones", "soon"], "schedule.milestones.*soon"),
        (["stray"], "stray"),
    ],
)
def test_a_wrong_value_is_named_with_what_would_be_right(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){words}.*invertible train --help"):
        read_recipe("irevnet/digits", overrides)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"mine\.yaml is no recipe: expected sections and keys, got NoneType"),
        ("- 1\n", r"mine\.yaml is no recipe: expected sections and keys, got list"),
        ("just words\n", r"mine\.yaml is no recipe: expected sections and keys, got str"),
        ("model: 3\n", r"model is a section of a recipe: expected keys in it, got 3"),
        ("data:\n", r"data is a section of a recipe: expected keys in it"),
        ("model: [1,\n", r"mine\.yaml is no YAML file: got .*line 2"),
        ("\tmodel: x\n", r"mine\.yaml is no YAML file: got "),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_recipe(write(tmp_path, text))


def test_a_binary_file_is_no_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(bytes(range(256)))
    with pytest.raises(ConfigError, match=r"mine\.yaml is no YAML file"):
        read_recipe(path)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("irevnet/digts", "'irevnet/digits'"),
        ("irevnet/digit", "'irevnet/digits'"),
        ("zzz", "`invertible recipes` lists them"),
    ],
)
def test_an_unknown_recipe(name: str, hint: str) -> None:
    words = rf"unknown recipe: expected a YAML file or a shipped recipe, got '{name}'\. Try: {hint}"
    with pytest.raises(ConfigError, match=words):
        read_recipe(name)


OUT_OF_RANGE = {
    "training.epochs": ([0, -1], "at least 1"),
    "training.batch_size": ([0], "at least 1"),
    "training.micro_batches": ([0], "at least 1"),
    "training.seed": ([-1], "at least 0"),
    "training.label_smoothing": ([-0.1, 1], "0 to below 1"),
    "training.likelihood_weight": ([-0.1], "0 or more"),
    "training.ema": ([0, 1, -0.5], "between 0 and 1, or null"),
    "training.threads": ([0, -2], "at least 1, or auto"),
    "training.checkpoint_seconds": ([-1], "at least 0"),
    "optimizer.lr": ([0, -1, ".nan"], "above 0"),
    "optimizer.momentum": ([-0.1, 1], "0 to below 1"),
    "optimizer.beta2": ([-0.1, 1], "0 to below 1"),
    "optimizer.weight_decay": ([-1], "at least 0"),
    "optimizer.clip_norm": ([0, -1], "above 0, or null"),
    "optimizer.adaptive_clip": ([0, -1], "above 0, or null"),
    "schedule.warmup_epochs": ([-1], "at least 0"),
    "schedule.gamma": ([0, -1], "above 0"),
    "data.pad": ([-1], "at least 0"),
    "data.crop": ([-1], "at least 0"),
    "data.validation_fraction": ([-0.1, 1], "0 to below 1"),
    "data.n_train": ([0, -5], "at least 1, or null"),
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, (values, _) in OUT_OF_RANGE.items() for value in values]
)
def test_a_number_out_of_range(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"^{key} is out of range: expected {OUT_OF_RANGE[key][1]}, got "):
        read_recipe("irevnet/digits", [f"--{key}={value}"])


def test_help_lists_every_key_with_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    options = text.split("Every key of a recipe", 1)[1]
    assert [key for key in leaves() if f"--{key}" not in options] == []
    for words in (
        "Peak learning rate.",
        "Images per step over all",
        "default: 0.1)",
        "--out",
        "--overwrite",
        "--data-dir",
    ):
        assert words in text


def test_tuples_in_arguments_are_written_as_lists(tmp_path: Path) -> None:
    recipe = Recipe(model=ModelConfig("irevnet", {"in_shape": (1, 8, 8), "n_blocks": (1, 1)}))
    (tmp_path / "mine.yaml").write_text(write_recipe(recipe))
    assert read_recipe(tmp_path / "mine.yaml").model.arguments == {"in_shape": [1, 8, 8], "n_blocks": [1, 1]}

"""What a run began with, so that `resume` goes on with the same or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from invertible._files import read_json, write_json
from invertible.errors import CheckpointError
from invertible.train.prepare import Splits
from invertible.train.recipe import Recipe
from invertible.train.run import ORIGIN, RECIPE


def _origin(recipe: Recipe, splits: Splits) -> dict[str, Any]:
    fingerprint = splits.train.fingerprint()
    return {"recipe": _flat(recipe.to_dict()), "fingerprint": fingerprint, "n_train": len(splits.train)}


def _flat(nested: dict[str, Any]) -> dict[str, Any]:
    return {
        f"{section}.{key}": value
        for section, values in nested.items()
        if isinstance(values, dict)
        for key, value in values.items()
    }


def write_origin(folder: Path, recipe: Recipe, splits: Splits) -> None:
    """Write down what a run begins with.

    Args:
        folder: Of the run.
        recipe: Its recipe.
        splits: Its images.
    """
    write_json(folder / ORIGIN, _origin(recipe, splits))


def check_same_origin(folder: Path, recipe: Recipe, splits: Splits) -> None:
    """Refuse to go on with another recipe or other images than the run began with.

    Args:
        folder: Of the run.
        recipe: As it is now.
        splits: Likewise.

    Raises:
        CheckpointError: If one differs; it says in what.
    """
    if not (folder / ORIGIN).is_file():
        return
    before, now = read_json(folder / ORIGIN), _origin(recipe, splits)
    free = {"data.data_dir", "training.checkpoint_seconds"}
    then = _flat(Recipe().to_dict()) | before.get("recipe", {})  # a key that is newer than the run had its default
    changed = [key for key, value in now["recipe"].items() if key not in free and then.get(key) != value]
    if changed:
        hint = f"put {RECIPE} back as it was, or train anew with another --out"
        expected, got = (", ".join(f"{key}={d.get(key)}" for key in changed) for d in (then, now["recipe"]))
        raise CheckpointError(f"{folder} was begun with another recipe", expected=expected, got=got, hint=hint)
    if before.get("fingerprint") != now["fingerprint"]:
        hint = "put the images back as they were, or train anew with another --out"
        expected, got = f"the {before.get('n_train')} images it began with", f"{now['n_train']} images, not the same"
        raise CheckpointError(f"{folder} was trained on other images", expected=expected, got=got, hint=hint)

"""Reproductions as data: every figure in a recipes folder's expected.json is trained again and compared.

`make reproduce` runs these; data that are neither at hand nor downloadable skip theirs. INVERTIBLE_DATA names a folder
with data files (or, for recipes that read an image folder, that folder).
"""

import json
import os
from importlib.resources import files
from pathlib import Path

import pytest

from invertible.errors import DataError
from invertible.train import read_recipe, recipe_names, train

ROOT = Path(str(files("invertible"))) / "recipes"
EXPECTED = {
    f"{path.parent.name}/{name}": entry
    for path in sorted(ROOT.glob("*/expected.json"))
    for name, entry in json.loads(path.read_text(encoding="utf-8")).items()
}


def test_every_expectation_belongs_to_a_recipe_and_says_what_it_needs():
    assert set(EXPECTED) <= set(recipe_names())
    for name, entry in EXPECTED.items():
        assert {"data", "seed", "hardware", "command", "figures"} <= set(entry), name
        for figure in entry["figures"].values():
            assert {"paper", "ours", "tolerance"} == set(figure), name


def test_every_recipe_folder_explains_itself():
    folders = {ROOT / name.split("/")[0] for name in recipe_names()}
    assert all((folder / "README.md").is_file() for folder in folders)


@pytest.mark.reproduce
@pytest.mark.parametrize("name", EXPECTED)
def test_figures_come_out_again(name: str, tmp_path: Path):
    overrides = EXPECTED[name].get("overrides", [])
    if "INVERTIBLE_DATA" in os.environ:
        overrides = [*overrides, "--data.data_dir", os.environ["INVERTIBLE_DATA"]]
    try:
        figures = train(read_recipe(name, overrides), tmp_path / "run")
    except DataError as error:
        pytest.skip(f"the data are not at hand: {error}")
    for key, figure in EXPECTED[name]["figures"].items():
        assert abs(figures[key] - figure["ours"]) <= figure["tolerance"], key

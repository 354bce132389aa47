"""Reproductions as data: every figure in a recipes folder's expected.json is trained again and compared.

`make reproduce` runs these; data that are neither at hand nor downloadable skip theirs. INVERTIBLE_DATA names a folder
with data files (or, for recipes that read an image folder, that folder).
"""

import json
import os
from dataclasses import fields
from importlib.resources import files
from pathlib import Path

import pytest

from invertible.errors import DataError
from invertible.train import (
    compare,
    experiment_names,
    read_experiment,
    read_recipe,
    read_table_recipe,
    recipe_names,
    run_experiment,
    table_names,
    train,
)
from invertible.train.catalogue import paper_names
from invertible.train.experiment_run import data_dir_option
from invertible.train.prepare import load_data

ROOT = Path(str(files("invertible"))) / "recipes"
EXPECTED = {
    f"{path.parent.name}/{name}": entry
    for path in sorted(ROOT.glob("*/expected.json"))
    for name, entry in json.loads(path.read_text(encoding="utf-8")).items()
}
TABLES = {
    f"{path.parent.relative_to(ROOT).as_posix()}/{name}": entry
    for path in sorted(ROOT.glob("*/tables/expected.json"))
    for name, entry in json.loads(path.read_text(encoding="utf-8")).items()
}
EXPERIMENTS = {
    f"{path.parent.relative_to(ROOT).as_posix()}/{name}": entry
    for path in sorted(ROOT.glob("*/experiments/expected.json"))
    for name, entry in json.loads(path.read_text(encoding="utf-8")).items()
}
MEASURED = [name for name, entry in EXPECTED.items() if any(f["ours"] is not None for f in entry["figures"].values())]


def test_every_expectation_belongs_to_a_recipe_and_says_what_it_needs():
    assert set(EXPECTED) <= set(recipe_names())
    for name, entry in EXPECTED.items():
        assert {"data", "seed", "hardware", "command", "figures"} <= set(entry), name
        for figure in entry["figures"].values():
            assert {"paper", "ours", "tolerance"} == set(figure), name
            assert (figure["ours"] is None) == (figure["tolerance"] is None), name


def test_every_expectation_of_a_table_belongs_to_it_and_says_what_it_needs():
    assert set(TABLES) <= set(table_names())
    for name, entry in TABLES.items():
        table = read_table_recipe(name)
        assert {"data", "seeds", "hardware", "command", "rows"} <= set(entry), name
        assert set(entry["rows"]) <= {row.name for row in table.rows}, name
        for figures in entry["rows"].values():
            assert set(figures) <= {figure.name() for figure in table.figures}, name
            assert all({"ours", "deviation", "tolerance"} == set(figure) for figure in figures.values()), name


def test_every_figure_says_what_it_needs():
    for path in ROOT.glob("*/figures.json"):
        for name, entry in json.loads(path.read_text(encoding="utf-8")).items():
            assert {"title", "source", "paper", "ours", "command", "about"} == set(entry), name


def test_every_recipe_folder_explains_itself():
    assert [paper for paper in paper_names() if not (ROOT / paper / "README.md").is_file()] == []


def test_every_expectation_of_an_experiment_belongs_to_it():  # tests/train/test_experiments.py looks closer
    assert set(EXPERIMENTS) <= set(experiment_names())


@pytest.mark.reproduce
@pytest.mark.parametrize("name", MEASURED)
def test_figures_come_out_again(name: str, tmp_path: Path):
    overrides = [*EXPECTED[name].get("overrides", []), *data_dir()]
    try:
        figures = train(read_recipe(name, overrides), tmp_path / "run")
    except DataError as error:
        pytest.skip(f"the data are not at hand: {error}")
    for key, figure in EXPECTED[name]["figures"].items():
        if figure["ours"] is not None:
            assert abs(figures[key] - figure["ours"]) <= figure["tolerance"], key


@pytest.mark.reproduce
@pytest.mark.parametrize("name", TABLES)
def test_a_table_comes_out_again(name: str, tmp_path: Path):
    entry, table = TABLES[name], read_table_recipe(name)
    overrides = [*entry.get("overrides", []), *data_dir()]
    try:
        for row in table.rows:
            load_data(table.recipe_of(row, overrides).data, "test")
    except DataError as error:
        pytest.skip(f"the data are not at hand: {error}")
    found = compare(table, tmp_path / "out", entry["seeds"], overrides)
    assert found.errors == []
    ours = {row.name: row for row in found.rows}
    for row, figures in entry["rows"].items():
        for figure, kept in figures.items():
            mean = ours[row].mean(figure)
            assert mean is not None, (row, figure)
            assert abs(mean - kept["ours"]) <= kept["tolerance"], (row, figure)


@pytest.mark.reproduce
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_comes_out_again(name: str, tmp_path: Path):
    overrides = EXPERIMENTS[name]["overrides"]
    options = read_experiment(name, overrides).options
    has_data = any(field.name in ("data", "data_dir") for field in fields(options))
    place = data_dir_option(name, data_dir()[1]) if data_dir() and has_data else []
    try:
        report = run_experiment(name, tmp_path / "out", [*overrides, *place])
    except DataError as error:
        pytest.skip(f"the data are not at hand: {error}")
    assert report.complaints == []
    assert report.is_held


def data_dir() -> list[str]:
    folder = os.environ.get("INVERTIBLE_DATA")
    return ["--data.data_dir", folder] if folder else []

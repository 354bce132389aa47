import ast
import subprocess
import sys
from pathlib import Path

import pytest

import invertible.data

FOLDER = Path(invertible.data.__file__).parent


def test_heavy_libraries_wait_until_they_are_needed():
    heavy = ("matplotlib", "sklearn", "pooch", "PIL", "scipy", "accelerate", "torchvision")
    code = f"import sys, invertible.data; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("file", sorted(path.name for path in FOLDER.glob("*.py")))
def test_only_errors_and_data_are_imported(file):
    tree = ast.parse((FOLDER / file).read_text(encoding="utf-8"))
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    ours = [module for module in modules if module.startswith("invertible")]
    assert all(module.startswith(("invertible.data", "invertible.errors", "invertible._checks")) for module in ours)


def test_every_public_name_is_documented():
    for name in invertible.data.__all__:
        assert getattr(invertible.data, name).__doc__

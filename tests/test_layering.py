"""Each layer of the package imports only from the ones above it (DESIGN.md, "Layout")."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "invertible"

# From the top: a module may import from its own row and from those before it, ...
LAYERS = [
    ["errors", "_checks", "_console", "_files", "_tap_points"],
    ["streams", "lattice", "_receipts"],
    ["bijection"],
    ["logdet", "solve", "_batch_norm", "_replay", "_tape", "reversible"],
    ["chain"],
    ["layers"],
    ["models", "flow"],
    ["instruments"],
    ["augment"],
    ["data"],
    ["restore"],
    ["train"],
    ["report"],
    ["cli"],
    ["__main__"],
]
# ... with these exceptions: they may import nothing but what is listed.
ONLY = {
    "instruments": {"errors", "_checks", "_console", "_files", "_tap_points"}
    | {"streams", "bijection", "chain", "logdet", "solve", "lattice", "reversible"},
    "data": {"errors", "_checks", "_console", "_files"},
    "restore": {"errors", "_checks", "_console", "_files", "instruments", "data"},
}
RANK = {module: rank for rank, row in enumerate(LAYERS) for module in row}


def complaints(source: str, file: str) -> list[str]:
    """What is wrong with the imports of a file; `file` is its path inside the package, with slashes."""
    here = file.removesuffix(".py").split("/")[0]
    if here not in RANK:
        return [f"{file}: {here!r} is in no layer; add it to LAYERS in tests/test_layering.py and to DESIGN.md"]
    found = []
    for line, target in imported(ast.parse(source), file):
        where = f"{file}:{line}"
        if target == "":
            found.append(f"{where}: imports the package itself; import from the module that defines the name")
        elif target not in RANK:
            found.append(f"{where}: {target!r} is in no layer; add it to LAYERS in tests/test_layering.py")
        elif target != here and not allowed(here, target):
            found.append(f"{where}: {here!r} may not import {target!r}, which comes after it (see DESIGN.md)")
    return found


def allowed(here: str, target: str) -> bool:
    return target in ONLY[here] if here in ONLY else RANK[target] <= RANK[here]


def imported(tree: ast.AST, file: str) -> list[tuple[int, str]]:
    """(line, top-level module of this package) of each import, wherever it stands; "" is the package."""
    package = ["invertible", *file.split("/")[:-1]]
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            paths = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            paths = [[*base, alias.name] if base == ["invertible"] else base for alias in node.names]
        elif isinstance(node, ast.Call) and _is_import_call(node):
            paths = [str(node.args[0].value).split(".")]
        else:
            continue
        found += [(node.lineno, _top(path)) for path in paths if path[0] == "invertible"]
    return found


def _is_import_call(node: ast.Call) -> bool:
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    return name in ("import_module", "__import__") and bool(node.args) and isinstance(node.args[0], ast.Constant)


def _top(path: list[str]) -> str:
    """Of invertible.layers.pad: layers. Of a name that __init__.py re-exports (a class, a function): ""."""
    top = path[1] if len(path) > 1 else ""
    is_module = top in RANK or (PACKAGE / top).is_dir() or (PACKAGE / f"{top}.py").is_file()
    return top if is_module else ""


FILES = sorted(str(path.relative_to(PACKAGE).as_posix()) for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", [file for file in FILES if file != "__init__.py"])
def test_file_imports_only_from_above(file: str) -> None:
    assert complaints((PACKAGE / file).read_text(), file) == []


def test_files_were_found() -> None:
    assert {"errors.py", "bijection.py", "layers/coupling.py"} <= set(FILES)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("errors.py", "import torch, invertible._checks"),
        ("bijection.py", "from invertible.errors import ShapeError\nfrom invertible import _checks"),
        (
            "layers/pad.py",
            "from invertible.layers.squeeze import Squeeze\nfrom . import pad\nfrom ..bijection import Chain",
        ),
        ("models/irevnet.py", "from invertible.flow import Flow\nfrom invertible.layers import Squeeze"),
        (
            "instruments/spectrum.py",
            "from invertible.solve import solve\nfrom invertible.instruments.taps import tap",
        ),
        ("data/idx.py", "from invertible.errors import DataError\nfrom .dataset import ImageSet"),
        ("train/loop.py", "from invertible.data import load\nfrom invertible import models, errors"),
        ("train/recipes/a.py", "from ..loop import run\nfrom ...data import load"),
        ("cli.py", "import invertible.train.loop as loop\nimport invertibles"),
    ],
)
def test_checker_lets_the_good_pass(file: str, source: str) -> None:
    assert complaints(source, file) == []


@pytest.mark.parametrize(
    ("file", "source", "words"),
    [
        (
            "errors.py",
            "from invertible.bijection import Chain",
            "errors.py:1: 'errors' may not import 'bijection'",
        ),
        (
            "bijection.py",
            "x = 1\nimport invertible.layers.pad",
            "bijection.py:2: 'bijection' may not import 'layers'",
        ),
        ("layers/pad.py", "from invertible import models", "'layers' may not import 'models'"),
        ("layers/pad.py", "from ..models.irevnet import IRevNet", "'layers' may not import 'models'"),
        ("layers/deep/a.py", "from ... import models", "'layers' may not import 'models'"),
        (
            "models/a.py",
            "def f():\n    from invertible.data import load",
            "models/a.py:2: 'models' may not import 'data'",
        ),
        ("models/a.py", "if TYPE_CHECKING:\n    import invertible.train", "'models' may not import 'train'"),
        (
            "models/a.py",
            "importlib.import_module('invertible.train.loop')",
            "'models' may not import 'train'",
        ),
        ("models/a.py", "__import__('invertible.cli')", "'models' may not import 'cli'"),
        (
            "instruments/a.py",
            "from invertible.models import IRevNet",
            "'instruments' may not import 'models'",
        ),
        (
            "instruments/a.py",
            "from invertible.layers import Squeeze",
            "'instruments' may not import 'layers'",
        ),
        ("instruments/a.py", "from invertible.flow import Flow", "'instruments' may not import 'flow'"),
        ("data/a.py", "from invertible.bijection import Chain", "'data' may not import 'bijection'"),
        ("restore/a.py", "from invertible.train.interrupt import StopRequest", "'restore' may not import 'train'"),
        ("restore/a.py", "from invertible.layers import Squeeze", "'restore' may not import 'layers'"),
        ("data/a.py", "from invertible.restore import restore", "'data' may not import 'restore'"),
        ("data/a.py", "from invertible.augment import shadow", "'data' may not import 'augment'"),
        ("train/a.py", "from invertible.report import page", "'train' may not import 'report'"),
        ("layers/a.py", "from invertible import Chain", "layers/a.py:1: imports the package itself"),
        ("layers/a.py", "import invertible", "imports the package itself"),
        ("layers/a.py", "from .. import Chain", "imports the package itself"),
        ("gadgets/a.py", "", "'gadgets' is in no layer; add it to LAYERS in tests/test_layering.py"),
        ("gadgets.py", "", "gadgets.py: 'gadgets' is in no layer"),
    ],
)
def test_checker_sees_the_bad(file: str, source: str, words: str) -> None:
    assert [text for text in complaints(source, file) if words in text], complaints(source, file)

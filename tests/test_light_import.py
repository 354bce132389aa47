"""`import invertible` costs torch and little more: what only some need is loaded when they need it."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = [
    "accelerate",
    "matplotlib",
    "sklearn",
    "skimage",
    "torchvision",
    "scipy",
    "PIL",
    "pooch",
    "jsonargparse",
    "tensorboard",
    "torchdiffeq",
]


def loaded(statement: str) -> set[str]:
    """The top-level packages that a fresh interpreter has loaded after `statement`."""
    code = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_is_light() -> None:
    packages = loaded("import invertible")
    assert "torch" in packages
    # What torch itself pulls in (numpy, sometimes more) is not ours to blame.
    assert sorted(packages.intersection(HEAVY) - loaded("import torch")) == []


@pytest.mark.parametrize("heavy", ["scipy", "PIL"])
def test_a_heavy_import_would_be_seen(heavy: str) -> None:
    assert heavy in loaded(f"import {heavy}")

"""What every test runs under: type checks in the package, one thread, a fixed seed, no display."""

from __future__ import annotations

import os
import random
import sys
import zlib
from collections.abc import Callable, Iterator

import hypothesis
import jaxtyping
import numpy as np
import pytest
import torch
from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintException

UNCHECKED: list[str] = []
"""Functions whose annotations cannot be checked at run time: those with `Self` or a plain Protocol."""


def checked(function: Callable) -> Callable:
    """What jaxtyping's import hook puts round every function of the package."""
    try:
        # An int may stand for a float, as PEP 484 and the type checkers have it.
        return beartype(function, conf=BeartypeConf(is_pep484_tower=True))
    except BeartypeDecorHintException:
        UNCHECKED.append(f"{function.__module__}.{function.__qualname__}")
        return function


# Annotations of the whole package (doctests included) are enforced while the tests run. `pytest` as well as
# `pytest src tests` read this file before they import the package; `pytest src` alone does not read it.
if "invertible" in sys.modules:
    raise RuntimeError("invertible was imported before its annotations could be enforced: move that import")
jaxtyping.install_import_hook("invertible", f"sys.modules[{__name__!r}].checked")

os.environ["MPLBACKEND"] = "Agg"
torch.set_num_threads(1)
hypothesis.settings.register_profile("same every time", deadline=None, derandomize=True)
hypothesis.settings.load_profile("same every time")


@pytest.fixture(autouse=True)
def _seed(request: pytest.FixtureRequest) -> None:
    seed = zlib.crc32(request.node.name.encode())
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@pytest.fixture
def not_enforced() -> list[str]:
    """The functions of the package whose annotations could not be enforced."""
    return UNCHECKED


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Annotations off: for wrong types, which the library's own errors have to catch, and for dynamo.

    Dynamo cannot trace through beartype (which draws at random the items of a container to look at), so that
    strict export and full-graph compilation need the functions as users have them.
    """
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def _no_figures_left() -> Iterator[None]:
    """Matplotlib warns of the 21st open figure, whoever left it; a test begins and ends with none."""
    _close_figures()
    yield
    _close_figures()


def _close_figures() -> None:
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        pyplot.close("all")

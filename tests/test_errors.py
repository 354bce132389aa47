"""The errors' wording, and that they survive what happens to exceptions."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest

from invertible import errors
from invertible.errors import InvertibleError, ShapeError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, InvertibleError)]


def through_pickle(error: Exception) -> Exception:
    return pickle.loads(pickle.dumps(error))  # noqa: S301 (our own bytes)


every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({}, "bad batch"),
        ({"expected": "a"}, "bad batch: expected a"),
        ({"got": "b"}, "bad batch: got b"),
        ({"expected": "a", "got": "b"}, "bad batch: expected a, got b"),
        ({"hint": "this"}, "bad batch. Try: this"),
        ({"expected": "a", "got": "b", "hint": "this"}, "bad batch: expected a, got b. Try: this"),
        ({"expected": 0, "got": (1, 2)}, "bad batch: expected 0, got (1, 2)"),
    ],
)
@every_kind
def test_message(kind: type[InvertibleError], parts: dict[str, object], text: str) -> None:
    assert str(kind("bad batch", **parts)) == text


@every_kind
@pytest.mark.parametrize("again", [copy.copy, through_pickle])
def test_errors_travel_between_processes(kind: type[InvertibleError], again: Callable) -> None:
    error = kind("bad batch", expected=(3, 8), got=4, hint="this")
    twin = again(error)
    assert type(twin) is kind
    assert str(twin) == str(error)
    assert (twin.problem, twin.expected, twin.got, twin.hint) == ("bad batch", (3, 8), 4, "this")


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("ShapeError", ValueError),
        ("DtypeError", TypeError),
        ("ContextError", TypeError),
        ("RangeError", ValueError),
        ("NonFiniteError", ValueError),
        ("NotInImageError", ValueError),
        ("ConvergenceError", RuntimeError),
        ("ConfigError", ValueError),
        ("DataError", OSError),
        ("CheckpointError", OSError),
    ],
)
def test_errors_are_caught_as_what_a_python_user_expects(name: str, builtin: type[Exception]) -> None:
    with pytest.raises(builtin, match="bad batch"):
        raise getattr(errors, name)("bad batch")
    with pytest.raises(InvertibleError, match="bad batch"):
        raise getattr(errors, name)("bad batch")


def test_the_problem_is_required() -> None:
    with pytest.raises(TypeError, match="problem"):
        ShapeError(expected="a")

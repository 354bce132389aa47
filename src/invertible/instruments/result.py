"""The frozen base of what every instrument returns, and its JSON file."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from invertible.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Severity = Literal["error", "warning", "note"]
Row = dict[str, str | int | float | bool | None]
R = TypeVar("R", bound="Result")

FORMAT = "invertible result 1"
_RANK = {"error": 0, "warning": 1, "note": 2}


@dataclass(frozen=True)
class Finding:
    """One thing a result tells, in words.

    Args:
        severity: "error" (do not trust this), "warning" (about to go wrong) or "note".
        sentence: What was found, and what to do about it.
        row: Which row of the result's `.table` supports it; None: all of it.
    """

    severity: Severity
    sentence: str
    row: int | None = None


@dataclass(frozen=True)
class Result(ABC):
    """What an instrument found. Abstract: add typed fields, `table` and `plot`.

    Fields hold numbers, texts, booleans, None, and tuples, string-keyed dicts and dataclasses of those; a field's
    annotation tells how it is read back. No `Any`, and no text beside a number in one annotation.

    Args:
        findings: Worst first, whatever order they come in.

    Example:
        >>> @dataclass(frozen=True)
        ... class Lengths(Result):
        ...     metres: tuple[float, ...] = ()
        ...     table = property(lambda self: [{"metres": length} for length in self.metres])
        ...     def plot(self, ax=None): ...
        >>> Lengths((Finding("note", "Short."), Finding("error", "Below zero.", row=1)), (1.5, -1.0)).findings[0]
        Finding(severity='error', sentence='Below zero.', row=1)
    """

    findings: tuple[Finding, ...]

    def __post_init__(self) -> None:
        ranked = sorted(self.findings, key=lambda finding: _RANK[finding.severity])
        object.__setattr__(self, "findings", tuple(ranked))

    @property
    @abstractmethod
    def table(self) -> list[Row]:
        """Rows of plain Python values, all with the same columns, ready for CSV."""

    @abstractmethod
    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the result.

        Args:
            ax: Where; None: on a new figure.

        Returns:
            The axes.
        """

    def save(self, path: str | Path) -> None:
        """Write a JSON file, whole or not at all. NaN and infinity become texts, as JSON has no numbers for them.

        Args:
            path: The file; its folder is made if need be.
        """
        content = {"format": FORMAT, "kind": type(self).__name__, "fields": _to_json(self)}
        _write(Path(path), json.dumps(content, indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls: type[R], path: str | Path) -> R:
        """Read what `save` wrote. `Result.load` takes any kind that has been imported, a subclass only its own.

        Args:
            path: The file.

        Returns:
            A result with the values of the saved one.

        Raises:
            DataError: If the file is missing, corrupt or of another kind.
        """
        content = _read(Path(path))
        kinds = {kind.__name__: kind for kind in _with_subclasses(cls)}
        kind = kinds.get(str(content.get("kind")))
        if kind is None:
            hint = "Result.load(path), once the module of that instrument is imported"
            expected = f"one of {', '.join(sorted(set(kinds) - {'Result'}))}"
            raise DataError(f"{path} is another instrument's", expected=expected, got=content.get("kind"), hint=hint)
        try:
            return _from_json(content.get("fields"), kind)
        except (TypeError, ValueError, KeyError) as error:
            raise DataError(f"{path} is corrupt", expected=f"a {kind.__name__}", got=str(error)) from error


def _with_subclasses(kind: type[R]) -> Iterable[type[R]]:
    yield kind
    for subclass in kind.__subclasses__():
        yield from _with_subclasses(subclass)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        hint = "another folder, or its permissions and free space"
        raise DataError(f"cannot write {path}", got=error.strerror or str(error), hint=hint) from error
    finally:
        if temporary.parent.is_dir():
            temporary.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {path}", got=error.strerror, hint="a file that result.save wrote") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is corrupt", expected="JSON", got=str(error)) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        got = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise DataError(f"{path} holds no result", expected=f"format {FORMAT!r}", got=repr(got))
    return content


def _to_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _to_json(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_to_json(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _from_json(value: Any, kind: Any) -> Any:
    """Make of a JSON value what the annotation `kind` says, or complain."""  # noqa: DOC201, DOC501
    origin, args = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _dataclass_from_json(value, kind)
    if origin is tuple and isinstance(value, list):
        return tuple(_from_json(item, args[0]) for item in value)
    if origin is dict and isinstance(value, dict):
        return {key: _from_json(item, args[1]) for key, item in value.items()}
    if origin in (Union, UnionType):
        return None if value is None else _from_json(value, next(arg for arg in args if arg is not type(None)))
    if kind is float and (value in ("nan", "inf", "-inf") or type(value) in (int, float)):
        return float(value)
    if value in args if origin is Literal else type(value) is kind:
        return value
    raise TypeError(f"{value!r} where {kind} should be")


def _dataclass_from_json(value: Any, kind: Any) -> Any:
    hints = get_type_hints(kind)
    names = {field.name for field in dataclasses.fields(kind)}
    if not isinstance(value, dict) or set(value) != names:
        got = sorted(value) if isinstance(value, dict) else value
        raise TypeError(f"{got!r} where the fields of {kind.__name__} should be")
    return kind(**{name: _from_json(value[name], hints[name]) for name in names})

"""Results as JSON: read back by the annotations of their fields."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from invertible.errors import DataError

FORMAT = "invertible result 1"


def read_result(path: Path) -> dict[str, Any]:
    """Read a result's file.

    Args:
        path: The file.

    Returns:
        Its contents: "kind" and "fields".

    Raises:
        DataError: If it is missing, corrupt or something else.
    """
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


def to_json(value: Any) -> Any:
    """Make a JSON value of a field's.

    Args:
        value: A plain value, or tuples, dicts and dataclasses of those.

    Returns:
        Lists and dicts; NaN and infinity are texts.
    """
    if dataclasses.is_dataclass(value):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [to_json(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def from_json(value: Any, kind: Any) -> Any:
    """Make of a JSON value what an annotation says.

    Args:
        value: From JSON.
        kind: The annotation.

    Returns:
        A value of that type.

    Raises:
        TypeError: If it does not fit.
    """
    origin, args = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _dataclass_from_json(value, kind)
    if origin is tuple and isinstance(value, list):
        return tuple(from_json(item, args[0]) for item in value)
    if origin is dict and isinstance(value, dict):
        return {key: from_json(item, args[1]) for key, item in value.items()}
    if origin in (Union, UnionType):
        return None if value is None else from_json(value, next(arg for arg in args if arg is not type(None)))
    if kind is float and (value in ("nan", "inf", "-inf") or type(value) in (int, float)):
        return float(value)
    if value in args if origin is Literal else type(value) is kind:
        return value
    raise TypeError(f"{value!r} where {kind} should be")


def _dataclass_from_json(value: Any, kind: Any) -> Any:
    hints = get_type_hints(kind)
    names = {field.name for field in dataclasses.fields(kind)}
    optional = {field.name for field in dataclasses.fields(kind) if field.kw_only}  # came after files were written
    if not isinstance(value, dict) or not names - optional <= set(value) <= names:
        got = sorted(value) if isinstance(value, dict) else value
        raise TypeError(f"{got!r} where the fields of {kind.__name__} should be")
    return kind(**{name: from_json(value[name], hints[name]) for name in value})

"""Options of an instrument on the command line, with the types of its signature."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from invertible.errors import ConfigError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

_NOT_OPTIONS = {"model", "data", "batch_fn", "to", "path", "directions"}


def parse_options(function: Callable[..., Any], words: Sequence[str]) -> dict[str, Any]:
    """Read an instrument's options.

    Args:
        function: The instrument.
        words: As on the command line: `--channel-axis -1`, `--unit-gains`.

    Returns:
        Those that were given, by name.

    Raises:
        ConfigError: If one is unknown or has a wrong value.

    Example:
        >>> from invertible.instruments import signal_propagation
        >>> parse_options(signal_propagation, ["--layers", "layer*", "--unit-gains", "--seed", "3"])
        {'layers': 'layer*', 'unit_gains': True, 'seed': 3}
    """
    from jsonargparse import ArgumentError

    parser = _parser(function)
    names = option_names(function)
    ours = [_with_underscores(word) for word in words]
    for name, parameter in inspect.signature(function).parameters.items():
        if isinstance(parameter.default, bool) and f"--{name}" in ours:
            after = ours.index(f"--{name}") + 1
            if after == len(ours) or ours[after].startswith("--"):
                ours.insert(after, "true")
    try:
        parsed = parser.parse_args(ours)
    except ArgumentError as error:
        hint = "options: " + ", ".join(f"--{name.replace('_', '-')}" for name in names)
        raise ConfigError("a bad option of the instrument", got=" ".join(str(error).split()), hint=hint) from None
    given = {word.split("=")[0].removeprefix("--") for word in ours if word.startswith("--")}
    return {name: getattr(parsed, name) for name in names if name in given}


def option_names(function: Callable[..., Any]) -> list[str]:
    """The options an instrument has on the command line.

    Args:
        function: The instrument.

    Returns:
        Their names.
    """
    return [name for name in inspect.signature(function).parameters if name not in _NOT_OPTIONS]


def help_of(function: Callable[..., Any]) -> str:
    """An instrument's options in words.

    Args:
        function: The instrument.

    Returns:
        One line each, from its docstring.
    """
    text = inspect.getdoc(function) or ""
    section = re.search(r"^Args:\n(.*?)\n\n", f"{text}\n\n", re.DOTALL | re.MULTILINE)
    found = dict(re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section[1] if section else "", re.MULTILINE))
    defaults = {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}
    lines = [
        f"  --{name.replace('_', '-')}: {' '.join(found.get(name, '').split())} (default: {defaults[name]})"
        for name in option_names(function)
    ]
    return "\n".join(lines)


def _parser(function: Callable[..., Any]) -> ArgumentParser:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False, add_help=False, allow_abbrev=False)
    hints = typing.get_type_hints(function)
    for name in option_names(function):
        default = inspect.signature(function).parameters[name].default
        parser.add_argument(f"--{name}", type=_plain(hints[name]), default=default)
    return parser


def _plain(kind: Any) -> Any:
    # Of names, types and modules only names can be typed.
    if not any(issubclass(part, nn.Module) for part in _classes(kind)):
        return kind
    return str | list[str] | None if type(None) in typing.get_args(kind) else str | list[str]


def _classes(kind: Any) -> list[type]:
    inside = [found for part in typing.get_args(kind) for found in _classes(part)]
    return [*inside, kind] if isinstance(kind, type) and not typing.get_args(kind) else inside


def _with_underscores(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.removeprefix("--").partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"

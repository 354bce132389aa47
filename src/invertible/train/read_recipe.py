"""Recipes from files: shipped ones by name, own ones by path, both with overrides; typos are errors."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invertible.errors import ConfigError
from invertible.train.recipe import Recipe

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

TRAIN_HELP = "`invertible train --help`"


def recipe_names() -> list[str]:
    """The recipes that ship with the library.

    Returns:
        Names such as "irevnet/digits".

    Example:
        >>> "irevnet/digits" in recipe_names()
        True
    """
    root = Path(str(files("invertible") / "recipes"))
    return sorted(str(path.relative_to(root).with_suffix("")) for path in root.glob("*/*.yaml"))


def read_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        name: A shipped recipe's name or the path of a YAML file.
        overrides: Like command-line options: `["--optimizer.lr", "0.05"]`.

    Returns:
        The recipe.

    Raises:
        ConfigError: If there is no such recipe, a key is unknown or a value does not fit.

    Example:
        >>> read_recipe("irevnet/digits", ["--training.epochs", "1"]).training.epochs
        1
    """
    return Recipe(**parse_yaml(recipe_parser(), Recipe, _find(str(name)), overrides))


def parse_yaml(
    parser: ArgumentParser,
    kind: Any,
    path: Path,
    overrides: Sequence[str] = (),
    what: tuple[str, str] = ("recipe", "a recipe or its overrides"),
    help_command: str = TRAIN_HELP,
) -> dict[str, Any]:
    """Read a YAML file for a dataclass, with this library's words for what is wrong in it.

    Args:
        parser: With an option `--config` for the file, and one per field.
        kind: The dataclass.
        path: The file.
        overrides: Like command-line options.
        what: What the file is, and where an unknown key may be; for messages.
        help_command: What lists the keys; for messages.

    Returns:
        The dataclass's fields, by name.

    Raises:
        ConfigError: If it is no YAML, a key is unknown or a value does not fit.
    """
    from jsonargparse import ArgumentError

    check_shape(path, kind, what[0], help_command)
    try:
        parsed = parser.instantiate(parser.parse_args(["--config", str(path), *overrides]))
    except ArgumentError as error:
        problem, got, hint = _explain(str(error), kind, what[1], help_command)
        raise ConfigError(problem, got=got, hint=hint) from None
    return {item.name: getattr(parsed, item.name) for item in fields(kind)}


@functools.cache  # it takes longer to make than to use
def recipe_parser() -> ArgumentParser:
    """The parser of recipes, whose help lists every key.

    Returns:
        A jsonargparse parser with one option per key.
    """
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="invertible train RECIPE", exit_on_error=False, add_help=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="a YAML file with any of the keys below")
    parser.add_class_arguments(Recipe, as_group=False)
    return parser


def write_recipe(recipe: Recipe) -> str:
    """A recipe as YAML.

    Args:
        recipe: The recipe.

    Returns:
        Text that `read_recipe` reads back to an equal recipe.
    """
    import yaml

    return yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True)


def _find(name: str) -> Path:
    shipped = Path(str(files("invertible") / "recipes")) / f"{name.removesuffix('.yaml')}.yaml"
    if Path(name).is_file():
        return Path(name)
    if name in recipe_names() and shipped.is_file():
        return shipped
    near = nearest(name, recipe_names())
    hint = f"{near!r}" if near else "`invertible recipes` lists them"
    raise ConfigError("unknown recipe", expected="a YAML file or a shipped recipe", got=repr(name), hint=hint)


def check_shape(path: Path, kind: Any, what: str, help_command: str) -> dict[str, Any]:
    """Read a YAML file that has to be a dictionary, with dictionaries as sections.

    Args:
        path: The file.
        kind: The dataclass it is for; its fields that are dataclasses are the sections.
        what: What the file is; for messages.
        help_command: What lists the keys; for messages.

    Returns:
        Its contents.

    Raises:
        ConfigError: If it is anything else.
    """
    import yaml

    hint = f"{help_command} lists sections and keys"
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no YAML file", got=" ".join(str(error).split()), hint=hint) from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path} is no {what}", expected="sections and keys", got=type(value).__name__, hint=hint)
    for item in fields(kind):
        section = value.get(item.name, {})
        if is_dataclass(item.default_factory) and not isinstance(section, dict):
            raise ConfigError(f"{item.name} is a section of {_a(what)}", expected="keys in it", got=section, hint=hint)
    return value


def check_items(items: Any, key: str, kind: Any, what: str, help_command: str) -> None:
    """Check a list of dictionaries, saying which one is wrong: a parser would not.

    Args:
        items: The list.
        key: Where it stands in the file.
        kind: The dataclass of which each item holds fields.
        what: What the file is; for messages.
        help_command: What shows one; for messages.

    Raises:
        ConfigError: If it is no such list, a key is unknown, or one without default is missing.
    """
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        got = type(items).__name__ if not isinstance(items, list) else repr(items)
        hint = f"{help_command} shows one"
        raise ConfigError(f"{key} of {_a(what)}", expected="a list with keys in each", got=got, hint=hint)
    known = [item.name for item in fields(kind)]
    needed = [item.name for item in fields(kind) if item.default is MISSING and item.default_factory is MISSING]
    for i, item in enumerate(items):
        where = f"in {_a(what)}, in {key}, number {i + 1}"
        for name in item:
            if name not in known:
                near = nearest(str(name), known)
                hint = f"{near!r}" if near else ", ".join(known)
                raise ConfigError(f"unknown key {where}", got=repr(name), hint=hint)
        if [name for name in needed if name not in item]:
            raise ConfigError(f"missing {where}", expected=", ".join(needed), got=", ".join(map(str, item)))


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _keys(kind: Any, prefix: str = "") -> list[str]:
    keys = []
    for item in fields(kind):
        inner = item.default_factory if is_dataclass(item.default_factory) else None
        keys.append(prefix + item.name)
        keys += _keys(inner, f"{prefix}{item.name}.") if inner else []
    return keys


def _explain(text: str, kind: Any, where: str, help_command: str) -> tuple[str, str | None, str]:
    # A parser's complaint in this library's words.
    text = re.sub(r"Group '([\w.]+)' does not accept option '([\w.]+)'", r"Key '\1.\2'", text)
    unknown = re.search(r"unrecognized arguments: --([\w.]+)|Option '([\w.]+)' is not accepted|Key '([\w.]+)'", text)
    if unknown is None:
        return " ".join(text.split()), None, f"{help_command} lists keys and values"
    key = next(group for group in unknown.groups() if group)
    near = nearest(key, _keys(kind))
    hint = f"{near!r}" if near else f"{help_command} lists the keys"
    return f"unknown key in {where}", repr(key), hint


def nearest(word: str, words: Sequence[str]) -> str | None:
    """What someone who mistyped a word may have meant.

    Args:
        word: What was typed.
        words: What there is.

    Returns:
        The most similar one, or None if none is similar.

    Example:
        >>> nearest("optimzer.lr", ["optimizer.lr", "training.seed"])
        'optimizer.lr'
    """
    tails = {name.rsplit(".", 1)[-1]: name for name in reversed(words)}
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    tail = difflib.get_close_matches(word.rsplit(".", 1)[-1], list(tails), n=1, cutoff=0.75)
    return close[0] if close else tails[tail[0]] if tail else None

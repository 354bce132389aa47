"""Every model by name, as recipes and the command line ask for them.

A model is one function. To register one, add its name to its file's line below.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from types import UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from torch import nn

from invertible.errors import ConfigError

# The functions of each file of this package.
_FILES = {
    "ffjord": ("ffjord", "ffjord_table", "ffjord_2d", "ffjord_digits"),
    "glow": ("glow", "glow_digits", "glow_fashion_mnist"),
    "glow_classifier": ("glow_classifier",),
    "hybrid": ("hybrid_iresnet", "hybrid_residual_flow", "hybrid_digits", "hybrid_fashion_mnist"),
    "iresnet": (
        *("iresnet", "iresnet164", "iresnet_digits", "iresnet_fashion_mnist", "iresnet_density"),
        *("iresnet_density_digits", "iresnet_density_fashion_mnist", "iresnet_table", "iresnet_2d"),
    ),
    "irevnet": ("irevnet", "irevnet_a", "irevnet_b", "irevnet_digits", "irevnet_fashion_mnist"),
    "mlp": ("mlp",),
    "nf_regnet": ("nf_regnet", *(f"nf_regnet_b{k}" for k in range(6))),
    "nf_resnet": ("nf_resnet", *(f"nf_resnet{depth}" for depth in (50, 101, 152, 200, 288, 600))),
    "nice": ("nice", "nice_digits", "nice_fashion_mnist"),
    "realnvp": ("realnvp", "realnvp_table", "realnvp_2d", "realnvp_digits", "realnvp_fashion_mnist"),
    "residual_flow": (
        *("residual_flow", "residual_flow_digits", "residual_flow_fashion_mnist"),
        *("residual_flow_table", "residual_flow_2d"),
    ),
    "resnet": (
        *("resnet", *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152, 20, 32, 44, 56, 110, 164))),
        "preact_resnet600",
    ),
    "revnet": ("revnet", *(f"revnet{depth}" for depth in (38, 110, 164, 56, 104))),
    "small_alexnet": ("small_alexnet",),
    "small_inception": ("small_inception",),
    "spline_flow": ("spline_flow", "spline_flow_digits"),
}
_MODELS = {name: file for file, names in _FILES.items() for name in names}


def names() -> tuple[str, ...]:
    """List the models that `build` knows.

    Returns:
        Their names.

    Example:
        >>> [name for name in names() if "revnet1" in name]
        ['revnet110', 'revnet164', 'revnet104']
    """
    return tuple(_MODELS)


def build(name: str, **arguments: object) -> nn.Module:
    """Build a model from its name and arguments, e.g. those of a recipe; lists do where a tuple is wanted.

    Args:
        name: One of `names()`.
        **arguments: Of the function of that name; the others keep their defaults.

    Returns:
        The model.

    Raises:
        ConfigError: If a name or argument is unknown (the error suggests the nearest), or a value is unfit.

    Example:
        >>> type(build("irevnet", in_shape=[1, 8, 8], n_blocks=[1], strides=[1], channels=[8])).__name__
        'Classifier'
        >>> build("irevnet", n_clases=10)
        Traceback (most recent call last):
        invertible.errors.ConfigError: irevnet has no argument 'n_clases': ... Try: 'n_classes'
    """
    if name not in _MODELS:
        _refuse("unknown model", name, _MODELS)
    function = getattr(import_module(f"invertible.models.{_MODELS[name]}"), name)
    hints = get_type_hints(function)
    accepted = {argument: hints[argument] for argument in inspect.signature(function).parameters}
    for argument, value in arguments.items():
        _check_argument(name, argument, value, accepted)
    return function(**{argument: _convert(value, accepted[argument]) for argument, value in arguments.items()})


def _check_argument(name: str, argument: str, value: object, accepted: Mapping[str, Any]) -> None:
    if argument not in accepted:
        _refuse(f"{name} has no argument {argument!r}", argument, accepted)
    if not _fits(value, accepted[argument]):
        expected = f"{argument}: {inspect.formatannotation(accepted[argument])}"
        raise ConfigError(f"{name} got a bad {argument}", expected=expected, got=repr(value))


def _refuse(problem: str, got: object, known: Iterable[str]) -> NoReturn:
    names = list(known)
    near = difflib.get_close_matches(str(got).lower().replace("-", "_"), names, n=1, cutoff=0.4)
    hint = repr(near[0]) if near else ""
    raise ConfigError(problem, expected=", ".join(names), got=repr(got), hint=hint)


def _fits(value: object, hint: Any) -> bool:
    """Tell whether a value from Python or YAML is what a type hint asks for.

    Returns:
        True if it is.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is Literal:
        return value in args
    if origin is not None and issubclass(origin, Sequence):
        return isinstance(value, list | tuple) and _fit_all(value, args)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _fit_all(values: Sequence[object], hints: tuple[Any, ...]) -> bool:
    kinds = hints[:1] * len(values) if len(hints) == 1 or hints[1:] == (...,) else hints
    return len(values) == len(kinds) and all(_fits(v, kind) for v, kind in zip(values, kinds, strict=True))


def _convert(value: Any, hint: Any) -> object:
    if hint is float:
        return float(value)
    return tuple(value) if isinstance(value, list) else value

"""Places to listen in any module: found by name, pattern, type or by themselves, and heard one tensor at a time."""

from __future__ import annotations

import difflib
import fnmatch
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from invertible._checks import describe
from invertible._tap_points import HasTapPoints
from invertible.errors import ConfigError, DtypeError
from invertible.instruments._auto_taps import blocks_of
from invertible.instruments._tensors import main_tensor, tensors_in
from invertible.instruments._unwrap import unwrap

Side = Literal["output", "input"]


@dataclass(frozen=True)
class Tap:
    """A place to listen.

    Args:
        name: Of the module, as in `named_modules`; "" is the network itself.
        module: The module.
        side: Whether its output or its input is heard.
    """

    name: str
    module: nn.Module
    side: Side = "output"


Place = str | type[nn.Module] | nn.Module | Tap
Layers = Place | Sequence[Place]


@dataclass(frozen=True)
class Heard:
    """What one call of a module gave.

    Args:
        tap: Where.
        call: Which call of the module in this forward pass of the network, from 0.
        value: As the module returned it (or its arguments, if the tap is an input).
    """

    tap: Tap
    call: int
    value: Any

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors in it: of tuples, dicts, dataclasses."""
        return tuple(tensors_in(self.value))

    @property
    def tensor(self) -> Tensor:
        """The one that stands for it: the first of real numbers, or a bijection's streams put together.

        Raises:
            ConfigError: If there is none.
        """
        found = main_tensor(self.tap.module, self.value, self.tap.side == "input")
        if found is None:
            hint = "other layers: this one is no place to listen"
            got = describe(self.value)
            name = self.tap.name or "the network"
            raise ConfigError(f"{name} returns no real numbers", expected="a floating-point tensor", got=got, hint=hint)
        return found


@dataclass
class Listener:
    """Who listens.

    Args:
        taps: Where.
        calls: How often each module was called, by name, over all forward passes.
    """

    taps: tuple[Tap, ...]
    calls: Counter[tuple[str, Side]] = field(default_factory=Counter)

    @property
    def silent(self) -> list[str]:
        """Names of the modules that were never called."""
        return [tap.name for tap in self.taps if not self.calls[tap.name, tap.side]]

    def check_heard(self) -> None:
        """Refuse places at which nothing was heard.

        Raises:
            ConfigError: If there is one.
        """
        if self.silent:
            hint = "a module around them: what is used through its weights, or by .forward(), calls no hooks"
            got = f"no call of {_some(self.silent)}"
            raise ConfigError("a module never ran in the forward pass", expected="a call", got=got, hint=hint)


def find_taps(model: nn.Module, layers: Layers = "auto") -> tuple[Tap, ...]:
    """Find places to listen.

    Args:
        model: Any module; names are those inside `torch.compile` and data parallelism.
        layers: "auto" (the blocks of the network: those that declare themselves, else the modules repeated most often
            side by side), a name, a pattern such as "layer*.conv1" (`fnmatch`: the star crosses dots), a type, a module
            itself, a `Tap`, or a sequence of any of these.

    Returns:
        Taps in the order of `named_modules`, each module once.

    Raises:
        ConfigError: If a name is unknown (it tells the closest ones) or nothing matches.
        DtypeError: If `layers` is something else.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> [tap.name for tap in find_taps(network)], [tap.name for tap in find_taps(network, nn.ReLU)]
        (['0', '2'], ['1'])
    """
    network = unwrap(model)
    wanted = layers if isinstance(layers, Sequence) and not isinstance(layers, str) else [layers]
    if not wanted:
        raise ConfigError("no layers to listen at", expected='"auto", names, patterns or types', got=repr(layers))
    found: dict[tuple[str, Side], Tap] = {}
    for place in wanted:
        found |= {(tap.name, tap.side): tap for tap in _resolve(network, place)}
    order = {name: i for i, (name, _) in enumerate(network.named_modules())}
    return tuple(sorted(found.values(), key=lambda tap: order.get(tap.name, -1)))


@contextmanager
def listen(model: nn.Module, taps: Iterable[Tap], hear: Callable[[Heard], None]) -> Iterator[Listener]:
    """Hear what modules return, while the network runs. Nothing is kept; hooks come off at the end, whatever happens.

    Args:
        model: The network; a call of it starts a new forward pass.
        taps: Where, from `find_taps`.
        hear: Called with each output at once. What it raises leaves the forward pass.

    Yields:
        Who listens: which taps were silent.

    Example:
        >>> import torch
        >>> network = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> with listen(network, find_taps(network, "1"), lambda heard: print(heard.tap.name, heard.tensor.shape)):
        ...     _ = network(torch.zeros(4, 2))
        1 torch.Size([4, 3])
    """
    listener = Listener(tuple(taps))
    this_pass: Counter[tuple[str, Side]] = Counter()

    def report(tap: Tap, value: Any) -> None:
        key = tap.name, tap.side
        call = this_pass[key]
        this_pass[key] += 1
        listener.calls[key] += 1
        hear(Heard(tap, call, value))

    with ExitStack() as stack:
        begin = unwrap(model).register_forward_pre_hook(lambda *_: this_pass.clear(), prepend=True)
        stack.callback(begin.remove)
        for tap in listener.taps:
            stack.callback(_attach(tap, report))
        yield listener


def _attach(tap: Tap, report: Callable[[Tap, Any], None]) -> Callable[[], None]:
    if tap.side == "output":
        return tap.module.register_forward_hook(lambda _module, _arguments, output: report(tap, output)).remove

    def before(_module: nn.Module, arguments: Any, named: dict[str, Any]) -> None:
        bare = arguments[0] if len(arguments) == 1 and not named else (*arguments, *named.values())
        report(tap, bare)

    return tap.module.register_forward_pre_hook(before, with_kwargs=True).remove


def residual_end(tap: Tap) -> Tap | None:
    """Where a block that declares itself says that its residual branch ends.

    Args:
        tap: The block.

    Returns:
        The place, None if the block has no residual branch or declares nothing.

    Raises:
        ConfigError: If it names a module that it does not have.
    """
    if not isinstance(tap.module, HasTapPoints) or not tap.module.tap_points().residual_end:
        return None
    end = tap.module.tap_points().residual_end
    inside = dict(tap.module.named_modules())
    if end not in inside:
        raise ConfigError(f"{type(tap.module).__name__}.tap_points names no module of its", got=repr(end))
    return Tap(f"{tap.name}.{end}".lstrip("."), inside[end])


def _resolve(model: nn.Module, place: object) -> list[Tap]:
    if isinstance(place, Tap):
        return [place]
    if isinstance(place, str):
        return [Tap(name, module) for name, module in _by_text(model, place)]
    if isinstance(place, nn.Module):
        found = [(name, module) for name, module in model.named_modules() if module is place]
    elif isinstance(place, type) and issubclass(place, nn.Module):
        found = [(name, module) for name, module in model.named_modules() if isinstance(module, place)]
    else:
        expected = '"auto", a name, a pattern, a type, a module, or a sequence of these'
        raise DtypeError("layers say where to listen", expected=expected, got=describe(place))
    if not found:
        kinds = Counter(type(module).__name__ for module in model.modules())
        what = f"the type {place.__name__}" if isinstance(place, type) else "that module"
        got = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common(5))
        raise ConfigError(f"the network has nothing of {what}", got=got)
    return [Tap(name, module) for name, module in found]


def _by_text(model: nn.Module, text: str) -> list[tuple[str, nn.Module]]:
    if text == "auto":
        return blocks_of(model)
    modules = dict(model.named_modules())
    if text in modules:
        return [(text, modules[text])]
    found = [(name, module) for name, module in modules.items() if fnmatch.fnmatchcase(name, text)]
    if found:
        return found
    close = difflib.get_close_matches(text, list(modules), n=3, cutoff=0.5) or list(modules)[1:4]
    is_pattern = any(sign in text for sign in "*?[")
    problem = f"no module's name matches {text!r}" if is_pattern else f"the network has no module {text!r}"
    hint = f"{' or '.join(map(repr, close))}; [name for name, _ in model.named_modules()] lists all"
    raise ConfigError(problem, expected="a name or pattern of named_modules()", got=f"{len(modules)} others", hint=hint)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(name or "the network itself" for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown

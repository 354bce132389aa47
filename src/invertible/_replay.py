"""Run a module now, and again later, the same: same random numbers, same autocast, same batch statistics.

The second run, in the backward pass, leaves no trace: no buffer, random state or attribute is another afterwards, also
if it fails. It sees the parameters as leaves of a graph of its own, so that hooks on the real ones fire once.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from invertible._batch_norm import BatchStatistics, Relus, batch_norms

_Slot = tuple[dict[str, Any], str]
_GUARD = threading.Lock()
_LOCKS: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
_CHANGING: WeakKeyDictionary[nn.Module, dict[tuple[bool, ...], set[str]]] = WeakKeyDictionary()
"""The buffers (other than BatchNorm's) that a module was seen to change, by the train/eval modes of its parts."""


class Replay:
    """One run of a module, and what it takes to repeat it.

    Args:
        module: The module; its parameters are `parameters`.

    Attributes:
        parameters: As the first run found them (under `torch.func.functional_call` they are not the module's own).
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.slots: list[_Slot] = []
        self.parameters: list[Tensor] = []
        self._index: list[int] = []
        with _alone(module):
            walk = list(module.named_modules(remove_duplicate=False))
            self._parts = dict(reversed([(part, name) for name, part in reversed(walk)]))
            self._collect()
        self._modes = tuple(part.training for part in self._parts)
        self._norms = batch_norms(list(self._parts))
        self._relus = Relus([part for _, part in walk])
        self._buffers: list[tuple[_Slot, Tensor]] = []
        self._statistics = BatchStatistics()
        self._rng: list[tuple[torch.device, Tensor]] = []
        self._autocast: list[tuple[str, torch.dtype, bool]] = []

    @property
    def has_batch_statistics(self) -> bool:
        """Whether a BatchNorm normalised with its batch in the first run."""
        return self._statistics.n_calls > 0

    def _collect(self) -> None:
        seen: dict[int, int] = {}
        for part in self._parts:
            for name, parameter in part._parameters.items():
                if parameter is None:
                    continue
                if id(parameter) not in seen:
                    seen[id(parameter)] = len(self.parameters)
                    self.parameters.append(parameter)
                self.slots.append((cast("dict[str, Any]", part._parameters), name))
                self._index.append(seen[id(parameter)])

    @contextmanager
    def first(self, tensors: list[Tensor]) -> Iterator[None]:
        """The first run, without gradients; what it changes stays changed.

        Args:
            tensors: Its inputs; they tell on which devices random numbers may be drawn.

        Yields:
            Nothing.
        """
        devices = _devices([*tensors, *self.parameters])
        self._autocast = _autocast(devices)
        before = [(device, _get_rng(device)) for device in devices]
        watch = _Buffers(self.module, self._parts, self._modes, self._norms)
        with ExitStack() as stack:
            stack.enter_context(_alone(self.module))
            _set_autocast(stack, self._autocast)
            stack.enter_context(self._statistics.recorded(self._norms))
            stack.enter_context(self._relus.overwriting())
            yield
        self._buffers = watch.changed()
        # A module that draws no random numbers need not remember any: the state of a generator takes 5 KB.
        self._rng = [(device, state) for device, state in before if not torch.equal(state, _get_rng(device))]

    @contextmanager
    def again(self, parameters: list[Tensor], use_statistics: bool = True) -> Iterator[None]:
        """The second run.

        Args:
            parameters: Stand-ins for `parameters`.
            use_statistics: Normalise with the first run's batch statistics; False: compute them again, with the same
                result, in a way that can be differentiated twice.

        Yields:
            Nothing.
        """
        with ExitStack() as stack:
            stack.enter_context(_alone(self.module))
            _set_autocast(stack, self._autocast)
            stack.enter_context(_swapped(self.slots, [parameters[i] for i in self._index]))
            stack.enter_context(_rng_restored(self._rng))
            slots = [slot for slot, _ in self._buffers]
            stack.enter_context(_swapped(slots, [buffer.clone() for _, buffer in self._buffers]))
            stack.enter_context(_in_modes(self._parts, self._modes))
            if use_statistics:
                stack.enter_context(self._statistics.replayed(self._norms))
                stack.enter_context(self._relus.overwriting())
            else:
                stack.enter_context(_shielded(self._norms))
            yield


def _alone(module: nn.Module) -> Any:
    # While a module runs for a node its parameters are stand-ins: another thread's gradients would go astray.
    with _GUARD:
        return _LOCKS.setdefault(module, threading.RLock())


class _Buffers:
    """Which buffers a run changes, and their values before it."""

    def __init__(
        self, module: nn.Module, parts: dict[nn.Module, str], modes: tuple[bool, ...], norms: list[nn.Module]
    ) -> None:
        self.module, self.modes = module, modes
        known = _CHANGING.setdefault(module, {}).get(modes)
        self.kept: list[tuple[str, _Slot, Tensor, Tensor]] = []
        for part, prefix in parts.items():
            if not part._buffers or part in norms:
                continue
            for name, buffer in part._buffers.items():
                is_small = buffer is not None and buffer.numel() <= 4096
                if buffer is not None and (is_small or known is None or f"{prefix}.{name}" in known):
                    slot = (cast("dict[str, Any]", part._buffers), name)
                    self.kept.append((f"{prefix}.{name}", slot, buffer, buffer.clone()))

    def changed(self) -> list[tuple[_Slot, Tensor]]:
        """Those that are others than before, with their values before.

        Returns:
            Where each is, and what it was.
        """
        # Values too: `batch_norm` updates its averages without telling the version counter.
        changed = [row for row in self.kept if row[1][0][row[1][1]] is not row[2] or not torch.equal(row[2], row[3])]
        _CHANGING[self.module].setdefault(self.modes, set()).update(name for name, *_ in changed)
        return [(slot, before) for _, slot, _, before in changed]


@contextmanager
def _in_modes(parts: dict[nn.Module, str], modes: tuple[bool, ...]) -> Iterator[None]:
    # Between forward and backward somebody may have called eval().
    others = [(part, part.training) for part, mode in zip(parts, modes, strict=True) if part.training != mode]
    try:
        for part, mode in others:
            part.training = not mode
        yield
    finally:
        for part, mode in others:
            part.training = mode


@contextmanager
def _swapped(slots: list[_Slot], values: list[Tensor]) -> Iterator[None]:
    originals = [holder[name] for holder, name in slots]
    try:
        for (holder, name), value in zip(slots, values, strict=True):
            holder[name] = value
        yield
    finally:
        for (holder, name), original in zip(slots, originals, strict=True):
            holder[name] = original


@contextmanager
def _shielded(modules: list[nn.Module]) -> Iterator[None]:
    slots = [
        (cast("dict[str, Any]", m._buffers), name) for m in modules for name, b in m._buffers.items() if b is not None
    ]
    with _swapped(slots, [holder[name].clone() for holder, name in slots]):
        yield


@contextmanager
def _rng_restored(states: list[tuple[torch.device, Tensor]]) -> Iterator[None]:
    current = [(device, _get_rng(device)) for device, _ in states]
    try:
        for device, state in states:
            _set_rng(device, state)
        yield
    finally:
        for device, state in current:
            _set_rng(device, state)


def _devices(tensors: list[Tensor]) -> list[torch.device]:
    others = {tensor.device for tensor in tensors if tensor.device.type not in ("cpu", "meta")}
    return [torch.device("cpu"), *sorted(others, key=str)]


def _get_rng(device: torch.device) -> Tensor:
    return torch.get_rng_state() if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)


def _set_rng(device: torch.device, state: Tensor) -> None:
    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        torch.get_device_module(device).set_rng_state(state, device)


def _autocast(devices: list[torch.device]) -> list[tuple[str, torch.dtype, bool]]:
    kinds = dict.fromkeys(device.type for device in devices)
    return [(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)) for kind in kinds]


def _set_autocast(stack: ExitStack, states: list[tuple[str, torch.dtype, bool]]) -> None:
    for kind, dtype, is_enabled in states:
        if is_enabled or torch.is_autocast_enabled(kind):
            # Without cache: a copy of a weight made in the first run has no graph, and would serve the second.
            with contextlib.suppress(RuntimeError):
                stack.enter_context(torch.autocast(kind, dtype, enabled=is_enabled, cache_enabled=False))

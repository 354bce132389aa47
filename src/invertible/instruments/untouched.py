"""A guard: whatever an instrument does inside, the network comes out of it bit for bit as it was."""

from __future__ import annotations

import random
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch._C._autograd import _unsafe_set_version_counter

from invertible.errors import ConfigError
from invertible.instruments._unwrap import eager, unwrap

Mode = Literal["as is", "train", "eval"]

_CONTAINERS = (dict, OrderedDict, list, set, deque)


@contextmanager
def untouched(model: nn.Module) -> Iterator[nn.Module]:
    """Give a network back as it was: every instrument does its work inside.

    Weights, buffers and other tensors of its modules, `requires_grad`, `.grad`, train and eval modes, hooks, attributes
    and containers directly on a module, and the random states of PyTorch (CPU and the GPUs it is on), Python and NumPy
    are restored, also after an exception and under a caller's `no_grad` or `inference_mode`. Tensors stay the same
    objects at the same version, so that a caller's pending backward pass still works.

    Inside, `.grad` is None everywhere, nothing compiled is used, and the caller's grad mode is left; instruments that
    need no gradients add `torch.no_grad()`. It keeps a copy of all weights: as much memory as the network.

    Args:
        model: Any module; wrappers of `torch.compile` and data parallelism are taken off.

    Yields:
        The network itself, to be called and changed.

    Raises:
        DtypeError: If it is no module.
        ConfigError: If it holds TorchScript or lazy parameters.

    Example:
        >>> network = nn.Linear(2, 2)
        >>> with untouched(network) as inside:
        ...     _ = nn.init.zeros_(inside.weight), inside.eval(), torch.rand(1)
        >>> bool(network.weight.any()), network.training
        (True, True)
    """
    network = unwrap(model)
    undo = [_keep_random_states(network), _keep_tensors(network), _keep_attributes(network), _keep_gradients(network)]
    try:
        with eager(network):
            yield network
    finally:
        for restore in reversed(undo):  # gradients before the parameters that held them are put back
            restore()


def _keep_random_states(model: nn.Module) -> Callable[[], None]:
    devices = {tensor.device for tensor in [*model.parameters(), *model.buffers()] if tensor.is_cuda}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        devices.add(torch.device("cuda", torch.cuda.current_device()))
    on_cpu, on_gpus = torch.get_rng_state(), {device: torch.cuda.get_rng_state(device) for device in devices}
    plain, numpy = random.getstate(), sys.modules.get("numpy")
    of_numpy = numpy.random.get_state() if numpy else None

    def restore() -> None:
        torch.set_rng_state(on_cpu)
        for device, state in on_gpus.items():
            torch.cuda.set_rng_state(state, device)
        random.setstate(plain)
        if numpy:
            numpy.random.set_state(of_numpy)

    return restore


def _keep_tensors(model: nn.Module) -> Callable[[], None]:
    tensors = list({id(tensor): tensor for module in model.modules() for tensor in _tensors_on(module)}.values())
    generators = [value for module in model.modules() for value in vars(module).values() if _is_generator(value)]
    states = [generator.get_state() for generator in generators]
    with torch.inference_mode(False), torch.no_grad():
        copies = [tensor.detach().clone() for tensor in tensors]
    versions, flags = [_version(tensor) for tensor in tensors], [tensor.requires_grad for tensor in tensors]

    def restore() -> None:
        for tensor, copy, version, flag in zip(tensors, copies, versions, flags, strict=True):
            if _version(tensor) != version or not same_bits(tensor, copy):
                _put_back(tensor, copy, version)
            if tensor.requires_grad != flag:
                tensor.requires_grad_(flag)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)

    return restore


def _tensors_on(module: nn.Module) -> Iterator[Tensor]:
    for values in (module._parameters, module._buffers, vars(module)):
        yield from (value for value in values.values() if isinstance(value, Tensor))


def _is_generator(value: object) -> bool:
    return isinstance(value, torch.Generator)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _put_back(tensor: Tensor, copy: Tensor, version: int) -> None:
    # The version goes back too: a graph that the caller built before is as valid as it was.
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        tensor.data = copy if tensor.data.shape != copy.shape else tensor.data
        tensor.detach().copy_(copy)
    if not tensor.is_inference():
        _unsafe_set_version_counter((tensor,), (version,))


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Compare two tensors to the bit: NaN equals itself, and 0 is not -0.

    Args:
        a: A tensor.
        b: Another.

    Returns:
        Whether shape, dtype and every bit agree.

    Example:
        >>> same_bits(torch.tensor([float("nan")]), torch.tensor([float("nan")]))
        True
    """
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
        return False
    if a.is_meta:
        return True
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32}.get(a.element_size(), torch.int64)
    flat_a, flat_b = (t.detach().contiguous().reshape(-1).view(whole) for t in (a, b))
    return torch.equal(flat_a, flat_b)


def _keep_attributes(model: nn.Module) -> Callable[[], None]:
    kept = [(vars(module), dict(vars(module))) for module in model.modules()]
    contents = [
        (value, value.copy())
        for _, attributes in kept
        for value in attributes.values()
        if type(value) in _CONTAINERS  # parameters, buffers, modules and hooks are dicts here
    ]

    def restore() -> None:
        for attributes, before in kept:
            _refill(attributes, before)
        for container, before in contents:
            _refill(container, before)

    return restore


def _refill(container: Any, before: Any) -> None:
    if _same_objects(container, before):
        return
    container.clear()
    (container.update if isinstance(container, dict | set) else container.extend)(before)


def _same_objects(a: Any, b: Any) -> bool:
    if len(a) != len(b):
        return False
    if isinstance(a, dict):
        return all(key is other and a[key] is b[other] for key, other in zip(a, b, strict=True))
    return a == b if isinstance(a, set) else all(x is y for x, y in zip(a, b, strict=True))


def _keep_gradients(model: nn.Module) -> Callable[[], None]:
    # Taken off, not copied: what a backward pass inside adds cannot reach them.
    kept = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in kept:
        parameter.grad = None

    def restore() -> None:
        for parameter, gradient in kept:
            parameter.grad = gradient

    return restore


@contextmanager
def measuring(model: nn.Module, mode: Mode = "as is") -> Iterator[nn.Module]:
    """Measure without gradients: `untouched`, `torch.no_grad()`, and the mode that is asked for.

    Args:
        model: Any module.
        mode: "train", "eval", or "as is".

    Yields:
        The network itself.

    Raises:
        ConfigError: If there is no such mode.

    Example:
        >>> network = nn.Dropout()
        >>> with measuring(network, "eval") as inside:
        ...     print(inside.training)
        False
        >>> network.training
        True
    """
    if mode not in get_args(Mode):
        raise ConfigError("unknown mode", expected=" or ".join(map(repr, get_args(Mode))), got=repr(mode))
    with untouched(model) as network, torch.no_grad():
        if mode != "as is":
            network.train(mode == "train")
        yield network

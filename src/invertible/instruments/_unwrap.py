"""The network a user wrote, out of what torch.compile and data parallelism wrap round it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from invertible._checks import describe
from invertible.errors import ConfigError, DtypeError


def unwrap(model: object) -> nn.Module:
    """The network itself.

    Args:
        model: Any module, also what `torch.compile`, `nn.DataParallel` or `DistributedDataParallel` returned.

    Returns:
        The module that was wrapped, which shares weights and hooks with the wrapper; an unwrapped one as it is.

    Raises:
        DtypeError: If it is no module.
        ConfigError: If part of it is TorchScript, in which nothing can listen, or if parameters have no shape yet.

    Example:
        >>> network = nn.Linear(2, 2)
        >>> unwrap(nn.DataParallel(network)) is network
        True
    """
    if not isinstance(model, nn.Module):
        hint = "a torch.nn.Module; of a class, its instance"
        raise DtypeError("instruments measure modules", expected="a torch.nn.Module", got=describe(model), hint=hint)
    if is_compiled(model):
        return unwrap(model._modules["_orig_mod"])
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return unwrap(model.module)
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        hint, got = "the module it was scripted or traced from", "TorchScript inside"
        raise ConfigError("nothing can listen inside TorchScript", expected="a Python module", got=got, hint=hint)
    if any(nn.parameter.is_lazy(tensor) for tensor in [*model.parameters(), *model.buffers()]):
        raise ConfigError("the network has lazy parameters", got="no shapes", hint="call it once before measuring it")
    return model


def is_compiled(module: nn.Module) -> bool:
    """Tell whether this is what `torch.compile(module)` returned (known by name: importing dynamo takes a second).

    Args:
        module: Any module.

    Returns:
        Whether it is.
    """
    return type(module).__module__.startswith("torch._dynamo") and "_orig_mod" in module._modules


@contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """Run whatever is compiled inside a network as Python, so that hooks are heard.

    Args:
        model: The network.

    Yields:
        Nothing; within the context `torch.compile` has no effect.
    """
    has_compiled = any(is_compiled(module) or module._compiled_call_impl is not None for module in model.modules())
    with torch.compiler.set_stance("force_eager") if has_compiled else nullcontext():
        yield

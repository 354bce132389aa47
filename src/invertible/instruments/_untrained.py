"""The same network before its training, as a control."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, runtime_checkable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from invertible.errors import ConfigError
from invertible.instruments._batch import Batch


@runtime_checkable
class _Resets(Protocol):
    def reset_parameters(self) -> None: ...


def obstacle(model: nn.Module) -> str:
    """Why a network cannot be initialised anew.

    Args:
        model: The network.

    Returns:
        A reason; "" if it can.

    Example:
        >>> obstacle(nn.Sequential(nn.Linear(2, 2), nn.PReLU()))
        ''
        >>> obstacle(nn.utils.parametrizations.orthogonal(nn.Linear(2, 2)))
        'the network (ParametrizedLinear) is parametrised'
    """
    if next(model.parameters(), None) is None:
        return "it has no parameters"
    for name, module in model.named_modules():
        what = f"{name or 'the network'} ({type(module).__name__})"
        if parametrize.is_parametrized(module):
            return f"{what} is parametrised"
        has_own = any(parameter is not None for parameter in module._parameters.values())
        if has_own and _reset_of(module) is None:
            return f"{what} has no reset_parameters"
    return ""


def reset(model: nn.Module, seed: int) -> None:
    """Initialise a network anew as its layers do by default. Inside `untouched` only.

    Args:
        model: A network without `obstacle`.
        seed: Of the weights.
    """
    torch.manual_seed(seed)
    for module in model.modules():
        act = _reset_of(module)
        if act is not None:
            act()


def _reset_of(module: nn.Module) -> Callable[[], None] | None:
    if isinstance(module, nn.MultiheadAttention):
        return module._reset_parameters
    return module.reset_parameters if isinstance(module, _Resets) else None


def settle_batch_norm(model: nn.Module, batches: Iterable[Batch]) -> None:
    """Give BatchNorm the statistics of the data, as a trained network has them. Inside `measuring` only.

    Args:
        model: The network; afterwards in the mode it was in.
        batches: The data; batches of one example are passed over.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return
    modes = [norm.training for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over batches
        norm.train()
    for batch in batches:
        if batch.n_examples > 1:
            batch.run(model)
    for norm, mode in zip(norms, modes, strict=True):
        norm.train(mode)


def made_by(factory: nn.Module | Callable[[], object], model: nn.Module, seed: int) -> nn.Module:
    """The untrained network of a user's own. Inside `untouched` only.

    Args:
        factory: The network, or a function that makes it.
        model: The network that is measured.
        seed: Of the weights.

    Returns:
        It; what a function makes is moved to where the other network is.

    Raises:
        ConfigError: If it makes no network.
    """
    if isinstance(factory, nn.Module):
        return factory
    torch.manual_seed(seed)
    found = factory()
    if not isinstance(found, nn.Module):
        raise ConfigError("untrained makes no network", expected="a torch.nn.Module", got=type(found).__name__)
    own = next(model.parameters(), None)
    return found if own is None else found.to(own.device, own.dtype)

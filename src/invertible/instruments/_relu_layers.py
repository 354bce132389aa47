"""Which linear layers and convolutions have a ReLU right behind them: watched in one small forward pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from invertible.instruments._tensors import tensors_in
from invertible.instruments.taps import Tap

_RELUS = {"relu", "relu_", "relu6", "relu6_", "hardtanh", "hardtanh_", "clamp_min", "clamp_min_"}
_NORMS = (nn.modules.batchnorm._NormBase, nn.Identity, nn.Dropout)
"""What may lie between a layer and its ReLU: what maps each channel affinely."""


@dataclass(frozen=True)
class ReluLayer:
    """A linear layer or convolution, and the module whose output the ReLU gets.

    Args:
        layer: The layer.
        end: The same, or the norm behind it.
    """

    layer: Tap
    end: Tap


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer or convolution that has a transpose here.

    Args:
        module: Any.

    Returns:
        Not so for transposed convolutions, and for padding by anything but zeros.

    Example:
        >>> is_linear(nn.Linear(2, 3)), is_linear(nn.ConvTranspose1d(2, 3, 1))
        (True, False)
    """
    if isinstance(module, _ConvNd):
        return not isinstance(module, _ConvTransposeNd) and module.padding_mode == "zeros"
    return isinstance(module, nn.Linear)


class _Watch(TorchFunctionMode):
    """Remembers of which layer, and last module, a tensor is the output, and what a ReLU is applied to."""

    def __init__(self) -> None:
        super().__init__()
        self.sources = WeakIdKeyDictionary()
        self.found: dict[str, str] = {}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if name in _RELUS and args and isinstance(args[0], Tensor) and args[0] in self.sources:
            layer, end = self.sources[args[0]]
            self.found.setdefault(layer, end)
        return function(*args, **(kwargs or {}))

    def leave(self, name: str, module: nn.Module, arguments: Any, output: Any) -> None:
        given = next((t for t in tensors_in(arguments)), None)
        result = next((t for t in tensors_in(output)), None)
        if result is None:
            return
        if is_linear(module):
            self.sources[result] = (name, name)
        elif isinstance(module, _NORMS) and given is not None and given in self.sources and result is not given:
            self.sources[result] = (self.sources[given][0], name)


def find_relu_layers(model: nn.Module, run: Callable[[], object]) -> tuple[ReluLayer, ...]:
    """Find linear layers and convolutions whose output, or that of a BatchNorm behind them, goes into a ReLU.

    Args:
        model: The network.
        run: Runs it, on something small.

    Returns:
        Those layers in the order of `named_modules`.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
        >>> [(found.layer.name, found.end.name) for found in find_relu_layers(net, lambda: net(torch.zeros(2, 2, 4)))]
        [('0', '1')]
    """
    modules, watch = dict(model.named_modules()), _Watch()
    with ExitStack() as stack:
        for name, module in modules.items():

            def after(module: nn.Module, arguments: Any, output: Any, name: str = name) -> None:
                watch.leave(name, module, arguments, output)

            stack.callback(module.register_forward_hook(after).remove)
        with watch:
            run()
    pairs = [(name, watch.found[name]) for name in modules if name in watch.found]
    return tuple(ReluLayer(Tap(name, modules[name]), Tap(end, modules[end])) for name, end in pairs)

"""BatchNorm in a module that runs twice: statistics are computed, and averages updated, in the first run only.

The second run normalises with the batch statistics of the first, and differentiates as training-mode BatchNorm does,
through the statistics too. It gives the same bits, and takes a tenth of the time of computing them again.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _every
from torch.nn.modules.batchnorm import _BatchNorm

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_MAKES_NEW_OUTPUT = (*_NORMS, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def batch_norms(parts: list[nn.Module]) -> list[nn.Module]:
    """The BatchNorm layers that normalise with batch statistics, which `BatchStatistics` takes care of.

    Args:
        parts: A module and all modules in it.

    Returns:
        Those of PyTorch's own classes. Compiled modules have none: their code is not to be changed.
    """
    if any(type(part).__name__ == "OptimizedModule" for part in parts):
        return []
    return [part for part in parts if type(part) in _NORMS and _uses_batch(part) and _is_untouched(part)]


def _uses_batch(norm: Any) -> bool:
    return norm.training or (norm.running_mean is None and norm.running_var is None)


def _is_untouched(module: nn.Module) -> bool:
    return "forward" not in vars(module)


class BatchStatistics:
    """Mean and inverse standard deviation of every BatchNorm call of one run, in the order of the calls."""

    def __init__(self) -> None:
        self._calls: list[tuple[Tensor, Tensor]] = []

    @property
    def n_calls(self) -> int:
        """How many were recorded."""
        return len(self._calls)

    @contextmanager
    def recorded(self, norms: list[nn.Module]) -> Iterator[None]:
        """Keep what the norms compute in this run.

        Args:
            norms: As `batch_norms` returns them.

        Yields:
            Nothing.
        """
        self._calls.clear()
        with _patched(norms, self._record):
            yield

    @contextmanager
    def replayed(self, norms: list[nn.Module]) -> Iterator[None]:
        """Use what was recorded, call by call.

        Args:
            norms: As in the recorded run.

        Yields:
            Nothing.
        """
        calls = iter(self._calls)

        def replay(norm: Any, x: Tensor) -> Tensor:
            return _ReplayedBatchNorm.apply(x, norm.weight, norm.bias, *next(calls))  # type: ignore[return-value]

        with _patched(norms, replay):
            yield

    def _record(self, norm: _BatchNorm, x: Tensor) -> Tensor:
        norm._check_input_dim(x)
        momentum = norm.momentum
        if norm.training and norm.track_running_stats and norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
            momentum = 1.0 / float(norm.num_batches_tracked) if momentum is None else momentum
        keeps = not norm.training or norm.track_running_stats
        averages = (norm.running_mean, norm.running_var) if keeps else (None, None)
        if x.numel() // x.shape[1] < 2:  # torch's own error
            return nn.functional.batch_norm(x, *averages, norm.weight, norm.bias, True, momentum or 0.0, norm.eps)
        y, mean, inverse_std, *_ = torch.ops.aten._batch_norm_impl_index(
            x, norm.weight, norm.bias, *averages, True, momentum or 0.0, norm.eps, torch.backends.cudnn.enabled
        )
        self._calls.append((mean, inverse_std))
        return y


@contextmanager
def _patched(modules: list[nn.Module], forward: Callable[[Any, Tensor], Tensor]) -> Iterator[None]:
    try:
        for module in modules:
            vars(module)["forward"] = functools.partial(forward, module)
        yield
    finally:
        for module in modules:
            vars(module).pop("forward", None)


class _ReplayedBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, inverse_std: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, inverse_std)
        if x.is_cuda:
            return torch.batch_norm_elemt(x, weight, bias, mean, inverse_std, 0.0)
        # The kernel computes x * scale + offset with these two, in these roundings.
        scale = inverse_std if weight is None else inverse_std * weight
        offset = torch.addcmul(torch.zeros_like(mean) if bias is None else bias, mean, scale, value=-1)
        zero, one = torch.zeros_like(mean), torch.ones_like(mean)
        return torch.native_batch_norm(x, scale, offset, zero, one, False, 0.0, 0.0)[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, mean, inverse_std = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[:3])
        grads = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, None, None, mean, inverse_std, True, 0.0, needs
        )
        return *(g if need else None for g, need in zip(grads, needs, strict=True)), None, None


class Relus:
    """ReLUs that follow a layer with an output of its own in an `nn.Sequential`: they may overwrite that output.

    Args:
        parts: A module and all modules in it, those that are there twice twice.
    """

    def __init__(self, parts: list[nn.Module]) -> None:
        counts = Counter(parts)
        self._holders: dict[nn.Module, list[nn.ReLU]] = {}
        for part in counts:
            if type(part) is nn.Sequential and _is_quiet(part):
                pairs = pairwise(part._modules.values())
                relus = [b for a, b in pairs if type(b) is nn.ReLU and counts[b] == 1 and _may_overwrite(a, b)]
                if relus:
                    self._holders[part] = relus

    @contextmanager
    def overwriting(self) -> Iterator[None]:
        """Let them.

        Yields:
            Nothing; afterwards they are as they were.
        """
        with _patched(list(self._holders), self._run):
            yield

    def _run(self, holder: nn.Sequential, x: Any) -> Any:
        # Only while the Sequential itself passes tensors on: a network that walks through its layers may keep them.
        try:
            for relu in self._holders[holder]:
                relu.inplace = True
            return nn.Sequential.forward(holder, x)
        finally:
            for relu in self._holders[holder]:
                relu.inplace = False


def _may_overwrite(layer: nn.Module | None, relu: nn.ReLU) -> bool:
    if layer is None or relu.inplace or type(layer) not in _MAKES_NEW_OUTPUT:
        return False
    return _is_quiet(layer) and _is_quiet(relu)


def _is_quiet(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    for_all = (_every._global_forward_hooks, _every._global_forward_pre_hooks)
    return not any(hooks) and not any(for_all) and _is_untouched(module)

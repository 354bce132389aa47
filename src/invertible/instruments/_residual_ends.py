"""Where residual branches end in networks that do not say so: watched additions in one small forward pass.

In each block, an addition of two tensors that both come from the network's input is taken for a residual one; the
operand with more operations behind it is the branch. Factors that are numbers or one per example (skip gains, alpha,
stochastic depth), dropout and pure rearrangements between a module's output and the addition are looked through.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from invertible.instruments._tensors import tensors_in
from invertible.instruments.taps import Tap

End = tuple[str, int]
"""A module's name and which of its calls in a forward pass."""

_ADDITIONS = {"add", "add_", "__add__", "__radd__", "__iadd__"}
_FACTORS = {"mul", "mul_", "multiply", "div", "div_", "true_divide", "neg", "__mul__", "__rmul__", "__imul__"}
_REARRANGED = {"view", "reshape", "permute", "transpose", "contiguous", "flatten", "roll", "movedim", "unflatten"} | {
    *("squeeze", "unsqueeze", "clone", "to", "float", "type_as", "dropout", "dropout1d", "dropout2d", "dropout3d")
}


@dataclass(frozen=True)
class _Past:
    """What is known of a tensor: how many operations lie behind it, and of which modules it is the (scaled) output."""

    depth: int
    ends: tuple[End, ...] = ()


class _Watch(TorchFunctionMode):
    """Follows tensors from the network's input, and keeps what is added where."""

    def __init__(self, blocks: Sequence[str]) -> None:
        super().__init__()
        self.pasts, self.blocks = WeakIdKeyDictionary(), set(blocks)
        self.stack: list[str] = []
        self.calls: Counter[str] = Counter()
        self.sums: dict[str, list[tuple[torch.Size, tuple[End, ...]]]] = {name: [] for name in blocks}
        self.ends: dict[str, tuple[End, ...]] = {}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        given = [t for t in tensors_in((args, kwargs)) if t in self.pasts]
        pasts = [self.pasts[t] for t in given]
        out = function(*args, **kwargs)
        if pasts:
            for result in tensors_in(out):
                self.pasts[result] = self._past(name, args, given, pasts, result)
        return out

    def _past(self, name: str, args: Any, given: list[Tensor], pasts: list[_Past], out: Tensor) -> _Past:
        deepest = max(pasts, key=lambda past: past.depth)
        if name in _ADDITIONS and len(given) == 2 and given[0].shape == given[1].shape:
            self._note(out, pasts)
            return _Past(deepest.depth + 1, tuple(dict.fromkeys(end for past in pasts for end in past.ends)))
        if name in _REARRANGED and pasts and out.numel() == given[0].numel():
            return pasts[0]
        if name in _FACTORS:
            main = [past for t, past in zip(given, pasts, strict=True) if t.shape == out.shape]
            others = [t for t in tensors_in(args) if t.shape != out.shape]
            is_all = len(main) + len(others) == len(list(tensors_in(args)))
            if len(main) == 1 and is_all and all(_is_one_per_example(t, out) for t in others):
                return main[0]
        return _Past(deepest.depth + 1)

    def _note(self, out: Tensor, pasts: list[_Past]) -> None:
        block = next((name for name in reversed(self.stack) if name in self.blocks), None)
        shortcut, branch = sorted(pasts, key=lambda past: past.depth)
        if block is not None and shortcut.depth < branch.depth and branch.ends:
            self.sums[block].append((out.shape, branch.ends))

    def enter(self, name: str, arguments: Any) -> None:
        if not self.stack:
            for tensor in tensors_in(arguments):
                self.pasts[tensor] = _Past(0)
        self.stack.append(name)

    def leave(self, name: str, arguments: Any, output: Any) -> None:
        self.stack.pop()
        end = (name, self.calls[name])
        self.calls[name] += 1
        before = [self.pasts[t].depth for t in tensors_in(arguments) if t in self.pasts]
        for tensor in tensors_in(output):
            # Custom autograd functions are not seen by a function mode: their module stands for them.
            past = self.pasts.get(tensor) or (_Past(max(before) + 1) if before else None)
            if past is not None:
                self.pasts[tensor] = past if past.ends else _Past(past.depth, (end,))
        if name in self.blocks and name not in self.ends:  # where a block runs again, it does the same
            shapes = {tensor.shape for tensor in tensors_in(output)}
            inside = [e for shape, ends in self.sums[name] if shape in shapes for e in ends if _lies_in(e[0], name)]
            self.ends[name] = tuple(dict.fromkeys(inside))


def _is_one_per_example(factor: Tensor, out: Tensor) -> bool:
    return factor.numel() == 1 or (factor.ndim == out.ndim and factor.numel() == factor.shape[0] == out.shape[0])


def _lies_in(name: str, block: str) -> bool:
    return not block or name.startswith(f"{block}.")


def find_residual_ends(
    model: nn.Module, blocks: Sequence[Tap], run: Callable[[], object]
) -> dict[str, tuple[tuple[Tap, int], ...]]:
    """Find the ends of residual branches by watching the network run once.

    Args:
        model: The network.
        blocks: Its blocks.
        run: Runs it, on something small.

    Returns:
        By the name of each block that ran: for each of its residual additions, in order, the module whose output is
        the branch's end, and which of the module's calls in a forward pass. Nothing where the end is no module's
        output, or both operands are equally deep.

    Example:
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.conv = nn.Conv1d(2, 2, 1)
        ...     def forward(self, x):
        ...         return x + 0.1 * self.conv(x)
        >>> block = Block()
        >>> ends = find_residual_ends(block, [Tap("", block)], lambda: block(torch.zeros(1, 2, 3)))
        >>> [(tap.name, call) for tap, call in ends[""]]
        [('conv', 0)]
    """
    modules = dict(model.named_modules())
    watch = _Watch([tap.name for tap in blocks])
    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(_attach(watch, name, module))
        with watch:
            run()
    return {block: tuple((Tap(name, modules[name]), call) for name, call in ends) for block, ends in watch.ends.items()}


def _attach(watch: _Watch, name: str, module: nn.Module) -> Callable[[], None]:
    def before(_module: nn.Module, arguments: Any, named: Any) -> None:
        watch.enter(name, (arguments, named))

    def after(_module: nn.Module, arguments: Any, named: Any, output: Any) -> None:
        watch.leave(name, (arguments, named), output)

    begin = module.register_forward_pre_hook(before, with_kwargs=True)
    end = module.register_forward_hook(after, with_kwargs=True)

    def remove() -> None:
        begin.remove()
        end.remove()

    return remove

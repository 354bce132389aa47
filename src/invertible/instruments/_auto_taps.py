"""Which modules of a network are its blocks, whoever wrote it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from torch import nn

from invertible._tap_points import HasTapPoints
from invertible.bijection import Bijection
from invertible.chain import Chain

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, Chain)
_ATTRIBUTES = 0.75
"""What a repetition of attributes (block.conv1, block.conv2) weighs against one of a container's members."""


def blocks_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Find a network's blocks.

    Those that declare themselves (`HasTapPoints`) if there are any; else the modules that are repeated most often
    side by side: members of one module, containers in it (`Sequential`, `ModuleList`, `Chain`) counting as transparent.
    Classes with modules of their own come before plain `Sequential`s, and these before single layers.

    Args:
        model: Any module.

    Returns:
        Names and modules, in the order of `named_modules`; none lies inside another.

    Example:
        >>> [name for name, _ in blocks_of(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)))]
        ['0', '2']
    """
    declared = {type(module) for module in model.modules() if _declares(module)}
    if type(model) in declared:
        return [("", model)]
    if declared:
        return _outermost(model, declared)
    _, kinds = _most_repeated(model, _is_composed)
    if kinds:
        return _outermost(model, kinds)
    parent, kinds = _most_repeated(model, _has_children)
    if kinds:  # sequences: the same class stands for other things elsewhere
        members = {id(child) for child, _ in _members(parent, False) if type(child) in kinds}
        return [(name, module) for name, module in model.named_modules() if id(module) in members]
    _, kinds = _most_repeated(model, _is_layer)
    if kinds:
        return _outermost(model, kinds)
    children = [(name, child) for name, child in model.named_children() if _has_parameters(child)]
    return children or [("", model)]


def _declares(module: nn.Module) -> bool:
    # Bijections stand among others that have nothing to declare, and are found with them; their residual ends count.
    return isinstance(module, HasTapPoints) and not isinstance(module, Bijection)


def _is_composed(module: nn.Module) -> bool:
    if isinstance(module, Bijection) and type(module) is not Chain and _has_parameters(module):
        return True
    return _has_children(module) and type(module) not in _CONTAINERS


def _has_children(module: nn.Module) -> bool:
    return bool(module._modules) and type(module) not in (nn.ModuleList, nn.ModuleDict)


def _is_layer(module: nn.Module) -> bool:
    return not module._modules and _has_parameters(module)


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _most_repeated(model: nn.Module, is_block: Callable[[nn.Module], bool]) -> tuple[nn.Module, set[type]]:
    best, chosen, kinds = 1.0, model, set()
    parents = sorted(model.named_modules(), key=lambda item: item[0].count(".") + (item[0] != ""))
    for _, parent in parents:
        through = is_block is not _has_children  # a Sequential that is a block itself is not looked through
        members = [(child, inside) for child, inside in _members(parent, through) if is_block(child)]
        counts = Counter(type(child) for child, _ in members)
        for kind, count in counts.items():
            in_container = any(inside for child, inside in members if type(child) is kind)
            score = count * (1 if in_container else _ATTRIBUTES)
            if count > 1 and score > best:
                best, chosen, kinds = score, parent, {other for other, n in counts.items() if n > 1}
    return chosen, kinds


def _members(parent: nn.Module, through: bool, inside: bool = False) -> Iterator[tuple[nn.Module, bool]]:
    inside = inside or type(parent) in _CONTAINERS
    for child in parent.children():
        if type(child) in (nn.ModuleList, nn.ModuleDict) or (through and type(child) in _CONTAINERS):
            yield from _members(child, through, True)
        else:
            yield child, inside


def _outermost(model: nn.Module, kinds: set[type]) -> list[tuple[str, nn.Module]]:
    found: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        is_inside = any(outer == "" or name.startswith(f"{outer}.") for outer, _ in found)
        if name and type(module) in kinds and not is_inside:
            found.append((name, module))
    return found

"""The residual branches of another person's network: how they are read from its blocks, and how each one is run.

A branch is named in errors, handed those arguments that it takes, and held to the shape of its input.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from inspect import Parameter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from invertible._checks import describe, version
from invertible.errors import ConfigError, ContextError, DtypeError, ShapeError
from invertible.reversible import stranger

Pair = Callable[[Any], tuple[Callable[..., Any], Callable[..., Any]]]


class Branch(nn.Module):
    """A residual function x -> f(x) around a module, or around a function that uses a module's parts.

    Args:
        function: What computes the branch. Of the keyword arguments of a call it gets those that its signature names.
        name: What errors call it.
        block: The module whose parameters a plain function uses; None: `function` is a module itself.

    Raises:
        ShapeError: When called: if the output's shape is not the input's.
        DtypeError: When called: if the output is no tensor.
        ContextError: When called: if an argument that it needs is missing.
        ConfigError: When called: if it changes its input in place, or uses parameters that are not its block's.

    Example:
        >>> scale = Branch(lambda x, factor: factor * x, "'0'", nn.Identity())
        >>> scale(torch.ones(1, 2), {"factor": 3, "mask": None})
        tensor([[3., 3.]])
    """

    def __init__(self, function: Callable[..., Any], name: str, block: nn.Module | None = None) -> None:
        super().__init__()
        self.function, self.name = function, name
        self.block = None if isinstance(function, nn.Module) else block
        self.names, self.needs, self.takes_any = _read_signature(function)
        self._knows_its_parameters = False

    @property
    def takes_arguments(self) -> bool:
        """Whether it takes anything besides its input."""
        return self.takes_any or bool(self.names)

    def forward(self, x: Tensor, arguments: dict[str, Any] | None = None) -> Tensor:
        """Apply the branch.

        Args:
            x: Any shape.
            arguments: Keyword arguments of the whole network's call; those it does not name are left out.

        Returns:
            The change to be added to the other stream, shape of x.

        Raises:
            ConfigError: If it changes x.
        """
        given = {key: value for key, value in (arguments or {}).items() if self.takes_any or key in self.names}
        self._check_arguments(given)
        before = version(x)
        out = self._call(x, given)
        self._check_output(out, x)
        if version(x) != before:
            hint = "inplace=False in its first layers (ReLU), no x.mul_() on its input"
            raise ConfigError(f"{self.name} must leave its input alone", got="a change in place", hint=hint)
        self._check_parameters(out, [x, *tree_leaves(given)])
        return out

    def _call(self, x: Tensor, given: dict[str, Any]) -> Any:
        if torch.compiler.is_compiling():
            return self.function(x, **given)
        try:
            return self.function(x, **given)
        except Exception as error:
            error.add_note(f"This was {self.name}, on a tensor of {describe(x)}.")
            raise

    def _check_arguments(self, given: dict[str, Any]) -> None:
        missing = [name for name in self.needs if name not in given]
        if missing:
            call = ", ".join(f"{name}=..." for name in missing)
            hint = (
                f"net(x, {call}), or a function of x alone: pair=lambda block: (lambda x: block.attn(x, x, x)[0], ...)"
            )
            raise ContextError(f"{self.name} needs more than x", expected=call, got="nothing of that name", hint=hint)

    def _check_output(self, out: object, x: Tensor) -> None:
        if not isinstance(out, Tensor):
            hint = "return the tensor alone, e.g. pair=lambda block: (lambda x: block.attn(x, x, x)[0], block.mlp)"
            raise DtypeError(f"{self.name} returned no tensor", expected="one tensor", got=describe(out), hint=hint)
        if out.shape != x.shape:
            hint = "keep such layers outside of the reversible part; streams='split' needs branches of half the width"
            expected = f"shape {tuple(x.shape)}"
            raise ShapeError(f"{self.name} changes the shape", expected=expected, got=describe(out), hint=hint)

    def _check_parameters(self, out: Tensor, inputs: Iterable[object]) -> None:
        # A tensor that a function holds on to by itself is seen by no optimizer's state dict, moved by no .to(), and
        # gets no gradient where activations are reconstructed: worth one look at the graph.
        if self._knows_its_parameters or torch.compiler.is_compiling() or out.grad_fn is None:
            return
        known = list(self.parameters())
        if all(type(parameter) in (nn.Parameter, Tensor) for parameter in known):  # sharded ones stand in for others
            found = stranger([out], [*known, *(x for x in inputs if isinstance(x, Tensor))])
            if found is not None:
                hint = "register it in the block, or pass it as an argument: net(x, name=tensor)"
                expected = "parameters of its own block only"
                got = f"one of {describe(found)} from elsewhere"
                raise ConfigError(f"{self.name} uses a foreign parameter", expected=expected, got=got, hint=hint)
        self._knows_its_parameters = True


def _read_signature(function: Callable[..., Any]) -> tuple[frozenset[str], tuple[str, ...], bool]:
    """The arguments after the input: all names, those without a default, and whether any name will do."""  # noqa: DOC201
    try:
        signature = inspect.signature(function.forward if isinstance(function, nn.Module) else function)
    except ValueError:  # a builtin
        return frozenset(), (), False
    parameters = list(signature.parameters.values())[1:]
    takes_any = any(p.kind is Parameter.VAR_KEYWORD for p in signature.parameters.values())
    named = [p for p in parameters if p.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)]
    return frozenset(p.name for p in named), tuple(p.name for p in named if p.default is Parameter.empty), takes_any


def read_blocks(blocks: Iterable[Any], pair: Pair | None) -> list[tuple[str, nn.Module]]:
    """Read what `make_reversible` was given.

    Args:
        blocks: As the caller passed them.
        pair: As the caller passed it.

    Returns:
        Name and module of each block; a pair (f, g) becomes an `nn.ModuleList`.

    Raises:
        DtypeError: If they are no sequence of modules.
    """
    if isinstance(blocks, nn.Sequential | nn.ModuleList):
        named = children(blocks)
    elif isinstance(blocks, Iterable) and not isinstance(blocks, str | dict | nn.ModuleDict):
        named = [(str(i), block) for i, block in enumerate(blocks)]
    else:
        hint = "make_reversible(model.blocks), or a list of branches"
        expected = "an nn.Sequential or another iterable of modules"
        raise DtypeError("make_reversible takes a sequence", expected=expected, got=describe(blocks), hint=hint)
    read = [(name, _read_block(block, name, pair)) for name, block in named]
    _check_count([block for _, block in read], pair)
    return read


def _read_block(block: object, name: str, pair: Pair | None) -> nn.Module:
    if isinstance(block, tuple | list) and pair is None:
        if len(block) != 2:
            raise ConfigError(f"block {name!r} is no pair", expected="(f, g)", got=describe(block))
        return nn.ModuleList([_read_block(branch, f"{name}.{i}", pair) for i, branch in enumerate(block)])
    if not isinstance(block, nn.Module):
        hint = "wrap a function in a small nn.Module, or make functions from blocks with pair=lambda block: (f, g)"
        raise DtypeError(f"block {name!r} of make_reversible", expected="an nn.Module", got=describe(block), hint=hint)
    return block


def _check_count(blocks: list[nn.Module], pair: Pair | None) -> None:
    pairs = [isinstance(block, nn.ModuleList) and len(block) == 2 for block in blocks]
    if not blocks:
        raise ConfigError("make_reversible got nothing", expected="one pair of branches or more", got="none")
    if pair is None and any(isinstance(block, nn.ModuleList) for block in blocks) and not all(pairs):
        hint = "[(f, g), (f, g), ...] or [f, g, f, g, ...]"
        raise ConfigError("make_reversible got a mixture", expected="pairs only, or branches only", hint=hint)
    if pair is None and not any(pairs) and len(blocks) % 2:
        hint = "pair=lambda block: (block.attn, block.mlp) if each block holds both"
        expected = "an even number of branches: f, g, f, g, ..."
        raise ConfigError("make_reversible works on pairs", expected=expected, got=len(blocks), hint=hint)


def read_pair(pair: Pair, block: nn.Module, name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Make a block's two branches.

    Args:
        pair: The caller's function.
        block: What it is applied to.
        name: The block's name, for the message.

    Returns:
        f and g.

    Raises:
        ConfigError: If they are not two modules or functions, or have parameters that are not the block's.
    """
    both = pair(block)
    if not isinstance(both, tuple | list | nn.ModuleList) or len(both) != 2 or not all(map(callable, both)):
        got = describe(both)
        raise ConfigError(f"pair(block) for block {name!r}", expected="(f, g), two modules or functions", got=got)
    own = {id(parameter) for parameter in block.parameters()}
    for function in both:
        if isinstance(function, nn.Module) and any(id(p) not in own for p in function.parameters()):
            hint = "make modules in the block's __init__; pair only picks them"
            got = f"a {type(function).__name__} with others"
            raise ConfigError(f"pair(block) for block {name!r}", expected="the block's parameters", got=got, hint=hint)
    f, g = both
    return f, g


def children(parent: nn.Module | None) -> list[tuple[str, nn.Module]]:
    """Names and children of a module, shared ones every time (`named_children` gives them once).

    Args:
        parent: The module; None has none.

    Returns:
        Name and module of each.
    """
    return [] if parent is None else [(name, child) for name, child in parent._modules.items() if child is not None]

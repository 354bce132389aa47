"""Backpropagation through a chain of bijections of which only the output is kept.

Each member becomes one node of the autograd graph. A node keeps no activation: in the backward pass it gets its output
from the node after it, finds its input by running the member backwards, and in the same evaluation of the member's
network builds the small graph through which its own gradients flow. Parameters, inputs and contexts are inputs of the
node, so that hooks, `torch.autograd.grad`, DDP and the like see an ordinary graph.

Source: Gomez et al. 2017, algorithm 1.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from invertible import lattice
from invertible._checks import describe
from invertible._replay import Replay
from invertible._tape import Step, Tape, pack, unpack
from invertible.bijection import OPPOSITE, RUNNER, Bijection, Method, VolumePreserving
from invertible.errors import ConfigError
from invertible.streams import Split, State, Streams, convert

Memory = Literal["store", "checkpoint", "reconstruct"]

_TOLD: set[type] = set()


class _Repart(VolumePreserving):
    """Hand a state on from one split to another."""

    keeps_lattice = True

    def __init__(self, source: Split | None, target: Split | None) -> None:
        super().__init__()
        self.split_in, self.split_out = source, target

    def _forward(self, x: State, context: None) -> State:
        return convert(x, self.split_in, self.split_out)

    def _inverse(self, y: State, context: None) -> State:
        return convert(y, self.split_out, self.split_in)


@functools.lru_cache(maxsize=256)
def _repart(source: Split | None, target: Split | None) -> _Repart:
    return _Repart(source, target)


def hand_on(state: State, source: Split | None, target: Split | None) -> State:
    """As `streams.convert`, as a step of the tape where there is one.

    Args:
        state: A tensor or streams.
        source: How the map that made it leaves it parted.
        target: How the next one wants it.

    Returns:
        The state, merged and parted again if the two differ.
    """
    runner = None if torch.compiler.is_compiling() else RUNNER.get()
    if runner is None or source == target:
        return convert(state, source, target)
    return runner(_repart(source, target), "_forward", state, None)


class Saver:
    """Runs the members of a chain one by one, each as a node that keeps little.

    Args:
        root: The chain, for the names in messages.
        memory: "reconstruct": a member's input is found from its output. "checkpoint": it is kept.
        is_checked: Whether to keep a sample of each activation, and compare in the backward pass.
    """

    def __init__(self, root: Bijection, memory: Memory, is_checked: bool) -> None:
        self.root, self.memory, self.is_checked = root, memory, is_checked
        self.tape = Tape(root)

    def run(self, function: Callable[[State, Any], Any], state: State, context: Any, has_logdet: bool) -> Any:
        """Run the chain's loop over its members.

        Args:
            function: The loop.
            state: Its input.
            context: Its context.
            has_logdet: Whether it returns a log-determinant as well.

        Returns:
            What it returns; the state in it is the caller's own, to be changed in place if they like.
        """
        token = RUNNER.set(self)
        try:
            out = function(state, context)
        finally:
            RUNNER.reset(token)
        return (self._leave(out[0]), out[1]) if has_logdet else self._leave(out)

    def _leave(self, state: State) -> State:
        streams = unpack(state)
        if not self.tape.ends_with(streams):
            return state
        out = _Exit.apply(self.tape, *streams)
        return pack(cast(Streams, out), isinstance(state, Tensor))

    def __call__(self, bijection: Bijection, method: Method, state: State, context: Any) -> Any:
        """Run one member.

        Args:
            bijection: The member.
            method: Which hook.
            state: Its input.
            context: Its context.

        Returns:
            What the hook returns.
        """
        token = RUNNER.set(None)
        try:
            return self._node(bijection, method, state, context)
        finally:
            RUNNER.reset(token)

    def _node(self, bijection: Bijection, method: Method, state: State, context: Any) -> Any:
        streams, (tensors, rebuild) = unpack(state), _flatten(context)
        replay = Replay(bijection)
        inputs = [*streams, *tensors, *replay.parameters]
        if not any(t.requires_grad for t in inputs):
            return getattr(bijection, method)(state, context)
        if not self.tape.ends_with(streams) or (self.tape.is_exact and not bijection.keeps_lattice):
            self.tape = Tape(self.root)
        step = Step(self.tape, bijection, method, replay, tensors, rebuild, isinstance(state, Tensor))
        step.keeps_input = self.memory == "checkpoint" or not _can_reconstruct(bijection)
        step.take_sample(streams if self.is_checked and not step.keeps_input else ())
        out = cast(Streams, _Node.apply(step, len(streams), *inputs))
        n = len(out) - step.has_logdet
        state = pack(out[:n], step.gives_tensor)
        return (state, out[n]) if step.has_logdet else state


def can_save(root: Bijection, state: State, context: Any) -> bool:
    """Tell whether there will be a backward pass of the kind that a node can serve.

    Args:
        root: The chain.
        state: Its input.
        context: Its context.

    Returns:
        False without gradients, inside a chain that saves already, while compiling, and under `torch.func`.
    """
    if not torch.is_grad_enabled() or RUNNER.get() is not None:
        return False
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False
    tensors = [*unpack(state), *_flatten(context)[0]]
    if any(t.is_meta for t in tensors):  # nothing is stored either
        return False
    return any(t.requires_grad for t in tensors) or any(p.requires_grad for p in root.parameters())


def _can_reconstruct(bijection: Bijection) -> bool:
    if not bijection.has_closed_inverse and type(bijection) not in _TOLD:
        _TOLD.add(type(bijection))
        text = f"{type(bijection).__name__} has no exact inverse: its input is kept for the backward pass"
        warnings.warn(text, stacklevel=2)
    return bijection.has_closed_inverse


def _flatten(context: Any) -> tuple[list[Tensor], Callable[[list[Tensor]], Any]]:
    if context is None:
        return [], lambda tensors: None
    leaves, spec = pytree.tree_flatten(context)
    places = [i for i, value in enumerate(leaves) if isinstance(value, Tensor)]

    def rebuild(tensors: list[Tensor]) -> Any:
        values = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            values[place] = tensor
        return pytree.tree_unflatten(values, spec)

    return [leaves[i] for i in places], rebuild


class _Exit(torch.autograd.Function):
    """Gives the caller an output of their own, and the backward pass the one that the tape keeps."""

    @staticmethod
    def forward(ctx: Any, tape: Tape, *streams: Tensor) -> tuple[Tensor, ...]:
        ctx.tape = tape
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*streams)
        return tuple(t.clone() for t in streams)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.tape.connect(ctx.saved_tensors)
        return (None, *grads)


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, step: Step, n_streams: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.step, ctx.tape, ctx.n_streams = step, step.tape, n_streams
        ctx.set_materialize_grads(False)
        streams = tensors[:n_streams]
        with step.replay.first([*streams, *step.context]):
            out = step.run(streams, step.context)
        out, extra = (out[0], (out[1],)) if step.has_logdet else (out, ())
        step.gives_tensor = isinstance(out, Tensor)
        if step.keeps_input:
            ctx.save_for_backward(*streams)
        step.tape.push(step, streams, unpack(out))
        return (*unpack(out), *extra)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        step, needs = cast(Step, ctx.step), ctx.needs_input_grad[2:]
        step.check_versions()
        pull = _pull_twice if torch.is_grad_enabled() else _pull
        x, found = pull(step, ctx, needs, grads)
        step.tape.arrive(step, x)
        return (None, None, *found)


def _pull(step: Step, ctx: Any, needs: tuple[bool, ...], grads: tuple[Tensor | None, ...]) -> tuple[Streams, list]:
    n, m = ctx.n_streams, len(step.context)
    context, parameters = _leaves(step.context, needs[n : n + m]), _leaves(step.replay.parameters, needs[n + m :])

    def leaf(t: Tensor, i: int) -> Tensor:
        return t.detach().requires_grad_(needs[i])

    kept = ctx.saved_tensors if step.keeps_input else None
    out = None if step.keeps_input else pack(step.tape.output_of(step), step.gives_tensor)
    with step.replay.again(parameters), torch.enable_grad(), lattice.trusted():
        if kept is not None:
            x = tuple(map(leaf, kept, range(n)))
            roots = _roots(step, step.run(x, context))
        else:
            x, again, logdet = step.map._rerun(step.method, cast(State, out), step.rebuild(context), leaf)
            x, roots = unpack(x), [*unpack(again), *([] if logdet is None else [logdet])]
    del out
    step.compare_sample(x)
    _check_closed(step, roots, [*x, *context, *parameters])
    plain = tuple(t.detach() for t in x)
    return plain, _gradients(roots, [*x, *context, *parameters], grads, needs)


def _pull_twice(
    step: Step, ctx: Any, needs: tuple[bool, ...], grads: tuple[Tensor | None, ...]
) -> tuple[Streams, list]:
    # As `_pull`, but everything is a function of the output and the parameters that can be differentiated again.
    parameters, context = step.replay.parameters, step.context
    if step.keeps_input:
        x = ctx.saved_tensors
    else:
        out = pack(step.tape.output_of(step), step.gives_tensor)
        with step.replay.again(parameters, use_statistics=False), lattice.trusted():
            x = unpack(getattr(step.map, OPPOSITE[step.method])(out, step.rebuild(context)))
        step.compare_sample(x)
    inputs = [t.view_as(t) if need else t for t, need in zip([*x, *context, *parameters], needs, strict=True)]
    n, m = len(x), len(context)
    with step.replay.again(inputs[n + m :], use_statistics=False), lattice.trusted():
        roots = _roots(step, step.run(tuple(inputs[:n]), inputs[n : n + m]))
    _check_closed(step, roots, inputs)
    return x, _gradients(roots, inputs, grads, needs, create_graph=True)


def _roots(step: Step, result: Any) -> list[Tensor]:
    state, extra = (result[0], [result[1]]) if step.has_logdet else (result, [])
    return [*unpack(state), *extra]


def _gradients(
    roots: list[Tensor],
    inputs: list[Tensor],
    grads: tuple[Tensor | None, ...],
    needs: tuple[bool, ...],
    create_graph: bool = False,
) -> list[Tensor | None]:
    pairs = [(r, g) for r, g in zip(roots, grads, strict=True) if g is not None and r.requires_grad]
    wanted = [t for t, need in zip(inputs, needs, strict=True) if need]
    roots.clear()
    if not pairs or not wanted:
        return [None] * len(needs)
    outputs, given = [r for r, _ in pairs], [g for _, g in pairs]
    del pairs
    found = iter(torch.autograd.grad(outputs, wanted, given, allow_unused=True, create_graph=create_graph))
    return [next(found) if need else None for need in needs]


def _leaves(tensors: list[Tensor], needs: tuple[bool, ...]) -> list[Tensor]:
    return [t.detach().requires_grad_(need) for t, need in zip(tensors, needs, strict=True)]


def _check_closed(step: Step, roots: list[Tensor], leaves: list[Tensor]) -> None:
    # A tensor that its network takes from elsewhere would get no gradient.
    found = stranger(roots, leaves)
    if found is not None:
        raise ConfigError(
            f"{step.name()} ({type(step.map).__name__}) uses a tensor that would get no gradient",
            expected="tensors that require one as parameters, inputs or contexts",
            got=f"another one of {describe(found)}",
            hint="register it as a parameter, pass it as context=... (a tensor, or a list, tuple or dictionary of"
            " tensors), or memory='store'",
        )


def stranger(outputs: list[Tensor], known: list[Tensor]) -> Tensor | None:
    """Look in a graph for a leaf that one does not know of.

    Args:
        outputs: Where the graph ends.
        known: Tensors in it; what is upstream of them is not looked at.

    Returns:
        A leaf that requires a gradient and is none of these, or None.
    """
    leaves, seen = {id(t) for t in known}, {t.grad_fn for t in known}
    nodes = [t.grad_fn for t in outputs]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor) and id(variable) not in leaves:
            return variable
        nodes += [following for following, _ in node.next_functions]
    return None

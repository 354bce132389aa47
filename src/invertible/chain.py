"""`Chain`: bijections one after the other, in as much memory as you like and as exact as you like.

Between two members that part their tensors alike the streams are handed on as they are, a tuple of tensors, so that
nothing is concatenated and split again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, cast, get_args, overload

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from invertible._checks import can_look, describe
from invertible._receipts import Receipts
from invertible.bijection import RUNNER, Bijection, Inverse, Method, zero_logdet
from invertible.errors import ConfigError, ContextError, DtypeError
from invertible.lattice import Lattice, session
from invertible.reversible import Memory, Saver, can_save, hand_on
from invertible.streams import Split, State, check_logdet, first_stream


def _call(method: Callable[..., State], state: State, target: Split | None, context: Any) -> State:
    # The output shall come parted as the member leaves it. A tensor would come back as a tensor, so a whole state on
    # its way into streams goes in as a tuple of one.
    if isinstance(state, tuple) or target is not None:
        streams = method(state if isinstance(state, tuple) else (state,), context)
        return streams if target is not None else streams[0]
    return method(state, context)


class Each:
    """A context of its own for each member of a chain.

    Args:
        *contexts: One per member, None for those that take none. They may be tensors, with gradients, or anything.

    Example:
        >>> from torch import nn
        >>> from invertible.layers import AdditiveCoupling
        >>> chain = Chain(*(AdditiveCoupling(nn.Bilinear(2, 3, 2), takes_context=True) for _ in range(2)))
        >>> chain(torch.ones(5, 4), Each(torch.ones(5, 3), torch.zeros(5, 3))).shape
        torch.Size([5, 4])
    """

    def __init__(self, *contexts: Any) -> None:
        self.contexts = contexts


def context_of(context: Any, member: Bijection, index: int, n_members: int) -> Any:
    """What one member of a chain gets of the chain's context.

    Args:
        context: The chain's: None, any value, or an `Each`.
        member: The member.
        index: Its place.
        n_members: How many there are.

    Returns:
        Its own part of an `Each`; else the context if it takes one, None if it does not.

    Raises:
        ContextError: If an `Each` has another number of contexts.
    """
    if isinstance(context, Each):
        if len(context.contexts) != n_members:
            got = f"{len(context.contexts)} for {n_members} members"
            raise ContextError("Each has the wrong number of contexts", expected="one per member", got=got)
        return context.contexts[index]
    return context if member.takes_context else None


def _put_on_lattice(chain: Bijection, lattice: Lattice) -> None:
    everyone = list(_within(chain))
    for bijection in everyone:
        if not bijection._is_container and not bijection.keeps_lattice:
            hint = "additive couplings, Squeeze, Permute, InjectivePad and i-RevNet blocks are"
            raise ConfigError("a member cannot be exact", expected="a sum", got=type(bijection).__name__, hint=hint)
        if bijection.lattice not in (None, lattice):
            got = f"one on a lattice of 2^-{bijection.lattice.k}"
            hint = "the same resolution in every chain that shares a member, or copy.deepcopy(member)"
            raise ConfigError("a member lies on another lattice", expected=f"2^-{lattice.k}", got=got, hint=hint)
    for bijection in everyone:
        bijection.lattice = lattice


def _within(bijection: Bijection) -> Iterator[Bijection]:
    yield bijection
    for member in bijection.children() if bijection._is_container else ():
        yield from _within(cast(Bijection, member))


def _check_lattice(chain: Chain) -> None:
    # At every call: members can be added later, or be put on a lattice by another chain.
    for i, member in enumerate(chain):
        leaf = member.bijection if isinstance(member, Inverse) else member
        if leaf.lattice == chain.lattice or (chain.lattice is None and cast(Bijection, leaf)._is_container):
            continue
        if chain.lattice is None:
            hint = "exact=True here too, copy.deepcopy(member) before, or the exact chain itself as the member"
            got = f"member {i}, which an exact chain has put on its lattice"
            raise ConfigError("members of an exact chain in one that is not", got=got, hint=hint)
        hint = "Chain(*chain, new_member, exact=True)"
        got = f"member {i}, added later"
        raise ConfigError("an exact chain has a member that is not on its lattice", got=got, hint=hint)


def _on_lattice(state: State, lattice: Lattice) -> State:
    return tuple(map(lattice.quantise, state)) if isinstance(state, tuple) else lattice.quantise(state)


_HOOK: dict[Method, Callable[[Bijection, State, Any], Any]] = {
    "_forward": lambda member, state, context: member._forward(state, context),
    "_inverse": lambda member, state, context: member._inverse(state, context),
    "_forward_with_logdet": lambda member, state, context: member._forward_with_logdet(state, context),
    "_inverse_with_logdet": lambda member, state, context: member._inverse_with_logdet(state, context),
}


def _checkpointed(method: Method) -> Callable[[Bijection, State, Any], Any]:
    hook = _HOOK[method]
    return lambda member, state, context: checkpoint(hook, member, state, context, use_reentrant=False)


def _total(logdets: list[Tensor], state: State) -> Tensor:
    if not logdets:
        return zero_logdet(state)
    if len(logdets) > 2 and len({logdet.dtype for logdet in logdets}) == 1:
        return torch.stack(logdets).sum(0)  # one node of the graph instead of many
    return functools.reduce(torch.add, logdets)


class Chain(Bijection):
    """Bijections one after the other, first argument first. Its state-dict keys are those of `nn.Sequential`.

    A context is handed to those members that take one; `Each` gives each member its own. Chains nest, slice
    (`chain[2:5]`), index and iterate.

    **Memory.** With `memory="store"` autograd keeps what each member computes, and memory grows with depth. With
    "reconstruct" only the chain's output is kept; the backward pass finds the activations again by running the members
    backwards, for a third more arithmetic, and memory does not grow. "checkpoint" keeps each member's input, for
    members whose inverse is not accurate enough. Gradients are those of "store" up to rounding. Members without a
    closed inverse (`has_closed_inverse` False) are checkpointed by themselves. Without gradients the modes do not
    differ. The outermost chain's mode counts. Forward hooks inside a member run again in the backward pass, as with
    `torch.utils.checkpoint`. Under `torch.compile` the members are checkpointed, under `torch.func` stored.

    **Exactness.** With `exact=True` all streams are multiples of 2^-18 (`exact=k`: of 2^-k), and the inverse gives
    back the input, moved to that lattice, to the last bit. It needs additive members, and the same circumstances both
    ways: train or eval mode, batch, device, number of threads, autocast. The chain remembers fingerprints of its last
    256 calls; an inverse that gives other bits than went in raises. See `lattice`.

    Log-determinants of the members add up. The exception is a chain that pads and then bends: log det(J^T J) / 2 of an
    injective map followed by one that does not keep distances is no sum, and asking for it raises.

    Args:
        *bijections: The members.
        memory: "store", "checkpoint" or "reconstruct"; `chain.memory = ...` changes it.
        exact: Whether to compute on a lattice, or its resolution k.
        check_every: In how many training steps one compares samples of the reconstructed activations with the true
            ones; the first step does. None: never.

    Raises:
        DtypeError: If a member is no `Bijection`. In exact mode, when called: if the input is not float32 or float64.
        ConfigError: If an option is unknown, or a member cannot be exact. From the methods with log-determinant: if an
            injective member is followed by one that is not isometric.
        RangeError: In exact mode, when called: if a value leaves the range in which sums are exact.
        ReconstructionError: From `backward`: if an activation came back so wrong that gradients are of no use. In exact
            mode from `inverse`: if other bits come back than a call before had put in.

    Source: Gomez et al. 2017 (reconstruction); Maclaurin et al. 2015 (fixed point).

    Example:
        >>> from torch import nn
        >>> from invertible.layers import AdditiveCoupling, Permute
        >>> members = AdditiveCoupling(nn.Linear(2, 2)), Permute([3, 2, 1, 0]), AdditiveCoupling(nn.Linear(2, 2))
        >>> chain = Chain(*members, memory="reconstruct", exact=True)
        >>> x = torch.randn(5, 4)
        >>> y = chain(x)
        >>> y.sum().backward()
        >>> torch.equal(chain.inverse(y), chain.lattice.quantise(x))
        True
    """

    _is_container = True

    def __init__(
        self,
        *bijections: Bijection,
        memory: Memory = "store",
        exact: bool | int | Lattice = False,
        check_every: int | None = 100,
    ) -> None:
        super().__init__()
        for i, bijection in enumerate(bijections):
            if not isinstance(bijection, Bijection):
                hint = "wrap a network in a coupling, e.g. AdditiveCoupling(network); unpack lists: Chain(*members)"
                raise DtypeError(f"member {i} of a Chain", expected="a Bijection", got=describe(bijection), hint=hint)
            self.add_module(str(i), bijection)
        self.takes_context = any(b.takes_context for b in bijections)
        self.is_onto, self.is_total = all(b.is_onto for b in bijections), all(b.is_total for b in bijections)
        self.is_isometric, self.has_closed_inverse = (
            all(getattr(b, k) for b in bijections) for k in ("is_isometric", "has_closed_inverse")
        )
        self.keeps_lattice = all(b.keeps_lattice for b in bijections)
        if bijections:
            self.split_in, self.split_out = bijections[0].split_in, bijections[-1].split_out
        self.memory, self.check_every = memory, check_every
        self._n_saved, self._has_begun = 0, False
        self._receipts = Receipts()
        if exact is not False:
            _put_on_lattice(
                self, exact if isinstance(exact, Lattice) else Lattice() if exact is True else Lattice(exact)
            )

    @property
    def memory(self) -> Memory:
        """What a training step keeps: "store", "checkpoint" or "reconstruct"."""
        return self._memory

    @memory.setter
    def memory(self, value: Memory) -> None:
        if value not in get_args(Memory):
            raise ConfigError("a Chain has a bad memory", expected=", ".join(get_args(Memory)), got=repr(value))
        self._memory: Memory = value

    @property
    def check_every(self) -> int | None:
        """In how many training steps one is checked; None: never."""
        return self._check_every

    @check_every.setter
    def check_every(self, value: int | None) -> None:
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigError("a Chain has a bad check_every", expected="a whole number >= 1, or None", got=repr(value))
        self._check_every = value

    def _forward(self, x: State, context: Any) -> State:
        return self._go(self._forward_all, x, context, has_logdet=False)

    def _inverse(self, y: State, context: Any) -> State:
        return self._go(self._inverse_all, y, context, has_logdet=False)

    def _forward_with_logdet(self, x: State, context: Any) -> tuple[State, Tensor]:
        self._check_volume()
        return self._go(self._forward_all_with_logdet, x, context, has_logdet=True)

    def _inverse_with_logdet(self, y: State, context: Any) -> tuple[State, Tensor]:
        self._check_volume()
        return self._go(self._inverse_all_with_logdet, y, context, has_logdet=True)

    def _go(self, loop: Callable[[State, Any], Any], state: State, context: Any, has_logdet: bool) -> Any:
        _check_lattice(self)
        if self.lattice is None:
            return self._save(loop, state, context, has_logdet)
        if torch.compiler.is_compiling():  # each sum looks after itself
            return self._save(loop, _on_lattice(state, self.lattice), context, has_logdet)
        with session("an exact chain") as is_outermost:
            state = _on_lattice(state, self.lattice) if is_outermost else state
            out = self._save(loop, state, context, has_logdet)
        if is_outermost and can_look(state):
            result = out[0] if has_logdet else out
            is_forward = loop in (self._forward_all, self._forward_all_with_logdet)
            (self._receipts.write if is_forward else self._receipts.check)(self, state, result)
        return out

    def _save(self, loop: Callable[[State, Any], Any], state: State, context: Any, has_logdet: bool) -> Any:
        if self.memory == "store" or torch.compiler.is_compiling() or not can_save(self, state, context):
            return loop(state, context)
        if self.training and loop in (self._forward_all, self._forward_all_with_logdet):
            self._initialise(loop, state, context)
        is_checked = self.check_every is not None and self._n_saved % self.check_every == 0
        self._n_saved += 1
        return Saver(self, self.memory, is_checked).run(loop, state, context, has_logdet)

    def _initialise(self, loop: Callable[[State, Any], Any], state: State, context: Any) -> None:
        # Members that set their parameters from the first batch do so before anything is saved for a gradient.
        if self._has_begun or all(part.is_initialised for part in self.modules() if isinstance(part, Bijection)):
            return
        with torch.no_grad():
            loop(state, context)
        self._has_begun = first_stream(state).numel() > 0  # what is inverted never will be initialised

    def _caller(self, method: Method) -> Callable[[Bijection, State, Any], Any]:
        # How to run a member. Chosen once a call: small networks feel every microsecond between their members.
        if torch.compiler.is_compiling():
            return (
                _checkpointed(method) if self.memory != "store" and not torch.compiler.is_exporting() else _HOOK[method]
            )
        return _HOOK[method] if RUNNER.get() is None else lambda member, state, own: member._run(method, state, own)

    def _forward_all(self, x: State, context: Any) -> State:
        split, call, n = self.split_in, self._caller("_forward"), len(self._modules)
        for i, member in enumerate(self):
            x = x if split is member.split_in else hand_on(x, split, member.split_in)
            own = None if context is None else context_of(context, member, i, n)
            is_heard = member._forward_hooks or member._forward_pre_hooks
            x = _call(member, x, member.split_out, own) if is_heard else call(member, x, own)
            split = member.split_out
        return x

    def _inverse_all(self, y: State, context: Any) -> State:
        split, call, n = self.split_out, self._caller("_inverse"), len(self._modules)
        for i, member in reversed(list(enumerate(self))):
            y = y if split is member.split_out else hand_on(y, split, member.split_out)
            own = None if context is None else context_of(context, member, i, n)
            y = call(member, y, own)
            split = member.split_in
        return y

    def _forward_all_with_logdet(self, x: State, context: Any) -> tuple[State, Tensor]:
        split, call, n, logdets = self.split_in, self._caller("_forward_with_logdet"), len(self._modules), []
        for i, member in enumerate(self):
            x = x if split is member.split_in else hand_on(x, split, member.split_in)
            own = None if context is None else context_of(context, member, i, n)
            x, logdet = call(member, x, own)
            check_logdet(logdet, x, member)
            split = member.split_out
            logdets.append(logdet)
        return x, _total(logdets, x)

    def _inverse_all_with_logdet(self, y: State, context: Any) -> tuple[State, Tensor]:
        split, call, n, logdets = self.split_out, self._caller("_inverse_with_logdet"), len(self._modules), []
        for i, member in reversed(list(enumerate(self))):
            y = y if split is member.split_out else hand_on(y, split, member.split_out)
            own = None if context is None else context_of(context, member, i, n)
            y, logdet = call(member, y, own)
            check_logdet(logdet, y, member)
            split = member.split_in
            logdets.append(logdet)
        return y, _total(logdets, y)

    def _check_volume(self) -> None:
        members = list(self)
        if all(member.is_onto and member.is_total for member in members):
            return
        padded = next((i for i, member in enumerate(members) if not member.is_onto), len(members))
        cut = next((i for i in reversed(range(len(members))) if not members[i].is_total), 0)
        for i, member in enumerate(members):
            if (i > padded or i < cut) and not member.is_isometric:
                name = type(members[padded if i > padded else cut]).__name__
                where = "after" if i > padded else "before"
                hint = "a bijective network (no padding), or forward and inverse without log-determinant"
                expected, got = f"only permutations and the like {where} {name}", f"{type(member).__name__} {where} it"
                raise ConfigError("this chain's log-determinant is no sum", expected=expected, got=got, hint=hint)

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Bijection]:
        return iter(cast("dict[str, Bijection]", self._modules).values())

    @overload
    def __getitem__(self, index: int) -> Bijection: ...
    @overload
    def __getitem__(self, index: slice) -> Chain: ...
    def __getitem__(self, index: int | slice) -> Bijection:
        members = list(self)[index]
        if not isinstance(members, list):
            return members
        return Chain(*members, memory=self.memory, exact=self.lattice or False, check_every=self.check_every)

    def extra_repr(self) -> str:
        """What `print(module)` shows.

        Returns:
            The options that are not the default.
        """
        parts = [f"memory={self.memory!r}"] * (self.memory != "store")
        return ", ".join(parts + ([f"exact={self.lattice.k}"] if self.lattice is not None else []))

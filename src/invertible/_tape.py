"""What a reconstructing chain remembers from its forward pass, and where its backward pass stands."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from invertible import lattice
from invertible._checks import version
from invertible._replay import Replay
from invertible.bijection import OPPOSITE, Bijection, Method
from invertible.errors import ConfigError, NonFiniteError, ReconstructionError
from invertible.streams import State, Streams

TOLERANCE = 1e-2
"""Largest error of a reconstructed activation, relative to its root mean square, with which gradients are of use."""
_N_SAMPLED = 256


def unpack(state: State) -> Streams:
    """A state as a tuple.

    Args:
        state: A tensor or streams.

    Returns:
        The streams, or a tuple of one.
    """
    return state if isinstance(state, tuple) else (state,)


def pack(streams: Streams, is_tensor: bool) -> State:
    """Undo `unpack`.

    Args:
        streams: The tuple.
        is_tensor: Whether it was a tensor.

    Returns:
        The state.
    """
    return streams[0] if is_tensor else streams


class Step:
    """One member's run: what is needed to take it back.

    Args:
        tape: Where it belongs.
        map: The member.
        method: Which of its hooks ran.
        replay: How to run it again.
        context: The tensors in its context.
        rebuild: Makes a context of such tensors.
        takes_tensor: Whether its input is a tensor, not a tuple.

    Attributes:
        gives_tensor: Whether its output is.
        keeps_input: Whether the node keeps its input instead of reconstructing it.
        index: Its place on the tape.
    """

    __slots__ = (
        "_tape", "context", "gives_tensor", "index", "keeps_input", "map", "method", "rebuild", "replay", "sample",
        "stored", "takes_tensor", "versions",
    )  # fmt: skip

    def __init__(
        self,
        tape: Tape,
        map: Bijection,
        method: Method,
        replay: Replay,
        context: list[Tensor],
        rebuild: Callable[[list[Tensor]], Any],
        takes_tensor: bool,
    ) -> None:
        self.method: Method = method
        self._tape, self.map, self.replay = weakref.ref(tape), map, replay
        self.context, self.rebuild, self.takes_tensor = context, rebuild, takes_tensor
        self.versions = [version(t) for t in (*replay.parameters, *context)]
        self.gives_tensor, self.keeps_input, self.index = False, False, -1
        self.sample: list[Tensor] = []
        self.stored: Streams | None = None

    @property
    def tape(self) -> Tape:
        """Where it belongs; the autograd node keeps it alive, so that no cycle keeps activations alive."""
        return cast(Tape, self._tape())

    @property
    def has_logdet(self) -> bool:
        """Whether the hook returns a log-determinant as well."""
        return self.method.endswith("logdet")

    def run(self, streams: Streams, context: list[Tensor]) -> Any:
        """Run the hook.

        Args:
            streams: Its input.
            context: The tensors of its context.

        Returns:
            What it returns.
        """
        return getattr(self.map, self.method)(pack(streams, self.takes_tensor), self.rebuild(context))

    def undo(self, streams: Streams) -> Streams:
        """Find the input, without gradients.

        Args:
            streams: The output.

        Returns:
            The input.
        """
        if self.stored is not None:
            return self.stored
        with torch.no_grad(), self.replay.again(self.replay.parameters), lattice.trusted():
            out = pack(streams, self.gives_tensor)
            return unpack(getattr(self.map, OPPOSITE[self.method])(out, self.rebuild(self.context)))

    def name(self) -> str:
        """Where the member is in the chain.

        Returns:
            "block " and its dotted name.
        """
        names = (name for name, module in self.tape.root.named_modules() if module is self.map)
        return f"block {next(names, '?')}"

    def check_versions(self) -> None:
        """Refuse to differentiate with other weights than those of the forward pass.

        Raises:
            RuntimeError: If one was changed in place.
        """
        if [version(t) for t in (*self.replay.parameters, *self.context)] != self.versions:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: a"
                f" parameter or context of {self.name()}. Call backward before the optimizer's step."
            )

    def take_sample(self, streams: Streams) -> None:
        """Keep a few values of the input.

        Args:
            streams: The input; none to keep nothing.
        """
        self.sample = [_sampled(t) for t in streams]

    def compare_sample(self, streams: Streams) -> None:
        """Hold the reconstructed input against the sample.

        Args:
            streams: What was reconstructed.

        Raises:
            ReconstructionError: If they differ by too much.
            NonFiniteError: If the forward pass already had NaN or infinity there.
        """
        if not sum(kept.numel() for kept in self.sample):
            return
        if not all(bool(torch.isfinite(kept).all()) for kept in self.sample):
            where = f"{self.name()} ({type(self.map).__name__})"
            hint = "find where it comes from: the input, the learning rate, a half-precision overflow"
            raise NonFiniteError(f"the input of {where} was not finite", got="NaN or infinity", hint=hint)
        pairs = [(kept.double(), _sampled(t).double()) for kept, t in zip(self.sample, streams, strict=True)]
        if not self.replay.has_batch_statistics:  # which would amplify what rounding leaves in zeros
            pairs = [(torch.cat([kept for kept, _ in pairs]), torch.cat([t for _, t in pairs]))]
        error = max((t - kept).abs().max().item() / max(kept.square().mean().sqrt().item(), 1e-30) for kept, t in pairs)
        tolerance = TOLERANCE if self.map.lattice is None else 0.0
        if not error <= tolerance:
            raise ReconstructionError(
                f"gradients can no longer be trusted: the input of {self.name()} ({type(self.map).__name__})"
                " came back wrong",
                expected=f"an error of at most {tolerance:g} of its root mean square",
                got=f"{error:.3g}",
                hint="exact=True (with float32 streams), float64, or memory='checkpoint';"
                " instruments.reversibility(chain, x) tells where and why it breaks",
            )


def _sampled(t: Tensor) -> Tensor:
    flat = t.detach().flatten()
    return flat[:: max(1, flat.numel() // _N_SAMPLED) | 1].clone()  # an odd stride visits all channels


class Tape:
    """A stretch of steps of which only the last output is kept.

    Args:
        root: The chain.

    Attributes:
        is_exact: Whether a step lies on a lattice: its output must come back to the bit, no rounding may follow.
    """

    def __init__(self, root: Bijection) -> None:
        self.root, self.steps = root, list[Step]()
        self.is_exact = False
        self._end: Streams | None = None  # the last output, without graph; None once a backward pass has used it up
        self._end_versions: list[int] = []
        self._connected: Streams | None = None  # the same with its graph, for second derivatives
        self._task, self._position = -1, -1  # which backward pass is on, and how many steps lie before `_state`
        self._state: Streams | None = None

    def push(self, step: Step, streams: Streams, out: Streams) -> None:
        """Append a step.

        Args:
            step: What ran.
            streams: Its input.
            out: Its output.
        """
        step.index = len(self.steps)
        self.steps.append(step)
        self.is_exact |= step.map.lattice is not None
        if step.keeps_input:
            step.stored = tuple(t.detach() for t in streams)
        self._end, self._end_versions = tuple(t.detach() for t in out), [version(t) for t in out]

    def ends_with(self, streams: Streams) -> bool:
        """Tell whether a state is the last output, untouched.

        Args:
            streams: What goes into the next step.

        Returns:
            True if the next step belongs on this tape.
        """
        end = self._end or ()
        same = len(end) == len(streams) and all(map(_is_same, end, streams))
        return same and [version(t) for t in streams] == self._end_versions

    def connect(self, streams: Streams) -> None:
        """Begin a backward pass at the end.

        Args:
            streams: The last output with its graph.
        """
        if torch.is_grad_enabled():
            self._begin()
            self._connected = streams

    def output_of(self, step: Step) -> Streams:
        """The output of a step, in the backward pass.

        Args:
            step: Which.

        Returns:
            Its streams; with a graph if the pass creates one.
        """
        self._begin()
        if self._state is None or self._position <= step.index:
            self._rewind()
        while self._position > step.index + 1:  # steps that this pass needs no gradients of
            self._position -= 1
            self._state = self.steps[self._position].undo(self._state or ())
        state, self._state = self._state, None
        return state or ()

    def arrive(self, step: Step, streams: Streams) -> None:
        """Go on before a step.

        Args:
            step: The one that was taken back.
            streams: Its input.
        """
        self._begin()
        is_done = step.index == 0
        self._position, self._state = step.index, None if is_done else streams
        if _keeps_graph():
            return
        step.stored = None
        if is_done:
            self._end = None

    def _begin(self) -> None:
        task = torch._C._current_graph_task_id()
        if task != self._task:
            self._task, self._position, self._state = task, -1, None
            torch.autograd.Variable._execution_engine.queue_callback(self._forget)

    def _forget(self) -> None:
        self._task, self._position, self._state, self._connected = -1, -1, None, None

    def _rewind(self) -> None:
        if self._end is None:
            raise RuntimeError(
                "Trying to backward through the graph a second time: this reconstructing chain has freed its output."
                " Specify retain_graph=True in the first backward."
            )
        if [version(t) for t in self._end] != self._end_versions:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: an"
                " activation inside a reconstructing chain (by a hook?)"
            )
        if torch.is_grad_enabled() and self._connected is None:
            raise ConfigError(
                "no second derivative from an activation inside a reconstructing chain",
                hint="chain.memory = 'store', or take the derivative from the chain's output",
            )
        self._position, self._state = len(self.steps), self._connected or self._end
        if not _keeps_graph():
            self._end = None


def _is_same(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.storage_offset() != b.storage_offset():
        return False
    strides = zip(a.shape, a.stride(), b.stride(), strict=True)  # those of single elements mean nothing
    return all(n == 1 or i == j for n, i, j in strides) and a.untyped_storage()._cdata == b.untyped_storage()._cdata


def _keeps_graph() -> bool:
    return torch._C._autograd._get_current_graph_task_keep_graph()  # type: ignore[attr-defined]

"""What rounding does to a reconstruction: measured in a dtype, and predicted from each block by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from invertible._checks import check_finite
from invertible.bijection import Bijection
from invertible.errors import InvertibleError
from invertible.instruments._blocks import Drift
from invertible.instruments._copies import cast_floats, copy_of
from invertible.instruments._flat import flatten
from invertible.instruments._lipschitz import Linearised
from invertible.instruments._steps import quantise, steps_of
from invertible.streams import Streams

NAN, INF = math.nan, math.inf


class Run:
    """A copy of the chain in one dtype: forward through all blocks, then back block by block.

    Args:
        chain: The bijection; it is left alone.
        x: Its input, of any dtype.
        context: Its context.
        dtype: What to compute in.

    Attributes:
        steps: Of the copy.
        activations: Before each block and after the last, as far as the forward pass came.
        errors: What went wrong where: a verb and the error, by the number of the step.
    """

    def __init__(self, chain: Bijection, x: Tensor, context: Any, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.steps = steps_of(copy_of(chain).to(dtype), cast_floats(context, dtype))
        self.activations: list[Streams] = []
        self.errors: dict[int, tuple[str, InvertibleError]] = {}
        self._back: Streams | None = None
        self._enter(x.detach().clone().to(dtype))

    @torch.no_grad()
    def _enter(self, x: Tensor) -> None:
        state = self._attempt(0, "forward", lambda streams: self._first(streams[0]), (x,))
        for k, step in enumerate(self.steps):
            if state is None:
                return
            self.activations.append(state)
            state = self._attempt(k, "forward", step.forward, state)
        if state is not None:
            self.activations.append(state)
            self._back = state

    def _first(self, x: Tensor) -> Streams:
        if not self.steps:
            return (x,)
        split, lattice = self.steps[0].split, self.steps[0].lattice
        streams = split.part(x) if split else (x,)
        return quantise(streams, lattice) if lattice is not None else streams

    def _attempt(self, k: int, verb: str, function: Callable[[Streams], Streams], state: Streams) -> Streams | None:
        try:
            out = function(state)
            for stream in out:
                check_finite(stream, f"the result in {str(self.dtype).removeprefix('torch.')}")
        except InvertibleError as error:
            self.errors.setdefault(k, (verb, error))
            return None
        except (RuntimeError, TypeError) as error:
            error.add_note(f"While block {self.steps[k].name!r} ran in {self.dtype}; dtypes=... leaves that out.")
            raise
        return out

    @torch.no_grad()
    def back(self, k: int) -> tuple[float, float]:
        """Invert one block more.

        Args:
            k: Its number, one less than at the call before.

        Returns:
            Relative errors of the activation before it, maximum and root mean square.
        """
        if self._back is None:
            return NAN, NAN
        self._back = self._attempt(k, "inverse", self.steps[k].inverse, self._back)
        return (INF, INF) if self._back is None else _errors(self._back, self.activations[k])

    @torch.no_grad()
    def rounding(self, k: int, reference: Run) -> tuple[Tensor, Tensor]:
        """How far a block and its inverse are off by themselves, on activations of this run.

        Args:
            k: The block.
            reference: The run in float64.

        Returns:
            Errors of the forward and of the inverse result, flattened, float64; zero on a lattice.
        """
        step, exact = self.steps[k], reference.steps[k]
        before, after = self.activations[k], self.activations[k + 1]
        if step.lattice is not None:
            return torch.zeros_like(_double(after)), torch.zeros_like(_double(before))
        forward = _double(after) - flatten(exact.forward(_doubles(before)))
        back = _double(step.inverse(after))
        return forward, back - flatten(exact.inverse(_doubles(after)))

    def failure(self, k: int) -> str:
        """What went wrong at a block, in words.

        Args:
            k: The block.

        Returns:
            The error; empty if there was none.
        """
        if k not in self.errors:
            return ""
        verb, error = self.errors[k]
        return f"{verb} raised {type(error).__name__}: {error}"


class Prediction:
    """The drift of a run, to first order: each block's rounding error carried on by the inverses before it.

    Args:
        run: The run, forward pass done.
        reference: The run in float64.
        seed: Of the random signs.
    """

    def __init__(self, run: Run, reference: Run, seed: int) -> None:
        self.run, self.reference = run, reference
        self._generator = torch.Generator().manual_seed(seed)
        self._error = torch.zeros_like(flatten(reference.activations[-1]))
        self._upper = 0.0
        self._lost = len(run.activations) < len(reference.activations)

    def back(self, k: int, inverse: Linearised | None, inverse_lipschitz: float) -> tuple[float, float]:
        """Go back over one block more.

        Args:
            k: Its number, one less than at the call before.
            inverse: Its inverse at the float64 activation; None if that could not be had.
            inverse_lipschitz: Lipschitz constant there, of the batch as one.

        Returns:
            Expected and largest relative error before the block; NaN once something could not be had.
        """
        rounding = self._rounding(k) if inverse is not None and not self._lost else None
        if rounding is None or inverse is None:
            self._lost = True
            return NAN, NAN
        forward, back = rounding
        self._error = inverse.push(self._error + self._with_random_signs(forward)) + self._with_random_signs(back)
        self._upper = inverse_lipschitz * (self._upper + float(forward.norm())) + float(back.norm())
        size = float(flatten(self.reference.activations[k]).norm())
        return _ratio(float(self._error.norm()), size), _ratio(self._upper, size)

    def _rounding(self, k: int) -> tuple[Tensor, Tensor] | None:
        try:
            return self.run.rounding(k, self.reference)
        except InvertibleError:
            return None

    def _with_random_signs(self, x: Tensor) -> Tensor:
        # A block's own error is the same both ways and would cancel if nothing else had come before; in a long chain
        # the inverse sees other bits, and it does not.
        signs = torch.randint(0, 2, x.shape, generator=self._generator, dtype=x.dtype) * 2 - 1
        return x * signs.to(x.device)


def drift(run: Run, prediction: Prediction, k: int, inverse: Linearised | None, inverse_lipschitz: float) -> Drift:
    """Measure and predict at one block more.

    Args:
        run: The run.
        prediction: Its prediction.
        k: The block's number, one less than at the call before.
        inverse: Its inverse at the float64 activation, if it could be had.
        inverse_lipschitz: Lipschitz constant there.

    Returns:
        The drift before the block.
    """
    error_max, error_rms = run.back(k)
    expected, upper = prediction.back(k, inverse, inverse_lipschitz)
    return Drift(error_max, error_rms, expected, upper, run.failure(k))


def _errors(actual: Streams, expected: Streams) -> tuple[float, float]:
    target = _double(expected)
    difference = _double(actual) - target
    largest = _ratio(float(difference.abs().max()), float(target.abs().max()))
    return largest, _ratio(float(difference.norm()), float(target.norm()))


def _ratio(error: float, size: float) -> float:
    if error == 0:
        return 0.0
    return error / size if size > 0 else INF


def _doubles(streams: Streams) -> Streams:
    return tuple(stream.double() for stream in streams)


def _double(streams: Streams) -> Tensor:
    return flatten(_doubles(streams))

"""A block's local Lipschitz constants and those of its inverse."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from invertible.errors import InvertibleError
from invertible.instruments._blocks import Block, Drift
from invertible.instruments._drift import Run
from invertible.instruments._flat import flatten
from invertible.instruments._lipschitz import Linearised, Stretch, stretch
from invertible.streams import Streams

HAIR = 1e-10
_NO_STRETCH = Stretch(torch.full((1,), math.nan), math.nan, 0)


@dataclass(frozen=True)
class Options:
    """Of the power iterations.

    Args:
        n_iterations: At most so many.
        tolerance: Residual to stop at.
        seed: Of their random starts.
    """

    n_iterations: int
    tolerance: float
    seed: int


class Local:
    """A block's Jacobians, forward and inverse, at the activations of a run.

    Args:
        run: In float64, forward pass done.
        k: Number of the block.
        options: Of the power iterations.

    Attributes:
        inverse: The inverse's Jacobian, if it could be had.
    """

    def __init__(self, run: Run, k: int, options: Options) -> None:
        self._step, self._options = run.steps[k], options
        self.inverse: Linearised | None = None
        self._there, self._back, self._tied, self._failure = _NO_STRETCH, _NO_STRETCH, False, ""
        try:
            self._linearise(run, k)
        except torch.OutOfMemoryError:
            raise
        except (InvertibleError, RuntimeError) as error:  # what cannot be differentiated twice raises RuntimeError
            self.inverse, self._failure = None, f"{type(error).__name__}: {error}"

    def _linearise(self, run: Run, k: int) -> None:
        generator = torch.Generator().manual_seed(self._options.seed + k)
        forward = Linearised(self._step.forward, _beside(run.activations[k], generator))
        self.inverse = Linearised(self._step.inverse, _beside(run.activations[k + 1], generator))
        self._tied = forward.ties_examples()
        settings = (self._tied, self._options.n_iterations, self._options.tolerance, generator)
        self._there, self._back = stretch(forward, *settings), stretch(self.inverse, *settings)

    @property
    def inverse_lipschitz(self) -> float:
        """Of the batch as one point: the largest of the examples' constants."""
        return float(self._back.values.max())

    def block(self, drift: dict[str, Drift]) -> Block:
        """Put it all together.

        Args:
            drift: What was measured, by dtype.

        Returns:
            The report on this block.
        """
        there, back = self._there.values, self._back.values
        residual = max(self._there.residual, self._back.residual)
        return Block(
            self._step.name,
            self._step.kind,
            *(f(values).item() for values in (there, back, there * back) for f in (torch.mean, torch.max)),
            residual=residual,
            n_iterations=max(self._there.n_iterations, self._back.n_iterations),
            converged=residual <= self._options.tolerance,
            ties_examples=self._tied,
            drift=drift,
            failure=self._failure,
        )


def _beside(streams: Streams, generator: torch.Generator) -> Streams:
    # On channels that are constant, as padding is, BatchNorm puts out exact zeros, and ReLU's derivative there is that
    # of its flat side. A hair away both sides are seen. Smooth maps do not notice.
    size = HAIR * flatten(streams).square().mean().sqrt()
    noise = (torch.randn(stream.shape, dtype=stream.dtype, generator=generator) for stream in streams)
    return tuple(stream + size * delta.to(stream.device) for stream, delta in zip(streams, noise, strict=True))

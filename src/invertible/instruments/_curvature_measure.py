"""How curvature is measured: dense for small networks, Lanczos and random probes for others."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from invertible.errors import ConfigError
from invertible.instruments._curvature_rows import Eigenvalue, Estimate, Share, Spectrum, mean_of, share_of
from invertible.instruments._eigenpairs import BASIS_BYTES, Assessed, assess, first_vectors, never, refined
from invertible.instruments._hessian import Curved
from invertible.instruments._krylov import Pairs, Run, independent, lanczos, ritz_pairs

ZERO = 1e-3
"""Eigenvalues smaller than this, over the largest, count as zero where there is only a density."""


@dataclass(frozen=True)
class Options:
    """What `curvature` was called with; see there.

    Args:
        n_largest: Eigenvalues wanted at the upper end.
        n_smallest: At the lower end.
        dense_up_to: Parameters up to which the matrix is built.
        n_probes: Lanczos runs.
        n_steps: Of each.
        n_trace: Probes for the trace.
        tolerance: Of residuals, over the largest absolute eigenvalue.
        seed: Of the probes.
    """

    n_largest: int
    n_smallest: int
    dense_up_to: int
    n_probes: int
    n_steps: int
    n_trace: int
    tolerance: float
    seed: int

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            ConfigError: If an option is out of its range.
        """
        least = {"n_largest": 1, "n_smallest": 0, "dense_up_to": 0, "n_probes": 1, "n_steps": 2, "n_trace": 1}
        for name, low in least.items():
            value = vars(self)[name]
            if isinstance(value, bool) or value < low:
                raise ConfigError(f"curvature has a bad {name}", expected=f"{low} or more", got=value)
        if not 0 < self.tolerance < 1:
            raise ConfigError("curvature has a bad tolerance", expected="0 to 1", got=self.tolerance)


@dataclass(frozen=True)
class Measured:
    """What was found.

    Args:
        method: "dense" or "lanczos".
        ends: Eigenpairs at both ends.
        n_smallest: How many of these are of the lower end.
        trace: Sum of all eigenvalues.
        spectra: One per probe; one if exact.
        index: Share of eigenvalues below -threshold.
        threshold: What counts as zero.
        stopped: Why it ended early.
    """

    method: str
    ends: Assessed
    n_smallest: int
    trace: Estimate
    spectra: tuple[Spectrum, ...]
    index: Share
    threshold: float
    stopped: str = field(default="")

    @property
    def eigenvalues(self) -> tuple[Eigenvalue, ...]:
        """The largest, descending; then the smallest, ascending."""
        k, low = len(self.ends.values), self.n_smallest
        upper = [self._eigenvalue("largest", k - i, i) for i in reversed(range(low, k))]
        return (*upper, *(self._eigenvalue("smallest", i + 1, i) for i in range(low)))

    def _eigenvalue(self, end: str, number: int, i: int) -> Eigenvalue:
        over_batches = None if self.ends.over_batches is None else self.ends.over_batches[i]
        return Eigenvalue(end, number, self.ends.values[i], self.ends.residuals[i], over_batches)


def measure(matrix: Curved, options: Options, is_over: Callable[[], bool] = never) -> Measured:
    """Measure a matrix.

    Args:
        matrix: Hessian or Gauss-Newton.
        options: What was asked for.
        is_over: Whether time has run out.

    Returns:
        What was found.
    """
    return _dense(matrix, options) if matrix.n <= options.dense_up_to else _lanczos(matrix, options, is_over)


def _dense(matrix: Curved, options: Options) -> Measured:
    values, vectors = torch.linalg.eigh(matrix.dense())
    radius = max(abs(values[0].item()), abs(values[-1].item()))
    threshold = torch.finfo(matrix.view.dtype).eps * matrix.n * radius
    spectrum = Spectrum(tuple(values.tolist()), (1 / matrix.n,) * matrix.n)
    pairs = Pairs(values, vectors.T.to(matrix.view.device)).ends(options.n_smallest, options.n_largest)
    trace = Estimate(math.fsum(values.tolist()), 0.0)
    share = int((values < -threshold).sum()) / matrix.n
    index = Share(share, share, share)
    return Measured("dense", assess(matrix, pairs), _n_low(pairs, options), trace, (spectrum,), index, threshold)


def _n_low(pairs: Pairs, options: Options) -> int:
    return max(len(pairs.values) - options.n_largest, 0)


def _lanczos(matrix: Curved, options: Options, is_over: Callable[[], bool]) -> Measured:
    probes = first_vectors(matrix, options.n_probes, options.seed)
    runs = lanczos(matrix.products, probes, options.n_steps, lambda t: is_over())
    n_done = max(len(run.nodes) for run in runs)
    stopped = f"Lanczos after {n_done} of {options.n_steps} steps" if is_over() else ""
    low, high, tolerance = options.n_smallest, options.n_largest, options.tolerance
    pairs = ritz_pairs(runs, low, high, matrix.view.dtype)
    ends = refined(matrix, assess(matrix, pairs), low, high, tolerance, is_over)
    trace, n_used = _trace(matrix, options, Deflated(runs, matrix.view.dtype), is_over)
    stopped = stopped or (f"the trace after {n_used} of {options.n_trace} probes" if n_used < options.n_trace else "")
    spectra = tuple(Spectrum(tuple(run.nodes.tolist()), tuple(run.weights.tolist())) for run in runs)
    threshold = ZERO * ends.radius
    index = share_of([run.below(-threshold) for run in runs])
    return Measured("lanczos", ends, max(len(ends.values) - high, 0), trace, spectra, index, threshold, stopped)


class Deflated:
    """A span that is known, taken out of random probes: what is left of the trace varies less.

    The span is all that Lanczos has seen. Probes must not depend on it; then the estimate is unbiased, whatever it is.

    Args:
        runs: Of Lanczos.
        dtype: In which products were computed.

    Source: Meyer, Musco, Musco and Woodruff 2021, "Hutch++: optimal stochastic trace estimation", with a Krylov space.
    """

    def __init__(self, runs: list[Run], dtype: torch.dtype) -> None:
        room = BASIS_BYTES // max(runs[0].basis.numel() * runs[0].basis.element_size(), 1)
        used = runs[: max(room, 1)]
        vectors, images = torch.cat([run.basis for run in used]), torch.cat([run.images for run in used])
        self.vectors, self.images = independent(vectors, images, dtype)
        self.small = self.images @ self.vectors.T

    def sample(self, probe: Tensor, image: Tensor) -> float:
        """One sample of the trace.

        Args:
            probe: z, shape (n,).
            image: A z.

        Returns:
            The trace in the span, and y^T A y of what is left of the probe.
        """
        out, seen = self.vectors @ probe, self.images @ probe
        left = probe @ image - 2 * (out @ seen) + out @ self.small @ out
        return (self.small.trace() + left).item()


def _trace(matrix: Curved, options: Options, known: Deflated, is_over: Callable[[], bool]) -> tuple[Estimate, int]:
    samples: list[float] = []
    probes = first_vectors(matrix, options.n_trace, options.seed + 1)
    for block in probes.split(max(matrix.at_once, 4)):
        samples += [known.sample(z, az) for z, az in zip(block, matrix.products(block), strict=True)]
        if is_over():
            break
    return mean_of(samples), len(samples)

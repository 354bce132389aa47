"""What a linear method that fits every label does: kernels and random convolutions in closed form (Zhang et al.)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from invertible.errors import ConfigError, ConvergenceError, ShapeError
from invertible.instruments._compare_plot import Curve
from invertible.instruments._estimates import Estimate, share_of
from invertible.instruments._kernel_findings import draw, findings_of
from invertible.instruments._kernel_kinds import (
    CachedKernel,
    FeatureKernel,
    FunctionKernel,
    KernelFunction,
    median_squared_distance,
    rbf,
)
from invertible.instruments._kernel_patches import RandomConv, standardise
from invertible.instruments._kernel_rows import RidgeFit
from invertible.instruments._kernel_solve import BlockCholesky, Kernel, solve_kernel
from invertible.instruments._memorization_sets import collect_pair, inputs_of, labels_of
from invertible.instruments.feeding import Bar
from invertible.instruments.provenance import Fingerprint, Stopwatch, provenance
from invertible.instruments.result import Result, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = "interpolate"
_N_CACHED = 16_000
"""Up to so many points the matrix is kept for the whole path: 2 GB."""


@dataclass(frozen=True)
class KernelInterpolation(Result):
    """What `interpolate` found.

    Args:
        findings: Worst first.
        fits: One per ridge, in ascending order.
        kernel: Which.
        gamma: Of the Gaussian kernel; None: another kernel.
        n_features: Of random convolutions; None: another kernel.
        n_train: Training points.
        n_test: Test points.
        n_classes: How many classes there are.
        n_duplicates: Training points that have the inputs of an earlier one.
        n_conflicts: Those of them that have another label.
        dtype: Of the factor; residuals are taken in float64.
        seconds_features: How long features took.
    """

    fits: tuple[RidgeFit, ...]
    kernel: str
    gamma: float | None
    n_features: int | None
    n_train: int
    n_test: int
    n_classes: int
    n_duplicates: int
    n_conflicts: int
    dtype: str
    seconds_features: float

    @property
    def table(self) -> list[Row]:
        """One row per ridge."""
        return [{"kernel": self.kernel, "n_train": self.n_train, **fit.row()} for fit in self.fits]

    @property
    def solved(self) -> tuple[RidgeFit, ...]:
        """The fits that were solved."""
        return tuple(fit for fit in self.fits if not fit.failure)

    @property
    def curves(self) -> dict[str, Curve]:
        """Against the ridge: "test error" and "norm"."""
        ridges = tuple(fit.ridge for fit in self.solved)
        errors = tuple(1 - fit.test.mean for fit in self.solved if fit.test is not None)
        norms = tuple(fit.norm for fit in self.solved if fit.norm is not None)
        label = "ridge over the mean diagonal"
        return {"test error": Curve(ridges, errors, label, "test error"), "norm": Curve(ridges, norms, label, "norm")}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw errors and the norm of the solution against the ridge.

        Args:
            ax: Where; None: on a new figure.

        Returns:
            The axes, of the errors.
        """
        return draw(ax, self.solved, f"{self.kernel}, {self.n_train:,} points")


def interpolate(
    data: Any,
    kernel: Literal["rbf", "random-conv"] | KernelFunction = "rbf",
    *,
    ridges: Sequence[float] = (0.0,),
    gamma: float | None = None,
    n_filters: int = 500,
    patch: int | None = None,
    n_classes: int | None = None,
    dtype: torch.dtype = torch.float64,
    tolerance: float = 1e-6,
    seed: int = 0,
    quiet: bool = False,
) -> KernelInterpolation:
    """Solve (K + ridge I) a = Y in closed form, for one-hot labels Y, and predict the largest of K_test a.

    With ridge 0 the function goes through every label, and of all that do it has the smallest norm in the space of the
    kernel. The system is factored once per ridge, in block columns that need 4 n^2 bytes in float64 and 2 n^2 in
    float32 (60,000 points: 14.4 and 7.2 GB); the solution is refined until its residual, in float64, is below
    `tolerance`.

    Args:
        data: (train, test), each as for `memorization`; images with values of about 0 to 1.
        kernel: "rbf": exp(-gamma |x - y|^2); "random-conv": inner products of `RandomConv` features, with a bias; or a
            function from points (m, d) and (n, d), float64, to the matrix (m, n).
        ridges: From 0, over the mean of K's diagonal.
        gamma: Of "rbf"; None: 2 over the median squared distance, which is near the paper's 0.02 for MNIST.
        n_filters: Of "random-conv": 32 features each, for images that are large enough.
        patch: Of "random-conv": side of a filter; None: 6 pixels, less for small images.
        n_classes: How many classes there are; None: the largest label and one.
        dtype: Of the factor: float64, or float32 for half the memory and time.
        tolerance: On the residual, over the largest label value.
        seed: Of random filters.
        quiet: Show no progress.

    Returns:
        Per ridge errors with intervals, norm, residual; findings. A ridge that could not be solved says so there.

    Raises:
        ConfigError: If an option is wrong or there is one class only.
        ConvergenceError: If no ridge could be solved.
        ShapeError: If shapes differ, convolutions get no images, or a kernel gives no matrix.
        DtypeError: If data or labels are of an unknown kind.
        RangeError: If labels are out of range.
        NonFiniteError: If inputs hold NaN or infinity.
        DataError: If a set is empty or used up.

    Source: Zhang et al. 2017, section 5.

    Example:
        >>> x = torch.rand(40, 2, generator=torch.Generator().manual_seed(0))
        >>> found = interpolate(((x[:30], (x[:30, 0] > 0.5).long()), (x[30:], (x[30:, 0] > 0.5).long())), gamma=30.0)
        >>> found.fits[0].train.mean, found.fits[0].residual < 1e-6
        (1.0, True)
    """
    _check(kernel, ridges, gamma, dtype, tolerance)
    watch, fingerprint = Stopwatch(), Fingerprint()
    with torch.inference_mode(False), torch.no_grad(), ExitStack() as stack:
        train, test, n = collect_pair(data, NAME, n_classes)
        fingerprint.add([*train.tensors, *test.tensors])
        bar = Bar(NAME, stack, quiet)
        made, name, width, n_features = _kernel(
            kernel, inputs_of(train), inputs_of(test), gamma, (n_filters, patch, seed)
        )
        seconds_features = watch.seconds
        if len(ridges) > 1 and made.n <= _N_CACHED:
            made = CachedKernel(made)
        fits = []
        for i, ridge in enumerate(sorted(ridges)):
            share = _Progress(bar, watch, i, len(ridges))
            fits.append(_fit(made, labels_of(train), labels_of(test), n, ridge, (dtype, tolerance), share))
        duplicates = _duplicates(inputs_of(train), labels_of(train))
    if all(fit.failure for fit in fits):
        raise ConvergenceError("no kernel system could be solved", got=fits[0].failure, hint="ridges=(1e-6, 1e-3)")
    origin = provenance(nn.Identity(), watch, seed=seed, data=fingerprint.digest(), n_examples=len(train))
    about = (name, width, n_features, len(train), len(test), n, *duplicates)
    ends = str(dtype).removeprefix("torch."), round(seconds_features, 3)
    return KernelInterpolation(findings_of(fits, *about[2:]), tuple(fits), *about, *ends, provenance=origin)


class _Progress:
    def __init__(self, bar: Bar, watch: Stopwatch, done: int, total: int) -> None:
        self._bar, self._watch, self._done, self._total = bar, watch, done, total

    def __call__(self, share: float) -> None:
        self._bar(self._watch.seconds, (self._done + share) / self._total)


def _check(kernel: object, ridges: Sequence[float], gamma: float | None, dtype: torch.dtype, tolerance: float) -> None:
    if kernel not in ("rbf", "random-conv") and not callable(kernel):
        raise ConfigError("unknown kernel", expected="'rbf', 'random-conv' or a function", got=repr(kernel))
    if not ridges or min(ridges) < 0 or not all(map(math.isfinite, ridges)) or len(set(ridges)) < len(ridges):
        raise ConfigError("interpolate got bad ridges", expected="different numbers from 0", got=tuple(ridges))
    if gamma is not None and not (gamma > 0 and math.isfinite(gamma)):
        raise ConfigError("interpolate got a bad gamma", expected="a number above 0", got=gamma)
    if dtype not in (torch.float32, torch.float64) or not tolerance > 0:
        expected, got = "torch.float32 or torch.float64, a tolerance above 0", f"{dtype}, {tolerance}"
        raise ConfigError("interpolate got a bad option", expected=expected, got=got)


def _kernel(
    kernel: str | KernelFunction,
    x: Tensor,
    x_test: Tensor,
    gamma: float | None,
    filters: tuple[int, int | None, int],
) -> tuple[FunctionKernel | FeatureKernel, str, float | None, int | None]:
    if kernel == "random-conv":
        n_filters, patch, seed = filters
        layer = RandomConv(x.float(), n_filters, patch, seed=seed)
        features, of_test = layer(x.float()), layer(x_test.float())
        standardise(features, of_test)
        return FeatureKernel(features, of_test), f"random-conv, {n_filters:,} filters", None, layer.n_features
    flat, flat_test = x.double().flatten(1), x_test.double().flatten(1)
    if callable(kernel):
        name = str(getattr(kernel, "__name__", type(kernel).__name__))
        # A function may hand out a matrix that it keeps; the solver works in place.
        return FunctionKernel(flat, flat_test, lambda a, b: kernel(a, b).clone()), name, None, None
    width = 2 / _median(flat) if gamma is None else gamma
    return FunctionKernel(flat, flat_test, rbf(width)), "rbf", width, None


def _median(flat: Tensor) -> float:
    found = median_squared_distance(flat)
    if not found > 0:
        hint = "gamma=0.02, or inputs that differ"
        raise ShapeError("half of the points are equal, so they give no gamma", expected="distances > 0", hint=hint)
    return found


def _fit(
    kernel: Kernel,
    y: Tensor,
    y_test: Tensor,
    n_classes: int,
    ridge: float,
    options: tuple[torch.dtype, float],
    progress: _Progress,
) -> RidgeFit:
    (dtype, tolerance), watch = options, Stopwatch()
    diagonal = torch.cat([kernel.block(slice(i, i + 1), slice(i, i + 1)).flatten() for i in _few(kernel.n)])
    shift, wanted = ridge * float(diagonal.double().mean()), nn.functional.one_hot(y, n_classes).double()
    try:
        factor = BlockCholesky(kernel, shift, dtype, progress=progress)
        found = solve_kernel(kernel, wanted, shift, factor, tolerance)
    except ConvergenceError as error:
        return RidgeFit(ridge, None, None, None, None, 0, round(watch.seconds, 3), str(error))
    norm = math.sqrt(max(float((found.a * found.values).sum()), 0.0))
    train, test = _accuracy(found.values, y), _accuracy(kernel.test_times(found.a), y_test)
    return RidgeFit(ridge, train, test, norm, found.residual, found.n_refinements, round(watch.seconds, 3))


def _few(n: int) -> range:
    return range(0, n, max(1, n // 200))


def _accuracy(values: Tensor, y: Tensor) -> Estimate:
    return share_of([float((values.argmax(1) == y).double().mean())], len(y))


def _duplicates(x: Tensor, y: Tensor) -> tuple[int, int]:
    seen: dict[bytes, int] = {}
    n_duplicates = n_conflicts = 0
    for row, label in zip(x.flatten(1).cpu().numpy(), y.tolist(), strict=True):
        first = seen.setdefault(row.tobytes(), label)
        n_duplicates += 1
        n_conflicts += first != label
    return n_duplicates - len(seen), n_conflicts

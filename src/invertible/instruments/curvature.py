"""The spectrum of a loss's second derivatives: both ends, density, trace, index."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from invertible.instruments._compare_plot import Curve
from invertible.instruments._curvature_findings import findings_of
from invertible.instruments._curvature_measure import Measured, Options, measure
from invertible.instruments._curvature_plot import draw
from invertible.instruments._curvature_rows import Eigenvalue, Estimate, Share, Spectrum, row
from invertible.instruments._hessian import Curved, matrix_of
from invertible.instruments._loss_functions import Loss, classes_in, name_of
from invertible.instruments._loss_on_data import finite, viewing
from invertible.instruments.result import Result, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = "curvature"
Matrix = Literal["hessian", "gauss-newton"]
POINTS = 400
SMOOTH = 0.005
"""Width of the density's smoothing, over the width of the spectrum."""


@dataclass(frozen=True)
class Curvature(Result):
    """What `curvature` found.

    Args:
        findings: Worst first.
        matrix: "hessian" or "gauss-newton".
        model: The network's class.
        loss_name: Which loss.
        n_parameters: Size of the matrix.
        n_frozen: Parameters that are held fixed.
        method: "dense": the matrix was built, all is exact to its precision; "lanczos": from products with it.
        loss: At the network's parameters.
        gradient_norm: Of the loss by the parameters.
        gradient_curvature: g^T A g / g^T g: the curvature in the direction of steepest descent; NaN without gradient.
        gradient_in_largest: Share of |g|^2 in the span of the largest eigenvalues' vectors; likewise.
        parameter_norm: |theta|.
        eigenvalues: The largest, descending, then the smallest, ascending.
        trace: Sum of all eigenvalues.
        index: Share of eigenvalues below -threshold.
        threshold: What counts as zero: rounding where dense, 0.001 of the largest where not.
        spectra: The density as point masses, one per probe.
        n_products: How many products with the matrix were made.
    """

    matrix: str
    model: str
    loss_name: str
    n_parameters: int
    n_frozen: int
    method: str
    loss: float
    gradient_norm: float
    gradient_curvature: float
    gradient_in_largest: float
    parameter_norm: float
    eigenvalues: tuple[Eigenvalue, ...]
    trace: Estimate
    index: Share
    threshold: float
    spectra: tuple[Spectrum, ...]
    n_products: int

    @property
    def table(self) -> list[Row]:
        """One row per figure, then one per eigenvalue; `spectra` has the density."""
        return [
            row("loss", self.loss),
            row("gradient norm", self.gradient_norm),
            row("gradient curvature", self.gradient_curvature),
            row("trace", self.trace.value, standard_error=self.trace.error),
            row("negative share", self.index.value),
            *(
                row(e.end, e.value, number=e.number, residual=e.residual, standard_error=e.over_batches)
                for e in self.eigenvalues
            ),
        ]

    def row_of(self, quantity: str) -> int:
        """Where the table has a figure.

        Args:
            quantity: Its name.

        Returns:
            The number of its first row.
        """
        return [found["quantity"] for found in self.table].index(quantity)

    @property
    def first_row(self) -> int:
        """Of the eigenvalues in the table."""
        return self.row_of("largest")

    @property
    def n_largest(self) -> int:
        """How many eigenvalues of the upper end there are."""
        return sum(found.end == "largest" for found in self.eigenvalues)

    @property
    def width(self) -> float:
        """Standard deviation of the Gaussian that smooths the density."""
        low, high = self._range
        return SMOOTH * (high - low) or SMOOTH * abs(high) or SMOOTH

    @property
    def _range(self) -> tuple[float, float]:
        nodes = [node for spectrum in self.spectra for node in (spectrum.nodes[0], spectrum.nodes[-1])]
        values = [*nodes, *(found.value for found in self.eigenvalues)]
        return min(values), max(values)

    def density(self, n_points: int = POINTS) -> tuple[list[float], list[float], list[float], list[float]]:
        """Smooth the spectrum.

        Args:
            n_points: At how many values.

        Returns:
            Values; the density there, mean over probes; the lowest and the highest of any probe.
        """
        (low, high), width = self._range, self.width
        start, end = low - 4 * width, high + 4 * width
        at = [start + (end - start) * i / (n_points - 1) for i in range(n_points)]
        each = [spectrum.density(at, width) for spectrum in self.spectra]
        columns = list(zip(*each, strict=True))
        return at, [math.fsum(c) / len(c) for c in columns], [min(c) for c in columns], [max(c) for c in columns]

    @property
    def curves(self) -> dict[str, Curve]:
        """The "density", and the "largest" eigenvalues by their number."""
        at, mean, *_ = self.density()
        top = [found for found in self.eigenvalues if found.end == "largest"]
        numbers, values = tuple(float(found.number) for found in top), tuple(found.value for found in top)
        return {
            "density": Curve(tuple(at), tuple(mean), "eigenvalue", "density", log=True),
            "largest": Curve(numbers, values, "number, sorted", "eigenvalue"),
        }

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the density, and the eigenvalues at both ends.

        Args:
            ax: Where; None: on a new figure.

        Returns:
            The axes, with a logarithmic scale.
        """
        return draw(ax, self)


def curvature(
    model: nn.Module,
    data: Any,
    *,
    loss: Loss | None = None,
    matrix: Matrix = "hessian",
    n_largest: int = 10,
    n_smallest: int = 5,
    dense_up_to: int = 1000,
    n_probes: int = 4,
    n_steps: int = 64,
    n_trace: int = 32,
    tolerance: float = 1e-4,
    dtype: str = "own",
    batch_fn: Callable[[Any], Any] | None = None,
    batches: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> Curvature:
    """Measure the curvature of the loss at a network's parameters.

    The matrix is that of the mean loss over all the data, with BatchNorm's running statistics and without dropout. For
    small networks it is built. For others Lanczos from random probes gives the density (stochastic Lanczos quadrature,
    full reorthogonalisation) and both ends; ends that have not converged go on with ARPACK; random probes give the
    trace, with all that Lanczos has seen taken out.

    Args:
        model: Any module. It is left as it is, to the bit. Parameters that require no gradients are held fixed.
        data: Whatever `feeding.Feed` takes; all batches are kept in memory.
        loss: (output, labels) -> a scalar, the mean over a batch's examples; it gets whatever the network returns.
            "mse"; None: cross-entropy.
        matrix: "hessian", or "gauss-newton" (positive where the loss is convex in the output; the Fisher matrix of
            cross-entropy).
        n_largest: How many eigenvalues at the upper end.
        n_smallest: How many at the lower end.
        dense_up_to: Build the matrix of networks of at most so many parameters.
        n_probes: Beyond: Lanczos runs for the density.
        n_steps: Beyond: steps of each; two at least.
        n_trace: Beyond: probes for the trace.
        tolerance: Beyond: residual, over the largest absolute eigenvalue, at which a pair has converged.
        dtype: What to compute in: "float32", "float64", or "own", the network's (float32 for those of 16 bits).
        batch_fn: Makes of each batch what the network takes.
        batches: At most so many.
        seconds: Stop after about so long; one product and two steps are always made, and what is dense is built whole.
        seed: Of probes and shuffling.
        quiet: Show no progress.

    Returns:
        Eigenvalues, density, trace and index, with findings.

    Raises:
        ConfigError: If an option is wrong, there are no labels or trainable parameters, the network returns no logits,
            or the loss cannot be differentiated twice.
        ShapeError: If the loss is not a scalar, labels do not fit, or a batch is empty.
        RangeError: If labels are no classes.
        DtypeError: If model, data or loss are of an unknown kind.
        NonFiniteError: If data, loss or derivatives hold NaN or infinity.
        DataError: If there are no data.

    Source: Ghorbani, Krishnan and Xiao 2019, "An investigation into neural net optimization via Hessian eigenvalue
        density"; Pearlmutter 1994 for the products; Hutchinson 1990 for the trace.

    Example:
        >>> import torch
        >>> network = nn.Linear(2, 1, bias=False).double()
        >>> x = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        >>> found = curvature(network, x, loss=lambda output, y: output.square().mean())
        >>> [round(eigenvalue.value, 6) for eigenvalue in found.eigenvalues], found.trace.value
        ([4.0, 1.0], 5.0)
    """
    options = Options(n_largest, n_smallest, dense_up_to, n_probes, n_steps, n_trace, tolerance, seed)
    options.check()
    settings = {"batch_fn": batch_fn, "batches": batches, "seconds": seconds, "seed": seed, "quiet": quiet}
    with viewing(NAME, model, data, loss=loss, dtype=dtype, **settings) as (view, feed):
        value, gradient = finite(view)
        curved = matrix_of(view, matrix)
        found = measure(curved, options, lambda: seconds is not None and feed.watch.seconds >= seconds)
        numbers = _about_gradient(curved, gradient, found)
        stopped = "; ".join(filter(None, (feed.stopped, found.stopped)))
        feed.stopped = stopped
        origin = feed.provenance(view.network)
        kind, n_classes = type(view.network).__name__, classes_in(view.batches)
    result = Curvature(
        (), matrix, kind, name_of(loss), view.n, view.n_frozen, found.method, value, *numbers,
        view.theta.norm().item(), found.eigenvalues, found.trace, found.index, found.threshold, found.spectra,
        curved.n_products, provenance=origin,
    )  # fmt: skip
    return replace(result, findings=findings_of(result, tolerance, n_classes, stopped))


def _about_gradient(curved: Curved, gradient: Tensor, found: Measured) -> tuple[float, float, float]:
    g = gradient.to(found.ends.vectors)
    square = (g @ g).item()
    if not square > 0:
        return 0.0, math.nan, math.nan
    top = found.ends.vectors[found.n_smallest :]
    return math.sqrt(square), (g @ curved.product(g)).item() / square, ((top @ g).square().sum() / square).item()

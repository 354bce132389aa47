"""Random layers run backwards (Arora, Liang and Ma 2015): the theorem's error beside what random layers do."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from invertible._console import progress
from invertible.errors import ConfigError
from invertible.instruments import transposed_reconstruction
from invertible.instruments.provenance import Provenance
from invertible.instruments.result import Finding, Result, Row
from invertible.train.figures import new_figure
from invertible.train.randomness import seeded
from invertible.train.threads import use_threads

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass
class Case:
    """A random layer and its inputs.

    Args:
        outputs: n.
        inputs: m.
        active: k: inputs that are not zero.
        keep: rho: the share of the outputs that is not dropped.
    """

    outputs: int
    inputs: int
    active: int
    keep: float = 1.0


@dataclass
class ReversalOptions:
    """Options of `random_reversal`.

    Args:
        cases: Layers and inputs.
        thresholds: Biases, in standard deviations of the noise in the reconstruction; the paper's delta.
        n_examples: Inputs.
        n_draws: Layers drawn for each case.
        seed: Of inputs and layers.
        threads: Of the CPU.
    """

    cases: list[Case] = field(default_factory=lambda: [Case(1000, 200, 10)])
    thresholds: list[float] = field(default_factory=lambda: [0.0])
    n_examples: int = 60
    n_draws: int = 12
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        for case in self.cases:
            if not (0 < case.active <= case.inputs and 0 < case.keep <= 1 and case.outputs > 0):
                expected = "0 < active <= inputs, 0 < keep <= 1, outputs > 0"
                raise ConfigError("a case of random_reversal", expected=expected, got=case)


@dataclass(frozen=True)
class ReversalRow:
    """One case with one threshold.

    Args:
        case: n, m, k and rho in words.
        threshold: Of the bias.
        error: Mean relative squared error of relu(W^T y + b) over the draws.
        predicted: By the instrument, for these inputs.
        theorem: (m - k) / (rho n) + 2 k / (rho n), which is without bias.
        active_error: The part of the error on the active inputs, of one draw.
        active_theorem: 2 k / (rho n).
        over_bound: The error over k / (rho n), the order of the paper's bound.
    """

    case: str
    threshold: float
    error: float
    predicted: float
    theorem: float
    active_error: float
    active_theorem: float
    over_bound: float


@dataclass(frozen=True)
class RandomReversal(Result):
    """What `random_reversal` found.

    Args:
        findings: How far off the predictions are.
        rows: Case by case.
    """

    rows: tuple[ReversalRow, ...]

    @property
    def table(self) -> list[Row]:
        """One row per case and threshold: the fields of `ReversalRow`."""
        return [asdict(row) for row in self.rows]

    @property
    def off_theorem(self) -> float:
        """How far the error is from the theorem's at most, without bias, as a share; NaN: all cases have one."""
        return max((abs(row.error / row.theorem - 1) for row in self.rows if row.threshold == 0), default=float("nan"))

    @property
    def off_prediction(self) -> float:
        """How far the error is from the predicted one at most, as a share."""
        return max(abs(row.error / row.predicted - 1) for row in self.rows)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw measured errors against predicted ones.

        Args:
            ax: Where; None: on a new figure.

        Returns:
            The axes.
        """
        axes = new_figure(5, 4.5).subplots() if ax is None else ax
        for row in self.rows:
            label = row.case + (f", bias {row.threshold:g}" if row.threshold else "")
            axes.plot(row.predicted, row.error, "o", label=label)
        ends = [min(row.predicted for row in self.rows), max(row.predicted for row in self.rows)]
        axes.plot(ends, ends, "k--", lw=1)
        axes.set(xlabel="predicted relative squared error", ylabel="measured", xscale="log", yscale="log")
        axes.legend(frameon=False, fontsize=8)
        return axes


def random_reversal(options: ReversalOptions, *, out: Path | None = None, quiet: bool = False) -> RandomReversal:
    """Run random ReLU layers backwards through their transposed weights, and compare the error with the theorem's.

    Args:
        options: Which layers.
        out: Not needed: it takes seconds.
        quiet: Show no progress.

    Returns:
        Errors per case.

    Source: Arora, Liang and Ma 2015, "Why are deep nets reversible: a simple theory, with implications for training",
    theorem 1 and its proof.

    Example:
        >>> found = random_reversal(ReversalOptions([Case(1000, 200, 10)], n_draws=4), quiet=True)
        >>> round(found.rows[0].theorem, 3), found.off_theorem < 0.1
        (0.21, True)
    """
    rows, origin = [], None
    jobs = [(case, threshold) for case in options.cases for threshold in options.thresholds]
    with use_threads(options.threads), progress() as display:
        bar = display.add_task("layers", total=len(jobs), visible=not quiet)
        for case, threshold in jobs:
            row, origin = _measure(case, threshold, options)
            rows.append(row)
            display.advance(bar)
    found = RandomReversal((), tuple(rows), provenance=origin)
    text = (
        f"The prediction is at most {100 * found.off_prediction:.1f} % off the mean of {options.n_draws} random layers."
    )
    return replace(found, findings=(Finding("note", text),))


def _measure(case: Case, threshold: float, options: ReversalOptions) -> tuple[ReversalRow, Provenance | None]:
    with seeded(torch.device("cpu"), options.seed):
        inputs = _sparse(options.n_examples, case)
        layer = nn.Linear(case.inputs, case.outputs, bias=False)
        nn.init.normal_(layer.weight)
    found = transposed_reconstruction(
        nn.Sequential(layer, nn.ReLU()), inputs, keep=[case.keep], threshold=threshold,
        n_controls=options.n_draws, seed=options.seed, quiet=True,
    )  # fmt: skip
    whole, kept = found.layers[0].whole, case.keep * case.outputs
    theorem = (case.inputs + case.active) / kept
    name = f"n {case.outputs}, m {case.inputs}, k {case.active}, rho {case.keep:g}"
    error, bound = whole.gaussian.error, case.active / kept
    numbers = error, whole.predicted, theorem, whole.active, 2 * bound, error / bound
    return ReversalRow(name, threshold, *numbers), found.provenance


def _sparse(n: int, case: Case) -> Tensor:
    rows = torch.zeros(n, case.inputs)
    for row in rows:
        row[torch.randperm(case.inputs)[: case.active]] = 0.5 + torch.rand(case.active)
    return rows

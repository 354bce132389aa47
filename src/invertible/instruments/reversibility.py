"""How far, and where, an invertible network's inverse can be trusted (Behrmann et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from invertible._checks import check_finite, check_floating, describe
from invertible.bijection import Bijection
from invertible.errors import ConfigError, ContextError, DtypeError, ShapeError
from invertible.instruments import _reversal_findings
from invertible.instruments._blocks import Block
from invertible.instruments._compare_plot import Curve
from invertible.instruments._drift import Prediction, Run, drift
from invertible.instruments._flat import flatten
from invertible.instruments._lipschitz import MIN_ITERATIONS
from invertible.instruments._local import Local, Options
from invertible.instruments._reversal_plot import draw
from invertible.instruments.provenance import Fingerprint, Stopwatch, provenance
from invertible.instruments.result import Result, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Reversibility(Result):
    """What `reversibility` found.

    Args:
        findings: Worst first.
        blocks: One entry per member, first member first.
        dtypes: What it was measured in.
        tolerance: Largest relative error allowed.
        is_exact: Whether all of the chain computes on a lattice.
        is_training: Whether any part of it was in training mode.
        batch_size: Number of examples.
        seed: Of the random starts and signs.
    """

    blocks: tuple[Block, ...]
    dtypes: tuple[str, ...]
    tolerance: float
    is_exact: bool
    is_training: bool
    batch_size: int
    seed: int

    @property
    def table(self) -> list[Row]:
        """One row per block: the fields of `Block`, then those of `Drift` with the dtype before their name."""
        return [block.row() for block in self.blocks]

    @property
    def curves(self) -> dict[str, Curve]:
        """The measured error (relative, root mean square) before each block, for each dtype."""
        depth = tuple(float(i) for i in range(len(self.blocks)))
        labels = "before block", "relative error of the reconstruction"
        errors = {dtype: tuple(block.drift[dtype].error_rms for block in self.blocks) for dtype in self.dtypes}
        return {dtype: Curve(depth, error, *labels, log=True) for dtype, error in errors.items()}

    def first_broken(self, dtype: str) -> str | None:
        """Name the block at which the inversion, which runs from the last block to the first, breaks.

        Args:
            dtype: One of `dtypes`.

        Returns:
            The first block it meets whose input comes out with an error above the tolerance, or not at all; None if
            there is none.

        Raises:
            ConfigError: If the dtype was not measured.
        """
        if dtype not in self.dtypes:
            raise ConfigError("this was not measured", expected=f"one of {self.dtypes}", got=repr(dtype))
        broken = _reversal_findings.first_broken(self.blocks, dtype, self.tolerance)
        return None if broken is None else self.blocks[broken].name

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the error of the reconstruction against depth: measured, expected and at most, for each dtype.

        Args:
            ax: Where; None: on a new figure.

        Returns:
            The axes. Bars in the background, with the axis on the right, are the inverses' Lipschitz constants.
        """
        return draw(ax, self.blocks, self.dtypes, self.tolerance)


def reversibility(
    chain: Bijection,
    x: Tensor,
    context: Any = None,
    *,
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    tolerance: float = 1e-2,
    n_iterations: int = 100,
    lipschitz_tolerance: float = 0.05,
    seed: int = 0,
) -> Reversibility:
    """Measure where a chain's inverse loses the input, and predict it from each block's local Lipschitz constants.

    In each dtype a copy of the chain runs forward and is inverted block by block; the error of each activation is set
    beside what first-order theory expects. An error e before the inverse of a block becomes J^-1 e after it, so that
    inverses with large Lipschitz constants make rounding errors explode, though each block is invertible on paper.

    The expectation carries each block's own rounding error (its result in the dtype less that in float64, with random
    signs) through the Jacobians of the inverses before it. The constants are largest singular values of Jacobians at
    this input, by power iteration in float64, for each example by itself: they are local, and estimates from below.
    (They are taken 1e-10 off the input, relatively: at a kink, such as a ReLU's on channels of zeros, derivatives see
    one side only.)

    Everything is measured in the mode the chain is in; most networks want `eval()` first. In training mode BatchNorm
    ties the examples to each other, and the batch is taken as one point. The chain itself is left as it is: copies are
    measured, three of them for two dtypes, and hooks run on them. That takes the time of some hundred forward passes.

    Args:
        chain: A `Chain`, nested or not, or any other bijection, which then is the only block.
        x: Its input, shape (batch, ...); 4 to 32 examples do.
        context: Its context, if it takes one; floating-point tensors in it are converted.
        dtypes: "float64", "float32", "float16" or "bfloat16"; the copy's weights and the input are converted.
        tolerance: A block breaks where the relative error before it, in the root mean square, exceeds this.
        n_iterations: At most so many power iterations for each constant, 10 or more.
        lipschitz_tolerance: Their residual `norm(J^T J v - s^2 v) / s^2` to stop at; half of it is about the relative
            error of a constant s.
        seed: Of random starts and signs. The global random state is not touched.

    Returns:
        Per block errors, constants and predictions, with findings; see `Reversibility` and its `blocks`. What a block
        raises on the way (`NotInImageError`, `NonFiniteError`) is a finding, not an error.

    Raises:
        DtypeError: If the chain is no bijection or x no floating-point tensor.
        ContextError: If it takes a context and none is given, or the other way round.
        ConfigError: If an option is out of range, or the chain is random (dropout in training mode).
        InvertibleError: If the chain cannot run on x in float64.

    Source: Behrmann, Vicol, Wang, Grosse and Jacobsen 2021, "Understanding and mitigating exploding inverses in
    invertible neural networks", sections 3 and 4.

    Example:
        >>> from invertible.chain import Chain
        >>> from invertible.layers import AffineCoupling, Permute
        >>> from torch import nn
        >>> network = nn.Linear(2, 4)
        >>> _ = nn.init.zeros_(network.weight), nn.init.constant_(network.bias, -6.0)
        >>> chain = Chain(Permute.reverse(4), AffineCoupling(network, scale_bound=None))
        >>> report = reversibility(chain, torch.ones(2, 4), dtypes=("float32",))
        >>> round(report.blocks[1].inverse_max), round(report.blocks[1].lipschitz_max)
        (403, 1)
        >>> print(report.findings[0].sentence)
        Block 1's inverse expands 403-fold (AffineCoupling): exploding inverse; bound the scale more tightly ...
    """
    _check(chain, x, context, dtypes, tolerance, n_iterations, lipschitz_tolerance)
    watch, fingerprint = Stopwatch(), Fingerprint()
    fingerprint.add((x,))
    with _undisturbed(x):
        reference = _reference(chain, x, context)
        runs = [Run(chain, x, context, _DTYPES[dtype]) for dtype in dtypes]
        options = Options(n_iterations, lipschitz_tolerance, seed)
        blocks = _measure(reference, dict(zip(dtypes, runs, strict=True)), options)
        steps = reference.steps
        is_exact = bool(steps) and all(step.lattice is not None for step in steps)
        can_be_exact = all(step.bijection.keeps_lattice for step in steps)
        found = _reversal_findings.findings_of(blocks, dtypes, tolerance, is_exact, can_be_exact)
    is_training = any(module.training for module in chain.modules())
    origin = provenance(chain, watch, seed=seed, data=fingerprint.digest(), n_examples=len(x))
    return Reversibility(
        found, blocks, tuple(dtypes), float(tolerance), is_exact, is_training, len(x), seed, provenance=origin
    )


def _measure(reference: Run, runs: dict[str, Run], options: Options) -> tuple[Block, ...]:
    predictions = {dtype: Prediction(run, reference, options.seed) for dtype, run in runs.items()}
    blocks = []
    for k in reversed(range(len(reference.steps))):
        local = Local(reference, k, options)
        size = local.inverse_lipschitz
        drifts = {dtype: drift(run, predictions[dtype], k, local.inverse, size) for dtype, run in runs.items()}
        blocks.append(local.block(drifts))
    return tuple(reversed(blocks))


def _reference(chain: Bijection, x: Tensor, context: Any) -> Run:
    run = Run(chain, x, context, torch.float64)
    for _, error in run.errors.values():
        raise error
    for step, before, after in zip(run.steps, run.activations, run.activations[1:], strict=False):
        with torch.no_grad():
            once, again = flatten(after), flatten(step.forward(before))
        if float((again - once).norm()) > 1e-6 * float(once.norm()):
            got = f"block {step.name!r} ({step.kind}) giving two results for one input"
            hint = "call eval() first: dropout draws other masks in the inverse than in the forward pass"
            raise ConfigError("a random map has no inverse", expected="a deterministic chain", got=got, hint=hint)
    return run


@contextmanager
def _undisturbed(x: Tensor) -> Iterator[None]:
    devices = [x.device] if x.is_cuda else []
    with torch.inference_mode(False), torch.random.fork_rng(devices), torch.autocast(x.device.type, enabled=False):
        yield


def _check(
    chain: object,
    x: object,
    context: Any,
    dtypes: Sequence[str],
    tolerance: float,
    n_iterations: int,
    lipschitz_tolerance: float,
) -> None:
    if not isinstance(chain, Bijection):
        hint = "the invertible part: classifier.body, or net.chain(x) after make_reversible"
        raise DtypeError("reversibility measures", expected="a Bijection", got=describe(chain), hint=hint)
    check_floating(x, "reversibility")
    if not cast(Tensor, x).numel():
        raise ShapeError("reversibility needs something to measure", expected="an example or more", got=describe(x))
    check_finite(cast(Tensor, x), "reversibility's input")
    if (context is not None) != chain.takes_context:
        expected, got = ("a context", "none") if chain.takes_context else ("no context", "one")
        raise ContextError("the chain and its context do not fit", expected=expected, got=got)
    if not set(dtypes) <= set(_DTYPES) or len(set(dtypes)) < len(dtypes) or isinstance(dtypes, str):
        expected = f"some of {', '.join(_DTYPES)}, as in dtypes=('float32',)"
        raise ConfigError("reversibility has bad dtypes", expected=expected, got=repr(dtypes))
    if not (tolerance > 0 and lipschitz_tolerance > 0 and n_iterations >= MIN_ITERATIONS):
        got = f"tolerance={tolerance}, lipschitz_tolerance={lipschitz_tolerance}, n_iterations={n_iterations}"
        expected = f"tolerances > 0 and n_iterations >= {MIN_ITERATIONS}"
        raise ConfigError("reversibility has a bad option", expected=expected, got=got)

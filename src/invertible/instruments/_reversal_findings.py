"""The reversibility report in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from invertible.errors import DtypeError
from invertible.instruments._blocks import Block
from invertible.instruments.result import Finding

EXPLODING = 100.0
"""Two decimal digits lost in one block."""
SURPRISING = 30.0
"""So many times the expected error is no scatter."""

_REMEDIES = {
    "AffineCoupling": "bound the scale more tightly (AffineCoupling(scale_bound=...))",
    "AdditiveCoupling": "make its network's output smaller or smoother",
    "IRevNetBlock": "make its network's output smaller or smoother",
}
_OTHER_REMEDY = "bound its weights"


def findings_of(
    blocks: Sequence[Block], dtypes: Sequence[str], tolerance: float, is_exact: bool, can_be_exact: bool
) -> tuple[Finding, ...]:
    """Say what the figures mean and what to do.

    Args:
        blocks: The report.
        dtypes: Those measured.
        tolerance: Largest relative error allowed.
        is_exact: Whether the chain computes on a lattice.
        can_be_exact: Whether it could.

    Returns:
        Findings, in no order.
    """
    if not blocks:
        return (Finding("note", "There is nothing to invert: no blocks."),)
    offer = can_be_exact and not is_exact
    found = []
    for dtype in dtypes:
        found += [_of_dtype(blocks, dtype, tolerance, is_exact, offer), *_surprises(blocks, dtype, tolerance)]
    return (*found, *_exploding(blocks, is_exact, offer), *_about_measuring(blocks))


def first_broken(blocks: Sequence[Block], dtype: str, tolerance: float) -> int | None:
    """Find where the inversion, which runs from the last block to the first, ceases to reconstruct.

    Args:
        blocks: The report.
        dtype: Which run.
        tolerance: Largest relative error allowed.

    Returns:
        The number of the first block it meets whose input comes out wrong, or None.
    """
    broken = (i for i in reversed(range(len(blocks))) if blocks[i].drift[dtype].breaks(tolerance))
    return next(broken, None)


def _of_dtype(blocks: Sequence[Block], dtype: str, tolerance: float, is_exact: bool, offer_exact: bool) -> Finding:
    broken = first_broken(blocks, dtype, tolerance)
    if broken is not None and blocks[broken].drift[dtype].failure:
        return _failed(blocks[broken], dtype, broken)
    if broken is not None:
        return _broken(blocks, dtype, broken, tolerance, offer_exact)
    worst = max(range(len(blocks)), key=lambda i: blocks[i].drift[dtype].error_rms)
    largest = blocks[worst].drift[dtype].error_rms
    if largest == 0:
        promise = ", as the lattice promises" if is_exact else ""
        return Finding("note", f"{dtype}: every reconstruction is exact to the last bit{promise}.")
    sentence = f"{dtype}: every reconstruction holds; the largest relative error is {largest:.2g}, before block"
    sentence = f"{sentence} {blocks[worst].name}"
    if is_exact:
        return Finding("error", f"{sentence}, though the chain is exact: please report this.", worst)
    return Finding("note", f"{sentence}.", worst)


def _failed(block: Block, dtype: str, row: int) -> Finding:
    failure = block.drift[dtype].failure
    unsupported = failure.startswith(f"forward raised {DtypeError.__name__}")
    return Finding("note" if unsupported else "error", f"{dtype}: block {block.name}'s {failure}", row)


def _broken(blocks: Sequence[Block], dtype: str, row: int, tolerance: float, offer_exact: bool) -> Finding:
    drift = blocks[row].drift[dtype]
    sentence = (
        f"{dtype}: the inversion first breaks at block {blocks[row].name}: the input it gives back is off by"
        f" {_show(drift.error_rms)} (relative, root mean square; allowed {_show(tolerance)})."
    )
    worst = max(blocks[row:], key=_gain)
    if _gain(worst) >= EXPLODING:
        cause = f"Block {worst.name}'s inverse expands {_show(worst.inverse_max)}-fold"
    else:
        cause = f"No one block does it: from there on inverses expand up to {_growth(blocks[row:]):.3g}-fold each"
    remedies = ["use exact=True"] * offer_exact + ["a dtype with more bits", 'memory="checkpoint"']
    later = [block for block in blocks[:row] if block.drift[dtype].failure]
    end = f" Block {later[-1].name}'s {later[-1].drift[dtype].failure.split('. Try: ')[0]}." if later else ""
    return Finding("error", f"{sentence} {cause}; {' or '.join(remedies)}.{end}", row)


def _gain(block: Block) -> float:
    return 0.0 if math.isnan(block.inverse_max) else block.inverse_max


def _growth(blocks: Sequence[Block]) -> float:
    logs = [math.log(block.inverse_max) for block in blocks if _gain(block) > 0]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def _surprises(blocks: Sequence[Block], dtype: str, tolerance: float) -> list[Finding]:
    # Below that share of the tolerance it does not matter; once broken, errors follow no first-order law.
    for i in reversed(range(len(blocks))):
        drift = blocks[i].drift[dtype]
        if 1e-3 * tolerance < drift.error_rms < math.inf and drift.error_rms > SURPRISING * drift.expected:
            times = _show(drift.error_rms / drift.expected) if drift.expected > 0 else "infinitely many"
            sentence = f"{dtype}: block {blocks[i].name} comes back {times} times worse than Jacobians tell: the"
            return [Finding("note", f"{sentence} inverses from there on bend on the scale of the error.", i)]
        if drift.breaks(tolerance):
            break
    return []


def _exploding(blocks: Sequence[Block], is_exact: bool, offer_exact: bool) -> list[Finding]:
    found = []
    for i in sorted(range(len(blocks)), key=lambda i: -_gain(blocks[i])):
        block = blocks[i]
        if _gain(block) < EXPLODING:
            break
        start = f"Block {block.name}'s inverse expands {_show(block.inverse_max)}-fold ({block.kind})"
        if is_exact:
            found.append(Finding("note", f"{start}; on the lattice there is no error to expand.", i))
        else:
            found.append(Finding("warning", f"{start}: exploding inverse; {_remedy(block, offer_exact)}.", i))
    return found


def _remedy(block: Block, offer_exact: bool) -> str:
    kind = block.kind.rstrip(")").split("(")[-1]
    own = _REMEDIES.get(kind, _OTHER_REMEDY)
    last = ["call eval() if you do not train"] * block.ties_examples
    return ", or ".join(["use exact=True"] * offer_exact + [own] + last)


def _about_measuring(blocks: Sequence[Block]) -> list[Finding]:
    found = []
    failed = [i for i, block in enumerate(blocks) if block.failure]
    slow = [i for i, block in enumerate(blocks) if not (block.converged or block.failure)]
    tied = [i for i, block in enumerate(blocks) if block.ties_examples]
    if failed:
        last = blocks[failed[-1]]  # the first on the way back
        sentence = f"No Lipschitz constants for {_some(failed, blocks)}, hence no prediction before block {last.name}:"
        found.append(Finding("warning", f"{sentence} {last.failure}", failed[-1]))
    if slow:
        sentence = f"The Lipschitz constants of {_some(slow, blocks)} are still rising: raise n_iterations."
        found.append(Finding("note", sentence, slow[0]))
    if tied:
        sentence = f"Examples depend on each other in {_some(tied, blocks)}, as by BatchNorm in training mode:"
        found.append(Finding("note", f"{sentence} the constants there are the whole batch's.", tied[0]))
    return found


def _some(numbers: Sequence[int], blocks: Sequence[Block]) -> str:
    names = ", ".join(blocks[i].name for i in numbers[:3])
    more = f" and {len(numbers) - 3} more" if len(numbers) > 3 else ""
    return f"block{'s' if len(numbers) > 1 else ''} {names}{more}"


def _show(value: float) -> str:
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if 100 <= rounded < 1e6 else f"{value:.3g}"

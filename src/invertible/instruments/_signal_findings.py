"""Signal propagation in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from invertible.instruments._signal_rows import SignalBlock
from invertible.instruments.result import Finding, Severity

EXPLODED, VANISHED = 1e3, 1e-3
"""Variance against the stem's: three orders of magnitude."""
SHIFTED = 0.1
"""Squared mean against variance at a branch's end: 0.47 after ReLU and random weights, 0 where weights sum to zero."""
DEAD = 1e-6
"""Variance of a branch against that of its block."""
OFF_THEORY = 0.2
"""Relative difference from what is expected: borders of zeros around small images take ten per cent by themselves."""


@dataclass(frozen=True)
class Circumstances:
    """What else there is to say.

    Args:
        zero_gains: Names of skip gains that are zero.
        silent: Names of blocks that never ran.
        looked_for_branches: Whether residual branches were asked for.
        stopped: Why the measurement ended early.
    """

    zero_gains: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()
    looked_for_branches: bool = True
    stopped: str = ""


def findings_of(blocks: Sequence[SignalBlock], about: Circumstances) -> tuple[Finding, ...]:
    """Say what the figures mean and what to do.

    Args:
        blocks: The stem first.
        about: What else there is.

    Returns:
        Findings; rows are those of the table.
    """
    found = _about_gains(about)
    broken = next((i for i, block in enumerate(blocks) if not block.is_finite), None)
    sound = _Sound(blocks if broken is None else blocks[:broken], blocks)
    if broken is not None:
        found.append(sound.finding("error", f"NaN or infinity from {blocks[broken].name} on.", broken))
    if sound.blocks:
        found += [*sound.scale(), *sound.shifts(), *sound.dead()]
        found += [] if about.zero_gains else sound.theory()  # which is that of gains of one
    return (*found, *_about_measuring(blocks, about))


class _Sound:
    """Findings about the blocks before anything is NaN."""

    def __init__(self, blocks: Sequence[SignalBlock], everything: Sequence[SignalBlock]) -> None:
        self.blocks, self._all = blocks, everything

    def finding(self, severity: Severity, sentence: str, block: int, branch: int = 0) -> Finding:
        return Finding(severity, sentence, sum(len(other.rows()) for other in self._all[:block]) + branch)

    def scale(self) -> Iterator[Finding]:
        stem, last = self.blocks[0], self.blocks[-1]
        constant = next((i for i, block in enumerate(self.blocks) if _is_constant(block)), None)
        if constant is not None:
            block = self.blocks[constant]
            yield self.finding("error", f"{block.name} is constant: its variance is {block.variance:.2g}.", constant)
            return
        ratios = [block.variance / stem.variance if stem.variance else 1.0 for block in self.blocks]
        for word, wrong, worst in (("explodes", _above, max(ratios)), ("vanishes", _below, min(ratios))):
            first = next((i for i, block in enumerate(self.blocks) if wrong(ratios[i]) and _is_unplanned(block)), None)
            if first is not None:
                at = self.blocks[ratios.index(worst)].name
                text = f"The variance {word}: {worst:.2g} times the stem's at {at}; past a thousand from"
                yield self.finding("error", f"{text} {self.blocks[first].name} on.", first)
        sentence = f"The variance goes from {stem.variance:.3g} ({stem.name}) to {last.variance:.3g} ({last.name})."
        yield self.finding("note", sentence, len(self.blocks) - 1)

    def theory(self) -> Iterator[Finding]:
        known = [(i, b, b.expected_variance) for i, b in enumerate(self.blocks) if b.expected_variance]
        if not known:
            return
        off = [(i, block, abs(block.variance / expected - 1)) for i, block, expected in known]
        i, worst, by = max(off, key=lambda item: item[2])
        text = f"the variance is up to {by:.1%} off what theory expects, at {worst.name}"
        text = f"{text} ({worst.variance:.3g} for {worst.expected_variance:.3g})"
        if by <= OFF_THEORY:
            yield self.finding("note", f"As designed: {text}.", i)
            return
        first, block, _ = next(item for item in off if item[2] > OFF_THEORY)
        start = f"From {block.name} on the signal leaves the expected curve"
        yield self.finding("warning", f"{start}: {text}.", first)

    def shifts(self) -> Iterator[Finding]:
        ends = [(i, j, end) for i, block in enumerate(self.blocks) for j, end in enumerate(block.branches)]
        # A mean of n values is off zero by chance, by variance / n in the square, give or take.
        chance = [3 * end.variance / max(self.blocks[i].n_values, 1) for i, _, end in ends]
        beyond = [end.squared_mean - by for (_, _, end), by in zip(ends, chance, strict=True)]
        shifted = [at for at, more in zip(ends, beyond, strict=True) if more > SHIFTED * at[2].variance and more > 0]
        if shifted:
            i, j, end = max(shifted, key=lambda item: item[2].squared_mean / max(item[2].variance, 1e-30))
            text = f"Mean shift: {_branches(len(shifted), len(ends))} with channel means that are not zero"
            text = f"{text}, worst at {end.name} (squared mean {end.squared_mean:.2g}, variance {end.variance:.2g})"
            yield self.finding("warning", f"{text}; a norm, or Scaled Weight Standardization, removes it.", i, j)
        means = [block.squared_mean / block.variance if block.variance else 0.0 for block in self.blocks]
        worst = max(range(len(means)), key=lambda i: means[i])
        if means[worst] > 1 and means[worst] > 2 * means[0]:
            text = f"At {self.blocks[worst].name} the channels' means outweigh what varies: squared mean"
            text = f"{text} {self.blocks[worst].squared_mean:.2g}, variance {self.blocks[worst].variance:.2g}."
            yield self.finding("warning", text, worst)

    def dead(self) -> Iterator[Finding]:
        ends = [(i, j, b, end) for i, b in enumerate(self.blocks) for j, end in enumerate(b.branches)]
        dead = [(i, j, end.name) for i, j, block, end in ends if end.variance <= DEAD * block.variance]
        if dead:
            i, j, name = dead[0]
            text = f"Dead: {_branches(len(dead), len(ends))} with nothing in it that varies, the first at {name}"
            yield self.finding("warning", f"{text}; are its last weights zero?", i, j)


def _is_unplanned(block: SignalBlock) -> bool:
    return block.expected_variance is None or abs(block.variance / block.expected_variance - 1) > OFF_THEORY


def _is_constant(block: SignalBlock) -> bool:
    # What float32 leaves of a constant's variance is no variance.
    return block.n_values > 1 and block.variance <= 1e-13 * block.squared_mean


def _above(ratio: float) -> bool:
    return ratio > EXPLODED


def _below(ratio: float) -> bool:
    return ratio < VANISHED


def _branches(n: int, of: int) -> str:
    return f"{n} of {of} residual branch{'es' * (of > 1)}"


def _about_gains(about: Circumstances) -> list[Finding]:
    if not about.zero_gains:
        return []
    text = f"{len(about.zero_gains)} skip gains are zero, {about.zero_gains[0]} first: these branches add nothing"
    return [Finding("warning", f"{text}, and this shows the shortcuts alone; unit_gains=True sets them to 1.")]


def _about_measuring(blocks: Sequence[SignalBlock], about: Circumstances) -> list[Finding]:
    found = []
    if any(block.n_values < 2 for block in blocks):
        found.append(Finding("warning", "One value per channel has no variance: measure on more examples."))
    if about.looked_for_branches and not any(block.branches for block in blocks):
        text = 'No residual branches were found; if there are some, name their last modules: residuals="*.conv3".'
        found.append(Finding("note", text))
    if about.silent:
        names = ", ".join(about.silent[:3]) + ", ..." * (len(about.silent) > 3)
        found.append(Finding("note", f"{len(about.silent)} blocks never ran: {names}."))
    if about.stopped:
        found.append(Finding("note", f"Measured on part of the data: {about.stopped}."))
    return found

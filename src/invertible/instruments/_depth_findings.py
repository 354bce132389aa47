"""A depth profile in sentences: what it supports and what it does not."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from invertible.instruments._depth_features import INPUT
from invertible.instruments._depth_rows import Depth
from invertible.instruments._scores import Score
from invertible.instruments.result import Finding

NOT_ASKED = "none was asked for"
JUMP = 0.5
"""Share of the whole rise that one step has to make to be called a jump."""
CKA_NONE = 0.1
"""Below it little geometry is shared."""


@dataclass(frozen=True)
class Circumstances:
    """What else there is to say.

    Args:
        chance: Share of the largest class.
        n_folds: Of the cross-validation.
        wanted_folds: As asked for.
        n_projected: Dimensions of the projection.
        untrained: What the untrained network was, or why there is none.
        n_unconverged: SVMs that did not reach their tolerance.
        silent: Places that never ran.
        stopped: Why the measurement ended early.
        n_left_out: Places that the budget left out.
    """

    chance: float
    n_folds: int
    wanted_folds: int
    n_projected: int
    untrained: str
    n_unconverged: int
    silent: tuple[str, ...]
    stopped: str
    n_left_out: int


def findings_of(depths: Sequence[Depth], about: Circumstances) -> tuple[Finding, ...]:
    """Say what the figures support.

    Args:
        depths: The places, in order.
        about: What else there is.

    Returns:
        Findings; rows are those of the table.
    """
    sections = (_leaks(depths, about), _rise(depths), _against_untrained(depths, about), _projection(depths, about),
                _dimensions(depths), _contraction(depths), _kept(depths), _caveats(depths, about))  # fmt: skip
    return tuple(finding for section in sections for finding in section)


def _leaks(depths: Sequence[Depth], about: Circumstances) -> Iterator[Finding]:
    for i, depth in enumerate(depths):
        for what, score in (("a linear SVM", depth.shuffled.svm), ("the nearest neighbour", depth.shuffled.nearest)):
            if score.at(2 * len(depths)).low > about.chance:
                text = f"At {depth.name} {what} finds shuffled labels in {_per_cent(score)}, chance being"
                hint = "are there duplicates among the examples, or too few of them?"
                yield Finding("warning", f"{text} {about.chance:.1%}: {hint}", i)
                return


def _rise(depths: Sequence[Depth]) -> Iterator[Finding]:
    inner = [i for i, depth in enumerate(depths) if depth.name != INPUT]
    if len(inner) < 2:
        return
    first, last = inner[0], inner[-1]
    for what, scores in _both(depths):
        rise = scores[last].minus(scores[first])
        span = f"from {_per_cent(scores[first])} at {depths[first].name} to {_per_cent(scores[last])} at"
        end = f"{depths[last].name} (difference {_interval(rise)})"
        if rise.low > 0:
            yield Finding(
                "note", f"{what} separates classes better with depth: {span} {end}.{_jump(scores, depths, inner)}", last
            )
        elif rise.high < 0:
            yield Finding("warning", f"{what} separates classes worse with depth: {span} {end}.", last)
        else:
            yield Finding("note", f"{what} shows no rise beyond the spread of folds: {span} {end}.", last)


def _both(depths: Sequence[Depth]) -> list[tuple[str, list[Score]]]:
    svm, nearest = [depth.trained.svm for depth in depths], [depth.trained.nearest for depth in depths]
    return [("A linear SVM", svm), ("The nearest neighbour", nearest)]


def _jump(scores: Sequence[Score], depths: Sequence[Depth], inner: Sequence[int]) -> str:
    steps = [(scores[b].mean - scores[a].mean, a, b) for a, b in itertools.pairwise(inner)]
    size, before, after = max(steps)
    whole = scores[inner[-1]].mean - scores[inner[0]].mean
    if len(steps) < 3 or size < JUMP * whole:
        return ""
    return f" {size / whole:.0%} of it comes at once, between {depths[before].name} and {depths[after].name}."


def _against_untrained(depths: Sequence[Depth], about: Circumstances) -> Iterator[Finding]:
    if about.untrained == NOT_ASKED:
        return
    if all(depth.untrained is None for depth in depths):
        hint = "untrained=a function that makes the network anew"
        yield Finding("note", f"No untrained network to compare with: {about.untrained}. Try: {hint}")
        return
    gains = [
        (i, depth.trained.svm.minus(depth.untrained.svm))
        for i, depth in enumerate(depths)
        if depth.untrained is not None and depth.name != INPUT
    ]
    gains = [(i, gain.at(len(gains))) for i, gain in gains]
    better = [(i, gain) for i, gain in gains if gain.low > 0]
    worse = [(i, gain) for i, gain in gains if gain.high < 0]
    if better:
        i, gain = max(better, key=lambda item: item[1].mean)
        text = (
            f"a linear SVM finds classes better than in the untrained network at {len(better)} of {len(gains)} places"
        )
        yield Finding("note", f"What training did: {text}, most at {depths[i].name} ({_interval(gain)}).", i)
    elif gains and not about.stopped:
        text = "at no place does a linear SVM find classes better than in the untrained network"
        yield Finding("warning", f"Training shows nowhere: {text}; the profile is one of the architecture.")
    if worse:
        i, gain = min(worse, key=lambda item: item[1].mean)
        text = f"At {len(worse)} of {len(gains)} places training has made classes harder to find for a linear SVM"
        yield Finding("note", f"{text}, most at {depths[i].name} ({_interval(gain)}).", i)


def _projection(depths: Sequence[Depth], about: Circumstances) -> Iterator[Finding]:
    inner = [i for i, depth in enumerate(depths) if depth.name != INPUT]
    widths = {depths[i].width for i in inner}
    if len(inner) < 2 or len(widths) < 2:
        return
    first, last = depths[inner[0]], depths[inner[-1]]
    rise = last.trained.svm.minus(first.trained.svm)
    projected = last.projected.svm.minus(first.projected.svm)
    if rise.low <= 0:
        return
    where = f"in {about.n_projected} random dimensions everywhere the rise is {_interval(projected)}"
    if projected.low > 0:
        yield Finding("note", f"Width does not explain the rise: {where}.", inner[-1])
    else:
        yield Finding(
            "warning", f"Width may explain the rise: {where}, not above 0 beyond the folds' spread.", inner[-1]
        )


def _dimensions(depths: Sequence[Depth]) -> Iterator[Finding]:
    last, i = depths[-1], len(depths) - 1
    if not last.components:
        return
    full = last.components[-1]
    enough = next(found for found in last.components if found.svm.minus(full.svm).high >= 0)
    counts = " / ".join(map(str, last.n_components))
    text = f"At {last.name} {counts} of {last.width} principal components hold 90 / 95 / 99 % of the variance"
    more = f"on {enough.n} a linear SVM does as well as on {full.n}, within the spread of folds"
    yield Finding("note", f"{text}; {more}.", i)


def _contraction(depths: Sequence[Depth]) -> Iterator[Finding]:
    last, i = depths[-1], len(depths) - 1
    if not last.between > 0:
        yield Finding("error", f"At {last.name} all examples have the same averaged features.", i)
        return
    text = f"Squared distances within classes are {last.ratio:.2g} of those between them at {last.name}"
    before = "" if last.untrained_ratio is None else f", {last.untrained_ratio:.2g} untrained"
    first = f", {depths[0].ratio:.2g} at {depths[0].name}" if len(depths) > 1 else ""
    yield Finding("note", f"{text}{before}{first}.", i)


def _kept(depths: Sequence[Depth]) -> Iterator[Finding]:
    last, i = depths[-1], len(depths) - 1
    if last.cka_input is None:
        return
    error = "" if last.cka_input.error is None else f" ± {last.cka_input.error:.2g}"
    text = f"Debiased CKA between input and {last.name}: {last.cka_input.value:.2f}{error}"
    less = " Little of the input's geometry is left, which is not to say that information is."
    yield Finding("note", f"{text}.{less if last.cka_input.value < CKA_NONE else ''}", i)


def _caveats(depths: Sequence[Depth], about: Circumstances) -> Iterator[Finding]:
    if about.stopped:
        left = f"; {about.n_left_out} places were not probed" if about.n_left_out else ""
        yield Finding("warning", f"The measurement stopped early: {about.stopped}{left}.")
    if about.silent:
        names = ", ".join(about.silent[:3])
        yield Finding("warning", f"{len(about.silent)} places never ran: {names}.")
    if about.n_unconverged:
        text = f"{about.n_unconverged} SVMs did not reach their tolerance; their accuracies may be too low"
        yield Finding("warning", f"{text}. Try: a smaller penalty, penalties=(0.01,)")
    if about.n_folds < about.wanted_folds:
        text = f"Only {about.n_folds} folds, as the rarest class has no more examples"
        yield Finding("warning", f"{text}: intervals are wide.")
    wide = max(depth.width for depth in depths)
    if any(depth.components and depth.components[-1].n < depth.width for depth in depths):
        text = (
            f"There are fewer examples per training part than features (up to {wide}): principal components end early"
        )
        yield Finding("note", f"{text}, and a linear SVM can fit anything. Try: more n_examples.")


def _per_cent(score: Score) -> str:
    low, high = max(score.low, 0.0), min(score.high, 1.0)
    return f"{score.mean:.1%} ({low:.1%} to {high:.1%})"


def _interval(score: Score) -> str:
    return f"{score.mean:+.1%}, {score.low:+.1%} to {score.high:+.1%}"

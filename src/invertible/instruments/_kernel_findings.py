"""What kernel interpolation tells, in words and as a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from invertible.instruments._kernel_rows import RidgeFit
from invertible.instruments.result import Finding

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def findings_of(
    fits: Sequence[RidgeFit],
    n_features: int | None,
    n_train: int,
    n_test: int,
    n_classes: int,
    n_duplicates: int,
    n_conflicts: int,
) -> tuple[Finding, ...]:
    """Read the fits.

    Args:
        fits: In ascending order of the ridge.
        n_features: Of the kernel, where it has finitely many that are known.
        n_train: Training points.
        n_test: Test points.
        n_classes: How many classes there are.
        n_duplicates: Points that have the inputs of an earlier one.
        n_conflicts: Those with another label.

    Returns:
        Sentences.
    """
    found = [*_failures(fits, n_features, n_train, n_duplicates, n_conflicts)]
    solved = [(row, fit) for row, fit in enumerate(fits) if not fit.failure]
    return (*found, *_accuracies(solved, n_test, n_classes))


def _failures(
    fits: Sequence[RidgeFit], n_features: int | None, n_train: int, n_duplicates: int, n_conflicts: int
) -> Iterator[Finding]:
    for row, fit in enumerate(fits):
        if not fit.failure:
            continue
        why = ""
        if n_features is not None and n_features < n_train:
            why = f" {n_features:,} features cannot interpolate {n_train:,} points: more filters, or a ridge."
        elif n_duplicates:
            why = f" {n_duplicates:,} points repeat others, {n_conflicts:,} of them with another label."
        yield Finding("error", f"ridge {fit.ridge:g}: {fit.failure}.{why}", row)


def _accuracies(solved: Sequence[tuple[int, RidgeFit]], n_test: int, n_classes: int) -> Iterator[Finding]:
    row, best = max(solved, key=lambda item: -1.0 if item[1].test is None else item[1].test.mean)
    first_row, first = solved[0]
    for number, fit in {first_row: first, row: best}.items():
        if fit.test is None or fit.train is None or fit.residual is None:
            continue
        kind = "Interpolation" if fit.ridge == 0 else f"Ridge {fit.ridge:g}"
        yield Finding(
            "note",
            f"{kind}: {1 - fit.test.mean:.2%} error on {n_test:,} test points ({1 - fit.test.high:.2%} to "
            f"{1 - fit.test.low:.2%}; chance is about {1 - 1 / n_classes:.0%}), {1 - fit.train.mean:.2%} on the "
            f"training points, norm {fit.norm:.4g}, residual {fit.residual:.1e}.",
            number,
        )
    if len(solved) > 1:
        hint = "chosen on the test points themselves: choose a ridge on others before you quote it"
        yield Finding("note", f"The best of {len(solved)} ridges is {hint}.", row)


def draw(ax: Axes | None, fits: Sequence[RidgeFit], title: str) -> Axes:
    """Draw errors and norm against the ridge; the ridge 0 stands at the left end.

    Args:
        ax: Where; None: on a new figure.
        fits: Solved ones.
        title: Of the axes.

    Returns:
        The axes of the errors.
    """
    import matplotlib.pyplot as plt

    axes = plt.subplots(figsize=(7, 4.2), layout="constrained")[1] if ax is None else ax
    positive = [fit.ridge for fit in fits if fit.ridge > 0]
    zero = min(positive) / 10 if positive else 1e-3
    places = [fit.ridge or zero for fit in fits]
    tests = [fit.test for fit in fits if fit.test is not None]
    lengths = [(t.high - t.mean, t.mean - t.low) for t in tests]
    axes.errorbar(
        places, [1 - t.mean for t in tests], tuple(zip(*lengths, strict=True)), fmt="o-", label="test", capsize=2
    )
    axes.plot(places, [1 - fit.train.mean for fit in fits if fit.train is not None], "s-", label="train")
    axes.set(xscale="log", xlabel="ridge over the mean diagonal", ylabel="error", title=title)
    if any(fit.ridge == 0 for fit in fits):
        axes.axvline(zero, color="grey", linewidth=0.6, linestyle=":")
        axes.annotate("0: interpolation", (zero, 1), xycoords=("data", "axes fraction"), fontsize=8, va="top")
    other = axes.twinx()
    other.plot(
        places, [fit.norm for fit in fits if fit.norm is not None], "^--", color="C2", label="norm", markersize=4
    )
    other.set(ylabel="norm of the function", yscale="log")
    axes.grid(alpha=0.25)
    handles = [h for a in (axes, other) for h in a.get_legend_handles_labels()[0]]
    axes.legend(handles, ["test", "train", "norm"], frameon=False, fontsize=8)
    return axes

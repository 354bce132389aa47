"""What is found at one place of a depth profile."""

from __future__ import annotations

from dataclasses import dataclass

from invertible.instruments._cka import Similarity
from invertible.instruments._probes import Components, Separation
from invertible.instruments._scores import Score
from invertible.instruments.result import Row


@dataclass(frozen=True)
class Depth:
    """One place.

    Args:
        name: Of the module; the network's own input comes as "input".
        width: Numbers per example after averaging over space: what the probes see.
        size: Numbers per example before.
        trained: Accuracies on the features.
        untrained: The same in the untrained network; None: there was none.
        shuffled: The same with shuffled labels: what chance gives.
        projected: The same after a random projection to the profile's `n_projected` dimensions.
        untrained_projected: Likewise in the untrained network.
        components: Accuracies on the first principal components.
        n_components: Principal components that hold 90, 95 and 99 % of the variance.
        within: Mean squared distance of two examples of one class.
        between: Of two examples of different classes.
        norm: Mean l2 norm of the averaged features.
        untrained_ratio: within / between in the untrained network.
        cka_input: Debiased CKA to the network's input, neither averaged over space; None: there is no estimate.
        cka_output: To its output.
    """

    name: str
    width: int
    size: int
    trained: Separation
    untrained: Separation | None
    shuffled: Separation
    projected: Separation
    untrained_projected: Separation | None
    components: tuple[Components, ...]
    n_components: tuple[int, ...]
    within: float
    between: float
    norm: float
    untrained_ratio: float | None
    cka_input: Similarity | None
    cka_output: Similarity | None

    @property
    def ratio(self) -> float:
        """Squared distance within classes over that between them: 1 says nothing about classes, 0 is a collapse."""
        return self.within / self.between if self.between else float("nan")

    def row(self) -> Row:
        """As a row of the table.

        Returns:
            Plain values; accuracies with the ends of their intervals.
        """
        row: Row = {"place": self.name, "width": self.width, "size": self.size}
        row |= _scores("svm", self.trained.svm) | _scores("nearest", self.trained.nearest)
        controls = {
            "untrained": self.untrained,
            "shuffled": self.shuffled,
            "projected": self.projected,
            "untrained_projected": self.untrained_projected,
        }
        for name, found in controls.items():
            row[f"svm_{name}"] = None if found is None else found.svm.mean
            row[f"nearest_{name}"] = None if found is None else found.nearest.mean
        row |= dict(zip(("pca_90", "pca_95", "pca_99"), self.n_components, strict=True))
        row |= {"within": self.within, "between": self.between, "ratio": self.ratio, "norm": self.norm}
        row["ratio_untrained"] = self.untrained_ratio
        for name, found in {"cka_input": self.cka_input, "cka_output": self.cka_output}.items():
            row[name] = None if found is None else found.value
            row[f"{name}_error"] = None if found is None else found.error
        return row


def _scores(name: str, score: Score) -> Row:
    return {name: score.mean, f"{name}_low": score.low, f"{name}_high": score.high}

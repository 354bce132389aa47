"""What can be read from features: linear SVM and nearest neighbour over folds, principal components, distances."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from invertible.instruments._scores import Score, score_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHARES = (0.9, 0.95, 0.99)


@dataclass(frozen=True)
class Separation:
    """How well classes can be told apart.

    Args:
        svm: Accuracy of a linear SVM on held-out folds.
        nearest: Of the nearest neighbour.
    """

    svm: Score
    nearest: Score


@dataclass(frozen=True)
class Components:
    """The same on the first principal components.

    Args:
        n: How many.
        svm: As in `Separation`.
        nearest: Likewise.
    """

    n: int
    svm: Score
    nearest: Score


class Prober:
    """Classifiers on features, always on the same folds.

    Args:
        labels: One per example, shape (n,).
        n_folds: Stratified; no class may have fewer examples.
        penalties: C of the SVM; of several the best on three folds within the training part is taken.
        standardize: Whether each feature is brought to mean 0 and variance 1 on the training part.
        seed: Of the folds.

    Attributes:
        n_unconverged: How many SVMs did not reach their tolerance.
    """

    def __init__(
        self, labels: NDArray[Any], n_folds: int, penalties: Sequence[float], standardize: bool, seed: int
    ) -> None:
        from sklearn.model_selection import StratifiedKFold

        self.labels, self._penalties, self._standardize, self._seed = labels, penalties, standardize, seed
        splitter = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
        self._folds = list(splitter.split(labels, labels))
        self.n_unconverged = 0

    def separation(self, features: NDArray[Any]) -> Separation:
        """Accuracies on features.

        Args:
            features: Shape (n, d).

        Returns:
            The accuracies.
        """
        found = self._over_folds(features, lambda train, test: [(train, test)])[0]
        return Separation(*found)

    def components(self, features: NDArray[Any], counts: Sequence[int]) -> tuple[Components, ...]:
        """Accuracies on the first principal components, which are found on the training part.

        Args:
            features: Shape (n, d).
            counts: Numbers of components, ascending.

        Returns:
            One per number; those that the smallest training part has not are left out.
        """
        fewest = min(*(len(train) - 1 for train, _ in self._folds), features.shape[1])
        kept = [n for n in counts if n <= fewest]
        if not kept:
            return ()

        def project(train: NDArray[Any], test: NDArray[Any]) -> list[tuple[NDArray[Any], NDArray[Any]]]:
            mean = train.mean(0)
            axes = np.linalg.svd(train - mean, full_matrices=False)[2]
            return [((train - mean) @ axes[:n].T, (test - mean) @ axes[:n].T) for n in kept]

        scores = self._over_folds(features, project)
        return tuple(Components(n, *found) for n, found in zip(kept, scores, strict=True))

    def _over_folds(
        self,
        features: NDArray[Any],
        views: Callable[[NDArray[Any], NDArray[Any]], list[tuple[NDArray[Any], NDArray[Any]]]],
    ) -> list[tuple[Score, Score]]:
        found: list[list[tuple[float, float]]] = []
        for train, test in self._folds:
            a, b = self._scaled(features[train], features[test])
            y, truth = self.labels[train], self.labels[test]
            found.append([(self._svm(u, y, v, truth), _nearest(u, y, v, truth)) for u, v in views(a, b)])
        return [tuple(score_of(folds) for folds in zip(*view, strict=True)) for view in zip(*found, strict=True)]  # pyright: ignore[reportReturnType]

    def _scaled(self, train: NDArray[Any], test: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        if not self._standardize:
            return train, test
        mean, scale = moments(train)
        return (train - mean) / scale, (test - mean) / scale

    def _svm(self, train: NDArray[Any], y: NDArray[Any], test: NDArray[Any], truth: NDArray[Any]) -> float:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.model_selection import GridSearchCV
        from sklearn.svm import LinearSVC

        svm: Any = LinearSVC(C=self._penalties[0], dual="auto", random_state=self._seed)
        if len(self._penalties) > 1:
            svm = cast(Any, GridSearchCV(svm, {"C": list(self._penalties)}, cv=3))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            accuracy = float(svm.fit(train, y).score(test, truth))
        self.n_unconverged += any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
        return accuracy


def _nearest(train: NDArray[Any], y: NDArray[Any], test: NDArray[Any], truth: NDArray[Any]) -> float:
    from sklearn.neighbors import KNeighborsClassifier

    return float(KNeighborsClassifier(1, algorithm="brute").fit(train, y).score(test, truth))


def moments(features: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean and standard deviation of each feature.

    Args:
        features: Shape (n, d).

    Returns:
        Two arrays of shape (d,); a feature that is constant but for rounding has 1 as its deviation.
    """
    mean, deviation = features.mean(0), features.std(0)
    is_constant = deviation <= 1e-7 * np.abs(features).max(0, initial=0.0)
    return mean, np.where(is_constant, 1.0, deviation)


def components_for(features: NDArray[Any], standardize: bool) -> tuple[int, ...]:
    """How many principal components hold 90, 95 and 99 % of the variance.

    Args:
        features: Shape (n, d).
        standardize: Whether each feature counts with variance 1.

    Returns:
        Three numbers; 0 where nothing varies.

    Example:
        >>> components_for(np.array([[3.0, 1.0], [-3.0, 1.0], [3.0, -1.0], [-3.0, -1.0]]), standardize=False)
        (1, 2, 2)
    """
    mean, scale = moments(features)
    values = np.linalg.svd((features - mean) / (scale if standardize else 1.0), compute_uv=False) ** 2
    total = values.sum()
    if not total > 0:
        return (0,) * len(SHARES)
    shares = np.cumsum(values) / total
    return tuple(int(np.searchsorted(shares, share - 1e-12) + 1) for share in SHARES)


def distances(features: NDArray[Any], labels: NDArray[Any]) -> tuple[float, float]:
    """Mean squared distance of two different examples of one class, and of two of different classes.

    Args:
        features: Shape (n, d).
        labels: Shape (n,), two classes or more.

    Returns:
        Within classes, between classes: averages over all pairs.

    Example:
        >>> distances(np.array([[0.0], [1.0], [4.0], [4.0]]), np.array([0, 0, 1, 1]))
        (0.5, 12.5)
    """
    centred = features - features.mean(0)
    squares = (centred**2).sum(1)
    within, n_within, n = 0.0, 0, len(labels)
    for label in np.unique(labels):
        rows = labels == label
        size, total = int(rows.sum()), centred[rows].sum(0)
        within += 2 * (size * squares[rows].sum() - total @ total)
        n_within += size * (size - 1)
    total = centred.sum(0)
    everything = 2 * (n * squares.sum() - total @ total)
    n_between = n * (n - 1) - n_within
    return float(within / n_within), float((everything - within) / n_between)

"""What a run is trained for: all that differs between a classifier and a density."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from invertible.data import Normalize
from invertible.train.feed import Feed
from invertible.train.prepare import Data, Splits
from invertible.train.recipe import TrainingConfig
from invertible.train.run import Run


class Task(ABC):
    """A task. Abstract: there is one file for each kind.

    Attributes:
        monitor: The evaluated metric that decides the best epoch; larger is better.
        curves: Metrics to draw against epochs, with their units.
        tested: Figures of `assess` that metrics.json calls test_...
        pictures: Files that `draw` may leave in a run's folder.
        evaluation_batch: Images or points per step of an evaluation.
    """

    monitor: str
    curves: Mapping[str, str]
    tested: tuple[str, ...]
    pictures: tuple[str, ...]
    evaluation_batch: int

    @abstractmethod
    def normalization(self, splits: Splits) -> Normalize | None:
        """What images go through before the model sees them.

        Args:
            splits: The data.

        Returns:
            The normalisation; None for points.
        """

    @abstractmethod
    def begin(self, model: nn.Module, splits: Splits, training: TrainingConfig) -> None:
        """Check that model and data fit, and set what depends on data, the same in every process.

        Args:
            model: Untrained.
            splits: The data.
            training: The recipe's training section.

        Raises:
            ConfigError: If they do not fit.
        """

    @abstractmethod
    def objective(self, model: nn.Module, training: TrainingConfig) -> nn.Module:
        """The loss.

        Args:
            model: The network.
            training: The recipe's training section.

        Returns:
            A module that maps (x, y) to (loss, metrics), with the model as its attribute `model`.
        """

    @abstractmethod
    def evaluate(
        self, model: nn.Module, batches: Feed, reduce: Callable[[Tensor], Tensor] | None = None
    ) -> dict[str, float]:
        """What an epoch is judged by.

        Args:
            model: The network, in eval mode.
            batches: Data, in evaluation order.
            reduce: Sums a tensor over all processes; None: there is one.

        Returns:
            Metrics.
        """

    @abstractmethod
    def assess(self, run: Run, data: Data) -> dict[str, Any]:
        """Everything a finished run is judged by.

        Args:
            run: The run.
            data: Not seen in training.

        Returns:
            Figures.
        """

    @abstractmethod
    def draw(self, run: Run, data: Data, figures: Mapping[str, Any]) -> None:
        """Leave pictures in the run's folder.

        Args:
            run: The run.
            data: Not seen in training.
            figures: What `assess` returned.
        """

"""The task of hybrids: one network that classifies and is a density, trained for both at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from invertible._console import progress
from invertible.data import Normalize
from invertible.errors import ConfigError
from invertible.models import Hybrid
from invertible.train.evaluate import evaluate_classifier
from invertible.train.feed import Feed
from invertible.train.likelihood import LikelihoodTask
from invertible.train.objective import Classification
from invertible.train.prepare import Data, Splits
from invertible.train.recipe import TrainingConfig
from invertible.train.run import Run
from invertible.train.task import Task


class HybridLoss(nn.Module):
    """Cross-entropy plus `weight` times the bits per dimension.

    Args:
        model: The hybrid.
        weight: lambda; 0 trains the classifier alone.
        label_smoothing: As in `Classification`.

    Source: Nalisnick et al. 2019, equation 3 (there the likelihood is weighted per dimension as well).

    Example:
        >>> import torch
        >>> from invertible.models import iresnet_table
        >>> loss = HybridLoss(Hybrid(iresnet_table(2, n_blocks=1), n_classes=3), weight=0.5)
        >>> sorted(loss(torch.randn(4, 2), torch.tensor([0, 2, 1, 1]))[1])
        ['accuracy', 'bits_per_dim', 'cross_entropy']
    """

    def __init__(self, model: Hybrid, weight: float = 1.0, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.model, self.weight = model, weight
        self._classification = Classification(nn.Identity(), label_smoothing)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss.

        Args:
            x: Data, shape (batch, *event_shape).
            y: Labels, shape (batch,).

        Returns:
            The loss, and metrics (means over the batch, without gradient).
        """
        logits, log_prob = self.model.logits_and_log_prob(x)
        cross_entropy, metrics = self._classification(logits, y)
        bits = -log_prob.mean() / (math.log(2) * math.prod(self.model.flow.event_shape))
        own = {"cross_entropy": cross_entropy.detach(), "bits_per_dim": bits.detach()}
        return cross_entropy + self.weight * bits, metrics | own


class HybridTask(Task):
    """Labels and densities.

    Args:
        has_images: Whether the data are whole numbers.
    """

    monitor = "objective"
    tested = ("accuracy", "loss", "nats", "nats_standard_error", "bits_per_dim")

    def __init__(self, has_images: bool) -> None:
        self._density, self._weight = LikelihoodTask(has_images), 1.0
        self.curves = MappingProxyType({"accuracy": "share", "bits_per_dim": "bits"})
        self.pictures, self.evaluation_batch = self._density.pictures, self._density.evaluation_batch

    def normalization(self, splits: Splits) -> Normalize | None:
        """None, as for a flow; see `Task`.

        Args:
            splits: The data.

        Returns:
            For images the map that only turns uint8 into floating point.
        """
        return self._density.normalization(splits)

    def begin(self, model: nn.Module, splits: Splits, training: TrainingConfig) -> None:
        """As for the flow, and the number of classes; see `Task`.

        Args:
            model: The hybrid.
            splits: The data.
            training: Has batch size, seed and weight.

        Raises:
            ConfigError: If they do not fit.
        """
        hybrid, n_classes = _as_hybrid(model), len(splits.train.classes)
        known = hybrid.head[-1].out_features
        if known != n_classes:
            hint, expected = f"model.arguments.n_classes: {n_classes}", f"{n_classes} logits"
            raise ConfigError("model and data disagree", expected=expected, got=known, hint=hint)
        self._density.begin(hybrid.flow, splits, training)
        self._weight = training.likelihood_weight

    def objective(self, model: nn.Module, training: TrainingConfig) -> nn.Module:
        """Cross-entropy and bits per dimension; see `Task`.

        Args:
            model: The hybrid.
            training: Has the weight and the label smoothing.

        Returns:
            The objective.
        """
        return HybridLoss(_as_hybrid(model), training.likelihood_weight, training.label_smoothing)

    def evaluate(
        self, model: nn.Module, batches: Feed, reduce: Callable[[Tensor], Tensor] | None = None
    ) -> dict[str, float]:
        """Both; see `Task`.

        Args:
            model: The hybrid, in eval mode.
            batches: Data, in evaluation order.
            reduce: Sums a tensor over all processes.

        Returns:
            "accuracy", "loss" (the classifier's), "nats", "bits_per_dim", and "objective": minus what is minimised.
        """
        hybrid = _as_hybrid(model)
        found = evaluate_classifier(hybrid, batches, reduce) | self._density.evaluate(hybrid.flow, batches, reduce)
        bits = found.setdefault("bits_per_dim", -found["nats"] / (math.log(2) * math.prod(hybrid.flow.event_shape)))
        return found | {"objective": -found["loss"] - self._weight * bits}

    def assess(self, run: Run, data: Data) -> dict[str, Any]:
        """Accuracy, and all that is told of a flow; see `Task`.

        Args:
            run: The run.
            data: Not seen in training.

        Returns:
            Figures.
        """
        batches = run.batches(data, self.evaluation_batch)
        with progress() as display:
            task = display.add_task("classifying", total=len(batches))
            figures = evaluate_classifier(run.model, batches, on_step=lambda: display.advance(task))
        return figures | self._density.assess(run, data)

    def draw(self, run: Run, data: Data, figures: Mapping[str, Any]) -> None:
        """As for a flow; see `Task`.

        Args:
            run: The run.
            data: Not seen in training.
            figures: What `assess` returned.
        """
        self._density.draw(run, data, figures)


def _as_hybrid(model: nn.Module) -> Hybrid:
    if not isinstance(model, Hybrid):
        raise ConfigError("this task needs both", expected="a Hybrid", got=type(model).__name__)
    return model

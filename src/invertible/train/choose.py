"""Which task a model is for."""

from __future__ import annotations

from torch import nn

from invertible.data import Normalize
from invertible.flow import Flow
from invertible.models import Hybrid
from invertible.train.classify import ClassificationTask
from invertible.train.hybrid import HybridTask
from invertible.train.likelihood import LikelihoodTask
from invertible.train.task import Task


def task_of(model: nn.Module, normalize: Normalize | None) -> Task:
    """Flows learn densities, hybrids both, everything else classifies.

    Args:
        model: The network.
        normalize: Of its images; None if its data are points.

    Returns:
        The task.

    Example:
        >>> type(task_of(nn.Linear(1, 1), None)).__name__
        'ClassificationTask'
    """
    if isinstance(model, Hybrid):
        return HybridTask(normalize is not None)
    return LikelihoodTask(normalize is not None) if isinstance(model, Flow) else ClassificationTask()

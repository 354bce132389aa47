"""A flow with a head on its latents: one network that classifies, scores and generates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from invertible.errors import ConfigError, DtypeError
from invertible.flow import Flow
from invertible.flow.dequantization import check_levels
from invertible.layers import ModelCertificate
from invertible.models._residual import Bound, EstimatorName
from invertible.models.classifier import check_input
from invertible.models.iresnet import iresnet_density
from invertible.models.residual_flow import residual_flow
from invertible.reversible import Memory


class Hybrid(nn.Module):
    """A density p(x) and a classifier p(y | x) that share everything but one linear layer.

    `forward` gives logits, `flow` is an ordinary `Flow`. Both come out of one evaluation by `logits_and_log_prob`,
    which is what training uses.

    Args:
        flow: The density; it takes no context.
        n_classes: Number of logits.

    Raises:
        DtypeError: If it is no flow.
        ConfigError: If the flow is conditional, or there is no class.

    Source: Nalisnick et al. 2019 (hybrid models); Chen et al. 2019 (Residual Flows), section 4.3.

    Example:
        >>> import torch
        >>> from invertible.models import iresnet_table
        >>> hybrid = Hybrid(iresnet_table(2, n_blocks=1), n_classes=3)
        >>> x = torch.randn(5, 2)
        >>> logits, log_prob = hybrid.logits_and_log_prob(x)
        >>> logits.shape, log_prob.shape, hybrid.flow.sample(4).shape
        (torch.Size([5, 3]), torch.Size([5]), torch.Size([4, 2]))
    """

    def __init__(self, flow: Flow, n_classes: int) -> None:
        super().__init__()
        if not isinstance(flow, Flow):
            raise DtypeError("a hybrid needs a density", expected="a Flow", got=type(flow).__name__)
        if flow.takes_context:
            hint = "build the flow without n_classes and n_context"
            raise ConfigError("a hybrid's flow is unconditional", expected="no context", got="one", hint=hint)
        if n_classes < 1:
            raise ConfigError("a hybrid has a bad n_classes", expected="at least 1", got=n_classes)
        size = math.prod(flow.event_shape)
        self.flow = flow
        self.head = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(size), nn.ReLU(), nn.Linear(size, n_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits. Whole numbers are moved to the middle of their level, so that there is no noise in them.

        Args:
            x: Data as the flow takes them, shape (batch, *event_shape).

        Returns:
            Shape (batch, n_classes).
        """
        if isinstance(x, Tensor) and not x.is_floating_point() and not x.is_complex():
            x = x.to(self.flow.base.here.dtype)
        check_input(x, self, self.flow.event_shape)
        whole = self.flow.dequantization
        if whole is not None:
            check_levels(x, whole.n_levels)
            x = (x + 0.5) / whole.n_levels
        return self.head(self.flow.bijection(x))

    def logits_and_log_prob(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both, from one evaluation.

        Args:
            x: Data as the flow takes them, shape (batch, *event_shape).

        Returns:
            Logits, shape (batch, n_classes), and nats, shape (batch,), with the same noise of dequantisation: so these
            logits are random for whole numbers, in eval mode too; `forward`'s are not.
        """
        z, log_prob = self.flow.encode_with_log_prob(x)
        return self.head(z), log_prob

    def certificate(self) -> ModelCertificate:
        """What each member of the flow does to distances, as `Flow.certificate`.

        Returns:
            The bounds; print them.
        """
        return self.flow.certificate()


def hybrid_iresnet(
    in_shape: Sequence[int] = (3, 32, 32),
    n_classes: int = 10,
    n_scales: int = 3,
    n_blocks: int = 16,
    hidden: int = 512,
    coefficient: float = 0.9,
    bound: Bound = "certified",
    *,
    estimator: EstimatorName = "roulette",
    n_levels: int | None = 256,
    memory: Memory = "store",
) -> Hybrid:
    """An i-ResNet that classifies, scores and generates.

    Args:
        in_shape: Channels, height, width of an image.
        n_classes: Number of logits.
        n_scales: As in `iresnet_density`, as all that follow.
        n_blocks: Blocks in each level.
        hidden: Channels between the convolutions.
        coefficient: The paper's c.
        bound: How norms are bounded.
        estimator: Of the log-determinant in training.
        n_levels: Grey levels of the pixels.
        memory: What a training step keeps, as in `Chain`.

    Returns:
        The hybrid.
    """
    options: dict[str, Any] = {"bound": bound, "estimator": estimator, "n_levels": n_levels, "memory": memory}
    return Hybrid(iresnet_density(in_shape, n_scales, n_blocks, hidden, coefficient, **options), n_classes)


def hybrid_residual_flow(
    in_shape: Sequence[int] = (3, 32, 32),
    n_classes: int = 10,
    n_blocks: Sequence[int] = (16, 16, 16),
    hidden: int = 512,
    n_dense: int = 4,
    coefficient: float = 0.98,
    bound: Bound = "certified",
    *,
    estimator: EstimatorName = "roulette",
    n_levels: int | None = 256,
    memory: Memory = "store",
) -> Hybrid:
    """A Residual Flow that classifies, scores and generates.

    Args:
        in_shape: Channels, height, width of an image.
        n_classes: Number of logits.
        n_blocks: As in `residual_flow`, as all that follow.
        hidden: Channels between the convolutions.
        n_dense: Fully connected blocks at the end.
        coefficient: Bound of each layer's norm.
        bound: How norms are bounded.
        estimator: Of the log-determinant in training.
        n_levels: Grey levels of the pixels.
        memory: What a training step keeps, as in `Chain`.

    Returns:
        The hybrid.
    """
    options: dict[str, Any] = {"bound": bound, "estimator": estimator, "n_levels": n_levels, "memory": memory}
    return Hybrid(residual_flow(in_shape, n_blocks, hidden, n_dense, coefficient, **options), n_classes)


def hybrid_digits(n_classes: int = 10, *, memory: Memory = "store") -> Hybrid:
    """A small i-ResNet hybrid for the 8x8 digits, pixels 0 to 16.

    Args:
        n_classes: Number of logits.
        memory: What a training step keeps, as in `Chain`.

    Returns:
        The hybrid.
    """
    return hybrid_iresnet((1, 8, 8), n_classes, 2, 4, 64, n_levels=17, memory=memory)


def hybrid_fashion_mnist(n_classes: int = 10, *, memory: Memory = "store") -> Hybrid:
    """A small i-ResNet hybrid for Fashion-MNIST, 28x28.

    Args:
        n_classes: Number of logits.
        memory: What a training step keeps, as in `Chain`.

    Returns:
        The hybrid.
    """
    return hybrid_iresnet((1, 28, 28), n_classes, 2, 4, 48, memory=memory)

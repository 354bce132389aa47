"""A flow as a `torch.distributions.Distribution`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from invertible.flow._inputs import as_context

if TYPE_CHECKING:
    from invertible.flow.flow import Flow


class FlowDistribution(Distribution):
    """A flow with its context fixed, for code that expects a distribution.

    Args:
        flow: The flow, whose parameters are shared.
        context: Its leading shape is the batch shape; None: ().
        validate_args: As in `torch.distributions`.

    Example:
        >>> from invertible.layers import Permute
        >>> from invertible.flow import Flow
        >>> distribution = Flow(Permute.reverse(2), base=2).distribution()
        >>> isinstance(distribution, torch.distributions.Distribution), distribution.event_shape
        (True, torch.Size([2]))
        >>> distribution.rsample((3,)).shape
        torch.Size([3, 2])
    """

    arg_constraints = {}  # noqa: RUF012  # pyright: ignore

    def __init__(self, flow: Flow, context: Any = None, validate_args: bool | None = None) -> None:
        self.flow = flow
        self.context = as_context(context, flow.base.here.device)
        _, _, batch = flow._contexts(self.context)
        super().__init__(torch.Size(batch), torch.Size(flow.event_shape), validate_args)

    @property
    def support(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Where the density may be positive: real numbers, or whole ones with dequantisation."""
        dequantization = self.flow.dequantization
        one = (
            constraints.real if dequantization is None else constraints.integer_interval(0, dequantization.n_levels - 1)
        )
        return constraints.independent(one, len(self.event_shape))

    @property
    def has_rsample(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether samples are differentiable in the flow's parameters."""
        return self.flow.base.has_rsample and self.flow.dequantization is None

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density.

        Args:
            value: Shape (*any, *batch_shape, *event_shape).

        Returns:
            Nats, shape (*any, *batch_shape).
        """
        if self._validate_args:
            self._validate_sample(value)
        nats = self.flow.log_prob(value, self.context)
        return nats.expand(torch.broadcast_shapes(nats.shape, self.batch_shape)) if self.batch_shape else nats

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw without gradients.

        Args:
            sample_shape: How many.

        Returns:
            Shape (*sample_shape, *batch_shape, *event_shape).
        """
        return self.flow.sample(self._lead(sample_shape), self.context)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw with gradients.

        Args:
            sample_shape: How many.

        Returns:
            Shape (*sample_shape, *batch_shape, *event_shape).
        """
        return self.flow.rsample(self._lead(sample_shape), self.context)

    def expand(self, batch_shape: Any, _instance: Any = None) -> FlowDistribution:
        """The same distribution for a larger batch.

        Args:
            batch_shape: To which the batch shape broadcasts.
            _instance: Not used.

        Returns:
            A distribution that shares flow and context.
        """
        new = FlowDistribution.__new__(FlowDistribution)
        new.flow, new.context = self.flow, self.context
        if self.context is not None:
            new.context = self.context.expand(*batch_shape, *self.context.shape[len(self.batch_shape) :])
        Distribution.__init__(new, torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _lead(self, sample_shape: Any) -> tuple[int, ...]:
        # A context brings the batch shape along; without one `expand` may have made one.
        return tuple(sample_shape) + (tuple(self.batch_shape) if self.context is None else ())

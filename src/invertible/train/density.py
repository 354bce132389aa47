"""Densities under a trained flow: for given labels, or averaged over the classes; and there and back."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from invertible.errors import ConfigError
from invertible.flow import Flow
from invertible.layers import ContinuousFlow
from invertible.train.feed import Feed
from invertible.train.randomness import seeded

Reduce = Callable[[Tensor], Tensor]
OnStep = Callable[[], None]


def dtype_and_device(model: nn.Module) -> tuple[torch.dtype, torch.device]:
    """Where and how a model computes.

    Args:
        model: The model.

    Returns:
        dtype and device of its first parameter.
    """
    first = next(model.parameters())
    return first.dtype, first.device


def labels_for(flow: Flow, labels: Tensor) -> Tensor | None:
    """What a flow is given of the labels.

    Args:
        flow: The flow.
        labels: One per data point.

    Returns:
        The labels if it is conditional, None if not.
    """
    return labels if flow.takes_context else None


@torch.no_grad()
def log_density(flow: Flow, x: Tensor, n_classes: int, label: int | None = None) -> Tensor:
    """Log-density of each point; of a class-conditional flow that of one class, or of the even mixture of all.

    Args:
        flow: The flow, in eval mode.
        x: Data as it takes them, shape (batch, *event_shape).
        n_classes: How many classes it knows, if it is conditional.
        label: The class; None: log of the mean density over the classes.

    Returns:
        Nats, shape (batch,).

    Raises:
        ConfigError: If there is no such class, or the flow knows none.
    """
    check_label(flow, n_classes, label)
    if not flow.takes_context:
        return flow.log_prob(x)
    if label is not None:
        return flow.log_prob(x, torch.full(x.shape[:1], label, device=x.device))
    each = []
    for k in range(n_classes):
        # Each class sees the same noise of dequantisation, and the last one moves the random state on.
        devices = [x.device] if x.is_cuda else []
        with torch.random.fork_rng(devices=devices, enabled=k < n_classes - 1):
            each.append(flow.log_prob(x, torch.full(x.shape[:1], k, device=x.device)))
    return torch.stack(each).logsumexp(0) - math.log(n_classes)


def check_label(flow: Flow, n_classes: int, label: int | None) -> None:
    """Refuse a class that the flow does not know.

    Args:
        flow: The flow.
        n_classes: How many it knows, if it is conditional.
        label: The class; None is fine.

    Raises:
        ConfigError: If there is no such class, or the flow knows none.
    """
    if label is None:
        return
    if not flow.takes_context:
        hint = "leave --class out, or train with --model.arguments.n_classes"
        raise ConfigError("this flow knows no classes", expected="no class", got=label, hint=hint)
    if not 0 <= label < n_classes:
        raise ConfigError("no such class", expected=f"0 to {n_classes - 1}", got=label)


@torch.no_grad()
def evaluate_likelihood(
    flow: Flow, batches: Feed, reduce: Reduce | None = None, on_step: OnStep | None = None, seed: int = 0
) -> dict[str, float]:
    """Mean log-likelihood; noise of dequantisation is drawn once per point, the same at every call.

    Args:
        flow: The flow, in the mode it shall be evaluated in (call `eval()`). A conditional one gets the labels.
        batches: The data, in evaluation order.
        reduce: Sums a tensor over all processes; None: there is one.
        on_step: Called after each batch.
        seed: Of the noise.

    Returns:
        "nats" per data point (larger is better), "nats_standard_error" over the points, for whole numbers
        "bits_per_dim" (smaller is better), and for continuous flows "n_evaluations": of the vector fields, per batch of
        this process.
    """
    n_evaluations = 0
    sums = torch.zeros(3, dtype=torch.float64, device=batches.device)
    dtype, _ = dtype_and_device(flow)
    for step, (x, y) in enumerate(batches.epoch(0)):
        with seeded(batches.device, seed, step, batches.rank):
            nats = flow.log_prob(x.to(dtype), labels_for(flow, y)).double()
        n_evaluations += count_evaluations(flow)
        sums += torch.stack([nats.sum(), (nats * nats).sum(), nats.new_tensor(len(nats))])
        if on_step is not None:
            on_step()
    total, squares, n = (reduce(sums) if reduce is not None else sums).tolist()
    variance = max(squares / n - (total / n) ** 2, 0.0)
    figures = {"nats": total / n, "nats_standard_error": math.sqrt(variance / max(n - 1, 1))}
    if flow.dequantization is not None:
        figures["bits_per_dim"] = bits_per_dim(flow, total / n)
    return figures | ({"n_evaluations": n_evaluations / len(batches)} if n_evaluations else {})


def count_evaluations(flow: Flow) -> int:
    """What the last solve of each continuous flow in a flow cost.

    Args:
        flow: The flow.

    Returns:
        Evaluations of the vector fields in all; 0 if it has none.
    """
    reports = (layer.report for layer in flow.modules() if isinstance(layer, ContinuousFlow))
    return sum(report.n_evaluations for report in reports if report is not None)


def bits_per_dim(flow: Flow, nats: float) -> float:
    """Log-likelihood as bits per number of the data.

    Args:
        flow: Whose event has so many numbers.
        nats: Log-likelihood of a data point.

    Returns:
        Bits per dimension.
    """
    return -nats / (math.log(2) * math.prod(flow.event_shape))


@dataclass(frozen=True)
class RoundTrip:
    """Data, and what came back from their latents.

    Args:
        before: What went in: points, or pixels at the middle of their level, from 0 to 1.
        after: What came back.
        pixels_equal: Whether all whole numbers came back; None for points.
    """

    before: Tensor
    after: Tensor
    pixels_equal: bool | None

    @property
    def error(self) -> Tensor:
        """Absolute error of each number."""
        return (self.after - self.before).abs()


@torch.no_grad()
def round_trip(flow: Flow, x: Tensor, labels: Tensor) -> RoundTrip:
    """Send data to the latents and back.

    Args:
        flow: The flow, in eval mode.
        x: Data as it takes them, shape (batch, *event_shape).
        labels: For a conditional flow.

    Returns:
        What went in and what came back. Whole numbers are not blurred by noise, but moved to the middle of their level.
    """
    bare = Flow(flow.bijection, flow.base, event_shape=flow.event_shape, embed=flow.embed,
                context_shape=flow.context_shape)  # fmt: skip
    context, whole = labels_for(flow, labels), flow.dequantization
    before = x if whole is None else (x + 0.5) / whole.n_levels
    after = bare.decode(bare.encode(before, context), context)
    return RoundTrip(before, after, None if whole is None else torch.equal(whole.quantise(after), x))

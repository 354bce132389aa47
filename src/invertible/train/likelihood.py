"""The task of flows: likelihood, round trip, and pictures of what was learned."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from invertible._console import progress
from invertible.data import Normalize, PointSet
from invertible.errors import ConfigError, ContextError, RangeError
from invertible.flow import Flow
from invertible.layers import Standardize
from invertible.train.density import (
    dtype_and_device,
    evaluate_likelihood,
    labels_for,
    round_trip,
)
from invertible.train.feed import Feed
from invertible.train.figures import spread
from invertible.train.flow_figures import PICTURES, draw_flow
from invertible.train.prepare import Data, Splits
from invertible.train.randomness import seeded
from invertible.train.recipe import TrainingConfig
from invertible.train.run import EVALUATION_BATCH, Run
from invertible.train.task import Task

N_FIRST_BATCH = 256  # at most so many data points set what layers like ActNorm take from their first batch
N_ROUND_TRIP = 1000


class Likelihood(nn.Module):
    """Negative log-likelihood of a flow: bits per dimension for whole numbers (images), nats for points.

    Args:
        model: The flow. A conditional one gets the labels as context.

    Example:
        >>> from invertible import Chain
        >>> objective = Likelihood(Flow(Chain(), base=2))
        >>> loss, metrics = objective(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64))
        >>> round(loss.item(), 4), sorted(metrics)
        (1.8379, ['nats'])
    """

    def __init__(self, model: Flow) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss.

        Args:
            x: Data, shape (batch, *event_shape).
            y: Labels, shape (batch,).

        Returns:
            The loss, and metrics (means over the batch, without gradient): "nats", the log-likelihood.
        """
        nll = self.model(x, labels_for(self.model, y))
        metrics = {"nats": -nll.detach()}
        if self.model.dequantization is None:
            return nll, metrics
        loss = nll / (math.log(2) * math.prod(self.model.event_shape))
        return loss, metrics | {"bits_per_dim": loss.detach()}


class LikelihoodTask(Task):
    """Densities of images or points.

    Args:
        has_images: Whether the data are whole numbers.
    """

    monitor = "nats"
    tested = ("nats", "nats_standard_error", "bits_per_dim")
    pictures = PICTURES

    def __init__(self, has_images: bool) -> None:
        self.has_images = has_images
        own = {"bits_per_dim": "bits"} if has_images else {}
        self.curves = MappingProxyType({**own, "nats": "log-likelihood per example"})
        self.evaluation_batch = EVALUATION_BATCH if has_images else 2000

    def normalization(self, splits: Splits) -> Normalize | None:
        """None: pixels reach a flow as the whole numbers that they are. See `Task`.

        Args:
            splits: The data.

        Returns:
            For images the map that only turns uint8 into floating point.
        """
        return None if splits.normalize is None else whole_pixels(splits.normalize)

    def begin(self, model: nn.Module, splits: Splits, training: TrainingConfig) -> None:
        """Check shapes and levels, then set what depends on data.

        `Standardize` is measured on all training points; one batch sets layers like ActNorm.

        Args:
            model: The flow.
            splits: The data.
            training: Has batch size and seed.

        Raises:
            ConfigError: If they do not fit.
        """
        flow = _as_flow(model)
        _check_event(flow, splits)
        _standardize(flow, splits.train)
        n = min(len(splits.train), training.batch_size, N_FIRST_BATCH)
        rows = spread(len(splits.train), n).tolist()
        x, y = splits.train.batch(rows), splits.train.labels[rows]
        dtype, device = dtype_and_device(flow)
        x = (x if splits.normalize is None else splits.normalize(x)).to(device, dtype)
        y[0] = splits.train.labels.max()  # a flow that knows fewer classes shows here
        with torch.no_grad(), seeded(device, training.seed, 0):
            try:
                flow.train().log_prob(x, labels_for(flow, y.to(device)))
            except (ContextError, IndexError, RangeError) as error:
                n_classes, got = len(splits.train.classes), str(error)
                expected, hint = f"labels 0 to {n_classes - 1} as context", f"model.arguments.n_classes: {n_classes}"
                raise ConfigError("model and data disagree", expected=expected, got=got, hint=hint) from error

    def objective(self, model: nn.Module, training: TrainingConfig) -> nn.Module:
        """Negative log-likelihood; see `Task`.

        Args:
            model: The flow.
            training: Not needed.

        Returns:
            The objective.
        """
        return Likelihood(_as_flow(model))

    def evaluate(
        self, model: nn.Module, batches: Feed, reduce: Callable[[Tensor], Tensor] | None = None
    ) -> dict[str, float]:
        """Log-likelihood; see `Task`.

        Args:
            model: The flow, in eval mode.
            batches: Data, in evaluation order.
            reduce: Sums a tensor over all processes.

        Returns:
            As `evaluate_likelihood`.
        """
        return evaluate_likelihood(_as_flow(model), batches, reduce)

    def assess(self, run: Run, data: Data) -> dict[str, Any]:
        """Log-likelihood, and how exactly data come back from their latents; see `Task`.

        Args:
            run: The run.
            data: Not seen in training.

        Returns:
            As `evaluate_likelihood`, and "reconstruction_max_abs_error", "reconstruction_mean_abs_error" (units of the
            pixel range, or of the points), "reconstruction_n", "reconstruction_dtype", for images "pixels_equal".
        """
        some = data.subset(spread(len(data), N_ROUND_TRIP))
        batches, few = run.batches(data, self.evaluation_batch), run.batches(some, self.evaluation_batch)
        with progress() as display:
            task = display.add_task("evaluating", total=len(batches) + 2 * len(few))
            figures: dict[str, Any] = evaluate_likelihood(run.flow, batches, on_step=lambda: display.advance(task))
            errors = _round_trips(run, few, lambda: display.advance(task, 2))
        return figures | errors

    def draw(self, run: Run, data: Data, figures: Mapping[str, Any]) -> None:
        """Densities and samples; see `Task`.

        Args:
            run: The run.
            data: Not seen in training.
            figures: Not needed.
        """
        draw_flow(run, data)


def whole_pixels(normalize: Normalize) -> Normalize:
    """The normalisation that leaves pixels the whole numbers they are.

    Args:
        normalize: Another one, for the same images.

    Returns:
        Mean 0, and a standard deviation of one grey level.

    Example:
        >>> pixels = torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1)
        >>> torch.equal(whole_pixels(Normalize.identity(1))(pixels), pixels.float())
        True
    """
    n = len(normalize.mean)
    return Normalize((0.0,) * n, (1 / normalize.max_value,) * n, normalize.max_value)


def _as_flow(model: nn.Module) -> Flow:
    if not isinstance(model, Flow):
        raise ConfigError("likelihood needs a density", expected="a Flow", got=type(model).__name__)
    return model


def _check_event(flow: Flow, splits: Splits) -> None:
    if flow.event_shape != tuple(splits.train.shape):
        hint = "the model's size, data.pad (2 makes 28x28 images 32x32) or data.size"
        expected, got = f"data of shape {flow.event_shape}", f"{splits.train.name} with {tuple(splits.train.shape)}"
        raise ConfigError("model and data disagree", expected=expected, got=got, hint=hint)
    wanted = None if splits.normalize is None else splits.normalize.max_value + 1
    got = None if flow.dequantization is None else flow.dequantization.n_levels
    if wanted != got:
        expected = f"{wanted} grey levels to dequantise" if wanted else "no dequantisation: points are real numbers"
        hint = f"--model.arguments.n_levels {wanted or 'null'}"
        raise ConfigError("model and data disagree", expected=expected, got=got or "none", hint=hint)


def _standardize(flow: Flow, data: Data) -> None:
    first = next((layer for layer in flow.modules() if isinstance(layer, Standardize)), None)
    if first is not None and isinstance(data, PointSet):
        first.load_state_dict(Standardize.fit(data.points).state_dict())


def _round_trips(run: Run, batches: Feed, on_step: Callable[[], None]) -> dict[str, Any]:
    largest, total, n_numbers, n, is_equal = 0.0, 0.0, 0, 0, True
    dtype, _ = dtype_and_device(run.model)
    for x, y in batches.epoch(0):
        trip = round_trip(run.flow, x.to(dtype), y)
        error = trip.error.double()
        largest, total = max(largest, error.max().item()), total + error.sum().item()
        n_numbers, n, is_equal = n_numbers + error.numel(), n + len(x), is_equal and trip.pixels_equal is not False
        on_step()
    figures = {"max_abs_error": largest, "mean_abs_error": total / n_numbers, "n": n, "dtype": str(dtype)[6:]}
    named: dict[str, Any] = {f"reconstruction_{name}": value for name, value in figures.items()}
    return named | ({"pixels_equal": is_equal} if run.scaling is not None else {})

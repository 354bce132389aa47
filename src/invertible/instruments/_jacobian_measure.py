"""One Jacobian: how it is measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from invertible.errors import ConfigError
from invertible.instruments._batch import Batch
from invertible.instruments._derivative import Derivative
from invertible.instruments._golub_kahan import golub_kahan
from invertible.instruments._jacobian_rows import Spectrum, effective_rank
from invertible.instruments.taps import Tap

_MAX_ENTRIES = 2**26
_COPIES = 64


@dataclass(frozen=True)
class Options:
    """What `jacobian_spectrum` was called with; see there.

    Args:
        n_examples: How many.
        dense_up_to: Size up to which the Jacobian is built.
        n_extreme: Values wanted at each end beyond.
        n_steps: At most so many.
        tolerance: Residual over the largest value.
        window: Of the input.
        seed: Of Lanczos' first vector.
    """

    n_examples: int
    dense_up_to: int
    n_extreme: int
    n_steps: int
    tolerance: float
    window: int | None
    seed: int

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            ConfigError: If an option is out of its range.
        """
        least = {"n_examples": 1, "dense_up_to": 0, "n_extreme": 1, "n_steps": 2}
        for name, low in least.items():
            value = vars(self)[name]
            if isinstance(value, bool) or value < low:
                raise ConfigError(f"jacobian_spectrum has a bad {name}", expected=f"{low} or more", got=value)
        if not 0 < self.tolerance < 1:
            raise ConfigError("jacobian_spectrum has a bad tolerance", expected="0 to 1", got=self.tolerance)


def spectrum(model: nn.Module, tap: Tap, batch: Batch, row: int, example: int, options: Options) -> Spectrum:
    """Measure one Jacobian. Inside `untouched` only.

    Args:
        model: The network.
        tap: The place.
        batch: The data.
        row: Which of the batch.
        example: Its number in all data.
        options: What was asked for.

    Returns:
        Its spectrum.
    """
    trial = Derivative(model, tap, batch, row, 2, options.window)
    smaller, entries = min(trial.n_in, trial.n_out), trial.n_in * trial.n_out
    if smaller <= options.dense_up_to and entries <= _MAX_ENTRIES:
        copies = min(_COPIES, trial.n_out)
        whole = Derivative(model, tap, batch, row, copies, options.window) if copies > 2 else trial
        return _dense(whole, tap, example)
    return _lanczos(Derivative(model, tap, batch, row, 1, options.window), tap, example, options)


def _dense(derivative: Derivative, tap: Tap, example: int) -> Spectrum:
    values = torch.linalg.svdvals(derivative.dense()).tolist()
    n_in, n_out, eps = derivative.n_in, derivative.n_out, torch.finfo(derivative.dtype).eps
    rounding = eps * max(n_in, n_out) * values[0]
    log_abs_det = None
    if n_in == n_out:
        log_abs_det = math.fsum(map(math.log, values)) if values[-1] > 0 else -math.inf
    return Spectrum(
        place=tap.name or "output", example=example, n_in=n_in, n_out=n_out, method="dense",
        values=tuple(values), residuals=(eps * values[0],) * len(values), smallest=(), smallest_residuals=(),
        log_abs_det=log_abs_det, condition=values[0] / values[-1] if values[-1] > 0 else math.inf,
        is_lower_bound=values[-1] <= rounding, rank=sum(value > rounding for value in values),
        effective_rank=effective_rank(values), n_steps=0,
    )  # fmt: skip


def _lanczos(derivative: Derivative, tap: Tap, example: int, options: Options) -> Spectrum:
    n_in, n_out = derivative.n_in, derivative.n_out
    product, transposed = _on_vectors(derivative.product, derivative), _on_vectors(derivative.transposed, derivative)
    if n_in > n_out:  # so that values that are zero by shape are not counted
        product, transposed = transposed, product
    size = min(n_in, n_out)
    n_steps = min(options.n_steps, size)
    found = golub_kahan(product, transposed, size, n_steps, options.n_extreme, options.tolerance, options.seed)
    largest = found.values[0].item()
    floor = torch.finfo(derivative.dtype).eps * largest
    values, residuals = found.values.tolist(), [max(r, floor) for r in found.residuals.tolist()]
    n = min(options.n_extreme, len(values))
    is_sound = residuals[-1] <= options.tolerance * largest and values[-1] > 10 * residuals[-1]
    return Spectrum(
        place=tap.name or "output", example=example, n_in=n_in, n_out=n_out, method="lanczos",
        values=tuple(values[:n]), residuals=tuple(residuals[:n]), smallest=tuple(values[-n:]),
        smallest_residuals=tuple(residuals[-n:]), log_abs_det=None,
        condition=largest / values[-1] if values[-1] > 0 else math.inf, is_lower_bound=not is_sound,
        rank=None, effective_rank=None, n_steps=found.n_steps,
    )  # fmt: skip


def _on_vectors(act: Callable[[Tensor], Tensor], derivative: Derivative) -> Callable[[Tensor], Tensor]:
    like = derivative.like

    def apply(v: Tensor) -> Tensor:
        return act(v.to(like.device, like.dtype).unsqueeze(0)).squeeze(0).double().cpu()

    return apply

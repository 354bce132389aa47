"""What a trained network does on images it has not seen: accuracy, loss, and how exactly it gives them back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from invertible.data import Normalize
from invertible.errors import NonFiniteError
from invertible.models import Classifier
from invertible.train.feed import Feed
from invertible.train.objective import Classification

Reduce = Callable[[Tensor], Tensor]


@torch.no_grad()
def evaluate_classifier(
    model: nn.Module,
    batches: Feed,
    reduce: Reduce | None = None,
    on_step: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Accuracy and mean cross-entropy.

    Args:
        model: A classifier, in the mode it shall be evaluated in (call `eval()`).
        batches: The images, in evaluation order.
        reduce: Sums a tensor over all processes; None: there is one.
        on_step: Called after each batch.

    Returns:
        "accuracy" (0 to 1) and "loss" (nats).

    Raises:
        NonFiniteError: If the loss is not finite.
    """
    objective = Classification(model)
    sums = torch.zeros(3, dtype=torch.float64, device=batches.device)
    dtype = next(model.parameters()).dtype
    for x, y in batches.epoch(0):
        loss, metrics = objective(x.to(dtype), y)
        sums += torch.stack([loss.double(), metrics["accuracy"].double(), sums.new_ones(())]) * len(x)
        if on_step is not None:
            on_step()
    loss, accuracy, n = (reduce(sums) if reduce is not None else sums).tolist()
    if not loss < float("inf"):
        hint = "were the weights trained in the same precision?"
        raise NonFiniteError("the evaluated loss is not finite", got=loss / n, hint=hint)
    return {"accuracy": accuracy / n, "loss": loss / n}


@torch.no_grad()
def evaluate_reconstruction(
    model: Classifier, batches: Feed, normalize: Normalize, on_step: Callable[[], None] | None = None
) -> dict[str, float | bool]:
    """How exactly images come back from their representation.

    Args:
        model: The classifier, in eval mode.
        batches: The images.
        normalize: What `batches` were normalised with.
        on_step: Called after each batch.

    Returns:
        "max_abs_error" and "mean_abs_error" over all pixels, in units of the pixel range (black 0, white 1), "n", and
        "bit_exact": whether all came back as `Comparison.is_bit_exact` says.
    """
    largest, total, n_pixels, n, is_bit_exact = 0.0, 0.0, 0, 0, True
    dtype = next(model.parameters()).dtype
    for images, _ in batches.epoch(0):
        result = compare(model, images.to(dtype), normalize)
        largest, total = max(largest, result.error.max().item()), total + result.error.sum(dtype=torch.float64).item()
        n_pixels, n = n_pixels + result.error.numel(), n + len(images)
        is_bit_exact = is_bit_exact and result.is_bit_exact
        if on_step is not None:
            on_step()
    return {"max_abs_error": largest, "mean_abs_error": total / n_pixels, "n": n, "bit_exact": is_bit_exact}


@dataclass(frozen=True)
class Comparison:
    """Images and what came back.

    Args:
        before: What went into the network's body: normalised images, moved to the lattice if the network is exact.
        after: What came back.
        error: Absolute error per pixel, in units of the pixel range. For an exact network it is also the difference of
            the 8-bit pixels, where that is larger: so it is zero if and only if `is_bit_exact`.
        is_bit_exact: Whether `after` has the same floating-point values as `before`, and the 8-bit pixels it is
            rounded to are those of the images before they were moved to the lattice.
    """

    before: Tensor
    after: Tensor
    error: Tensor
    is_bit_exact: bool


@torch.no_grad()
def compare(model: Classifier, x: Tensor, normalize: Normalize) -> Comparison:
    """Send images through the network and back.

    Args:
        model: The classifier, in eval mode.
        x: Images as `normalize` made them, in the model's dtype; shape (batch, channels, height, width).
        normalize: The normalisation.

    Returns:
        What went in, what came back, and how they differ.
    """
    lattice = model.body.lattice
    before = x if lattice is None else lattice.quantise(x)
    after = model.reconstruct(model.representation(x))
    error = reconstruction_error(before, after, normalize)
    is_bit_exact = torch.equal(before, after)
    if lattice is not None:
        lost = (normalize.to_uint8(after).to(x.dtype) - normalize.to_uint8(x).to(x.dtype)).abs()
        error = torch.maximum(error, lost / normalize.max_value)
        is_bit_exact = is_bit_exact and not bool(lost.any())
    return Comparison(before, after, error, is_bit_exact)


def reconstruction_error(x: Tensor, reconstruction: Tensor, normalize: Normalize) -> Tensor:
    """Absolute error per pixel.

    Args:
        x: Normalised images, shape (batch, channels, height, width).
        reconstruction: What came back.
        normalize: The normalisation.

    Returns:
        Same shape, in units of the pixel range.

    Raises:
        NonFiniteError: If what came back is not finite.

    Example:
        >>> normalize = Normalize(mean=(0.5,), std=(0.25,))
        >>> reconstruction_error(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1), normalize).item()
        0.25
    """
    error = (reconstruction - x).abs() * torch.tensor(normalize.std, dtype=x.dtype, device=x.device).view(-1, 1, 1)
    if not bool(torch.isfinite(error).all()):
        hint = "the same in float64: if that is finite, rounding explodes in the inverse"
        raise NonFiniteError("the reconstruction is not finite", got="NaN or infinity", hint=hint)
    return error

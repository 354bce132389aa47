"""Information by bins: units are cut into intervals, and the joint pattern of a layer's units is counted."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from invertible._checks import check_finite, check_floating, describe
from invertible.errors import ConfigError, RangeError, ShapeError

Span = tuple[float, float] | Literal["adaptive"]
BITS = math.log(2)
"""Nats in a bit."""
_MAX_CODE = 2.0**62


class Bits(NamedTuple):
    """Estimates in bits, float64, with the leading dimensions of what was measured.

    Args:
        inputs: I(X; T).
        labels: I(T; Y); NaN without labels.
    """

    inputs: Tensor
    labels: Tensor


def binned_information(h: Tensor, labels: Tensor | None = None, *, n_bins: int = 30, span: Span = (-1.0, 1.0)) -> Bits:
    """Estimate what a layer tells about input and label, from the bins that its units fall into.

    T is the joint pattern of bins over all units. It follows from X, so that I(X; T) = H(T), the entropy of the
    discretised activations; I(T; Y) = H(T) - sum_y p(y) H(T | y). A fixed grid has n_bins bins on the span and goes on
    beyond it with bins of the same width: nothing is clipped, since clipping would be a loss of its own. An adaptive
    one spans what the layer's units take at this moment, smallest to largest; it does not see their scale.

    Args:
        h: Activations, shape (..., N, d): N examples of d units.
        labels: Whole numbers from 0, shape (N,).
        n_bins: 1 or more.
        span: (low, high), or "adaptive".

    Returns:
        Bits, each of shape (...). At most log2(N): at that ceiling, where each example has a pattern of its own,
        they say nothing.

    Raises:
        ShapeError: If shapes do not fit.
        DtypeError: If h holds no real numbers.
        NonFiniteError: If h holds NaN or infinity.
        RangeError: If a label is negative, or a value too far away to have a bin.
        ConfigError: If bins or span are none.

    Source: Shwartz-Ziv and Tishby 2017, "Opening the black box of deep neural networks via information", section 3.

    Example:
        >>> h = torch.tensor([[-0.9], [-0.9], [0.9], [0.9]])
        >>> found = binned_information(h, torch.tensor([0, 0, 1, 1]), n_bins=2)
        >>> float(found.inputs), float(found.labels)
        (1.0, 1.0)
    """
    check_activations(h)
    ranks = bin_ranks(h, n_bins, span)
    if labels is None:
        inputs = entropy_of_ranks(ranks)
        return Bits(inputs, torch.full_like(inputs, math.nan))
    return bits_of_ranks(ranks, check_classes(labels, h.shape[-2]))


def bits_of_ranks(ranks: Tensor, labels: Tensor) -> Bits:
    """Information of patterns that have been numbered.

    Args:
        ranks: From `ranks_of`, shape (..., N).
        labels: Whole numbers from 0, shape (N,).

    Returns:
        Bits.
    """
    n_classes = int(labels.max()) + 1
    inputs = entropy_of_ranks(ranks)
    joint = entropy_of_ranks(ranks * n_classes + labels)
    # H(T) - H(T | Y) = H(T) + H(Y) - H(T, Y); rounding must not make it negative.
    return Bits(inputs, (inputs + entropy_of_ranks(labels) - joint).clamp_min(0))


def bin_codes(h: Tensor, n_bins: int, span: Span) -> Tensor:
    """Number the bins that activations fall into.

    Args:
        h: Shape (..., N, d).
        n_bins: On the span.
        span: Of the grid, or "adaptive": from each layer's smallest value to its largest.

    Returns:
        int64, the shape of h. A value on the upper end of the span counts to the last bin.

    Raises:
        ConfigError: If bins or span are none.
        RangeError: If a value is too far away.

    Example:
        >>> bin_codes(torch.tensor([[-1.0, 0.0, 1.0, 1.5]]), 4, (-1.0, 1.0))
        tensor([[0, 2, 3, 5]])
    """
    if n_bins < 1 or (
        span != "adaptive" and not (isinstance(span, tuple) and -math.inf < span[0] < span[1] < math.inf)
    ):
        expected = 'n_bins >= 1 and span (low, high), low < high, or "adaptive"'
        raise ConfigError("bad bins", expected=expected, got=f"n_bins {n_bins}, span {span!r}")
    x = h.detach().double()
    if isinstance(span, tuple):
        low, high = x.new_tensor(span[0]), x.new_tensor(span[1])
    else:
        low, high = x.amin((-2, -1), keepdim=True), x.amax((-2, -1), keepdim=True)
    width = high - low
    place = ((x - low) * (n_bins / torch.where(width > 0, width, 1.0))).floor_()
    farthest = float(place.abs().max())
    if not farthest < _MAX_CODE:
        got = f"one {farthest:.3g} bins away"
        raise RangeError("a value is too far away to have a bin", expected=f"within {_MAX_CODE:g}", got=got)
    return torch.where(x == high, n_bins - 1, place.long())


def bin_ranks(h: Tensor, n_bins: int, span: Span) -> Tensor:
    """Number the joint patterns of bins of each layer.

    Args:
        h: Shape (..., N, d).
        n_bins: As for `bin_codes`.
        span: As for `bin_codes`.

    Returns:
        int64, shape (..., N).
    """
    # Layer by layer: what fits the processor's cache is several times as fast.
    flat = h.reshape(-1, *h.shape[-2:])
    return torch.stack([ranks_of(bin_codes(one, n_bins, span)) for one in flat]).view(h.shape[:-1])


def ranks_of(codes: Tensor) -> Tensor:
    """Number the different rows of each matrix: equal rows get equal numbers.

    Rows are compared by sums of their numbers times random 64-bit factors; that two different rows of N have the same
    has a probability below N^2 / 2^50 for numbers below 2^14.

    Args:
        codes: int64, shape (..., N, d).

    Returns:
        int64, shape (..., N), 0 to N - 1 within each matrix.

    Example:
        >>> ranks_of(torch.tensor([[7, 7], [1, 2], [7, 7]]))
        tensor([1, 0, 1])
    """
    generator = torch.Generator().manual_seed(codes.shape[-1])
    low, high = -(2**63), 2**63 - 1
    factors = torch.randint(low, high, (codes.shape[-1],), generator=generator).to(codes.device) | 1
    keys = (codes * factors).sum(-1)  # products wrap round, which is what is wanted
    values, order = keys.sort(dim=-1)
    steps = torch.zeros_like(values)
    steps[..., 1:] = (values[..., 1:] != values[..., :-1]).long()
    dense = steps.cumsum(-1)
    return torch.empty_like(dense).scatter_(-1, order, dense)


def entropy_of_ranks(ranks: Tensor) -> Tensor:
    """Entropy of numbers by how often each comes.

    Args:
        ranks: int64 from 0, shape (..., N).

    Returns:
        Bits, float64, shape (...).

    Example:
        >>> float(entropy_of_ranks(torch.tensor([0, 0, 1, 3])))
        1.5
    """
    n, flat = ranks.shape[-1], ranks.reshape(-1, ranks.shape[-1])
    size = int(flat.max()) + 1
    offsets = torch.arange(len(flat), device=flat.device).unsqueeze(1) * size
    counts = (flat + offsets).reshape(-1).bincount(minlength=len(flat) * size).view(len(flat), size)
    numbers = torch.arange(n + 1, device=flat.device, dtype=torch.float64)
    sums = torch.xlogy(numbers, numbers)[counts].sum(1)  # a table: n logarithms instead of one per count
    return (math.log2(n) - sums / (n * BITS)).clamp_min(0).view(ranks.shape[:-1])


def pattern_ranks(h: Tensor) -> Tensor:
    """Number the rows of activations as they are, to the bit; -0 equals 0.

    Args:
        h: Shape (..., N, d).

    Returns:
        int64, shape (..., N).
    """
    flat = h.detach().reshape(-1, *h.shape[-2:])
    ranks = [ranks_of(_mixed((one.double() + 0.0).view(torch.int64))) for one in flat]
    return torch.stack(ranks).view(h.shape[:-1])


def check_activations(h: Tensor) -> None:
    """Refuse what is no layer's activations.

    Args:
        h: What came.

    Raises:
        ShapeError: If it has not the shape (..., N, d), or is empty.
        DtypeError: If it holds no real numbers.
        NonFiniteError: If it holds NaN or infinity.
    """
    check_floating(h, "information")
    if h.ndim < 2 or not h.numel():
        hint = "h.unsqueeze(1) of one unit, h.flatten(1) of images"
        raise ShapeError("bad activations", expected="shape (..., N, d), not empty", got=describe(h), hint=hint)
    check_finite(h, "activations")


def check_classes(labels: Tensor, n: int) -> Tensor:
    """Refuse what are no classes.

    Args:
        labels: What came.
        n: How many examples there are.

    Returns:
        Them, int64.

    Raises:
        ShapeError: If there is not one per example.
        RangeError: If they are not whole numbers from 0.
    """
    if labels.ndim != 1 or len(labels) != n:
        hint = "one-hot labels: y.argmax(1)"
        raise ShapeError(
            "labels do not fit", expected=f"one per example, shape ({n},)", got=describe(labels), hint=hint
        )
    if labels.is_floating_point() or labels.is_complex():
        raise RangeError("labels are no classes", expected="whole numbers", got=describe(labels), hint="labels.long()")
    if int(labels.min()) < 0:
        got = f"{int((labels < 0).sum())} below 0, the least {int(labels.min())}"
        raise RangeError("labels out of range", expected="0, 1, ...", got=got, hint="leave examples without label out")
    return labels.detach().long()


def _mixed(x: Tensor) -> Tensor:
    # Bits of floats end in zeros; this scatters them over all 64.
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        x = (x ^ ((x >> shift) & (2 ** (64 - shift) - 1))) * factor
    return x ^ ((x >> 31) & (2**33 - 1))

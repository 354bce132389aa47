"""Spline flows (Durkan et al. 2019): couplings by monotone rational-quadratic splines; what `Flow.fit` takes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from invertible.bijection import Bijection
from invertible.chain import Chain
from invertible.errors import ConfigError
from invertible.flow import ConditionalNormal, Flow, StandardNormal
from invertible.layers import (
    MarginalSpline,
    Permute,
    Reshape,
    SoftTails,
    SplineCoupling,
    Standardize,
)
from invertible.layers.conditioner import MLP, ClassEmbedding
from invertible.models._flows import as_flow, context_size, pixels_to_logits, remember
from invertible.reversible import Memory

FAR = 20.0
"""Standardised values beyond this make `Flow.fit` tame a table's tails."""

MOST_FAR = 0.05
"""More of them in a column are no outliers, but how it is distributed."""
NORMAL_QUARTILES = 1.349
"""How far the quartiles of a normal distribution lie apart, in standard deviations."""


def spline_flow(
    in_shape: int | Sequence[int] = (2,),
    n_couplings: int = 6,
    hidden: Sequence[int] = (64, 64),
    n_bins: int = 8,
    bound: float = 5.0,
    *,
    n_levels: int | None = None,
    n_classes: int | None = None,
    n_context: int | None = None,
    standardize: bool = False,
    tails: bool = False,
    memory: Memory = "store",
) -> Flow:
    """A coupling flow with rational-quadratic splines.

    From three numbers on, a fixed random permutation stands before each coupling; in the plane the couplings take
    turns; a single number gets a spline of its own (with a context, a normal base that depends on it).

    Args:
        in_shape: Of a data point; a number stands for a vector.
        n_couplings: How many.
        hidden: Widths of their networks.
        n_bins: Bins of each spline.
        bound: The splines act on [-bound, bound] and are the identity beyond.
        n_levels: Grey levels of pixels, dequantised uniformly, then a logit with alpha 0.05; None: real data.
        n_classes: To condition on labels.
        n_context: To condition on vectors of so many numbers.
        standardize: Whether the columns are standardised first, by buffers that `Flow.fit` sets.
        tails: Whether values far out are drawn in logarithmically after that (`SoftTails`).
        memory: What a training step keeps, as in `Chain`.

    Returns:
        The flow, with latents that are vectors.

    Raises:
        ConfigError: If an argument does not fit.

    Source: Durkan et al. 2019 (neural spline flows), sections 3 and 4.

    Example:
        >>> flow = spline_flow((3,), n_couplings=2, hidden=(16,))
        >>> flow.log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])
    """
    arguments = dict(locals())
    in_shape = (in_shape,) if isinstance(in_shape, int) else tuple(in_shape)
    size, n = math.prod(in_shape), context_size(n_classes, n_context)
    if size < 1 or n_couplings < 1:
        got = f"in_shape={tuple(in_shape)}, n_couplings={n_couplings}"
        raise ConfigError("a spline flow does not fit", expected="a number or more, a coupling or more", got=got)
    members = pixels_to_logits(n_levels)
    if len(in_shape) > 1:
        members.append(Reshape(in_shape, (size,)))
    if standardize:
        members.append(Standardize(torch.zeros(size), torch.ones(size)))
    if tails:
        members.append(SoftTails())
    if size == 1:
        members.append(MarginalSpline(1, n_bins, bound))
    else:
        for i in range(n_couplings):
            members += _step(i, size, hidden, (n_bins, bound), n)
    base = _conditional(hidden, n_classes, n) if size == 1 and n else StandardNormal(size)
    chain = Chain(*members, memory=memory)
    flow = as_flow(chain, base, in_shape, n_classes=n_classes, n_levels=n_levels)
    return remember(flow, "spline_flow", arguments)


def _conditional(hidden: Sequence[int], n_classes: int | None, n_context: int) -> ConditionalNormal:
    network: nn.Module = MLP(n_context, 2, hidden)
    if n_classes is not None:
        network = nn.Sequential(ClassEmbedding(n_classes, n_context), network)
    return ConditionalNormal(network, 1)


def _step(i: int, size: int, hidden: Sequence[int], spline: tuple[int, float], n_context: int) -> list[Bijection]:
    halves = (size // 2, size - size // 2)
    source, target = halves if i % 2 == 0 else halves[::-1]
    n_bins, bound = spline
    network = MLP(source, target * (3 * n_bins - 1), hidden, n_context=n_context, clip=bound)
    coupling = SplineCoupling(
        network, n_bins, bound, "first" if i % 2 else "second", sizes=halves, takes_context=n_context > 0
    )
    # A random rotation instead of a permutation costs 23 nats on the digits: rotated pixels look alike.
    return [Permute.random(size, seed=i), coupling] if size > 2 else [coupling]


def _measured(x: Tensor) -> Standardize:
    # Mean and deviation; median and quartiles in columns where a few values far out would decide these.
    usual, n = Standardize.fit(x), len(x)
    low, high = (x.kthvalue(max(1, round(share * n)), dim=0).values for share in (0.25, 0.75))
    middle, spread = x.median(dim=0).values, (high - low) / NORMAL_QUARTILES
    far = ((x - middle).abs() > FAR * spread).double().mean(dim=0)
    use = (spread > 0) & (far > 0) & (far < MOST_FAR)
    return Standardize(torch.where(use, middle, usual.mean), torch.where(use, spread, usual.std))


def fitted_to(x: Tensor, context: Tensor | None) -> Flow:
    """The flow that `Flow.fit` trains: standardised by x, its tails tamed if x has outliers.

    Args:
        x: Rows, shape (n, n_columns).
        context: Labels, shape (n,), or vectors, shape (n, n_context); None: not conditional.

    Returns:
        An untrained flow.

    Raises:
        ConfigError: If labels are numbered so that most classes would be empty.
    """
    n_classes = n_context = None
    if context is not None and context.is_floating_point():
        n_context = context[:1].numel()
    elif context is not None:
        n_classes = int(context.max()) + 1
        n_seen = len(context.unique())
        if n_classes > 100 and n_classes > 10 * n_seen:
            hint = "number the labels from 0: torch.unique(labels, return_inverse=True)[1]"
            raise ConfigError("labels leave most classes empty", expected="0, 1, 2, ...", got=n_classes - 1, hint=hint)
    n_columns = x.shape[1]
    hidden = (64, 64) if n_columns < 16 else (128, 128)
    measured = _measured(x)
    tails = bool((measured(x).abs() > FAR).any())
    flow = spline_flow(
        (n_columns,), 8 if n_columns == 2 else 6, hidden, standardize=True, tails=tails, n_classes=n_classes,
        n_context=n_context,
    )  # fmt: skip
    first = next(m for m in flow.modules() if isinstance(m, Standardize))
    first.load_state_dict(measured.state_dict())
    return flow


def spline_flow_digits(n_classes: int | None = None, memory: Memory = "store") -> Flow:
    """A spline flow for the 8x8 digits, pixels 0 to 16, as vectors.

    Args:
        n_classes: To condition on labels.
        memory: What a training step keeps, as in `Chain`.

    Returns:
        The flow.
    """
    return spline_flow((1, 8, 8), 6, (128, 128), n_levels=17, n_classes=n_classes, memory=memory)

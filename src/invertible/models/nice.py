"""NICE (Dinh et al. 2015): additive couplings on the two halves of a vector, and one scale per dimension at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from invertible.bijection import Bijection
from invertible.chain import Chain
from invertible.errors import ConfigError
from invertible.flow import Flow, StandardLogistic, StandardNormal
from invertible.layers import AdditiveCoupling, Permute, Reshape, Scaling
from invertible.layers.conditioner import MLP
from invertible.models._flows import as_flow, context_size, remember
from invertible.reversible import Memory


def nice(
    in_shape: Sequence[int] = (1, 28, 28),
    n_couplings: int = 4,
    hidden: Sequence[int] = (1000, 1000, 1000, 1000, 1000),
    prior: Literal["logistic", "normal"] = "logistic",
    *,
    n_levels: int | None = 256,
    n_classes: int | None = None,
    n_context: int | None = None,
    memory: Memory = "store",
) -> Flow:
    """A NICE; the default is the paper's for MNIST: even and odd pixels, four couplings, five layers of 1000 ReLUs.

    Args:
        in_shape: Of a data point.
        n_couplings: How many, taking turns between the halves.
        hidden: Widths of the couplings' networks.
        prior: "logistic" or "normal".
        n_levels: Grey levels of the pixels, dequantised uniformly to [0, 1); None: real data.
        n_classes: To condition on labels.
        n_context: To condition on vectors of so many numbers.
        memory: What a training step keeps, as in `Chain`.

    Returns:
        The flow, with latents that are vectors.

    Raises:
        ConfigError: If an argument does not fit.

    Source: Dinh et al. 2015, sections 3.2 to 3.4 and 5.1.

    Example:
        >>> import torch
        >>> flow = nice((2,), hidden=(16,), n_levels=None)
        >>> flow.log_prob(torch.zeros(3, 2)).shape
        torch.Size([3])
    """
    arguments = dict(locals())
    size = math.prod(in_shape)
    if size < 2 or n_couplings < 1:
        got = f"in_shape={tuple(in_shape)}, n_couplings={n_couplings}"
        raise ConfigError("NICE does not fit", expected="two numbers or more, a coupling or more", got=got)
    n, n_first = context_size(n_classes, n_context), (size + 1) // 2
    sizes = (n_first, size - n_first)
    members: list[Bijection] = [] if len(in_shape) == 1 else [Reshape(in_shape, (size,))]
    members.append(Permute([*range(0, size, 2), *range(1, size, 2)]))
    for i in range(n_couplings):
        source, target = sizes if i % 2 == 0 else sizes[::-1]
        network = MLP(source, target, hidden, n_context=n)
        members.append(AdditiveCoupling(network, "first" if i % 2 else "second", sizes, takes_context=n > 0))
    chain = Chain(*members, Scaling(size), memory=memory)
    base = StandardLogistic(size) if prior == "logistic" else StandardNormal(size)
    return remember(as_flow(chain, base, in_shape, n_classes=n_classes, n_levels=n_levels), "nice", arguments)


def nice_digits(n_classes: int | None = None, memory: Memory = "store") -> Flow:
    """A small NICE for the 8x8 digits, pixels 0 to 16.

    Args:
        n_classes: To condition on labels.
        memory: What a training step keeps, as in `Chain`.

    Returns:
        The flow.
    """
    return nice((1, 8, 8), 4, (256, 256), n_levels=17, n_classes=n_classes, memory=memory)


def nice_fashion_mnist(n_classes: int | None = None, memory: Memory = "store") -> Flow:
    """A smaller NICE for Fashion-MNIST, 28x28.

    Args:
        n_classes: To condition on labels.
        memory: What a training step keeps, as in `Chain`.

    Returns:
        The flow.
    """
    return nice((1, 28, 28), 4, (500, 500, 500), n_classes=n_classes, memory=memory)

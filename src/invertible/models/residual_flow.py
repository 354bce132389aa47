"""Residual Flow (Chen et al. 2019): an i-ResNet trained with an unbiased log-determinant, LipSwish and c close to 1.

Images go through a logit, stages of convolutional blocks with a space-to-depth between them, and a few fully connected
blocks at the end; nothing leaves on the way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from invertible.bijection import Bijection
from invertible.chain import Chain
from invertible.errors import ConfigError
from invertible.flow import Flow, StandardNormal
from invertible.layers import ActNorm, Logit, Reshape, Squeeze
from invertible.models._flows import as_flow, image_shape, remember, squeezed
from invertible.models._residual import ActivationName, Bound, Branches, EstimatorName, check_counts, check_stages
from invertible.reversible import Memory


def residual_flow(
    in_shape: Sequence[int] = (3, 32, 32),
    n_blocks: Sequence[int] = (16, 16, 16),
    hidden: int = 512,
    n_dense: int = 4,
    coefficient: float = 0.98,
    activation: ActivationName = "lipswish",
    bound: Bound = "certified",
    *,
    dense_hidden: int = 128,
    alpha: float = 0.05,
    estimator: EstimatorName = "roulette",
    n_levels: int | None = 256,
    memory: Memory = "store",
) -> Flow:
    """A Residual Flow; the default is the paper's for CIFAR-10.

    Args:
        in_shape: Channels, height, width of an image.
        n_blocks: Blocks in each stage; pixels move into channels between the stages.
        hidden: Channels between the convolutions of g.
        n_dense: Fully connected blocks at the end.
        coefficient: Bound of each layer's norm.
        activation: Between the layers.
        bound: How norms are bounded: "certified", or the paper's "power" iteration.
        dense_hidden: Width of the fully connected blocks.
        alpha: Of the logit; the paper takes 1e-6 for MNIST.
        estimator: Of the log-determinant in training.
        n_levels: Grey levels of the pixels, dequantised uniformly; None: real data, no logit.
        memory: What a training step keeps, as in `Chain`.

    Returns:
        The flow.

    Raises:
        ConfigError: If an argument does not fit.

    Source: Chen et al. 2019, sections 3 and 4, appendix E.

    Example:
        >>> import torch
        >>> flow = residual_flow((1, 8, 8), (1, 1), 16, n_dense=1, dense_hidden=8, n_levels=17)
        >>> flow.log_prob(torch.randint(0, 17, (5, 1, 8, 8))).shape
        torch.Size([5])
    """
    arguments = dict(locals())
    check_stages(n_blocks=n_blocks)
    check_counts(hidden=hidden, dense_hidden=dense_hidden)
    if n_dense < 0:
        raise ConfigError("n_dense is out of range", expected="0 or more", got=n_dense)
    factor = 2 ** (len(n_blocks) - 1)
    shape, branches = image_shape(in_shape, factor), Branches(coefficient, activation, bound, estimator)
    members: list[Bijection] = [Logit(alpha)] if n_levels is not None else []
    channels = shape[0]
    for stage, n in enumerate(n_blocks):
        if stage:
            members.append(Squeeze(2))
            channels *= 4
        for i in range(n):
            members += branches.conv(channels, hidden, starts_with_activation=bool(stage or i))
    out_shape = squeezed(shape, factor)
    members.append(ActNorm(channels))
    members += _dense(branches, out_shape, n_dense, dense_hidden)
    base = StandardNormal(math.prod(out_shape) if n_dense else out_shape)
    flow = as_flow(Chain(*members, memory=memory), base, shape, n_levels=n_levels)
    return remember(flow, "residual_flow", arguments)


def _dense(branches: Branches, shape: tuple[int, ...], n: int, hidden: int) -> list[Bijection]:
    if not n:
        return []
    size = math.prod(shape)
    blocks = [part for _ in range(n) for part in branches.dense(size, (hidden,))]
    return [Reshape(shape, (size,)), *blocks, ActNorm(size)]


def residual_flow_digits(
    coefficient: float = 0.98, *, estimator: EstimatorName = "roulette", memory: Memory = "store"
) -> Flow:
    """A small Residual Flow for the 8x8 digits, pixels 0 to 16.

    Args:
        coefficient: Bound of each layer's norm.
        estimator: Of the log-determinant in training.
        memory: What a training step keeps, as in `Chain`.

    Returns:
        The flow.
    """
    return residual_flow((1, 8, 8), (4, 4), 64, 2, coefficient, dense_hidden=64, estimator=estimator, n_levels=17,
                         memory=memory)  # fmt: skip


def residual_flow_fashion_mnist(
    coefficient: float = 0.98, *, estimator: EstimatorName = "roulette", memory: Memory = "store"
) -> Flow:
    """A small Residual Flow for Fashion-MNIST, 28x28.

    Args:
        coefficient: Bound of each layer's norm.
        estimator: Of the log-determinant in training.
        memory: What a training step keeps, as in `Chain`.

    Returns:
        The flow.
    """
    return residual_flow(
        (1, 28, 28), (2, 4, 4), 48, 2, coefficient, dense_hidden=64, estimator=estimator, memory=memory
    )


def residual_flow_table(
    n_dims: int = 2,
    n_blocks: int = 10,
    hidden: Sequence[int] = (64, 64),
    coefficient: float = 0.98,
    activation: ActivationName = "lipswish",
    bound: Bound = "certified",
    *,
    estimator: EstimatorName = "exact",
    memory: Memory = "store",
) -> Flow:
    """A Residual Flow of vectors, fully connected.

    Args:
        n_dims: Numbers in a vector.
        n_blocks: Blocks.
        hidden: Widths between the layers of g.
        coefficient: Bound of each layer's norm.
        activation: Between the layers.
        bound: How norms are bounded.
        estimator: Of the log-determinant in training.
        memory: What a training step keeps, as in `Chain`.

    Returns:
        The flow.

    Raises:
        ConfigError: If an argument does not fit.
    """
    arguments = dict(locals())
    check_counts(n_dims=n_dims, n_blocks=n_blocks, hidden=hidden)
    branches = Branches(coefficient, activation, bound, estimator)
    members = [part for _ in range(n_blocks) for part in branches.dense(n_dims, hidden)]
    chain = Chain(*members, ActNorm(n_dims), memory=memory)
    return remember(as_flow(chain, StandardNormal(n_dims), (n_dims,)), "residual_flow_table", arguments)


def residual_flow_2d(coefficient: float = 0.98, memory: Memory = "store") -> Flow:
    """A Residual Flow for points in the plane.

    Args:
        coefficient: Bound of each layer's norm.
        memory: What a training step keeps, as in `Chain`.

    Returns:
        The flow.
    """
    return residual_flow_table(2, coefficient=coefficient, memory=memory)

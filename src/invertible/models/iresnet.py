"""i-ResNet (Behrmann et al. 2019): a residual network whose branches contract, so that it can be undone.

One architecture for both: a classifier that keeps its input up to the head, and a density. A block is activation
normalisation, then x + g(x) with Lip(g) < 1; between the stages pixels move into channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from invertible.bijection import Bijection
from invertible.chain import Chain
from invertible.errors import ConfigError
from invertible.flow import Flow, StandardNormal
from invertible.layers import Squeeze, Standardize, multi_scale
from invertible.models._flows import as_flow, image_shape, remember, squeezed
from invertible.models._residual import ActivationName, Bound, Branches, EstimatorName, check_counts, check_stages
from invertible.models.classifier import Classifier, PoolingHead
from invertible.reversible import Memory


def iresnet(
    in_shape: Sequence[int] = (3, 32, 32),
    n_classes: int = 10,
    n_blocks: Sequence[int] = (7, 7, 7),
    hidden: Sequence[int] = (32, 64, 128),
    n_pad: int = 13,
    coefficient: float | None = 0.9,
    activation: ActivationName = "elu",
    bound: Bound = "certified",
    *,
    memory: Memory = "store",
) -> Classifier:
    """An i-ResNet that classifies; the default is that of the released script for CIFAR-10.

    Args:
        in_shape: Channels, height, width of an image.
        n_classes: Number of logits.
        n_blocks: Blocks in each stage; each stage after the first begins with a space-to-depth by 2.
        hidden: Channels between the convolutions of g in each stage.
        n_pad: Channels of zeros appended to the image; 0 keeps the network bijective.
        coefficient: The paper's c, the bound of each convolution's norm; null: no constraint, then it is an ordinary
            ResNet of the same shape, without a guarantee that there is an inverse.
        activation: Between the convolutions.
        bound: How norms are bounded: "certified", or the paper's "power" iteration.
        memory: What a training step keeps, as in `Chain`; "reconstruct" keeps each block's input, since recomputing
            it by iteration would cost more than it saves.

    Returns:
        The classifier.

    Raises:
        ConfigError: If the stages do not fit each other or the image.

    Source: Behrmann et al. 2019, sections 3.1 and 5.1, and the released code's training script.

    Example:
        >>> net = iresnet((1, 8, 8), n_blocks=(1, 1), hidden=(8, 8), n_pad=1).train()
        >>> x = torch.rand(6, 1, 8, 8)
        >>> _ = net(x)  # sets the ActNorms
        >>> net = net.eval()
        >>> torch.allclose(net.reconstruct(net.representation(x)), x, atol=1e-5)
        True
    """
    check_stages(n_blocks=n_blocks, hidden=hidden)
    check_counts(n_classes=n_classes)
    if not isinstance(n_pad, int) or n_pad < 0:
        raise ConfigError("n_pad is out of range", expected="a whole number, 0 or more", got=repr(n_pad))
    shape, branches = image_shape(in_shape, 2 ** (len(n_blocks) - 1)), Branches(coefficient, activation, bound)
    members: list[Bijection] = []
    channels = shape[0] + n_pad
    for stage, (n, width) in enumerate(zip(n_blocks, hidden, strict=True)):
        if stage:
            members.append(Squeeze(2))
            channels *= 4
        for i in range(n):
            is_first = stage == i == 0
            members += branches.conv(channels, width, not is_first, n_pad if is_first else 0)
    factor = 2 ** (len(n_blocks) - 1)
    out_shape = channels, shape[1] // factor, shape[2] // factor
    return Classifier(Chain(*members, memory=memory), PoolingHead(channels, n_classes), shape, out_shape)


def iresnet164(
    n_classes: int = 10, coefficient: float | None = 0.9, bound: Bound = "certified", *, memory: Memory = "store"
) -> Classifier:
    """The paper's i-ResNet-164 for CIFAR: 54 blocks of three convolutions.

    Args:
        n_classes: Number of logits.
        coefficient: The paper's c; null: no constraint.
        bound: As in `iresnet`.
        memory: As in `iresnet`.

    Returns:
        The classifier, for images of shape (3, 32, 32).
    """
    return iresnet((3, 32, 32), n_classes, (18, 18, 18), coefficient=coefficient, bound=bound, memory=memory)


def iresnet_digits(
    n_classes: int = 10, coefficient: float | None = 0.9, bound: Bound = "certified", *, memory: Memory = "store"
) -> Classifier:
    """A small i-ResNet for the 8x8 digits, padded to eight channels.

    Args:
        n_classes: Number of logits.
        coefficient: The paper's c; null: no constraint.
        bound: As in `iresnet`.
        memory: As in `iresnet`.

    Returns:
        The classifier, for images of shape (1, 8, 8).
    """
    return iresnet((1, 8, 8), n_classes, (3, 3), (32, 32), 7, coefficient, bound=bound, memory=memory)


def iresnet_fashion_mnist(
    n_classes: int = 10, coefficient: float | None = 0.9, bound: Bound = "certified", *, memory: Memory = "store"
) -> Classifier:
    """A small i-ResNet for Fashion-MNIST, 28x28: nine blocks, padded to eight channels.

    Args:
        n_classes: Number of logits.
        coefficient: The paper's c; null: no constraint.
        bound: As in `iresnet`.
        memory: As in `iresnet`.

    Returns:
        The classifier, for images of shape (1, 28, 28).
    """
    return iresnet((1, 28, 28), n_classes, (3, 3, 3), (16, 32, 64), 7, coefficient, bound=bound, memory=memory)


def iresnet_density(
    in_shape: Sequence[int] = (3, 32, 32),
    n_scales: int = 3,
    n_blocks: int = 16,
    hidden: int = 512,
    coefficient: float = 0.9,
    activation: ActivationName = "elu",
    bound: Bound = "certified",
    *,
    estimator: EstimatorName = "roulette",
    n_levels: int | None = 256,
    memory: Memory = "store",
) -> Flow:
    """An i-ResNet as a density of images; the default is the paper's for CIFAR-10.

    Args:
        in_shape: Channels, height, width of an image.
        n_scales: Levels; each begins with a space-to-depth, and half of the channels leave after each but the last.
        n_blocks: Blocks in each level.
        hidden: Channels between the convolutions of g.
        coefficient: The paper's c, the bound of each convolution's norm.
        activation: Between the convolutions.
        bound: How norms are bounded: "certified", or the paper's "power" iteration.
        estimator: Of the log-determinant in training; the paper's is "power-series".
        n_levels: Grey levels of the pixels, dequantised to [-1/2, 1/2); None: real data.
        memory: What a training step keeps, as in `Chain`.

    Returns:
        The flow.

    Raises:
        ConfigError: If an argument does not fit.

    Source: Behrmann et al. 2019, sections 3.2 and 5.3.

    Example:
        >>> flow = iresnet_density((1, 8, 8), 2, 1, 16, n_levels=17)
        >>> flow.log_prob(torch.randint(0, 17, (5, 1, 8, 8))).shape
        torch.Size([5])
    """
    arguments = dict(locals())
    check_counts(n_scales=n_scales, n_blocks=n_blocks, hidden=hidden)
    shape, branches = image_shape(in_shape, 2**n_scales), Branches(coefficient, activation, bound, estimator)
    levels: list[list[Bijection]] = []
    channels = shape[0]
    for scale in range(n_scales):
        channels *= 4
        centre = [_centre(shape[0])] if scale == 0 and n_levels is not None else []
        blocks = [part for i in range(n_blocks) for part in branches.conv(channels, hidden, bool(scale or i))]
        levels.append([*centre, Squeeze(2), *blocks])
        channels //= 2
    chain = multi_scale(levels, shape[0], memory=memory)
    flow = as_flow(chain, StandardNormal(squeezed(shape, 2**n_scales)), shape, n_levels=n_levels)
    return remember(flow, "iresnet_density", arguments)


def iresnet_density_digits(
    coefficient: float = 0.9, *, estimator: EstimatorName = "roulette", memory: Memory = "store"
) -> Flow:
    """A small i-ResNet density for the 8x8 digits, pixels 0 to 16.

    Args:
        coefficient: The paper's c.
        estimator: Of the log-determinant in training.
        memory: What a training step keeps, as in `Chain`.

    Returns:
        The flow.
    """
    return iresnet_density((1, 8, 8), 2, 4, 64, coefficient, estimator=estimator, n_levels=17, memory=memory)


def iresnet_density_fashion_mnist(
    coefficient: float = 0.9, *, estimator: EstimatorName = "roulette", memory: Memory = "store"
) -> Flow:
    """A small i-ResNet density for Fashion-MNIST, 28x28.

    Args:
        coefficient: The paper's c.
        estimator: Of the log-determinant in training.
        memory: What a training step keeps, as in `Chain`.

    Returns:
        The flow.
    """
    return iresnet_density((1, 28, 28), 2, 4, 48, coefficient, estimator=estimator, memory=memory)


def iresnet_table(
    n_dims: int = 2,
    n_blocks: int = 10,
    hidden: Sequence[int] = (64, 64),
    coefficient: float = 0.9,
    activation: ActivationName = "elu",
    bound: Bound = "certified",
    *,
    estimator: EstimatorName = "exact",
    memory: Memory = "store",
) -> Flow:
    """An i-ResNet as a density of vectors, fully connected.

    Args:
        n_dims: Numbers in a vector.
        n_blocks: Blocks.
        hidden: Widths between the layers of g.
        coefficient: The paper's c, the bound of each layer's norm.
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
    members = [part for i in range(n_blocks) for part in branches.dense(n_dims, hidden, bool(i))]
    flow = as_flow(Chain(*members, memory=memory), StandardNormal(n_dims), (n_dims,))
    return remember(flow, "iresnet_table", arguments)


def iresnet_2d(coefficient: float = 0.9, memory: Memory = "store") -> Flow:
    """An i-ResNet for points in the plane.

    Args:
        coefficient: The paper's c.
        memory: What a training step keeps, as in `Chain`.

    Returns:
        The flow.
    """
    return iresnet_table(2, coefficient=coefficient, memory=memory)


def _centre(channels: int) -> Standardize:
    # Pixels in [0, 1) to [-1/2, 1/2), the paper's x - 0.5.
    return Standardize(torch.full((channels,), 0.5), torch.ones(channels))

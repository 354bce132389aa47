"""RealNVP (Dinh et al. 2017): affine couplings with checkerboard and channel masks, on several scales.

Each scale but the last is three couplings with a checkerboard mask, a squeeze, and three with a channel mask; then half
of the channels leave. The last scale is four checkerboard couplings. The paper normalises each coupling's output with a
running batch norm; here `ActNorm` stands in its place, whose log-determinant does not depend on the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

from invertible.bijection import Bijection
from invertible.chain import Chain
from invertible.errors import ConfigError
from invertible.flow import Flow, StandardNormal
from invertible.layers import ActNorm, AffineCoupling, Checkerboard, Squeeze, multi_scale
from invertible.layers.conditioner import MLP, ResidualNet
from invertible.models._flows import Noise, as_flow, context_size, image_shape, pixels_to_logits, remember, squeezed
from invertible.reversible import Memory


def realnvp(
    in_shape: Sequence[int] = (3, 32, 32),
    n_scales: int = 2,
    n_blocks: int = 8,
    hidden: int = 64,
    *,
    n_levels: int | None = 256,
    noise: Noise = "uniform",
    n_classes: int | None = None,
    n_context: int | None = None,
    memory: Memory = "store",
) -> Flow:
    """A RealNVP for images; the default is the paper's for CIFAR-10, which squeezes once.

    Args:
        in_shape: Channels, height, width of an image.
        n_scales: Scales, one more than squeezes.
        n_blocks: Residual blocks in each coupling's network.
        hidden: Their channels at the first scale; each squeeze doubles them.
        n_levels: Grey levels of the pixels, dequantised and passed through a logit with alpha 0.05; None: real data.
        noise: How pixels are dequantised: "uniform", or "variational" (learned).
        n_classes: To condition on labels.
        n_context: To condition on vectors, or images, of so many channels.
        memory: What a training step keeps, as in `Chain`.

    Returns:
        The flow, with latents of shape (C 4^s, H / 2^s, W / 2^s) for s squeezes, those of the last scale first.

    Raises:
        ConfigError: If an argument does not fit.

    Source: Dinh et al. 2017, sections 3.4 to 4.1.

    Example:
        >>> import torch
        >>> flow = realnvp((1, 8, 8), n_blocks=1, hidden=8, n_levels=17)
        >>> flow.bits_per_dim(torch.randint(0, 17, (5, 1, 8, 8))).shape
        torch.Size([5])
    """
    arguments = dict(locals())
    if n_scales < 1:
        raise ConfigError("a RealNVP needs scales", expected="at least 1", got=n_scales)
    shape, n = image_shape(in_shape, 2 ** (n_scales - 1)), context_size(n_classes, n_context)
    if shape[1] * shape[2] < 2 * 4 ** (n_scales - 1):
        got = f"{shape[1]}x{shape[2]} and {n_scales} scales"
        raise ConfigError("the last scale has one pixel left", expected="2 for a checkerboard", got=got)
    levels, channels, width = [], shape[0], hidden
    for i in range(n_scales):
        level: list[Bijection] = pixels_to_logits(n_levels) if i == 0 else []
        is_last = i == n_scales - 1
        for k in range(4 if is_last else 3):
            level += _checkerboard(channels, ResidualNet(channels, 2 * channels, width, n_blocks, n), k, n)
        if not is_last:
            channels, width = 4 * channels, 2 * width
            level.append(Squeeze(2))
            for k in range(3):
                level += _channelwise(channels, width, n_blocks, k, n)
            channels //= 2
        levels.append(level)
    chain = multi_scale(levels, shape[0], memory=memory)
    base = StandardNormal(squeezed(shape, 2 ** (n_scales - 1)))
    flow = as_flow(chain, base, shape, n_classes=n_classes, n_levels=n_levels, noise=noise)
    return remember(flow, "realnvp", arguments)


def _checkerboard(channels: int, network: ResidualNet, k: int, n_context: int) -> list[Bijection]:
    target = "first" if k % 2 else "second"
    coupling = AffineCoupling(network, target, mask=Checkerboard(), takes_context=n_context > 0)
    return [coupling, ActNorm(channels)]


def _channelwise(channels: int, width: int, n_blocks: int, k: int, n_context: int) -> list[Bijection]:
    half = channels // 2  # after a squeeze the number of channels is even
    network = ResidualNet(half, channels, width, n_blocks, n_context)
    return [AffineCoupling(network, "first" if k % 2 else "second", takes_context=n_context > 0), ActNorm(channels)]


def realnvp_table(
    n_dims: int = 2,
    n_couplings: int = 8,
    hidden: Sequence[int] = (64, 64),
    *,
    n_classes: int | None = None,
    n_context: int | None = None,
    memory: Memory = "store",
) -> Flow:
    """Affine couplings on vectors, taking turns between the halves.

    Args:
        n_dims: Numbers in a vector.
        n_couplings: How many.
        hidden: Widths of the couplings' networks.
        n_classes: To condition on labels.
        n_context: To condition on vectors of so many numbers.
        memory: What a training step keeps, as in `Chain`.

    Returns:
        The flow.

    Raises:
        ConfigError: If an argument does not fit.
    """
    arguments = dict(locals())
    if n_dims < 2 or n_couplings < 1:
        got = f"n_dims={n_dims}, n_couplings={n_couplings}"
        raise ConfigError("RealNVP does not fit", expected="two numbers or more, a coupling or more", got=got)
    n, halves = context_size(n_classes, n_context), (n_dims // 2, n_dims - n_dims // 2)
    members = []
    for i in range(n_couplings):
        source, target = halves if i % 2 == 0 else halves[::-1]
        network = MLP(source, 2 * target, hidden, n_context=n)
        members.append(AffineCoupling(network, "first" if i % 2 else "second", halves, takes_context=n > 0))
    flow = as_flow(Chain(*members, memory=memory), StandardNormal(n_dims), (n_dims,), n_classes=n_classes)
    return remember(flow, "realnvp_table", arguments)


def realnvp_2d(n_classes: int | None = None, n_context: int | None = None, memory: Memory = "store") -> Flow:
    """A RealNVP for points in the plane: eight couplings, networks of width 64.

    Args:
        n_classes: To condition on labels.
        n_context: To condition on vectors of so many numbers.
        memory: What a training step keeps, as in `Chain`.

    Returns:
        The flow.
    """
    return realnvp_table(2, n_classes=n_classes, n_context=n_context, memory=memory)


def realnvp_digits(n_classes: int | None = None, memory: Memory = "store") -> Flow:
    """A small RealNVP for the 8x8 digits, pixels 0 to 16.

    Args:
        n_classes: To condition on labels.
        memory: What a training step keeps, as in `Chain`.

    Returns:
        The flow.
    """
    return realnvp((1, 8, 8), 2, 2, 32, n_levels=17, n_classes=n_classes, memory=memory)


def realnvp_fashion_mnist(n_classes: int | None = None, memory: Memory = "store") -> Flow:
    """A small RealNVP for Fashion-MNIST, 28x28.

    Args:
        n_classes: To condition on labels.
        memory: What a training step keeps, as in `Chain`.

    Returns:
        The flow.
    """
    return realnvp((1, 28, 28), 3, 2, 24, n_classes=n_classes, memory=memory)

"""Glow (Kingma and Dhariwal 2018): steps of activation normalisation, an invertible 1x1 convolution and a coupling.

A level is a squeeze and `n_steps` such steps; after each but the last, half of the channels leave, with a normal
distribution whose mean and scale depend on the half that stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from invertible.bijection import Bijection
from invertible.errors import ConfigError
from invertible.flow import Flow, StandardNormal
from invertible.layers import (
    ActNorm,
    AdditiveCoupling,
    AffineCoupling,
    Invertible1x1,
    Permute,
    SigmoidCoupling,
    Squeeze,
    Standardize,
    multi_scale,
)
from invertible.layers.conditioner import ConvNet, zeroed
from invertible.models._flows import Noise, as_flow, context_size, image_shape, remember, squeezed
from invertible.reversible import Memory

CouplingName = Literal["sigmoid", "affine", "additive"]
Mixing = Literal["plu", "direct", "shuffle", "reverse"]


def glow(
    in_shape: Sequence[int] = (3, 32, 32),
    n_scales: int = 3,
    n_steps: int = 32,
    hidden: int = 512,
    coupling: CouplingName = "sigmoid",
    mixing: Mixing = "plu",
    *,
    n_levels: int | None = 256,
    noise: Noise = "uniform",
    n_classes: int | None = None,
    n_context: int | None = None,
    memory: Memory = "store",
) -> Flow:
    """A Glow; the default is the paper's for CIFAR-10, with its affine coupling.

    Args:
        in_shape: Channels, height, width of an image.
        n_scales: The paper's L.
        n_steps: The paper's K, steps in each level.
        hidden: Channels of the couplings' networks.
        coupling: "sigmoid" (the paper's affine one), "affine" (RealNVP's, with a bounded scale) or "additive".
        mixing: How channels mix: the paper's 1x1 convolution, its factorised form ("plu") or as a matrix ("direct"); a
            fixed random permutation ("shuffle"), or a reversal.
        n_levels: Grey levels of the pixels, dequantised to [-1/2, 1/2); None: real data.
        noise: How pixels are dequantised: "uniform", or "variational" (learned).
        n_classes: To condition on labels.
        n_context: To condition on vectors, or images, of so many channels.
        memory: What a training step keeps, as in `Chain`.

    Returns:
        The flow, with latents of shape (C 4^L, H / 2^L, W / 2^L), those of the last level first.

    Raises:
        ConfigError: If an argument does not fit.

    Example:
        >>> import torch
        >>> flow = glow((1, 8, 8), n_scales=2, n_steps=2, hidden=16, n_levels=17)
        >>> flow.bits_per_dim(torch.randint(0, 17, (5, 1, 8, 8))).shape, flow.sample(3).shape
        (torch.Size([5]), torch.Size([3, 1, 8, 8]))
    """
    arguments = dict(locals())
    if n_scales < 1 or n_steps < 1:
        raise ConfigError("a Glow needs steps", expected="at least 1", got=f"{n_scales} x {n_steps}")
    shape = image_shape(in_shape, 2**n_scales)
    n = context_size(n_classes, n_context)
    levels, channels = [], 4 * shape[0]
    for i in range(n_scales):
        start: list[Bijection] = [_centre(shape[0])] if i == 0 and n_levels is not None else []
        steps = [part for k in range(n_steps)
                 for part in (ActNorm(channels), mix(mixing, channels, 100 * i + k),
                              couple(coupling, channels, hidden, n))]  # fmt: skip
        levels.append([*start, Squeeze(2), *steps, *([_split_prior(channels)] if i < n_scales - 1 else [])])
        channels = 4 * (channels // 2)
    chain = multi_scale(levels, shape[0], memory=memory)
    base = StandardNormal(squeezed(shape, 2**n_scales))
    flow = as_flow(chain, base, shape, n_classes=n_classes, n_levels=n_levels, noise=noise)
    return remember(flow, "glow", arguments)


def _centre(channels: int) -> Standardize:
    # Pixels in [0, 1) to [-1/2, 1/2), as in the paper's code.
    return Standardize(torch.full((channels,), 0.5), torch.ones(channels))


def _split_prior(channels: int) -> AffineCoupling:
    # What leaves becomes normal, given what stays; it leaves from a level with an even number of channels.
    half = channels // 2
    return AffineCoupling(zeroed(nn.Conv2d(half, channels, 3, padding=1)))


def mix(mixing: Mixing, channels: int, seed: int) -> Bijection:
    """What mixes the channels of a step.

    Args:
        mixing: As in `glow`.
        channels: How many.
        seed: Of a random permutation.

    Returns:
        A new one.
    """
    if mixing in ("plu", "direct"):
        return Invertible1x1(channels, mixing)
    return Permute.random(channels, seed=seed) if mixing == "shuffle" else Permute.reverse(channels)


def couple(coupling: CouplingName, channels: int, hidden: int, n_context: int) -> Bijection:
    """The coupling of a step.

    Args:
        coupling: As in `glow`.
        channels: How many.
        hidden: Channels of its network.
        n_context: Numbers or channels of a context; 0: none.

    Returns:
        A new one.
    """
    first, second = channels // 2, channels - channels // 2
    n_out = second if coupling == "additive" else 2 * second
    network, conditional = ConvNet(first, n_out, hidden, n_context, actnorm=True), n_context > 0
    if coupling == "additive":
        return AdditiveCoupling(network, takes_context=conditional)
    if coupling == "affine":
        return AffineCoupling(network, takes_context=conditional)
    return SigmoidCoupling(network, takes_context=conditional)


def glow_digits(n_classes: int | None = None, memory: Memory = "store") -> Flow:
    """A small Glow for the 8x8 digits, pixels 0 to 16; its couplings are RealNVP's, which fit these better.

    Args:
        n_classes: To condition on labels.
        memory: What a training step keeps, as in `Chain`.

    Returns:
        The flow.
    """
    return glow((1, 8, 8), 2, 8, 64, "affine", n_levels=17, n_classes=n_classes, memory=memory)


def glow_fashion_mnist(n_classes: int | None = None, memory: Memory = "store") -> Flow:
    """A small Glow for Fashion-MNIST, padded to 32x32; its couplings are RealNVP's.

    Args:
        n_classes: To condition on labels.
        memory: What a training step keeps, as in `Chain`.

    Returns:
        The flow.
    """
    return glow((1, 32, 32), 3, 8, 64, "affine", n_classes=n_classes, memory=memory)

"""Glow's architecture as a classifier, the partner that the i-ResNet paper compares with."""

from __future__ import annotations

from collections.abc import Sequence

from invertible.bijection import Bijection
from invertible.chain import Chain
from invertible.errors import ConfigError
from invertible.layers import ActNorm, Squeeze
from invertible.models._flows import image_shape, squeezed
from invertible.models.classifier import Classifier, PoolingHead
from invertible.models.glow import CouplingName, Mixing, couple, mix
from invertible.reversible import Memory


def glow_classifier(
    in_shape: Sequence[int] = (3, 32, 32),
    n_classes: int = 10,
    n_scales: int = 3,
    n_steps: int = 32,
    hidden: int = 512,
    coupling: CouplingName = "affine",
    mixing: Mixing = "plu",
    *,
    memory: Memory = "store",
) -> Classifier:
    """Glow's steps up to a pooled linear head; nothing leaves on the way.

    Args:
        in_shape: Channels, height, width of an image.
        n_classes: Number of logits.
        n_scales: Levels; each begins with a space-to-depth.
        n_steps: Steps in each level.
        hidden: Channels of the couplings' networks.
        coupling: "affine", "sigmoid" or "additive".
        mixing: As in `glow`; the paper's additive network reverses channels ("reverse").
        memory: What a training step keeps, as in `Chain`.

    Returns:
        The classifier.

    Raises:
        ConfigError: If an argument does not fit.

    Source: Behrmann et al. 2019 (i-ResNet), table 3; Kingma and Dhariwal 2018 (Glow).

    Example:
        >>> import torch
        >>> net = glow_classifier((1, 8, 8), 3, n_scales=2, n_steps=1, hidden=8)
        >>> net(torch.rand(5, 1, 8, 8)).shape
        torch.Size([5, 3])
    """
    if min(n_classes, n_scales, n_steps, hidden) < 1:
        got = f"n_classes={n_classes}, n_scales={n_scales}, n_steps={n_steps}, hidden={hidden}"
        raise ConfigError("a Glow has an empty part", expected="at least 1 of each", got=got)
    shape, channels = image_shape(in_shape, 2**n_scales), in_shape[0]
    members: list[Bijection] = []
    for scale in range(n_scales):
        channels *= 4
        members.append(Squeeze(2))
        for k in range(n_steps):
            step = mix(mixing, channels, 100 * scale + k), couple(coupling, channels, hidden, 0)
            members += [ActNorm(channels), *step]
    head = PoolingHead(channels, n_classes)
    return Classifier(Chain(*members, memory=memory), head, shape, squeezed(shape, 2**n_scales))

"""What the flows of this package share: contexts, pixels, shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from invertible.bijection import Bijection
from invertible.chain import Chain
from invertible.errors import ConfigError
from invertible.flow import Base, Dequantization, Flow, UniformDequantization, VariationalDequantization
from invertible.layers import AffineCoupling, Checkerboard, Logit
from invertible.layers.conditioner import ClassEmbedding, ConvNet

Noise = Literal["uniform", "variational"]
N_EMBEDDED = 16
N_NOISE = 32
"""Channels of the networks that make variational noise."""
ALPHA = 0.05


def context_size(n_classes: int | None, n_context: int | None) -> int:
    """How many numbers the networks get as context.

    Args:
        n_classes: The flow is conditional on labels.
        n_context: It is conditional on vectors, or images, of so many numbers or channels.

    Returns:
        0: none.

    Raises:
        ConfigError: If both are given, or one is below 1.
    """
    if n_classes is not None and n_context is not None:
        hint = "put the label into the vector, e.g. one-hot"
        raise ConfigError("one kind of context", expected="n_classes or n_context", got="both", hint=hint)
    for name, value in {"n_classes": n_classes, "n_context": n_context}.items():
        if value is not None and value < 1:
            raise ConfigError(f"{name} is out of range", expected="at least 1, or None", got=value)
    return N_EMBEDDED if n_classes is not None else n_context or 0


def image_shape(in_shape: Sequence[int], multiple: int) -> tuple[int, int, int]:
    """Refuse images that cannot be squeezed.

    Args:
        in_shape: Channels, height, width.
        multiple: What height and width must be multiples of.

    Returns:
        The shape.

    Raises:
        ConfigError: If they are not.
    """
    shape = tuple(in_shape) if isinstance(in_shape, list | tuple) else (in_shape,)
    is_whole = all(isinstance(n, int) and n >= 1 for n in shape)
    if len(shape) != 3 or not is_whole or shape[1] % multiple or shape[2] % multiple:
        hint = "data.pad or data.size in a recipe; fewer levels"
        expected = f"(channels, height, width), the latter multiples of {multiple}"
        raise ConfigError("in_shape does not fit", expected=expected, got=shape, hint=hint)
    return shape


def squeezed(shape: tuple[int, int, int], factor: int) -> tuple[int, int, int]:
    """The shape after space-to-depth.

    Args:
        shape: Channels, height, width.
        factor: Of the squeezes in all.

    Returns:
        Channels, height, width.
    """
    return shape[0] * factor**2, shape[1] // factor, shape[2] // factor


def as_flow(
    chain: Chain,
    base: Base,
    event_shape: Sequence[int],
    *,
    n_classes: int | None = None,
    n_levels: int | None = None,
    noise: Noise = "uniform",
) -> Flow:
    """Put a flow together.

    Args:
        chain: From data to latents; with pixels, from (-1, 1)-like logits.
        base: Of the latents.
        event_shape: Of the data.
        n_classes: Labels are embedded for the networks.
        n_levels: Grey levels, to be dequantised; None: real data.
        noise: How.

    Returns:
        The flow.
    """
    embed = None if n_classes is None else ClassEmbedding(n_classes, N_EMBEDDED)
    dequantization = None if n_levels is None else _dequantization(tuple(event_shape), n_levels, noise)
    return Flow(chain, base, event_shape=tuple(event_shape), embed=embed, dequantization=dequantization)


def _dequantization(shape: tuple[int, ...], n_levels: int, noise: Noise) -> Dequantization:
    if noise == "uniform":
        return UniformDequantization(n_levels)
    if noise != "variational" or len(shape) != 3:
        expected = "'uniform', or 'variational' for images"
        raise ConfigError("unknown dequantisation", expected=expected, got=f"{noise!r} for {shape}")
    n = shape[0]  # channels of the noise, and of the image that it depends on
    networks = [ConvNet(n, 2 * n, N_NOISE, n_context=n) for _ in range(4)]
    couplings = [
        AffineCoupling(network, "first" if i % 2 else "second", takes_context=True, mask=Checkerboard())
        for i, network in enumerate(networks)
    ]
    return VariationalDequantization(Chain(*couplings), n_levels)


def pixels_to_logits(n_levels: int | None) -> list[Bijection]:
    """The preprocessing of dequantised pixels.

    Args:
        n_levels: Grey levels; None: real data, no preprocessing.

    Returns:
        The members that come first in a chain.
    """
    return [] if n_levels is None else [Logit(ALPHA)]


def remember(flow: Flow, name: str, arguments: dict[str, Any]) -> Flow:
    """Note how a flow was made, so that `save` can write it down.

    Args:
        flow: The flow.
        name: Of the function in `invertible.models`.
        arguments: What it got.

    Returns:
        The flow.
    """
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in arguments.items()}
    flow.config = {"name": name, "arguments": plain}
    return flow

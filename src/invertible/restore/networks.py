"""The networks `restore` knows by name, and how one of your own becomes one."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn

from invertible.errors import ConfigError
from invertible.restore.deep_decoder import DeepDecoder
from invertible.restore.prior import AsPrior, Prior
from invertible.restore.pyramid import Pyramid
from invertible.restore.skip import ResidualNetwork, SkipNetwork

_NAMED: dict[str, Callable[[int, tuple[int, int]], Prior]] = {
    "auto": lambda channels, size: Pyramid(size, channels),
    "skip": lambda channels, size: AsPrior(_skip(channels, size, 4)),
    "hourglass": lambda channels, size: AsPrior(_skip(channels, size, 0)),
    "resnet": lambda channels, size: AsPrior(ResidualNetwork(32, channels)),
    "deep-decoder": lambda channels, size: DeepDecoder(channels, n_ups=_depth(size)),
}
NETWORKS = tuple(_NAMED)
"""Their names."""


def make_prior(network: str | nn.Module | Callable[[], nn.Module], channels: int, size: tuple[int, int]) -> Prior:
    """Make an untrained network for a picture.

    Args:
        network: A name of `NETWORKS`; a `Prior` or another module, of which a copy is taken, reading noise
            of as many channels as its first convolution does; a function that makes one.
        channels: Of the picture.
        size: (height, width), pixels.

    Returns:
        A network that nobody else holds.

    Raises:
        ConfigError: If there is no such network.

    Example:
        >>> type(make_prior("auto", 3, (64, 64))).__name__, make_prior(nn.Conv2d(32, 3, 1), 3, (8, 8)).in_channels
        ('Pyramid', 32)
    """
    if isinstance(network, str):
        if network not in _NAMED:
            raise ConfigError("no such network", expected=", ".join(NETWORKS), got=repr(network))
        return _NAMED[network](channels, size)
    made = copy.deepcopy(network) if isinstance(network, nn.Module) else network()
    if not isinstance(made, nn.Module):
        raise ConfigError("no network", expected="a torch.nn.Module", got=type(made).__name__)
    if isinstance(made, Prior):
        return made
    first = next((module for module in made.modules() if isinstance(module, nn.Conv2d)), None)
    return AsPrior(made, 32 if first is None else first.in_channels)


def _skip(channels: int, size: tuple[int, int], across: int) -> SkipNetwork:
    n = _depth(size)
    return SkipNetwork(32, channels, widths=(128,) * n, skips=(across,) * n)


def _depth(size: tuple[int, int]) -> int:
    # The papers' five halvings, or as many as leave two pixels: one pixel cannot be normalised.
    return max(1, min(5, min(size).bit_length() - 2))

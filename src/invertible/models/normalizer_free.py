"""The normalizer-free form of a network of one's own: what it takes, and the network.

BatchNorm goes. Convolutions get standardised weights and biases, activations their gain, residual additions alpha and a
learned skip gain that starts at zero. Where activations stand behind the addition, they move to the head of the next
branch, so that the shortcut carries the sum itself. Each activation of a sum divides by the standard deviation that
theory expects there.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field

import torch
from torch import nn

from invertible._checks import describe
from invertible.errors import ConfigError, DtypeError
from invertible.models._nf_convert import Change, Conversion
from invertible.models._nf_obstacles import find_obstacles, find_residuals, is_normalizer_free
from invertible.models._nf_trace import Reading, trace


@dataclass(frozen=True, eq=False)
class NormalizerFree:
    """What it takes to make a network normalizer-free, and the result.

    Args:
        name: Of the network's class.
        rows: What happens to each layer; with obstacles none.
        obstacles: Why it cannot be converted; none: it was.
        findings: What it takes, in sentences.
        converted: The new network.

    Example:
        >>> print(normalizer_free(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())))
        Sequential cannot be made normalizer-free:
        - it has no residual addition x + F(x): only residual networks have a normalizer-free form here
    """

    name: str
    rows: tuple[Change, ...]
    obstacles: tuple[str, ...]
    findings: tuple[str, ...]
    converted: nn.Module | None = field(default=None, repr=False)

    @property
    def is_possible(self) -> bool:
        """Whether nothing stood in the way."""
        return self.converted is not None

    @property
    def model(self) -> nn.Module:
        """The normalizer-free network.

        Returns:
            A new network, in the mode (train or eval) of the given one.

        Raises:
            ConfigError: If there is none; the message says why.
        """
        if self.converted is None:
            expected = "a residual network of convolutions, BatchNorm and activations"
            raise ConfigError(
                f"{self.name} has no normalizer-free form", expected=expected, got="; ".join(self.obstacles)
            )
        return self.converted

    @property
    def table(self) -> list[dict[str, str | float | None]]:
        """One row per change.

        Returns:
            Layer, what it is, what it becomes, and theory's variance.
        """
        return [vars(row).copy() for row in self.rows]

    def __str__(self) -> str:
        """What `print` shows.

        Returns:
            The sentences.
        """
        title = f"{self.name} normalizer-free:" if self.is_possible else f"{self.name} cannot be made normalizer-free:"
        return "\n".join([title, *(f"- {text}" for text in (self.findings if self.is_possible else self.obstacles))])


@torch.random.fork_rng(devices=[])  # new layers draw weights before they are given the old ones
def normalizer_free(model: nn.Module, alpha: float = 0.2, skip_gain: float = 0.0) -> NormalizerFree:
    """Tell what it takes to turn a residual network into its normalizer-free form, and do it where that is possible.

    For networks like ResNet, by anyone: basic blocks and bottlenecks, activations before or behind the addition, 1x1 or
    identity shortcuts, squeeze-excite, grouped and depthwise convolutions, any activation of single numbers. The
    network is read as a graph (torch.fx), so its forward must not decide by values. It stays as it is. The result
    computes something else: it starts from the same raw weights, but has to be trained.

    Args:
        model: The network.
        alpha: How much of each residual branch is added.
        skip_gain: First value of the learned factor of each branch. 1 to look at signals.

    Returns:
        The report; `.model` is the new network, and raises where there is none.

    Raises:
        DtypeError: If it is no module.
        ConfigError: If a number is out of range.

    Source: Brock, De and Smith 2021.

    Example:
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.conv1, self.norm1 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        ...         self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        ...     def forward(self, x):
        ...         return (x + self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))).relu()
        >>> report = normalizer_free(nn.Sequential(nn.Conv2d(3, 8, 3), Block(), Block()))
        >>> print(report.findings[0])
        4 BatchNorms go
        >>> sorted(report.model.state_dict())[:3]
        ['0.bias', '0.gain', '0.weight']
    """
    if not isinstance(model, nn.Module):
        raise DtypeError("normalizer_free takes a network", expected="an nn.Module", got=describe(model))
    if not (0 < alpha < math.inf and math.isfinite(skip_gain)):
        got = f"alpha={alpha}, skip_gain={skip_gain}"
        raise ConfigError("normalizer_free got a number out of range", expected="alpha above 0", got=got)
    name = type(model).__name__
    if is_normalizer_free(model):
        return NormalizerFree(name, (), ("its weights are standardised: it is normalizer-free already",), ())
    try:
        twin = copy.deepcopy(model)
        graph = trace(twin)
    except Exception as error:  # a network may fail in any way when it is called with a stand-in for a tensor
        text = " ".join(str(error).split())[:200]
        obstacle = (
            f"its forward cannot be read as a graph ({type(error).__name__}: {text}); give the part that only computes"
        )
        return NormalizerFree(name, (), (obstacle,), ())
    reading = Reading(twin, graph)
    residuals, complaints = find_residuals(reading)
    obstacles = [*find_obstacles(reading, residuals), *complaints]
    if obstacles:
        return NormalizerFree(name, (), tuple(dict.fromkeys(obstacles)), ())
    conversion = Conversion(reading, residuals, alpha, skip_gain)
    converted = conversion.run()
    return NormalizerFree(name, tuple(conversion.changes), (), tuple(_sentences(conversion)), converted)


def _sentences(conversion: Conversion) -> list[str]:
    rows = conversion.changes
    n_norms = sum(row.becomes == "gone" for row in rows)
    n_weights = sum(row.becomes.startswith("standardised") for row in rows)
    n_activations = sum(" times it" in row.becomes for row in rows)
    sums = [row for row in rows if row.what == "residual addition"]
    largest = max(row.expected_variance or 1.0 for row in sums)
    found = [
        f"{n_norms} BatchNorms go",
        f"{n_weights} layers compute with standardised weights, a gain per channel, and a bias where BatchNorm had one",
        f"{n_activations} activations are multiplied by their gain, and divide by the expected standard deviation",
        f"{len(sums)} residual additions get alpha = {conversion.alpha:g} and a learned skip gain that starts at"
        f" {conversion.skip_gain:g}; the variance grows to {largest:.3g} at most",
    ]
    if conversion.n_moved:
        found.append(
            f"{conversion.n_moved} shortcuts now carry the sum itself: its activation is the next branch's first"
        )
    if conversion.shifting:
        places = ", ".join(conversion.shifting)
        found.append(f"branches end with an activation, so that means shift; end them with a convolution ({places})")
    if any(row.what == "gate" for row in rows):
        found.append("gates are doubled, since a sigmoid halves at the start")
    return [
        *found,
        "it computes something else than before, and has to be trained: no weight decay on gains and biases",
    ]

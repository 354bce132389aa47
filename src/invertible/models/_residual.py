"""What i-ResNets and Residual Flows share: branches that contract, and blocks made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from torch import nn

from invertible.bijection import Bijection
from invertible.errors import ConfigError
from invertible.layers import ActNorm, InjectivePad, LipSwish, MaxMin, Residual, constrain
from invertible.logdet import AutoLogDet, ExactLogDet, Krylov, LogDetEstimator, PowerSeries, RussianRoulette
from invertible.solve import FixedPointSolver

ActivationName = Literal["elu", "celu", "softplus", "lipswish", "maxmin"]
Bound = Literal["certified", "power"]
EstimatorName = Literal["krylov", "roulette", "power-series", "exact"]

_ACTIVATIONS = {"elu": nn.ELU, "celu": nn.CELU, "softplus": nn.Softplus, "lipswish": LipSwish, "maxmin": MaxMin}


def activation_of(name: ActivationName) -> nn.Module:
    """A 1-Lipschitz activation.

    Args:
        name: Which.

    Returns:
        A new one.

    Raises:
        ConfigError: If there is none of that name.
    """
    if name not in _ACTIVATIONS:
        raise ConfigError("unknown activation", expected=", ".join(_ACTIVATIONS), got=repr(name))
    return _ACTIVATIONS[name]()


def training_estimator(name: EstimatorName) -> LogDetEstimator:
    """How the log-determinant is estimated while a density is trained.

    Args:
        name: "krylov" (ours), "roulette" (Residual Flow's, unbiased), "power-series" (i-ResNet's: five terms, one
            Gaussian probe, everything kept for the gradient) or "exact".

    Returns:
        The estimator.

    Raises:
        ConfigError: If there is none of that name.
    """
    known: dict[str, LogDetEstimator] = {
        "krylov": Krylov(),
        "roulette": RussianRoulette(),
        "power-series": PowerSeries(),
        "exact": ExactLogDet(),
    }
    if name not in known:
        raise ConfigError("unknown estimator", expected=", ".join(known), got=repr(name))
    return known[name]


def check_counts(**counts: int | Sequence[int]) -> None:
    """Refuse what does not count anything.

    Args:
        **counts: By name: a number, or several.

    Raises:
        ConfigError: If one is no whole number, or below 1; or if there are several of none.
    """
    for name, value in counts.items():
        values = list(value) if isinstance(value, list | tuple) else [value]
        if not values or not all(isinstance(v, int) and not isinstance(v, bool) and v >= 1 for v in values):
            raise ConfigError(f"{name} is out of range", expected="whole numbers, at least 1", got=repr(value))


def check_stages(**stages: Sequence[int]) -> None:
    """Refuse stages that do not agree.

    Args:
        **stages: By name, a number for each stage.

    Raises:
        ConfigError: If there are no stages, not equally many, or not of whole numbers above zero.
    """
    got = ", ".join(f"{name}={value!r}" for name, value in stages.items())
    is_list = all(isinstance(value, list | tuple) for value in stages.values())
    if not is_list or len({len(value) for value in stages.values()}) != 1 or not all(stages.values()):
        expected, hint = "one entry per stage in each", "(7, 7, 7) for three stages"
        raise ConfigError("the stages of a network disagree", expected=expected, got=got, hint=hint)
    check_counts(**stages)


@dataclass(frozen=True)
class Branches:
    """How the branches of a network are made.

    Args:
        coefficient: The papers' c: every layer's bound. None: no constraint, and no guarantee that there is an inverse.
        activation: Between the layers.
        bound: "certified", or the papers' "power" iteration.
        estimator: Of the log-determinant in training.
    """

    coefficient: float | None = 0.9
    activation: ActivationName = "elu"
    bound: Bound = "certified"
    estimator: EstimatorName = "roulette"

    def conv(self, channels: int, hidden: int, starts_with_activation: bool = True, n_pad: int = 0) -> list[Bijection]:
        """A block of images: ActNorm, then x + g(x), g being 3x3, 1x1 and 3x3 convolutions.

        Args:
            channels: Of the image.
            hidden: Between the convolutions.
            starts_with_activation: Whether g begins with an activation; the first block of a network does not.
            n_pad: How many of the channels are zeros to be appended between the two; ActNorm could not normalise them.

        Returns:
            Members of a chain.
        """
        pad: list[Bijection] = [InjectivePad(channels - n_pad, n_pad)] if n_pad else []
        first, middle, last = (channels, hidden, 3), (hidden, hidden, 1), (hidden, channels, 3)
        layers = [nn.Conv2d(n, m, k, padding=k // 2) for n, m, k in (first, middle, last)]
        return [ActNorm(channels - n_pad), *pad, self._block(layers, starts_with_activation)]

    def dense(self, n_features: int, hidden: Sequence[int], starts_with_activation: bool = True) -> list[Bijection]:
        """A block of vectors: ActNorm, then x + g(x), g being fully connected.

        Args:
            n_features: Of the vector.
            hidden: Widths between the layers.
            starts_with_activation: Whether g begins with an activation.

        Returns:
            Two members of a chain.
        """
        layers = [nn.Linear(n, m) for n, m in pairwise((n_features, *hidden, n_features))]
        return [ActNorm(n_features), self._block(layers, starts_with_activation)]

    def _block(self, layers: Sequence[nn.Module], starts_with_activation: bool) -> Residual:
        parts: list[nn.Module] = []
        for i, layer in enumerate(layers):
            parts += [activation_of(self.activation)] if i or starts_with_activation else []
            parts.append(layer)
        network = nn.Sequential(*parts)
        options = {"logdet": AutoLogDet(), "training_logdet": training_estimator(self.estimator)}
        if self.coefficient is None:
            return Residual(network, "unknown", solver=FixedPointSolver(), **options)
        if not 0 < self.coefficient < 1:
            hint = "0.5 to 0.98; null for no constraint"
            raise ConfigError("the coefficient is out of range", expected="between 0 and 1", got=self.coefficient,
                              hint=hint)  # fmt: skip
        return Residual(constrain(network, self.coefficient, bound=self.bound), solver=FixedPointSolver(), **options)

"""The instruments by name: what each needs, and how to call it on any network and data. One line for a new one."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from invertible.errors import ConfigError
from invertible.instruments.result import Result

Need = Literal["data", "labels", "chain"]


@dataclass(frozen=True)
class Instrument:
    """An instrument and what it needs.

    Args:
        name: Of the function.
        where: Its module below `invertible.instruments` and, after a colon, the function in it. It is called with
            (model, data, **options); what takes data takes the options seconds, batches, seed, quiet.
        about: What it measures, in one line.
        needs: "data"; "labels" with them; "chain", an invertible part in the network.
        n_passes: About how many forward passes of a batch it takes at least; `checkup` leaves out what takes too long.
        has_budget: Whether it stops early for `seconds`.
    """

    name: str
    where: str
    about: str
    needs: frozenset[Need] = frozenset({"data"})
    n_passes: int = 2
    has_budget: bool = True

    @property
    def function(self) -> Callable[..., Result]:
        """The function, imported when it is asked for."""
        module, _, function = self.where.partition(":")
        return getattr(importlib.import_module(f"invertible.instruments.{module}"), function)

    def measure(self, model: nn.Module, data: Any = None, **options: Any) -> Result:
        """Measure a network.

        Args:
            model: Any module.
            data: As `feeding.Feed` takes them; not looked at by instruments of weights.
            **options: Of the function.

        Returns:
            What it returns.
        """
        return self.function(model, data, **options) if "data" in self.needs else self.function(model, **options)

    def refusal(self, model: nn.Module, has_data: bool = True, has_labels: bool = True) -> str:
        """Why it cannot measure this.

        Args:
            model: The network.
            has_data: Whether there are data.
            has_labels: Whether they have labels.

        Returns:
            A reason; "" if it can.
        """
        if "data" in self.needs and not has_data:
            return "it needs data"
        if "labels" in self.needs and not has_labels:
            return "it needs labels"
        if "chain" in self.needs:
            from invertible.instruments._chain_of import chains_in

            return "" if chains_in(model) else "the network has no invertible part"
        return ""


_ALL = (
    Instrument(
        "curvature",
        "curvature:curvature",
        "how the loss bends at the network's weights: Hessian spectrum, trace, index",
        frozenset({"data", "labels"}),
        n_passes=40,
    ),
    Instrument(
        "depth_profile",
        "depth_profile:depth_profile",
        "how well classes separate with depth, in how many dimensions, and what is left of the input",
        frozenset({"data", "labels"}),
        n_passes=60,
    ),
    Instrument(
        "information_plane",
        "information_plane:information_plane",
        "what places tell of input and label, under bins and kernels",
        frozenset({"data", "labels"}),
        n_passes=60,
    ),
    Instrument(
        "interpolation",
        "interpolation:interpolation",
        "images decoded from straight lines between two representations",
        frozenset({"data", "chain"}),
        n_passes=10,
    ),
    Instrument(
        "jacobian_spectrum",
        "jacobian_spectrum:jacobian_spectrum",
        "singular values of d representation / d input",
        n_passes=100,
    ),
    Instrument(
        "loss_slice",
        "loss_slice:loss_slice",
        "the loss along lines and on planes through the network's weights",
        frozenset({"data", "labels"}),
        n_passes=60,
    ),
    Instrument(
        "reversibility",
        "_chain_of:reversibility_of",
        "where an invertible network's inverse loses the input",
        frozenset({"data", "chain"}),
        n_passes=300,
        has_budget=False,
    ),
    Instrument(
        "signal_propagation",
        "signal_propagation:signal_propagation",
        "mean and variance from block to block",
    ),
    Instrument("weight_spectrum", "weight_spectrum:weight_spectrum", "how far weights are from random", frozenset()),
    Instrument(
        "transposed_reconstruction",
        "transposed_reconstruction:transposed_reconstruction",
        "inputs of layers from their outputs, against random weights",
        n_passes=60,
    ),
)
INSTRUMENTS: dict[str, Instrument] = {instrument.name: instrument for instrument in _ALL}
"""By name."""


def instrument(name: str) -> Instrument:
    """Find an instrument.

    Args:
        name: Its name.

    Returns:
        It.

    Raises:
        ConfigError: If there is none of that name.

    Example:
        >>> instrument("signal_propagation").about
        'mean and variance from block to block'
    """
    if name not in INSTRUMENTS:
        near = difflib.get_close_matches(name.replace("-", "_"), INSTRUMENTS, n=1, cutoff=0.5)
        expected = ", ".join(INSTRUMENTS)
        raise ConfigError("no such instrument", expected=expected, got=repr(name), hint=repr(near[0]) if near else "")
    return INSTRUMENTS[name]

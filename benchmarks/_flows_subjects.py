"""What `flows.py` asks of each implementation."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

BOUND = 2.0  # of the log-scale, nats
PACKAGES = {"nflows": "nflows", "normflows": "normflows", "zuko": "zuko", "freia": "FrEIA"}


@dataclass
class Subject:
    """One implementation, ready to be measured."""

    model: nn.Module
    log_prob: Callable[[Tensor], Tensor]
    loss: Callable[[Tensor], Tensor]
    sample: Callable[[int], Tensor]
    encode: Callable[[Tensor], Any]
    decode: Callable[[Any], Tensor]

    @property
    def n_parameters(self) -> int:
        """How many numbers are learned."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)


def missing(name: str) -> bool:
    """Whether an implementation's package is not installed."""
    return name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None


def peer(module: str) -> Any:
    """A module of a peer, which need not be installed."""
    return importlib.import_module(module)


def mean_of(log_prob: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The training loss that belongs to a log-density."""
    return lambda x: -log_prob(x).mean()


def network(n_in: int, n_out: int, width: int) -> nn.Sequential:
    """Two hidden layers; zero output before training."""
    last = nn.Linear(width, n_out)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(n_in, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), last)


def log_normal(z: Tensor) -> Tensor:
    """Log-density of independent standard normal numbers."""
    return -0.5 * z.flatten(1).square().sum(1) - 0.5 * z[0].numel() * math.log(2 * math.pi)


def of_flow(flow: Any) -> Subject:
    """One of ours."""
    return Subject(flow, flow.log_prob, flow, flow.sample, flow.encode, flow.decode)


def compiled(subject: Subject) -> Subject:
    """The same with its three functions compiled; shapes are fixed.

    Random numbers are drawn by PyTorch's own kernel: inductor's is slow on a CPU (256 x 64 of them take it longer
    than the whole flow).
    """
    names = ("log_prob", "loss", "sample")
    options: Any = {"fallback_random": True}  # a mode and options exclude each other, which confuses pyright
    functions = {name: torch.compile(getattr(subject, name), dynamic=False, options=options) for name in names}
    return replace(subject, **functions)

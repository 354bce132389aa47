"""The Jacobian case of `instruments.py`: singular values at a point, ours against a dense Jacobian by torch.func."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from invertible.instruments import jacobian_spectrum

CHUNK = 64
"""Rows that both build at once."""


@dataclass(frozen=True)
class Case:
    """One network and size.

    Args:
        name: Of it.
        net: In float64, eval mode.
        x: One example.
    """

    name: str
    net: nn.Module
    x: Tensor


def cases(is_quick: bool) -> list[Case]:
    """A fully connected and a convolutional network; input and output of equal size."""
    torch.manual_seed(0)
    side, width = (8, 256) if is_quick else (16, 784)
    dense = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))
    convolutions = [nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 3, 3, padding=1)]
    found = {
        f"mlp-{width}": (dense, (1, width)),
        f"conv-3x{side}x{side}": (nn.Sequential(*convolutions), (1, 3, side, side)),
    }
    return [Case(name, net.double().eval(), torch.randn(shape).double()) for name, (net, shape) in found.items()]


def with_torch_func(case: Case) -> Tensor:
    """What one would write by hand: jacrev, then singular values."""
    parameters = {name: tensor.detach() for name, tensor in [*case.net.named_parameters(), *case.net.named_buffers()]}

    def place(x: Tensor) -> Tensor:
        return functional_call(case.net, parameters, (x[None],)).flatten()

    jacobian = jacrev(place, chunk_size=CHUNK)(case.x[0])
    return torch.linalg.svdvals(jacobian.flatten(1))


def with_instrument(case: Case) -> Tensor:
    """Ours, with its guard, its checks and its result."""
    found = jacobian_spectrum(case.net, case.x, n_examples=1, dense_up_to=10**6, quiet=True)
    return torch.tensor(found.spectra[0].values, dtype=torch.float64)


def extreme_only(case: Case) -> Tensor:
    """Ours by Lanczos: the eight largest."""
    found = jacobian_spectrum(case.net, case.x, n_examples=1, dense_up_to=0, n_steps=40, quiet=True)
    return torch.tensor(found.spectra[0].values, dtype=torch.float64)


def measure_jacobian(is_quick: bool, n_repeats: int = 5) -> list[dict[str, object]]:
    """Time and agreement on every case, in the benchmarks' JSON form.

    The runs of the implementations alternate; "ratio" is the median over repeats of time / time of torch.func.
    """
    runs: dict[str, Callable[[Case], Tensor]] = {
        "torch.func": with_torch_func,
        "invertible": with_instrument,
        "invertible-lanczos": extreme_only,
    }
    rows: list[dict[str, object]] = []
    for case in cases(is_quick):
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        values: dict[str, Tensor] = {}
        for i in range(n_repeats + 1):
            for name, run in runs.items():
                start = time.perf_counter()
                values[name] = run(case)
                if i:  # the first is a rehearsal
                    seconds[name].append(time.perf_counter() - start)
        truth = values["torch.func"]
        for name, found in values.items():
            ratios = [own / peer for own, peer in zip(seconds[name], seconds["torch.func"], strict=True)]
            error = ((found - truth[: len(found)]).abs().max() / truth[0]).item()
            metrics = {"seconds": median(seconds[name]), "ratio": median(ratios), "largest_error": error,
                       "log_condition": math.log10((truth[0] / truth[-1]).item())}  # fmt: skip
            rows.append(
                {"implementation": name, "setting": {"task": "jacobian", "case": case.name}, "metrics": metrics}
            )
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    for row in measure_jacobian(is_quick=True):
        print(row)

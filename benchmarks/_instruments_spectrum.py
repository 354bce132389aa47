"""The spectrum case of `instruments.py`: ours against WeightWatcher, which is left out where it is not installed."""

from __future__ import annotations

import contextlib
import io
import logging
import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import nn

from invertible.instruments import weight_spectrum


def networks(is_quick: bool) -> dict[str, nn.Module]:
    """One of linear layers, one of convolutions; WeightWatcher leaves out what is narrower than 50."""
    torch.manual_seed(0)
    width = 256 if is_quick else 1024
    linear = nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 100))
    pointwise = nn.Sequential(nn.Conv2d(64, width, 1), nn.ReLU(), nn.Conv2d(width, 128, 1))
    return {f"linear-{width}": linear, f"pointwise-{width}": pointwise}


def weightwatcher() -> Callable[[nn.Module], Any] | None:
    """Its analysis, quiet; None where it is not installed."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        try:
            import weightwatcher  # pyright: ignore[reportMissingImports]
        except ImportError:
            return None
    logging.getLogger("weightwatcher").setLevel(logging.ERROR)

    def analyze(net: nn.Module) -> Any:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            with contextlib.redirect_stdout(io.StringIO()):
                return weightwatcher.WeightWatcher(model=net).analyze(conv2d_norm=False)  # weights as they are

    return analyze


def measure_spectrum(is_quick: bool, n_repeats: int = 5) -> list[dict[str, Any]]:
    """Time and exactness: the largest singular value of each weight, against a dense decomposition.

    Args:
        is_quick: Smaller networks.
        n_repeats: Pairs.

    Returns:
        Records.
    """
    peer, records = weightwatcher(), []
    if peer is None:
        print("weightwatcher is not installed: pip install weightwatcher")
    for name, net in networks(is_quick).items():
        ours: dict[str, Callable[[], Any]] = {
            "invertible": lambda net=net: weight_spectrum(net, n_permutations=0, quiet=True),
            "invertible-null": lambda net=net: weight_spectrum(net, n_permutations=19, quiet=True),
        }
        if peer is not None:
            ours["weightwatcher"] = lambda net=net, peer=peer: peer(net)
        times, found = _timed(ours, n_repeats)
        for who, seconds in times.items():
            metrics = {"seconds": median(seconds), "error_of_largest": _error(net, found[who])}
            if "weightwatcher" in times:
                pairs = zip(seconds, times["weightwatcher"], strict=True)
                metrics["time_ratio_to_weightwatcher"] = median([a / b for a, b in pairs])
            setting = {"question": "spectrum", "network": name, "threads": torch.get_num_threads()}
            records.append({"implementation": who, "setting": setting, "metrics": metrics})
    return records


def _timed(actions: dict[str, Callable[[], Any]], n: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    found = {name: action() for name, action in actions.items()}  # warms up
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(n):
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            times[name].append(time.perf_counter() - start)
    return times, found


def _error(net: nn.Module, found: Any) -> float:
    weights = [module.weight.detach().double().flatten(1) for module in net if hasattr(module, "weight")]  # pyright: ignore
    exact = [torch.linalg.matrix_norm(weight, 2).item() for weight in weights]
    if hasattr(found, "layers"):
        top = [layer.main.largest * layer.main.edge for layer in found.layers]
    else:
        top = [float(value) for value in found["sv_max"]]
    return max(abs(a / b - 1) for a, b in zip(top, exact, strict=True))

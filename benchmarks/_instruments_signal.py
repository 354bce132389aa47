"""The signal case of `instruments.py`: ours against hooks written by hand, which add up the same moments."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from invertible.instruments import signal_propagation
from invertible.models import resnet20


def by_hand(net: nn.Module, blocks: dict[str, nn.Module], batches: list[Tensor]) -> dict[str, tuple[float, float]]:
    """Squared mean and variance per channel, averaged, at the stem, each block and the end of its branch."""
    sums: dict[str, list[Tensor]] = {}

    def add(name: str, x: Tensor) -> None:
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        new = [mean, variance + mean.square()]  # batches are equally large
        sums[name] = [a + b for a, b in zip(sums[name], new, strict=True)] if name in sums else new

    def hook(name: str) -> Any:
        return lambda _module, _arguments, output: add(name, output)

    first = next(iter(blocks.values()))
    handles = [first.register_forward_pre_hook(lambda _module, arguments: add("stem", arguments[0]))]
    for name, block in blocks.items():
        handles.append(block.register_forward_hook(hook(name)))
        handles.append(block.residual[-1].register_forward_hook(hook(f"{name} end")))  # pyright: ignore
    try:
        with torch.no_grad():
            for batch in batches:
                net(batch)
    finally:
        for handle in handles:
            handle.remove()
    found = {}
    for name, (total, squares) in sums.items():
        mean = total / len(batches)
        found[name] = (mean.square().mean().item(), (squares / len(batches) - mean.square()).mean().item())
    return found


def measure_signal(is_quick: bool, n_repeats: int = 9) -> list[dict[str, Any]]:
    """Time in pairs, and the largest relative difference of a variance.

    Args:
        is_quick: Fewer batches.
        n_repeats: Pairs.

    Returns:
        Records.
    """
    torch.manual_seed(0)
    net = resnet20().eval()
    batches = [torch.randn(64, 3, 32, 32) for _ in range(3 if is_quick else 10)]
    blocks = {
        block.name: net.get_submodule(block.name)
        for block in signal_propagation(net, batches[:1], quiet=True).blocks[1:]
    }
    actions = {
        "invertible": lambda: signal_propagation(net, batches, quiet=True),
        "plain": lambda: by_hand(net, blocks, batches),
    }
    found = {name: action() for name, action in actions.items()}
    times: dict[str, list[float]] = {name: [] for name in actions}
    for i in range(n_repeats):
        for name in actions if i % 2 else reversed(actions):
            start = time.perf_counter()
            actions[name]()
            times[name].append(time.perf_counter() - start)
    ours = {block.name: block.variance for block in found["invertible"].blocks[1:]}  # pyright: ignore
    off = max(abs(value / found["plain"][name][1] - 1) for name, value in ours.items())  # pyright: ignore
    setting = {"question": "signal", "network": "resnet20", "batch": 64, "batches": len(batches)}
    setting |= {"threads": torch.get_num_threads()}
    records = []
    for name, seconds in times.items():
        ratio = median([a / b for a, b in zip(seconds, times["plain"], strict=True)])
        metrics = {"seconds": median(seconds), "time_ratio_to_plain": ratio, "variance_off_plain": off}
        records.append({"implementation": name, "setting": setting, "metrics": metrics})
    return records

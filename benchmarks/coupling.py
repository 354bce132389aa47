"""What does the abstraction cost? A training step of our coupling chain against the same network by hand.

Both compute y1 = x1 + F(x2), y2 = x2 + G(y1), block after block, with the same weights, in plain autograd. F and G are
BatchNorm, ReLU and a 3x3 convolution, twice. Steps alternate in random order; the medians' ratio is the answer.

    python benchmarks/coupling.py [--quick] [--json FILE] [--threads N]
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from invertible import Chain
from invertible.layers import AdditiveCoupling


def residual(channels: int) -> nn.Module:
    """F: BatchNorm, ReLU, 3x3 convolution, twice."""
    half = [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1, bias=False)]
    other = [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1, bias=False)]
    return nn.Sequential(*half, *other)


class Plain(nn.Module):
    """The network as one would write it without any library."""

    def __init__(self, networks: list[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        """Two streams, changed in turn."""
        x1, x2 = x.chunk(2, dim=1)
        for i, network in enumerate(self.networks):
            if i % 2 == 0:
                x1 = x1 + network(x2)
            else:
                x2 = x2 + network(x1)
        return torch.cat([x1, x2], dim=1)


def build(n_blocks: int, channels: int) -> dict[str, nn.Module]:
    """The same network twice, from the same seed; a block is a pair of couplings."""
    nets = {}
    for name in ("plain", "invertible-store"):
        torch.manual_seed(0)
        networks = [residual(channels // 2) for _ in range(2 * n_blocks)]
        targets = ("first", "second")
        couplings = [AdditiveCoupling(f, targets[i % 2]) for i, f in enumerate(networks)]
        nets[name] = Plain(networks) if name == "plain" else Chain(*couplings)
    return nets


def step(net: nn.Module, x: Tensor) -> float:
    """Seconds of one forward and backward pass."""
    start = time.perf_counter()
    net(x).square().mean().backward()
    seconds = time.perf_counter() - start
    net.zero_grad(set_to_none=True)
    return seconds


def measure(n_blocks: int, n_steps: int, channels: int = 64, size: int = 16, batch: int = 32) -> list[dict]:
    """Alternate steps of both networks."""
    nets, x = build(n_blocks, channels), torch.randn(batch, channels, size, size)
    outputs = [net(x) for net in nets.values()]
    if not torch.equal(outputs[0], outputs[1]):
        raise SystemExit("the two networks differ: the comparison would be void")
    del outputs
    seconds: dict[str, list[float]] = {name: [] for name in nets}
    order, shuffler = list(nets), random.Random(0)
    gc.disable()
    for trial in range(n_steps + 2):
        shuffler.shuffle(order)
        for name in order:
            seconds[name].extend([step(nets[name], x)] if trial > 1 else [step(nets[name], x)][:0])
    gc.enable()
    ratios = [ours / plain for ours, plain in zip(seconds["invertible-store"], seconds["plain"], strict=True)]
    setting = {"blocks": n_blocks, "channels": channels, "size": size, "batch": batch}
    setting["threads"] = torch.get_num_threads()
    quartiles = statistics.quantiles(ratios, n=4)
    rows = []
    for name, times in seconds.items():
        metrics = {"step_seconds": statistics.median(times)}
        metrics["step_ratio"] = statistics.median(ratios) if name != "plain" else 1.0
        if name != "plain":
            metrics |= {"step_ratio_q25": quartiles[0], "step_ratio_q75": quartiles[2]}
        rows.append({"implementation": name, "setting": setting, "metrics": metrics})
    return rows


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 and 16 blocks only, fewer steps (under two minutes)")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    print(f"{'blocks':>6} {'plain':>9} {'ours':>9} {'ratio (quartiles)':>22}")
    for n_blocks in (8, 16) if options.quick else (8, 16, 32, 64):
        new = measure(n_blocks, n_steps=max(5, (60 if options.quick else 240) // n_blocks))
        plain, ours = (row["metrics"] for row in new)
        spread = f"{ours['step_ratio']:.3f} ({ours['step_ratio_q25']:.3f} to {ours['step_ratio_q75']:.3f})"
        print(f"{n_blocks:>6} {plain['step_seconds']:>8.3f}s {ours['step_seconds']:>8.3f}s {spread:>22}", flush=True)
        rows += new
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

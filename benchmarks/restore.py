"""Seconds until a noisy photograph is within 0.3 dB of the best by the paper's settings: ours against those.

"plain" is a straight re-implementation: the paper's network and loop as it describes them (five scales of 128 channels,
reflection padding, float32, Adam at 0.01, input noise 1/30, outputs averaged with 0.99). It runs first, to its end; its
best PSNR less 0.3 dB is the aim of both. Seconds are of this process, so a shared machine disturbs little.

Run: python benchmarks/restore.py [--side 256] [--photograph astronaut] [--steps 2000] [--threads 2] [--quick]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from _photographs import PHOTOGRAPHS, noisy, photograph
from invertible.restore import Progress, SkipNetwork, restore

SIGMA = 25 / 255
MARGIN = 0.3


def psnr(picture: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio, dB."""
    return -10 * math.log10(float((picture.clamp(0, 1) - truth).square().mean()))


def plain(measured: Tensor, truth: Tensor, steps: int, width: int) -> list[tuple[float, float]]:
    """Run the paper's settings; seconds and PSNR of the averaged output, every ten steps."""
    torch.manual_seed(0)
    network = SkipNetwork(32, truth.shape[0], widths=(width,) * 5, skips=(4,) * 5)
    inputs, average, found = 0.1 * torch.rand(1, 32, *truth.shape[1:]), None, []
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    began = time.process_time()
    for step in range(1, steps + 1):
        picture = network(inputs + torch.randn_like(inputs) / 30).sigmoid()
        loss = (picture - measured).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average = picture.detach() if average is None else 0.99 * average + 0.01 * picture.detach()
        if not step % 10:
            found.append((time.process_time() - began, psnr(average[0], truth)))
        if not step % 100:
            print(f"plain: step {step} of {steps}, {found[-1][0]:.0f} s, {found[-1][1]:.2f} dB", flush=True)
    return found


def ours(measured: Tensor, truth: Tensor) -> tuple[list[tuple[float, float]], float]:
    """Run the library as it is; seconds and PSNR every ten steps, and PSNR where it stopped."""
    found: list[tuple[float, float]] = []
    began = time.process_time()

    def note(progress: Progress) -> None:
        found.append((time.process_time() - began, progress.psnr or 0.0))

    restored = restore(measured, sigma=SIGMA, truth=truth, on_step=note)
    return found, psnr(restored.image, truth)


def first(found: list[tuple[float, float]], aim: float) -> float | None:
    """Seconds until the aim is reached; None: never."""
    return next((seconds for seconds, value in found if value >= aim), None)


def main() -> None:
    """Run both, print seconds and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photograph", default="astronaut", choices=PHOTOGRAPHS)
    parser.add_argument("--side", type=int, default=256, help="pixels")
    parser.add_argument("--steps", type=int, default=2000, help="of the paper's settings")
    parser.add_argument("--width", type=int, default=128, help="of the paper's network")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="64 pixels, 16 channels, 300 steps")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.quick:
        options.side, options.width, options.steps = 64, 16, 300
    torch.set_num_threads(options.threads)
    truth = photograph(options.photograph, options.side)
    measured = noisy(truth, SIGMA)
    theirs = plain(measured, truth, options.steps, options.width)
    mine, stopped = ours(measured, truth)
    best = max(value for _, value in theirs)
    rows: list[dict[str, Any]] = []
    setting = {name: getattr(options, name) for name in ("photograph", "side", "steps", "width", "threads")}
    for name, found, end in (("plain", theirs, theirs[-1][1]), ("invertible", mine, stopped)):
        metrics = {
            "seconds to best - 0.3 dB": first(found, best - MARGIN),
            "seconds": found[-1][0],
            "best": max(value for _, value in found),
            "at the end": end,
        }
        rows.append({"implementation": name, "setting": setting, "metrics": metrics})
        print(f"{name:12}", ", ".join(f"{k} {v if v is None else round(v, 2)}" for k, v in metrics.items()))
    times = [row["metrics"]["seconds to best - 0.3 dB"] for row in rows]
    print("ratio of seconds, plain / invertible:", f"{times[0] / times[1]:.1f}" if times[1] else "aim not reached")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()

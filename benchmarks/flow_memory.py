"""How much memory does training a Glow take, and how large can images be? Ours, normflows, nflows, PyTorch by hand.

Glow on RGB images, batch 8, levels of K steps (ActNorm, 1x1 convolution, affine coupling), the same number of
parameters (but for the masked halves of triangular factors). Peak memory above baseline of a training step (forward and
backward) against the image's side and against K, each in a fresh process; then the largest side that trains while the
process is capped. Ours is measured with memory="store" (autograd keeps everything) and memory="reconstruct"
(activations are found again by running the layers backwards).

    python benchmarks/flow_memory.py [--quick] [--json FILE] [--picture FILE.png] [--device cuda] [--cap MIB]

The peers: pip install -e '.[bench]'. Published mark (Orozco et al. 2024, InvertibleNetworks.jl, Julia, hand-written
gradients): on a 40 GB GPU normflows fails at 480x480, where theirs still trains at 1024x1024, 2.1 times the side.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from _flows_memory import BATCH, IMPLEMENTATIONS, Job, work
from _flows_subjects import missing
from _reversible_measure import MALLOC

TIMEOUT = 1800.0


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(job: Job) -> dict[str, Any]:
    """A job in a process of its own."""
    environment = os.environ | MALLOC | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", __file__, "--worker", json.dumps(job)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {TIMEOUT:.0f} s"}
    if done.returncode < 0 and job.kind == "fits":
        return {"fits": False}  # some libraries do not check what they are given
    if done.returncode or not done.stdout.strip():
        return {"error": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def peaks(options: argparse.Namespace, names: list[str]) -> Iterator[dict[str, Any]]:
    """Rows of peak memory, against the side at the smaller depth and against depth at the smaller side."""
    grid = [(side, options.steps[0]) for side in options.sides] + [(options.sides[0], k) for k in options.steps[1:]]
    for side, steps in grid:
        for name in names:
            found = run(Job("peak", name, side, steps, options.scales, options.hidden, options.device))
            note(f"{name}, side {side}, {steps} steps: {found}")
            if "error" not in found:
                yield row(options, name, found, side=side, steps=steps)


def largest(options: argparse.Namespace, names: list[str]) -> Iterator[dict[str, Any]]:
    """Rows of the largest side that trains within the cap."""
    unit = 2**options.scales
    for name in names:
        low, high = 0, 0  # in units
        while not high or high - low > max(1, low // (8 if options.quick else 25)):
            middle = (low + high) // 2 if high else max(2 * low, 64 // unit)
            job = Job("fits", name, middle * unit, options.steps[0], options.scales, options.hidden, options.device)
            found = run(job._replace(cap_mib=options.cap))
            note(f"{name}, side {middle * unit} in {options.cap:.0f} MiB: {found}")
            if "error" in found:
                break
            low, high = (middle, high) if found["fits"] else (low, middle)
        if low and high:
            yield row(options, name, {"largest_side": low * unit}, steps=options.steps[0], cap_mib=options.cap)


def row(options: argparse.Namespace, name: str, metrics: dict[str, Any], **setting: Any) -> dict[str, Any]:
    where = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    common = {"scales": options.scales, "hidden": options.hidden, "batch": BATCH, "device": where}
    return {"implementation": name, "setting": setting | common | {"torch": torch.__version__}, "metrics": metrics}


def table(rows: list[dict[str, Any]], names: list[str]) -> str:
    """What is printed: one line per setting, a column per implementation, and normflows' share of ours."""
    lines = [f"{'':26}" + "".join(f"{name:>24}" for name in names)]
    settings: dict[str, dict[str, float]] = {}
    for one in rows:
        setting, metrics = one["setting"], one["metrics"]
        is_peak = "peak_mib" in metrics
        title = f"side {setting['side']}, K = {setting['steps']}, MiB" if is_peak else "largest side"
        settings.setdefault(title, {})[one["implementation"]] = metrics["peak_mib" if is_peak else "largest_side"]
    for title, cells in settings.items():
        lines.append(f"{title:26}" + "".join(f"{cells.get(name, float('nan')):>24.0f}" for name in names))
    last = settings.get("largest side", {})
    if {"normflows", "invertible-reconstruct"} <= set(last):
        ratio = last["invertible-reconstruct"] / last["normflows"]
        lines.append(f"ours trains images of {ratio:.2f} times normflows' side in the same memory")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], names: list[str], file: Path) -> None:
    """Memory against side and against depth."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    found = [one for one in rows if "peak_mib" in one["metrics"]]
    depth, side = min(one["setting"]["steps"] for one in found), min(one["setting"]["side"] for one in found)
    kinds = (("side", "steps", depth), ("steps", "side", side))
    for axes, (across, fixed, value) in zip(figure.subplots(1, 2), kinds, strict=True):
        for name in names:
            mine = [one for one in found if one["implementation"] == name and one["setting"][fixed] == value]
            mine.sort(key=lambda one: one["setting"][across])
            x, y = [one["setting"][across] for one in mine], [one["metrics"]["peak_mib"] for one in mine]
            axes.loglog(x, y, "o-", label=name)
        ticks = sorted({one["setting"][across] for one in found if one["setting"][fixed] == value})
        axes.set_xticks(ticks, map(str, ticks))
        axes.minorticks_off()
        axes.set_xlabel(f"{'side of the image' if across == 'side' else 'steps per level'} ({fixed} {value})")
        axes.set_ylabel("peak memory of a training step, MiB")
    figure.axes[0].legend()
    figure.savefig(file, dpi=150)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="normflows and ours, small sides, a small cap (under two minutes)"
    )
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--picture", type=Path, help="draw memory against side and depth into this file")
    parser.add_argument("--sides", type=int, nargs="+", help="of images; default 32 64 128 256")
    parser.add_argument("--steps", type=int, nargs="+", help="K; the first one goes with all sides; default 8 16 32")
    parser.add_argument("--scales", type=int, default=3, help="levels")
    parser.add_argument("--hidden", type=int, default=32, help="channels in the couplings' networks")
    parser.add_argument("--cap", type=float, help="in MiB; default 2048, with --quick 96; 0: do not search")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--only", nargs="+", choices=list(IMPLEMENTATIONS), metavar="NAME")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.sides = options.sides or ([64] if options.quick else [32, 64, 128, 256])
    options.steps = options.steps or ([8, 16] if options.quick else [8, 16, 32])
    options.cap = (96.0 if options.quick else 2048.0) if options.cap is None else options.cap
    options.only = options.only or (["normflows", "invertible-reconstruct"] if options.quick else list(IMPLEMENTATIONS))
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA GPU here")
    return options


def main() -> None:
    """Run and print."""
    options = parse()
    if options.worker:
        print(json.dumps(work(Job(*options.worker))))
        return
    names = [name for name in options.only if not missing(name)]
    rows: list[dict[str, Any]] = []
    for new in (peaks(options, names), largest(options, names) if options.cap else ()):
        for one in new:
            rows.append(one)
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(table(rows, names))
    if options.picture:
        draw(rows, names, options.picture)


if __name__ == "__main__":
    main()

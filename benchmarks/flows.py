"""How fast are densities, training steps and samples? The same flow in each library, against the same by hand.

Tasks: toy-2d and digits-64d are RealNVPs of 8 affine couplings, two hidden layers of width 64, batch 256; fashion-glow
is a Glow of 2 levels of 4 steps on Fashion-MNIST, width 64, batch 32. All have the same number of parameters, checked,
and train on the same batches. Scales are bounded as each library can. In each round everyone is visited once, in random
order, and ratios are to the plain network in the same round; their median is reported. A step is a forward and a
backward pass.

    python benchmarks/flows.py [--quick] [--json FILE] [--threads 1 2] [--tasks toy-2d ...] [--only NAME ...]

The peers: pip install -e '.[bench]'. Fashion-MNIST is downloaded unless it is there. Test likelihoods are nats of the
scaled data, after a short training: they show that all can learn, not which is best (flow_likelihood.py does that).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from _flows_measure import TASKS, Job, note, work
from _flows_subjects import missing

NAMES = ["plain", "nflows", "normflows", "zuko", "freia", "invertible", "invertible-compiled"]
COLUMNS = ("log_prob_ratio", "step_ratio", "sample_ratio", "inverse_error", "test_nats")


def run(job: Job) -> dict[str, dict[str, float]]:
    """A job in a process of its own, so that its threads are its own."""
    threads = {"OMP_NUM_THREADS": str(job.threads), "MKL_NUM_THREADS": str(job.threads)}
    command = [sys.executable, "-W", "ignore", __file__, "--worker", json.dumps(job)]
    done = subprocess.run(command, env=os.environ | threads, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{job.task} failed")
    return json.loads(done.stdout.strip().splitlines()[-1])


def rows(job: Job, found: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    setting = {"task": job.task, "threads": job.threads, "batch": TASKS[job.task].batch, "torch": torch.__version__}
    return [{"implementation": name, "setting": setting, "metrics": metrics} for name, metrics in found.items()]


def table(job: Job, found: dict[str, dict[str, float]]) -> str:
    """What is printed: ratios to plain, the plain network's own milliseconds beside them."""
    plain = found["plain"]
    own = ", ".join(f"{name} {plain[f'{name}_ms']:.2f} ms" for name in ("log_prob", "step", "sample"))
    lines = [f"\n{job.task}, {job.threads} thread{'s' * (job.threads > 1)}; plain: {own}"]
    lines.append(f"{'':20}" + "".join(f"{column:>16}" for column in COLUMNS))
    for name, metrics in found.items():
        cells = (f"{metrics[c]:.1e}" if c == "inverse_error" else f"{metrics[c]:.3f}" for c in COLUMNS)
        lines.append(f"{name:20}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one thread, fewer rounds and steps; only toy-2d compiled")
    parser.add_argument("--json", type=Path, help="write the rows to this file, after every task")
    parser.add_argument("--threads", type=int, nargs="+", help="numbers of threads, default 1 and 2")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS), metavar="TASK")
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="NAME", help="these, and plain")
    parser.add_argument("--steps", type=int, help="of training, default 300")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.threads = options.threads or ([1] if options.quick else [1, 2])
    options.steps = options.steps or (60 if options.quick else 300)
    return options


def names(options: argparse.Namespace, task: str) -> list[str]:
    """Which implementations to measure on a task."""
    wanted = [name for name in NAMES if not options.only or name in options.only or name == "plain"]
    return [name for name in wanted if not (options.quick and task != "toy-2d" and name == "invertible-compiled")]


def main() -> None:
    """Run and print."""
    options = parse()
    if options.worker:
        print(json.dumps(work(Job(*options.worker))))
        return
    for name in filter(missing, NAMES):
        note(f"skipping {name}: it is not installed")
    written: list[dict[str, Any]] = []
    for task in options.tasks:
        for threads in options.threads:
            job = Job(task, threads, options.steps, 0.2 if options.quick else 1.0, names(options, task))
            found = run(job)
            print(table(job, found), flush=True)
            written += rows(job, found)
            if options.json:
                options.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

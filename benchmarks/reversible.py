"""What does training in constant memory cost? Every library that offers it, on one network.

An additive coupling network, 64 channels at 16x16, batch 32; F is BatchNorm, ReLU and a 3x3 convolution, twice; a block
is two couplings. Peak memory above baseline, time of a training step (forward and backward), error of the gradient,
evaluations of F and updates of BatchNorm's statistics per step. Each measurement is a fresh process, in random order;
where times are taken, steps of the plain network and of the other one alternate, and ratios are of neighbouring steps.

    python benchmarks/reversible.py [--quick] [--json FILE] [--picture FILE.png] [--threads 1 2] [--rounds N]

The peers: pip install -e '.[bench]'; memcnn by itself, pip install --no-deps memcnn. On a GPU: --device cuda, and
--deepest for the deepest network that fits its memory.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from _reversible_measure import MALLOC, Job, work
from _reversible_networks import BATCH, CHANNELS, IMPLEMENTATIONS, SIZE, missing
from _reversible_report import Results, draw, table

BLOCKS = [8, 16, 32, 64, 128, 256]
TIMEOUT = 3600.0


def run(job: Job) -> dict[str, Any]:
    """A job in a process of its own."""
    threads = {"OMP_NUM_THREADS": str(job.threads), "MKL_NUM_THREADS": str(job.threads)}
    environment = os.environ | threads | (MALLOC if job.kind == "probe" else {})
    command = [sys.executable, "-W", "ignore", __file__, "--worker", json.dumps(job)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {TIMEOUT:.0f} s"}
    if done.returncode < 0:
        return {"error": f"killed by signal {-done.returncode}"}
    if done.returncode or not done.stdout.strip():
        return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Progress:
    """A line for each measurement, on stderr."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0

    def run(self, job: Job, step: str) -> dict[str, Any]:
        """Run a job and tell how it went."""
        found = run(job)
        self.done += 1
        values = {key: statistics.median(value) if isinstance(value, list) else value for key, value in found.items()}
        what = found.get("error") or ", ".join(f"{key} {value:.4g}" for key, value in values.items())
        threads = f"{job.threads} thread{'s' * (job.threads > 1)}"
        note(f"[{self.done}/{self.total}] {step}, {job.blocks} blocks, {threads}, {job.implementation}: {what}")
        return found


def shuffled(items: list[Any], shuffler: random.Random) -> list[Any]:
    return shuffler.sample(items, len(items))


def measure(options: argparse.Namespace, names: list[str]) -> Iterator[Results]:
    """All measurements; yields the results so far before the first round and after each."""
    settings = [(threads, blocks) for threads in options.threads for blocks in options.blocks]
    total = len(options.blocks) + len(settings) * len(names) * (1 + options.rounds)
    progress, results, shuffler = Progress(total), Results(setting(options)), random.Random(0)
    for row in json.loads(options.probed.read_text(encoding="utf-8")) if options.probed else []:
        results.reuse(row)
    for blocks in [] if options.probed else options.blocks:
        with tempfile.TemporaryDirectory() as folder:
            probe(options, names, blocks, folder, progress, results)
    yield results
    for i in range(options.rounds):
        for threads, blocks in shuffled(settings, shuffler):
            for name in shuffled([name for name in names if results.is_sound(name, blocks, threads)], shuffler):
                job = Job("time", name, blocks, threads, options.device, repeats=options.steps or max(3, 256 // blocks))
                results.timed(i, name, blocks, threads, progress.run(job, f"round {i + 1} of {options.rounds}"))
        yield results


def probe(
    options: argparse.Namespace, names: list[str], blocks: int, folder: str, progress: Progress, results: Results
) -> None:
    """Everything but time, at one depth."""
    common = (blocks, options.threads[0], options.device, folder, options.inputs)
    found = progress.run(Job("reference", "plain", *common), "float64")
    if "error" in found:
        raise SystemExit(f"the reference could not be computed: {found['error']}")
    for threads in options.threads:
        jobs = [Job("probe", name, blocks, threads, *common[2:]) for name in names]
        # Nothing here is timed, so that every core may work; a GPU's memory is one.
        at_once = 1 if options.device == "cuda" else max(1, (os.cpu_count() or 1) // threads)
        with ThreadPoolExecutor(at_once) as pool:
            for job, found in zip(jobs, pool.map(lambda job: progress.run(job, "memory"), jobs), strict=True):
                results.probed(job.implementation, blocks, threads, found)


def setting(options: argparse.Namespace) -> dict[str, Any]:
    where = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    return {"channels": CHANNELS, "size": SIZE, "batch": BATCH, "device": where, "torch": torch.__version__}


def deepest(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The deepest network whose training step fits the GPU: by doubling, then bisection to 1 part in 50."""
    rows = []
    for name in ("plain", "invertible-reconstruct"):
        if missing(name) is None:
            low, found = search(name, options.deepest_limit)
            metrics = {key: value for key, value in found.items() if key not in ("fits", "gpu")}
            metrics |= {"deepest_blocks": low, "stopped_at_limit": low >= options.deepest_limit}
            rows.append({"implementation": name, "setting": setting(options) | {"deepest": True}, "metrics": metrics})
            more = " or more (--deepest-limit)" if metrics["stopped_at_limit"] else ""
            print(f"{name}: the deepest that fits {found.get('gpu', 'the GPU')} has {low} blocks{more}")
    return rows


def search(name: str, limit: int) -> tuple[int, dict[str, Any]]:
    low, high, best = 0, 0, {}
    while low < limit and (not high or high - low > high // 50):
        blocks = (low + high) // 2 if high else min(limit, 2 * low or 512)
        found = run(Job("fits", name, blocks, 1, "cuda"))
        note(f"{name}, {blocks} blocks: {found}")
        if "error" in found:
            raise SystemExit(f"{name} failed at {blocks} blocks: {found['error']}")
        low, high, best = (blocks, high, found) if found["fits"] else (low, blocks, best)
    return low, best


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 and 32 blocks, one round (under two minutes)")
    parser.add_argument("--json", type=Path, help="write the rows to this file, after every round")
    parser.add_argument("--probed", type=Path, help="take everything but the times from this earlier --json file")
    parser.add_argument("--picture", type=Path, help="draw memory and time against depth into this file")
    parser.add_argument("--blocks", type=int, nargs="+", help=f"depths, default {BLOCKS}")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="numbers of threads, default 1")
    parser.add_argument("--rounds", type=int, help="how often everything is timed, default 5; 0: no times")
    parser.add_argument("--steps", type=int, help="timed steps in one process, default 2 to 8, fewer for deep networks")
    parser.add_argument("--inputs", type=int, help="how many inputs gradient errors are a median over, default 3")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--only", nargs="+", choices=list(IMPLEMENTATIONS), metavar="NAME", help="these, and plain")
    parser.add_argument("--deepest", action="store_true", help="the deepest network that fits a GPU, and nothing else")
    parser.add_argument("--deepest-limit", type=int, default=65536, help="where to stop, in blocks")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.blocks = options.blocks or ([8, 32] if options.quick else BLOCKS)
    options.rounds = (1 if options.quick else 5) if options.rounds is None else options.rounds
    options.inputs = options.inputs or (1 if options.quick else 3)
    options.steps = options.steps or (2 if options.quick else None)
    if "cuda" in (options.device, "cuda" if options.deepest else "") and not torch.cuda.is_available():
        parser.error("there is no CUDA GPU here")
    return options


def available(only: list[str] | None) -> list[str]:
    """Which implementations to measure; says what is left out and why."""
    wanted = [name for name in IMPLEMENTATIONS if not only or name in only or name == "plain"]
    reasons = {name: missing(name) for name in wanted}
    for name, reason in reasons.items():
        if reason:
            note(f"skipping {name}: {reason}")
    return [name for name in wanted if reasons[name] is None]


def write(rows: list[dict[str, Any]], file: Path | None) -> None:
    if file:
        partial = file.with_name(file.name + ".partial")
        partial.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        partial.replace(file)


def main() -> None:
    """Run and print."""
    options = parse()
    if options.worker:
        print(json.dumps(work(Job(*options.worker))))
        return
    rows = []
    if options.deepest:
        options.device = "cuda"
        rows = deepest(options)
        write(rows, options.json)
        return
    for results in measure(options, available(options.only)):
        rows = results.rows()
        write(rows, options.json)
    print(table(rows))
    if options.picture:
        draw(rows, options.picture)


if __name__ == "__main__":
    main()

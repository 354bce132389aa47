"""Which library's spline flow reaches the best likelihood, with as many parameters and as much time as ours?

The eight toys of the plane and the 8x8 digits (64 numbers, dequantised). Ours is `models.spline_flow` as it
comes, which `Flow.fit` trains; the peers are their best flow for tables, a neural spline flow, as their examples build
it, made as large as ours to 2 %. Everyone is trained by the same loop on one thread, in turns, until each has used the
same processor time (what the machine does besides matters to none); the best weights on points held out are tested.
Means over seeds of data, weights and batches, with the 95 % interval of the mean by Student's t.

    python benchmarks/flow_likelihood.py [--quick] [--json FILE] [--seconds N] [--seeds N] [--tasks moons digits ...]

The peers: pip install -e '.[bench]'.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from _flows_splines import BUILDERS, built
from _flows_subjects import missing
from _flows_train import Run, compare, prepare

TOYS = ["swissroll", "circles", "rings", "moons", "8gaussians", "pinwheel", "2spirals", "checkerboard"]


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def trained(task: str, seed: int, seconds: float, names: list[str]) -> dict[str, dict[str, float]]:
    """Metrics of each implementation, for one seed."""
    data, runs = prepare(task, seed), {}
    for name in names:
        runs[name] = Run(built(name, data.test.shape[1], seed), data, seconds, seed)
    found = compare(runs)
    note(
        f"{task}, seed {seed}: "
        + ", ".join(f"{k} {v['test_nats']:.3f} ({v['steps']:.0f} steps)" for k, v in found.items())
    )
    return found


def half_interval(values: list[float]) -> float:
    """Half of the mean's 95 % interval; infinite for one value."""
    from scipy.stats import t

    if len(values) < 2:
        return float("inf")
    return float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5


def rows(task: str, seconds: float, found: list[dict[str, dict[str, float]]]) -> list[dict[str, Any]]:
    """One row per implementation; `gap` is to ours, seed by seed: positive where ours is better."""
    made = []
    for name in found[0]:
        nats = [one[name]["test_nats"] for one in found]
        gaps = [one["invertible"]["test_nats"] - one[name]["test_nats"] for one in found]
        metrics = {
            "test_nats": statistics.mean(nats), "test_nats_interval": half_interval(nats), "gap": statistics.mean(gaps),
            "gap_interval": half_interval(gaps), "steps": statistics.mean(one[name]["steps"] for one in found),
            "parameters": found[0][name]["parameters"],
        }  # fmt: skip
        metrics = {key: value for key, value in metrics.items() if abs(value) < float("inf")}  # JSON has no infinity
        setting = {"task": task, "seconds": seconds, "seeds": len(found), "threads": 1, "torch": torch.__version__}
        made.append({"implementation": name, "setting": setting, "metrics": metrics})
    return made


def line(task: str, made: list[dict[str, Any]]) -> str:
    cells = []
    for one in made:
        metrics = one["metrics"]
        cells.append(f"{metrics['test_nats']:>12.3f} +- {metrics.get('test_nats_interval', float('nan')):<7.3f}")
    return f"{task:14}" + "".join(cells)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="three tasks, one seed, 3 seconds each (under two minutes)"
    )
    parser.add_argument("--json", type=Path, help="write the rows to this file, after every task")
    parser.add_argument("--tasks", nargs="+", choices=[*TOYS, "digits"], metavar="TASK")
    parser.add_argument("--seconds", type=float, help="processor time of each training, default 20")
    parser.add_argument("--seeds", type=int, help="default 3")
    parser.add_argument("--only", nargs="+", choices=list(BUILDERS), metavar="NAME", help="these, and ours")
    options = parser.parse_args(arguments)
    options.tasks = options.tasks or (["moons", "checkerboard", "digits"] if options.quick else [*TOYS, "digits"])
    options.seconds = options.seconds or (3.0 if options.quick else 20.0)
    options.seeds = options.seeds or (1 if options.quick else 3)
    return options


def main() -> None:
    """Run and print."""
    options = parse()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # nflows and normflows call what PyTorch deprecates
    wanted = [name for name in BUILDERS if not options.only or name in options.only or name == "invertible"]
    names = [name for name in wanted if not missing(name)]
    print("mean test log-likelihood, nats (higher is better)\n" + " " * 14 + "".join(f"{name:>23}" for name in names))
    written: list[dict[str, Any]] = []
    for task in options.tasks:
        made = rows(
            task, options.seconds, [trained(task, seed, options.seconds, names) for seed in range(options.seeds)]
        )
        print(line(task, made), flush=True)
        written += made
        if options.json:
            options.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

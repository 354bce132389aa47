"""Residual flows of four origins with the same sizes, data and number of steps: how good, how exact, how fast?

The 8x8 digits as 64 numbers (dequantised, from -2 to 2), eight blocks 64-128-128-64 with an ActNorm before each and
after the last, c = 0.97 a layer, batches of 256, 200 steps of Adam, one thread:

    normflows             `Residual` with `LipschitzMLP`, updated after each step
    residual-flow-style   Residual Flow's mechanism, written from the paper (there is no package of it)
    freia                 `IResNetLayer` (ELU), corrected after each step
    invertible            `models.residual_flow_table`, certified, with the models' default estimator in training
    invertible-...        the same with other estimators in training

`test_nats` is the exact mean log-likelihood of the test set (higher is better): the log-determinant is that of the
whole map's dense Jacobian in float64. `logdet_error` is the root mean square over the test set of what the
implementation's own score is off by, `inverse_error` the largest error of a number after a float32 round trip, and
`guaranteed_error` the largest that a block of ours promises for a sample, relative to the sample's size. Times are
medians over paired rounds, of processor time: a training step of batch 256 with all that it takes (optimiser, norms), a
score and samples of 256. `training_s` is the time of all steps.

    python benchmarks/residual_flows.py [--quick] [--seeds N] [--json FILE] [--plot FILE]

The peers: pip install -e '.[bench]'.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch

from _residual_measure import ACTIONS, BATCH, Training, assess, clock, prepare
from _residual_subjects import NAMES, available, build

COLUMNS = ("test_nats", "logdet_error", "inverse_error", "guaranteed_error", *(f"{action}_ms" for action in ACTIONS))
Found = dict[str, dict[str, float]]


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def trained(name: str, seed: int, n_steps: int) -> tuple[Training, dict[str, float]]:
    """An implementation after training, and how accurate it is."""
    data, start = prepare(seed), time.perf_counter()
    torch.manual_seed(seed)
    subject = build(name)
    training = Training(subject, data, seed)
    training.steps(n_steps)
    found = assess(subject, partial(build, name), data.test)
    note(f"seed {seed}, {name}: {found['test_nats']:.2f} nats, {time.perf_counter() - start:.0f} s")
    return training, found | {"training_s": training.seconds}


def measure(names: list[str], seed: int, n_steps: int, rounds: int) -> Found:
    """Metrics of everyone for one seed; without rounds no times."""
    pairs = {name: trained(name, seed, n_steps) for name in names}
    found = {name: metrics for name, (_, metrics) in pairs.items()}
    if rounds:
        trainings = {name: training for name, (training, _) in pairs.items()}
        times = clock(trainings, prepare(seed).test[:BATCH], rounds)
        found = {name: metrics | times[name] for name, metrics in found.items()}
    return found


def rows(by_seed: list[Found], n_steps: int) -> list[dict[str, Any]]:
    """One row per implementation: means over seeds, but the largest of errors and the first seed's times."""
    made = []
    for name, first in by_seed[0].items():
        values = {key: [found[name][key] for found in by_seed if key in found[name]] for key in first}
        metrics = {key: max(v) if key in LARGEST else statistics.mean(v) for key, v in values.items()}
        if len(by_seed) > 1:
            metrics["test_nats_std"] = statistics.stdev(values["test_nats"])
        setting = {"task": "digits-64d", "steps": n_steps, "seeds": len(by_seed), "threads": torch.get_num_threads(),
                   "torch": torch.__version__}  # fmt: skip
        made.append({"implementation": name, "setting": setting, "metrics": metrics})
    return made


LARGEST = ("inverse_error", "guaranteed_error", "lipschitz_bound")


def table(made: list[dict[str, Any]]) -> str:
    """What is printed."""
    lines = [f"{'':24}" + "".join(f"{column:>18}" for column in COLUMNS)]
    for row in made:
        cells = [row["metrics"].get(column) for column in COLUMNS]
        texts = ("-" if c is None else f"{c:.1e}" if abs(c) < 1e-2 else f"{c:.2f}" for c in cells)
        lines.append(f"{row['implementation']:24}" + "".join(f"{text:>18}" for text in texts))
    return "\n".join(lines)


def plot(made: list[dict[str, Any]], file: Path) -> None:
    """Likelihood, errors and times as bars."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    panels = {"test_nats": "test log-likelihood, nats", "logdet_error": "error of the score, nats",
              "inverse_error": "error of the inverse", "step_ms": "training step, ms", "score_ms": "score, ms",
              "sample_ms": "sample, ms"}  # fmt: skip
    figure, axes = plt.subplots(2, 3, figsize=(11, 6), layout="constrained", sharey=True)
    names = [row["implementation"] for row in made]
    for axis, (key, label) in zip(axes.flat, panels.items(), strict=True):
        colours = ["tab:blue" if name.startswith("invertible") else "tab:gray" for name in names]
        axis.barh(names, [row["metrics"].get(key, 0.0) for row in made], color=colours)
        axis.set(xlabel=label, xscale="log" if key.endswith("_error") else "linear")
    axes[0, 0].invert_yaxis()
    figure.savefig(file, dpi=150)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, few rounds, ours once (under two minutes)")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--plot", type=Path, help="draw the table")
    parser.add_argument("--seeds", type=int, help="of weights, batches and noise; default 3")
    parser.add_argument("--steps", type=int, default=200, help="of training")
    parser.add_argument("--rounds", type=int, help="of timing, default 30; 0: no times")
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="NAME")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    options.only = options.only or [name for name in NAMES if not options.quick or "invertible-" not in name]
    options.seeds = options.seeds or (1 if options.quick else 3)
    options.rounds = (5 if options.quick else 30) if options.rounds is None else options.rounds
    return options


def main() -> None:
    """Run and print."""
    options = parse()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")  # peers call what PyTorch deprecates
    names = list(available(options.only))
    by_seed = [measure(names, seed, options.steps, 0 if seed else options.rounds) for seed in range(options.seeds)]
    made = rows(by_seed, options.steps)
    print(table(made), flush=True)
    if options.json:
        options.json.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        plot(made, options.plot)


if __name__ == "__main__":
    main()

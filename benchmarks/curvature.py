"""Curvature of a loss: how fast, and how near to the dense matrix, against curvlinops and PyHessian.

The k largest eigenvalues of Hessian and Gauss-Newton matrix, both ends, spectral density, trace; in turns, as ratios of
one run. `error` is the largest error over the largest eigenvalue; for densities the area between cumulative
distributions, over the largest eigenvalue; for traces the root mean square over seeds, over the trace.

    python benchmarks/curvature.py [--quick] [--json FILE] [--only largest ends density trace] [--threads N]
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from _curvature_peers import both_ends, densities, error_of, largest, traces
from _curvature_subjects import Subject, subject

K = 5
PROBES, STEPS, PRODUCTS = 4, 64, 96


def measure_largest(one: Subject, n_repeats: int) -> Iterator[dict[str, Any]]:
    """The k largest eigenvalues, of both matrices."""
    for kind, exact in one.exact.items():
        wanted = exact.flip(0)[:K].tolist()
        yield from _paired(f"largest {K}, {kind}", one, largest(one, kind, K), lambda v: error_of(v, wanted), n_repeats)  # noqa: B023


def measure_ends(one: Subject, n_repeats: int) -> Iterator[dict[str, Any]]:
    """The k largest and the k smallest."""
    exact = one.exact["hessian"]
    wanted = [*exact.flip(0)[:K].tolist(), *exact[:K].tolist()]
    yield from _paired(f"both ends, {K} each", one, both_ends(one, K), lambda v: error_of(v, wanted), n_repeats)


def measure_density(one: Subject, n_repeats: int) -> Iterator[dict[str, Any]]:
    """The density, from equally many Lanczos steps."""
    values = one.exact["hessian"].numpy()

    def error(found: tuple[np.ndarray, np.ndarray]) -> float:
        # The cumulative distribution: it compares densities that were smoothed by different widths.
        at, density = found
        mass = np.cumsum(density) * (at[1] - at[0])
        exact = np.searchsorted(values, at) / len(values)
        return float(np.sum(np.abs(mass - exact)) * (at[1] - at[0]) / max(abs(values[0]), abs(values[-1])))

    name = f"density, {PROBES} x {STEPS} steps"
    yield from _paired(name, one, densities(one, PROBES, STEPS), error, n_repeats)


def measure_trace(one: Subject, n_repeats: int) -> Iterator[dict[str, Any]]:
    """The trace, from about equally many products."""
    exact = one.exact["hessian"].sum().item()
    found: dict[str, dict[str, float]] = {}
    for name, act in traces(one, PRODUCTS).items():
        seconds, errors = [], []
        for seed in range(max(2 * n_repeats, 6)):
            start = time.perf_counter()
            errors.append(act(seed) / exact - 1)
            seconds.append(time.perf_counter() - start)
        found[name] = {"seconds": median(seconds), "error": float(np.sqrt(np.mean(np.square(errors))))}
    ours = found["invertible"]
    for name, metrics in found.items():
        metrics["time_over_ours"] = metrics["seconds"] / ours["seconds"]
        yield {"implementation": name, "setting": _setting(f"trace, {PRODUCTS} products", one), "metrics": metrics}


def _paired(
    question: str, one: Subject, actions: dict[str, Callable[[], Any]], error: Callable[[Any], float], n: int
) -> Iterator[dict[str, Any]]:
    results = {name: act() for name, act in actions.items()}  # warms up
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(n):
        for name, act in actions.items():
            start = time.perf_counter()
            results[name] = act()
            seconds[name].append(time.perf_counter() - start)
    for name, times in seconds.items():
        ratio = median(a / b for a, b in zip(times, seconds["invertible"], strict=True))
        metrics = {"seconds": median(times), "error": error(results[name]), "time_over_ours": ratio}
        yield {"implementation": name, "setting": _setting(question, one), "metrics": metrics}


def _setting(question: str, one: Subject) -> dict[str, Any]:
    n_examples = len(one.data[0])
    return {"question": question, "parameters": one.n, "examples": n_examples, "threads": torch.get_num_threads()}


QUESTIONS: dict[str, Callable[[Subject, int], Iterator[dict[str, Any]]]] = {
    "largest": measure_largest,
    "ends": measure_ends,
    "density": measure_density,
    "trace": measure_trace,
}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1,640 parameters: under two minutes on 2 cores")
    parser.add_argument("--json", type=Path, help="write the records to this file")
    parser.add_argument("--only", nargs="+", choices=QUESTIONS, default=list(QUESTIONS), help="which questions")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument("--repeats", type=int, default=0, help="pairs (default: 5, quick: 3)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    one = subject(options.quick)
    records: list[dict[str, Any]] = []
    for question in options.only:
        for record in QUESTIONS[question](one, options.repeats or (3 if options.quick else 5)):
            records.append(record)
            figures = ", ".join(f"{name} {value:.4g}" for name, value in record["metrics"].items())
            where = ", ".join(f"{name} {value}" for name, value in record["setting"].items())
            print(f"{record['implementation']} ({where}): {figures}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Training many small networks: ours at once against a loop over nn.Sequential, one by one.

    python benchmarks/loss_spread.py [--quick] [--json FILE]

Both train the same networks (equal initial weights and minibatches) by SGD with momentum on random images of 10x10
pixels; the largest difference of their final outputs is reported. "ratio" is the time of the loop over ours.
Run it with nothing else running.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from invertible.instruments._loss_spread_measure import UNITS_AT_ONCE
from invertible.instruments._many_mlps import ORDER, ManyMlps
from invertible.instruments._many_mlps_train import Training, train

WIDTHS = (25, 50, 100, 250, 500)
N_IN, N_CLASSES = 100, 10


def one_by_one(nets: ManyMlps, x: Tensor, y: Tensor, training: Training) -> list[nn.Sequential]:
    """What one would write by hand: torch's modules, autograd and optimiser, a network at a time."""
    models = [nets.network(i) for i in range(nets.n)]
    for i, model in enumerate(models):
        optimizer = torch.optim.SGD(model.parameters(), training.lr, momentum=training.momentum)
        random = nets.generator(i, ORDER)
        for _ in range(training.n_epochs):
            for rows in torch.from_numpy(random.permutation(len(x))).split(training.batch_size or len(x)):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()
    return models


def measure(width: int, n_examples: int, n_repeats: int) -> dict[str, object]:
    """Time both on as many networks as ours takes at once."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n_examples, N_IN, generator=generator)
    y = torch.randint(N_CLASSES, (n_examples,), generator=generator)
    n, training = max(1, UNITS_AT_ONCE // width), Training(1, 0.05)
    seconds: dict[str, list[float]] = {"loop": [], "invertible": []}
    difference = 0.0
    for repeat in range(n_repeats + 1):
        nets = ManyMlps((N_IN, width, N_CLASSES), n, activation="relu", seed=repeat)
        start = time.perf_counter()
        models = one_by_one(nets, x, y, training)
        middle = time.perf_counter()
        train(nets, x, y, training)
        end = time.perf_counter()
        if repeat:  # the first is a rehearsal
            seconds["loop"].append(middle - start)
            seconds["invertible"].append(end - middle)
        with torch.no_grad():
            difference = max(
                difference, *((nets(x)[i] - model(x)).abs().max().item() for i, model in enumerate(models))
            )
    pairs = zip(seconds["loop"], seconds["invertible"], strict=True)
    ratio, own = median(loop / ours for loop, ours in pairs), median(seconds["invertible"])
    examples = n * n_examples / own
    metrics = {"ratio": ratio, "seconds": own, "examples_per_second": examples, "largest_difference": difference}
    return {"implementation": "invertible", "setting": {"width": width, "networks": n}, "metrics": metrics}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="seconds instead of a minute")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    size = (500, 1) if arguments.quick else (5000, 5)
    rows = [measure(width, *size) for width in WIDTHS]
    for row in rows:
        setting, metrics = row["setting"], row["metrics"]
        print(f"{setting}: {metrics}")
    # 1,000 networks per width, 5,000 images, 20 epochs: the size of the recipe loss_spread/fashion-mnist.
    total = sum(1000 * 5000 * 20 / row["metrics"]["examples_per_second"] for row in rows)  # pyright: ignore[reportIndexIssue,reportArgumentType,reportCallIssue]
    print(f"loss_spread/fashion-mnist would take {total / 60:.1f} minutes on one core")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

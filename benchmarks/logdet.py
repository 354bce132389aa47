"""How good is an estimate of log|det(I + dg/dx)| for its price? Bias and standard deviation against exact values.

Two residual branches with Lipschitz constant 0.9, trained a little: mlp-64 (digits) and conv-768 (crops of a photo,
12 x 8 x 8). Everyone gets the same number of products with the Jacobian for each sample:

- power-series: i-ResNet's, one Gaussian probe, as many terms as products;
- roulette-gaussian, roulette-rademacher: Residual Flow's, geometric with p = 0.5, as many probes as the mean cost
  allows, at least 2 exact terms; "gaussian" is the published one;
- invertible-krylov: `Krylov.within(products)`.

`bias`, `std` and `rmse` are nats, over many draws and then root mean square over the samples; `bias` is known to
std / sqrt(draws) only, which `bias_error` tells. `reported` is the root mean square of the standard errors that the
estimates claim. `gradient_bias` and `gradient_std` are relative errors of the parameters' gradient (Neumann) on the
MLP; `ms` is the time of an estimate for the batch, without gradients.

    python benchmarks/logdet.py [--quick] [--json FILE] [--plot FILE] [--threads N]

`--plot` draws figure 4 of the i-ResNet paper: estimates against the number of terms, with the exact value.
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

from _logdet_nets import LIPSCHITZ, Subject, bits_per_dim, subject
from invertible.logdet import ExactLogDet, Krylov, LogDetEstimator, PowerSeries, RussianRoulette

BUDGETS = (5, 10, 20, 40)
COLUMNS = ("bias", "bias_error", "std", "rmse", "reported", "products", "gradient_bias", "gradient_std", "ms")


def estimators(products: int) -> dict[str, LogDetEstimator]:
    """Everyone, by name, for a budget."""
    n_probes = max(1, products // 4)
    n_exact = products // n_probes - 2  # 2 more is the mean of the random ones
    return {
        "power-series": PowerSeries(n_terms=products),
        "roulette-gaussian": RussianRoulette(n_exact=n_exact, n_probes=n_probes),
        "roulette-rademacher": RussianRoulette(n_exact=n_exact, n_probes=n_probes, probe="rademacher"),
        "invertible-krylov": Krylov.within(products),
    }


def draws(estimator: LogDetEstimator, on: Subject, n_draws: int, seed: int = 0) -> tuple[Tensor, dict[str, float]]:
    """Errors of independent estimates, shape (draws, batch), and what they cost and claim."""
    generator, errors, claims, products = torch.Generator().manual_seed(seed), [], [], 0
    start = time.perf_counter()
    with torch.no_grad():
        for _ in range(n_draws):
            found = estimator(on.net, on.x, LIPSCHITZ, generator)[1]
            errors.append(found.value - on.exact)
            claims.append(found.standard_error)
            products += found.products
    seconds = time.perf_counter() - start
    reported = torch.stack(claims).square().mean().sqrt().item()
    return torch.stack(errors), {
        "products": products / n_draws,
        "reported": reported,
        "ms": 1e3 * seconds / n_draws,
    }


def accuracy(errors: Tensor) -> dict[str, float]:
    """Of shape (draws, batch)."""
    std = errors.std(dim=0)
    return {
        "bias": errors.mean(dim=0).square().mean().sqrt().item(),
        "bias_error": (std.square().mean() / len(errors)).sqrt().item(),
        "std": std.square().mean().sqrt().item(),
        "rmse": errors.square().mean().sqrt().item(),
    }


def gradient(estimator: LogDetEstimator, on: Subject) -> Tensor:
    """Of the mean log-determinant, in the weights, flat."""
    value = estimator(on.net, on.x)[1].value.mean()
    gradients = torch.autograd.grad(value, list(on.net.parameters()), materialize_grads=True)
    return torch.cat([part.flatten() for part in gradients])


def gradient_accuracy(estimator: LogDetEstimator, on: Subject, n_draws: int) -> dict[str, float]:
    """Relative bias and standard deviation; the bias without what the standard deviation makes of few draws."""
    exact = gradient(ExactLogDet(), on)
    found = torch.stack([gradient(estimator, on) for _ in range(n_draws)])
    variance = found.var(dim=0).sum()
    bias = (found.mean(dim=0) - exact).square().sum() - variance / n_draws
    return {
        "gradient_bias": (bias.clamp_min(0).sqrt() / exact.norm()).item(),
        "gradient_std": (variance.sqrt() / exact.norm()).item(),
    }


def measure(net: str, on: Subject, products: int, n_draws: int) -> list[dict[str, Any]]:
    """All estimators on one net at one budget."""
    rows = []
    for name, estimator in estimators(products).items():
        torch.manual_seed(0)
        errors, metrics = draws(estimator, on, n_draws)
        metrics |= accuracy(errors)
        if net == "mlp-64":
            metrics |= gradient_accuracy(estimator, on, n_draws // 2)
        metrics = {key: value for key, value in metrics.items() if not math.isnan(value)}
        rows.append({"implementation": name, "setting": {"net": net, "products": products}, "metrics": metrics})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """What is printed."""
    lines = [f"\n{rows[0]['setting']}", f"{'':20}" + "".join(f"{column:>15}" for column in COLUMNS)]
    for row in rows:
        cells = [row["metrics"].get(column) for column in COLUMNS]
        lines.append(f"{row['implementation']:20}" + "".join(f"{'-' if c is None else f'{c:.4f}':>15}" for c in cells))
    return "\n".join(lines)


def plot(on: Subject, file: Path, n_draws: int) -> None:
    """Figure 4 of Behrmann et al. 2019: one sample's estimates, bits per dimension, against the number of terms."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    one = Subject(on.net, on.x[:1], on.exact[:1])
    terms = list(range(1, 11))
    kinds = {
        "power series, 1 Gaussian probe": lambda n: PowerSeries(n),
        "power series, 11 Gaussian probes": lambda n: PowerSeries(n, n_probes=11),
        "Krylov, 11 probes": lambda n: Krylov(n, n_probes=11),
    }
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for place, (label, make) in enumerate(kinds.items()):
        found = [bits_per_dim(draws(make(n), one, n_draws)[0][:, 0] + one.exact, one.x) for n in terms]
        mean, std = [f.mean().item() for f in found], [f.std().item() for f in found]
        axes.errorbar([n + 0.12 * (place - 1) for n in terms], mean, std, fmt="o-", ms=3, lw=1, capsize=2, label=label)
    axes.axhline(bits_per_dim(one.exact, one.x).item(), color="black", lw=1, ls="--", label="exact")
    axes.set(xlabel="terms of the series, steps of Arnoldi", ylabel="log-determinant, bits per dimension")
    axes.legend()
    figure.savefig(file, dpi=150)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer draws, 10 and 20 products only (under two minutes)")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--plot", type=Path, help="draw the estimates against the number of terms")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    subjects = {"mlp-64": subject("mlp-64", 300), "conv-768": subject("conv-768", 60)}
    n_draws = {"mlp-64": 200, "conv-768": 80} if options.quick else {"mlp-64": 2000, "conv-768": 500}
    rows: list[dict[str, Any]] = []
    for net, on in subjects.items():
        print(f"{net}: exact {on.exact.mean():.2f} nats, {on.exact.min():.2f} to {on.exact.max():.2f}")
        for products in BUDGETS[1:3] if options.quick else BUDGETS:
            new = measure(net, on, products, n_draws[net])
            print(table(new), flush=True)
            rows += new
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    if options.plot:
        plot(subjects["conv-768"], options.plot, 30 if options.quick else 200)


if __name__ == "__main__":
    main()

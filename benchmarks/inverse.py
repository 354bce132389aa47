"""The inverse of x + g(x): evaluations and time until the true relative error is 1e-6, against papers and peers.

Blocks of 12x8x8 numbers, batch 64, float32, three kinds of g:

    trained      convolutions 3x3, 1x1, 3x3 of 64 channels with ELU, each of norm c at most (`constrain`), trained a
                 little for the likelihood of smooth random images
    symmetric+   a random symmetric matrix of norm c: the plain iteration's worst case
    symmetric-   minus it

Everyone gets the cheapest setting of its own with which no sample's relative error exceeds 1e-6, found by trying: the
number of steps for the papers' plain iteration and FrEIA, the tolerance for normflows (which took the code of
residual-flows) and ours. Where float32 does not reach 1e-6, or a bound cannot promise what is already there, the most
accurate setting is taken, and the error is in the table. `evaluations_per_block` counts evaluated samples over the
batch, `calls_per_block` calls of g. Only ours knows `guaranteed_error`.

    python benchmarks/inverse.py --json inverse.json
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import importlib
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from invertible import FixedPointSolver, solve_residual
from invertible.errors import ConvergenceError
from invertible.layers import constrain

SHAPE, WIDTH, GOAL, MOST = (12, 8, 8), 64, 1e-6, 1500
COLUMNS = ("evaluations_per_block", "calls_per_block", "ms", "ratio", "true_error", "guaranteed_error")
TOLERANCES = [10 ** (-k / 4) for k in range(2, 37)]
Map = Callable[[Tensor], Tensor]


class Block(NamedTuple):
    """A residual map to undo."""

    g: nn.Module
    lipschitz: float
    y: Tensor
    x: Tensor  # the solution for this y, float64


class Result(NamedTuple):
    """What an inverse gave."""

    x: Tensor
    guaranteed: float | None = None


Setting = float | int | None
Inverse = Callable[[Block, Setting], Result]


def plain(block: Block, n_steps: Setting) -> Result:
    """Algorithm 1 of i-ResNet."""
    x = block.y
    for _ in range(int(cast(int, n_steps))):
        x = block.y - block.g(x)
    return Result(x)


def ours(method: str | None) -> Inverse:
    """Ours, with a certificate."""

    def run(block: Block, tolerance: Setting) -> Result:
        solver = FixedPointSolver(tolerance=tolerance, max_evaluations=MOST)
        solver = solver if method is None else dataclasses.replace(solver, method=cast(Any, method))
        x, report = solve_residual(block.g, block.y, block.lipschitz, solver)
        return Result(x, float(cast(Tensor, report.relative_error).max()))

    return run


def normflows(block: Block, tolerance: Setting) -> Result:
    """That of normflows, which is residual-flows'."""
    residual = importlib.import_module("normflows.flows.residual").iResBlock(block.g)
    tolerance = float(cast(float, tolerance))
    return Result(residual._inverse_fixed_point(block.y, atol=tolerance, rtol=tolerance))


def freia(block: Block, n_steps: Setting) -> Result:
    """That of FrEIA, with our network in its place."""
    layer = importlib.import_module("FrEIA.modules").IResNetLayer([SHAPE], fixed_point_iterations=int(n_steps or 1) - 1)
    layer.residual = block.g
    return Result(layer([block.y], rev=True, jac=False)[0][0])


def subjects() -> dict[str, tuple[Inverse, list[Any]]]:
    """By name: how to invert, and the settings to try, from the cheapest on."""
    steps = [*range(1, 60), *range(60, 200, 4), *range(200, MOST, 25)]
    found: dict[str, tuple[Inverse, list[Any]]] = {"plain": (plain, steps), "invertible": (ours(None), [*TOLERANCES])}
    for method in ("plain", "anderson", "broyden"):
        found[f"invertible-{method}"] = (ours(method), [*TOLERANCES])
    peers = {"normflows": (normflows, [t**2 for t in TOLERANCES]), "freia": (freia, steps)}  # its dx^2 < tolerance
    for name, package in {"normflows": "normflows", "freia": "FrEIA"}.items():
        try:
            importlib.import_module(package)
            found[name] = peers[name]
        except ImportError:
            print(f"{package} is not there: left out")
    return found


def images(n: int) -> Tensor:
    """Smooth random images, 3x16x16, with 2x2 pixels stacked as channels."""
    noise = torch.randn(n, 3, 16, 16)
    smooth = nn.functional.avg_pool2d(nn.functional.pad(noise, (2, 2, 2, 2), mode="circular"), 5, stride=1)
    return nn.functional.pixel_unshuffle(torch.tanh(6 * smooth) + 0.1 * torch.randn_like(noise), 2)


def network(c: float) -> nn.Module:
    """One g."""
    channels = SHAPE[0]
    layers = [nn.Conv2d(channels, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, WIDTH, 1)]
    last = nn.Conv2d(WIDTH, channels, 3, padding=1)
    return constrain(nn.Sequential(layers[0], nn.ELU(), layers[1], nn.ELU(), last), c)


def logdet(g: Map, x: Tensor, n_terms: int = 4) -> tuple[Tensor, Tensor]:
    """The image x + g(x), and the power series' estimate of the log-determinant."""
    x = x.detach().requires_grad_() if not x.requires_grad else x
    out, total = g(x), x.new_zeros(len(x))
    u = v = torch.randint_like(x, 0, 2) * 2 - 1
    for k in range(1, n_terms + 1):
        (v,) = torch.autograd.grad(out, x, v, create_graph=True)
        total = total + (-1) ** (k + 1) / k * (v * u).flatten(1).sum(dim=1)
    return x + out, total


def trained(c: float, n_blocks: int, n_steps: int) -> list[nn.Module]:
    """A flow after a little training, its weights as plain tensors."""
    torch.manual_seed(0)
    blocks = [network(c) for _ in range(n_blocks)]
    optimizer = torch.optim.Adam([p for g in blocks for p in g.parameters()], 3e-3)
    for _ in range(n_steps):
        x, total = images(32), 0.0
        for g in blocks:
            x, change = logdet(g, x)
            total = total + change
        optimizer.zero_grad()
        (x.square().flatten(1).sum(dim=1) / 2 - total).mean().backward()
        optimizer.step()
    for layer in [layer for g in blocks for layer in cast(nn.Sequential, g) if isinstance(layer, nn.Conv2d)]:
        parametrize.remove_parametrizations(layer, "weight")
    return blocks


class Symmetric(nn.Module):
    """A symmetric matrix as g."""

    def __init__(self, c: float, sign: float, seed: int) -> None:
        super().__init__()
        a = torch.randn(math.prod(SHAPE), math.prod(SHAPE), generator=torch.Generator().manual_seed(seed)).double()
        a = a + a.T
        self.a = nn.Parameter((sign * (1 - 1e-6) * c / torch.linalg.matrix_norm(a, 2) * a).float(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """A x."""
        return (x.flatten(1) @ self.a).view_as(x)


@torch.no_grad()
def problems(case: str, c: float, batch: int, n_blocks: int, n_steps: int) -> list[Block]:
    """Blocks with the images of points, and the points again, exact for the rounded images."""
    if case == "trained":
        with torch.enable_grad():
            maps = trained(c, n_blocks, n_steps)
    else:
        maps = [Symmetric(c, 1.0 if case == "symmetric+" else -1.0, seed) for seed in range(n_blocks)]
    found, x = [], images(batch)
    for g in maps:
        y = x + g(x)
        found.append(Block(g, c**3 if case == "trained" else c, y, solution(g, y)))
        x = y if case == "trained" else x
    return found


def solution(g: nn.Module, y: Tensor) -> Tensor:
    """In float64: the dense system's, or where the plain iteration ends."""
    precise, y = g.double(), y.double()
    if isinstance(g, Symmetric):
        a = torch.eye(len(g.a), dtype=torch.float64) + g.a
        x = torch.linalg.solve(a, y.flatten(1).T).T.view_as(y)
        g.float()
        return x
    x = y
    for _ in range(1000):
        old, x = x, y - precise(x)
        if float((x - old).abs().max()) < 1e-13 * float(x.abs().max()):
            break
    g.float()
    return x


def error(block: Block, x: Tensor) -> float:
    """Largest relative error of a sample."""
    off = (x.double() - block.x).flatten(1).norm(dim=1) / block.x.flatten(1).norm(dim=1)
    return float(off.max().nan_to_num(math.inf))


def cheapest(run: Inverse, block: Block, settings: list[Any]) -> Setting:
    """The first setting that is accurate enough, by bisection; else the most accurate one."""
    is_ours = run not in (plain, normflows, freia)

    def reaches(i: int) -> bool:
        try:
            return error(block, run(block, settings[i]).x) <= GOAL
        except ConvergenceError:
            return True  # below what can be guaranteed: a larger tolerance, or None

    low, high = 0, len(settings) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle + 1, high)
    try:
        run(block, settings[low])
    except ConvergenceError:
        return None
    return settings[low] if reaches(low) or not is_ours else None


def count(run: Inverse, block: Block, setting: Setting) -> dict[str, float]:
    """What a solve evaluates, and how well it does."""
    rows: list[int] = []
    handle = block.g.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    result = run(block, setting)
    handle.remove()
    known = {} if result.guaranteed is None else {"guaranteed_error": result.guaranteed}
    found = {"evaluations_per_block": sum(rows) / len(block.y), "calls_per_block": len(rows)}
    return found | {"true_error": error(block, result.x)} | known


@torch.no_grad()
def measure(case: str, c: float, n_rounds: int, batch: int, n_blocks: int, n_steps: int) -> list[dict[str, Any]]:
    """All subjects on one kind of block."""
    blocks, everyone = problems(case, c, batch, n_blocks, n_steps), subjects()
    settings = {name: [cheapest(run, block, tried) for block in blocks] for name, (run, tried) in everyone.items()}
    runs = {name: run for name, (run, _) in everyone.items()}
    times = alternate(runs, settings, blocks, n_rounds)
    rows = []
    for name, run in runs.items():
        single = [count(run, block, setting) for block, setting in zip(blocks, settings[name], strict=True)]
        metrics = {key: statistics.mean(one[key] for one in single) for key in single[0] if "error" not in key}
        metrics |= {key: max(one[key] for one in single) for key in single[0] if "error" in key}
        ratios = [own / other for own, other in zip(times[name], times["plain"], strict=True)]
        metrics |= {"ms": 1e3 * statistics.median(times[name]) / n_blocks, "ratio": statistics.median(ratios)}
        rows.append({"implementation": name, "setting": {"c": c, "case": case}, "metrics": metrics})
    return rows


def alternate(
    runs: dict[str, Inverse], settings: dict[str, list[Setting]], blocks: list[Block], n_rounds: int
) -> dict[str, list[float]]:
    """Seconds of each round, all blocks together; the first one only warms up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    order, shuffler = list(runs), random.Random(0)
    gc.disable()
    for trial in range(n_rounds + 1):
        shuffler.shuffle(order)
        for name in order:
            start = time.perf_counter()
            for block, setting in zip(blocks, settings[name], strict=True):
                runs[name](block, setting)
            times[name] += [time.perf_counter() - start] * (trial > 0)
    gc.enable()
    return times


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """What is printed."""
    setting = rows[0]["setting"]
    yield f"\n{setting['case']}, c = {setting['c']}"
    yield f"{'':20}" + "".join(f"{column.removesuffix('_per_block'):>18}" for column in COLUMNS)
    for row in rows:
        forms = ["" if column not in row["metrics"] else f"{row['metrics'][column]:.3g}" for column in COLUMNS]
        yield f"{row['implementation']:20}" + "".join(f"{form:>18}" for form in forms)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer blocks, rounds and steps (under two minutes)")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--case", choices=["trained", "symmetric+", "symmetric-"], help="only this one")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    n_rounds, n_blocks, n_steps = (5, 2, 30) if options.quick else (15, 4, 200)
    rows: list[dict[str, Any]] = []
    for case in [options.case] if options.case else ["trained", "symmetric+", "symmetric-"]:
        for c in (0.5, 0.7, 0.9, 0.97):
            is_small = options.quick and case != "trained"
            new = measure(case, c, 2 if is_small else n_rounds, 64, 1 if is_small else n_blocks, n_steps)
            print("\n".join(table(new)), flush=True)
            rows += new
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""What does a continuous flow cost? Ours against zuko's and against torchdiffeq written as in FFJORD's code.

All have the same field with the same weights (FFJORD's concat-squash network, 64-64-64, tanh), trained a little before,
and the same tolerances. Tasks: toy-2d (eight Gaussians, exact divergence), digits-64d (Hutchinson's estimate) and
digits-64d-exact. A score is log p of a batch without gradients, a step the loss and its gradients. Everyone is visited
once in each round, in random order; ratios are to "plain" in the same round, and their medians are reported, in
processor time (which other processes disturb less).

"plain" and "zuko" take the divergence by autograd inside the field. Gradients: "plain" by torchdiffeq's adjoint, zuko
by taking its steps again, "invertible" (replay) too; "invertible-direct" keeps everything for autograd, and
"invertible-adjoint" is our field under torchdiffeq's adjoint. `logdet_error` is the largest difference to a float64
solve with tolerances 1e-10 and exact divergence; with Hutchinson's estimate its root mean square, which is the probes'.

    python benchmarks/cnf.py [--quick] [--json FILE] [--threads N]

The peer: pip install zuko.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import math
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import torchdiffeq
from torch import Tensor, nn

from invertible.layers import ContinuousFlow, MLPField, Solver

Run = Callable[[Tensor], tuple[Tensor, Tensor]]
TASKS = {"toy-2d": (2, True), "digits-64d": (64, False), "digits-64d-exact": (64, True)}
COLUMNS = ("score_ratio", "step_ratio", "logdet_error", "value_error", "n_evaluations", "n_backward")


class Plain(nn.Module):
    """FFJORD's way: (z, log-determinant) through torchdiffeq's adjoint, the divergence by autograd."""

    def __init__(self, field: MLPField, is_exact: bool, tolerance: float) -> None:
        super().__init__()
        self.field, self.is_exact, self.tolerance = field, is_exact, tolerance
        self.probe = torch.empty(0)

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Velocity and divergence."""
        with torch.enable_grad():
            z = state[0].requires_grad_(True)
            f = self.field(float(t.detach()), z)
            if self.is_exact:
                columns = [torch.autograd.grad(f[:, i].sum(), z, create_graph=True)[0][:, i] for i in range(z.shape[1])]
                return f, torch.stack(columns).sum(dim=0)
            (pulled,) = torch.autograd.grad(f, z, self.probe, create_graph=True)
        return f, (pulled * self.probe).sum(dim=1)

    def run(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """From time 0 to 1."""
        self.probe = torch.randint_like(x, 0, 2) * 2 - 1
        start, times = (x, x.new_zeros(len(x))), torch.tensor([0.0, 1.0])
        path = torchdiffeq.odeint_adjoint(self, start, times, rtol=self.tolerance, atol=self.tolerance)
        z, logdet = cast(tuple[Tensor, Tensor], path)
        return z[-1], logdet[-1]


def zuko_run(field: MLPField, is_exact: bool, tolerance: float) -> Run | None:
    """The transform of zuko's CNF, round our field; None if zuko is not there."""
    try:
        from zuko.transforms import FreeFormJacobianTransform  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    own = lambda t, x: field(float(t.detach()), x)  # noqa: E731
    phi = list(field.parameters())
    return FreeFormJacobianTransform(own, 0.0, 1.0, phi, tolerance, tolerance, is_exact).call_and_ladj


def subjects(field: MLPField, is_exact: bool, tolerance: float) -> dict[str, Run]:
    """Everyone, by name."""
    found: dict[str, Run] = {"plain": Plain(field, is_exact, tolerance).run}
    zuko = zuko_run(field, is_exact, tolerance)
    if zuko is not None:
        found["zuko"] = zuko
    for name, gradient in {"": "replay", "-direct": "direct", "-adjoint": "adjoint"}.items():
        solver = Solver(rtol=tolerance, atol=tolerance, gradient=cast(Any, gradient))
        flow = ContinuousFlow(field, solver=solver, trace="exact" if is_exact else "hutchinson")
        found[f"invertible{name}"] = flow.forward_with_logdet
    return found


def loss(run: Run, x: Tensor) -> Tensor:
    """Mean negative log-likelihood, up to a constant."""
    z, logdet = run(x)
    return (z.square().sum(dim=1) / 2 - logdet).mean()


def data(n_dims: int, n: int) -> Tensor:
    """A batch: eight Gaussians on a circle, or dequantised digits in [-2, 2]."""
    if n_dims == 2:
        angle = torch.randint(0, 8, (n,)) * math.pi / 4
        return 2 * torch.stack([angle.cos(), angle.sin()], dim=1) + 0.1 * torch.randn(n, 2)
    from sklearn.datasets import load_digits

    pixels = torch.as_tensor(cast(Any, load_digits()).data, dtype=torch.float32)
    chosen = pixels[torch.randint(0, len(pixels), (n,))]
    return (chosen + torch.rand_like(chosen)) / 17 * 4 - 2


def trained(n_dims: int, n_steps: int, batch: int) -> MLPField:
    """A field that does something."""
    torch.manual_seed(0)
    field = MLPField(n_dims)
    flow = ContinuousFlow(field)
    optimizer = torch.optim.Adam(flow.parameters(), 2e-3)
    for _ in range(n_steps):
        optimizer.zero_grad()
        loss(flow.forward_with_logdet, data(n_dims, batch)).backward()
        optimizer.step()
    return field


def errors(run: Run, x: Tensor, exact: tuple[Tensor, Tensor], is_exact: bool) -> dict[str, float]:
    """Against the tight solve."""
    with torch.no_grad():
        z, logdet = run(x)
    off = (logdet.double() - exact[1]).abs()
    size = off.max() if is_exact else off.square().mean().sqrt()
    return {"logdet_error": size.item(), "value_error": (z.double() - exact[0]).abs().max().item()}


def count(run: Run, field: MLPField, x: Tensor) -> dict[str, float]:
    """Evaluations of the field, forwards and in the backward pass."""
    n = {"calls": 0}
    handle = field.register_forward_pre_hook(lambda *_: n.update(calls=n["calls"] + 1))
    value = loss(run, x)
    forwards = n["calls"]
    value.backward()
    handle.remove()
    report = cast(Any, run).__self__.report if isinstance(getattr(run, "__self__", None), ContinuousFlow) else None
    if report is not None:
        return {"n_evaluations": report.n_evaluations, "n_backward": report.n_backward}
    return {"n_evaluations": forwards, "n_backward": n["calls"] - forwards}


def seconds(run: Run, x: Tensor, has_gradient: bool) -> float:
    """Processor time of a score or a step."""
    start = time.process_time()
    if has_gradient:
        loss(run, x).backward()
    else:
        with torch.no_grad():
            loss(run, x)
    return time.process_time() - start


def measure(task: str, n_rounds: int, n_steps: int, batch: int, tolerance: float = 1e-5) -> list[dict[str, Any]]:
    """All subjects on one task."""
    n_dims, is_exact = TASKS[task]
    field = trained(n_dims, n_steps, batch)
    runs, x = subjects(field, is_exact, tolerance), data(n_dims, batch)
    tight = ContinuousFlow(copy.deepcopy(field), solver=Solver(rtol=1e-10, atol=1e-10), trace="exact").double()
    with torch.no_grad():
        exact = tight.forward_with_logdet(x.double())
    metrics = {name: errors(run, x, exact, is_exact) | count(run, field, x) for name, run in runs.items()}
    times = alternate(runs, x, n_rounds)
    setting = {"task": task, "threads": torch.get_num_threads(), "batch": batch, "tolerance": tolerance}
    rows = []
    for name in runs:
        found: dict[str, float] = {}
        for kind in ("score", "step"):
            ratios = [own / plain for own, plain in zip(times[name, kind], times["plain", kind], strict=True)]
            found[f"{kind}_ratio"] = statistics.median(ratios)
            found[f"{kind}_seconds"] = statistics.median(times[name, kind])
        rows.append({"implementation": name, "setting": setting, "metrics": found | metrics[name]})
    return rows


def alternate(runs: dict[str, Run], x: Tensor, n_rounds: int) -> dict[tuple[str, str], list[float]]:
    """Seconds of each round; the first one only warms up."""
    times: dict[tuple[str, str], list[float]] = {(name, kind): [] for name in runs for kind in ("score", "step")}
    order, shuffler = list(times), random.Random(0)
    gc.disable()
    for trial in range(n_rounds + 1):
        shuffler.shuffle(order)
        for name, kind in order:
            spent = seconds(runs[name], x, kind == "step")
            times[name, kind] += [spent] * (trial > 0)
    gc.enable()
    return times


def table(rows: list[dict[str, Any]]) -> str:
    """What is printed."""
    lines = [f"\n{rows[0]['setting']}", f"{'':20}" + "".join(f"{column:>15}" for column in COLUMNS)]
    for row in rows:
        cells = [row["metrics"][column] for column in COLUMNS]
        forms = [f"{c:.3f}" for c in cells[:2]] + [f"{c:.1e}" for c in cells[2:4]] + [str(c) for c in cells[4:]]
        lines.append(f"{row['implementation']:20}" + "".join(f"{form:>15}" for form in forms))
    return "\n".join(lines)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and less training (under two minutes)")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    for task in TASKS:
        n_rounds = (2 if task == "digits-64d-exact" else 5) if options.quick else 15
        new = measure(task, n_rounds, n_steps=100 if options.quick else 600, batch=256)
        print(table(new), flush=True)
        rows += new
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

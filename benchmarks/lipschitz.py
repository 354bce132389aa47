"""Is the constraint kept, and what does it cost? Ours, the papers' power iteration, and the peers'.

Truth: small stacks of convolutions are trained to stretch, for 500 steps with a large learning rate, from several seeds
on several image sizes; then each layer's operator norm, as it computes, is found by 300 Lanczos steps in float64 on
the training's size and on others. `max_true_over_target` is the largest over layers, seeds and sizes (above 1, a block
may have no inverse); `median_bound_over_true` compares with the bound that the layer reports, peers with their target.

Cost: a training step (forward, backward, SGD) of i-ResNet's blocks at the papers' sizes, batch 64: one block of each
stage of the classifier (ELU, 3x3, 1x1, 3x3), and one of the density model. `step_ratio` is to the same step without
constraint (classifier), the median over rounds in processor time.

    python benchmarks/lipschitz.py [--quick] [--json FILE] [--threads N]

Peer: pip install normflows; PyTorch's spectral_norm times c is measured as well.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from invertible.layers import constrain
from invertible.layers.certificate import lipschitz_bound

Wrap = Callable[[nn.Module, float, tuple[int, ...]], nn.Module]
Block = tuple[int, int, int]
STEPS: dict[str, list[Block]] = {
    "classifier": [(16, 32, 32), (64, 64, 16), (256, 128, 8)],
    "density": [(12, 512, 16)],
}
C = 0.9


class Rescaled(nn.Module):
    """c times what PyTorch's spectral normalisation makes of the flattened kernel."""

    def __init__(self, layer: nn.Module, c: float) -> None:
        super().__init__()
        self.layer, self.c = nn.utils.parametrizations.spectral_norm(layer), c

    def forward(self, x: Tensor) -> Tensor:
        """The layer, scaled."""
        return self.c * self.layer(x)


def _torch_spectral(layer: nn.Module, c: float, size: tuple[int, ...]) -> nn.Module:
    return Rescaled(layer, c)


def _normflows(layer: nn.Module, c: float, size: tuple[int, ...]) -> nn.Module:
    from normflows.nets.lipschitz import InducedNormConv2d  # pyright: ignore[reportMissingImports]

    conv: Any = layer
    made = InducedNormConv2d(conv.in_channels, conv.out_channels, conv.kernel_size[0], 1, conv.padding[0], True,
                             coeff=c, n_iterations=None, atol=1e-3, rtol=1e-3, domain=2, codomain=2)  # fmt: skip
    made.weight.data.copy_(conv.weight)
    return made


WRAPS: dict[str, Wrap] = {
    "plain": lambda layer, c, size: layer,
    "invertible-certified": lambda layer, c, size: constrain(layer, c),
    "invertible-power": lambda layer, c, size: constrain(layer, c, "power"),
    "invertible-power-5": lambda layer, c, size: constrain(layer, c, "power", n_iterations=5),
    "torch-spectral-norm": _torch_spectral,
    "normflows": _normflows,
}


def implementations() -> dict[str, Wrap]:
    """Those that are installed."""
    found = {}
    for name, wrap in WRAPS.items():
        try:
            wrap(nn.Conv2d(2, 2, 3, padding=1), C, (4, 4))
            found[name] = wrap
        except ImportError:
            print(f"{name} is not installed: left out")
    return found


def after_step(net: nn.Module) -> None:
    """What normflows' user must not forget."""
    for module in net.modules():
        if type(module).__module__.startswith("normflows") and callable(getattr(module, "compute_weight", None)):
            with torch.no_grad():
                module.compute_weight(update=True)  # pyright: ignore[reportCallIssue]


def branch(wrap: Wrap, block: Block) -> nn.Sequential:
    """i-ResNet's residual branch: 3x3, 1x1, 3x3 with ELU."""
    channels, hidden, size = block
    sizes = [(channels, hidden, 3), (hidden, hidden, 1), (hidden, channels, 3)]
    layers = [wrap(nn.Conv2d(n, m, k, padding=k // 2), C, (size, size)) for n, m, k in sizes]
    return nn.Sequential(*(part for layer in layers for part in (nn.ELU(), layer)))


def stretched(wrap: Wrap, block: Block, seed: int, n_steps: int) -> nn.Sequential:
    """Trained as an adversary would: towards long outputs, with a large learning rate."""
    torch.manual_seed(seed)
    net, (channels, _, size) = branch(wrap, block), block
    net.train()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.03)
    goal = torch.randn(1, channels, size, size)
    for _ in range(n_steps):
        x = torch.randn(8, channels, size, size)
        optimizer.zero_grad()
        y = net(x) - net(x.roll(1, 0))
        (-y.square().mean().log() - (y * goal).mean()).backward()
        optimizer.step()
        after_step(net)
    return net


def true_norm(layer: nn.Module, n_channels: int, size: int, n_steps: int = 300) -> float:
    """Golub-Kahan-Lanczos with full orthogonalisation, on the layer as it computes."""
    layer = copy.deepcopy(layer).eval().double()
    origin = torch.zeros(1, n_channels, size, size, dtype=torch.float64)
    with torch.no_grad():
        zero = layer(origin)

    def normal(v: Tensor) -> Tensor:
        leaf = v.view_as(origin).requires_grad_()
        out = layer(leaf)
        return torch.autograd.grad(out, leaf, (out - zero).detach())[0].flatten()

    generator = torch.Generator().manual_seed(0)
    v = torch.randn(origin.numel(), generator=generator, dtype=torch.float64)
    basis = torch.empty(0, origin.numel(), dtype=torch.float64)
    alphas, betas = [], []
    for _ in range(min(n_steps, origin.numel())):
        v = v / v.norm()
        basis = torch.cat([basis, v[None]])
        w = normal(v)
        alphas.append(w @ v)
        w = w - basis.T @ (basis @ w)
        v = w - basis.T @ (basis @ w)
        betas.append(v.norm())
        if betas[-1] < 1e-12:
            break
    tridiagonal = torch.diag(torch.stack(alphas))
    off = torch.diag(torch.stack(betas[:-1]), 1) if len(betas) > 1 else torch.zeros_like(tridiagonal)
    return math.sqrt(float(torch.linalg.eigvalsh(tridiagonal + off + off.T)[-1]))


def reported(name: str, layer: nn.Module, n_channels: int, size: int) -> float:
    """The bound that the layer promises: ours says one, others have their target, an unconstrained one has none."""
    if name in {"plain", "invertible-certified"}:
        return lipschitz_bound(layer, (n_channels, size, size))
    return C


def truth(name: str, wrap: Wrap, n_seeds: int, n_steps: int) -> dict[str, float]:
    """The worst and the usual over all nets, layers and sizes."""
    over_target, over_true = [], []
    for block in ((3, 16, 8), (4, 8, 12), (8, 16, 6)):
        for seed in range(n_seeds):
            net = stretched(wrap, block, seed, n_steps)
            channels = (block[0], block[1], block[1])
            for size in (block[2], block[2] // 2, block[2] + 5):
                for layer, n in zip(list(net)[1::2], channels, strict=True):
                    norm = true_norm(layer, n, size)
                    over_target.append(norm / C)
                    over_true.append(reported(name, layer, n, size) / norm)
    return {
        "max_true_over_target": max(over_target),
        "median_bound_over_true": statistics.median(over_true),
        "max_true_over_bound": 1 / min(over_true),
    }


def step(net: nn.Module, x: Tensor, optimizer: torch.optim.Optimizer) -> float:
    """Processor time of one."""
    start = time.process_time()
    optimizer.zero_grad()
    (x + net(x)).square().mean().backward()
    optimizer.step()
    after_step(net)
    return time.process_time() - start


def costs(wraps: dict[str, Wrap], model: str, n_rounds: int) -> dict[str, float]:
    """Ratio of a training step to the unconstrained one's, over the blocks of a model."""
    seconds: dict[str, list[float]] = {name: [0.0] * n_rounds for name in wraps}
    for block in STEPS[model]:
        channels, _, size = block
        x = torch.randn(64, channels, size, size)
        nets = {name: branch(wrap, block) for name, wrap in wraps.items()}
        optimizers = {name: torch.optim.SGD(net.parameters(), lr=0.01) for name, net in nets.items()}
        order, shuffler = list(nets), random.Random(0)
        for trial in range(n_rounds + 2):
            shuffler.shuffle(order)
            for name in order:
                spent = step(nets[name], x, optimizers[name])
                if trial >= 2:
                    seconds[name][trial - 2] += spent
    plain = seconds["plain"]
    return {name: statistics.median(a / b for a, b in zip(own, plain, strict=True)) for name, own in seconds.items()}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer steps, seeds and rounds (under two minutes)")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    wraps = implementations()
    ratios = {model: costs(wraps, model, 3 if options.quick else 15) for model in STEPS}
    rows: list[dict[str, Any]] = []
    print(f"{'':22}{'true/target':>12}{'bound/true':>12}" + "".join(f"{'step, ' + model:>18}" for model in STEPS))
    for name, wrap in wraps.items():
        found = truth(name, wrap, n_seeds=1 if options.quick else 3, n_steps=60 if options.quick else 500)
        bound = "none" if name == "plain" else name.removeprefix("invertible-")
        setting = {"bound": bound, "c": C, "threads": options.threads, "batch": 64}
        steps = {f"step_ratio_{model}": ratios[model][name] for model in STEPS}
        rows.append({"implementation": name, "setting": setting,
                     "metrics": {**found, "step_ratio": ratios["classifier"][name], **steps}})  # fmt: skip
        cells = f"{found['max_true_over_target']:12.3f}{found['median_bound_over_true']:12.3f}"
        print(f"{name:22}{cells}" + "".join(f"{ratios[model][name]:18.2f}" for model in STEPS), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

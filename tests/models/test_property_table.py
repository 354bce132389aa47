"""Table 1 of the i-ResNet paper: each tick decided by running the models, and held against docs/residual.md.

The estimators of log-determinants are those of the papers. What this library does beside is in the footnotes of the
page, which are tested here too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from invertible import Chain, Flow
from invertible.bijection import Bijection
from invertible.layers import (
    AdditiveCoupling,
    AffineCoupling,
    ContinuousFlow,
    Coupling,
    Invertible1x1,
    Residual,
    certify,
    constrain,
)
from invertible.layers.conditioner import MLP
from invertible.logdet import LogDetEstimator, PowerSeries, RussianRoulette

PAGE = Path(__file__).parents[2] / "docs" / "residual.md"
SMALL, LARGE = 4, 66
YES, NO = "✓", "–"


def shaken(module: nn.Module) -> nn.Module:
    """Random weights instead of the identity that couplings start as."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return module


def branch(n: int) -> nn.Module:
    return shaken(nn.Sequential(nn.Linear(n, n), nn.ELU(), nn.Linear(n, n)))


def coupling(kind: type[Coupling], n: int) -> Bijection:
    return kind(shaken(MLP(n // 2, n if kind is AffineCoupling else n // 2, (16,), "tanh")))


def contraction(n: int, estimator: LogDetEstimator | None) -> Residual:
    return Residual(constrain(branch(n), 0.9), logdet=estimator, training_logdet=estimator)


BLOCKS: dict[str, Callable[[int], Bijection]] = {
    "ResNet": lambda n: Residual(branch(n), "unknown"),
    "NICE": lambda n: coupling(AdditiveCoupling, n),
    "RealNVP": lambda n: coupling(AffineCoupling, n),
    "Glow": lambda n: Chain(Invertible1x1(n), coupling(AffineCoupling, n)),
    "FFJORD": lambda n: ContinuousFlow(branch(n), trace="hutchinson"),
    "i-ResNet": lambda n: contraction(n, PowerSeries()),
    "Residual Flow": lambda n: contraction(n, RussianRoulette()),
}


def block_of(model: str, n: int = SMALL, seed: int = 0) -> Bijection:
    torch.manual_seed(seed)
    return BLOCKS[model](n).double().eval()


def points(batch: int, n: int = SMALL) -> Tensor:
    return torch.randn(batch, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def leaves(block: Bijection) -> list[Bijection]:
    return list(block) if isinstance(block, Chain) else [block]


def jacobian(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Of one point, shape (n, n)."""
    rows = torch.autograd.functional.jacobian(lambda row: f(row[None])[0], x)
    assert isinstance(rows, Tensor)
    return rows


def networks(block: Bijection) -> Iterator[nn.Module]:
    for leaf in leaves(block):
        if isinstance(leaf, Coupling | Residual):
            yield leaf.network
        if isinstance(leaf, ContinuousFlow):
            yield next(m for m in leaf.modules() if isinstance(m, nn.Sequential))


def evaluations(block: Bijection, call: Callable[[], object]) -> int:
    """How often the block's network ran."""
    counted: list[int] = []
    hooks = [network.register_forward_hook(lambda *_: counted.append(1)) for network in networks(block)]
    call()
    for hook in hooks:
        hook.remove()
    return len(counted)


def has_free_form_jacobian(model: str) -> bool:
    """No entry of the Jacobian of what is not linear in x is zero for all weights."""
    for i in range(len(leaves(block_of(model)))):
        found = [[jacobian(leaves(block_of(model, seed=seed))[i], x) for x in points(2)] for seed in range(2)]
        is_linear = all(torch.equal(a, b) for a, b in found)
        if not is_linear and bool((torch.stack([j.abs() for pair in found for j in pair]).sum(0) == 0).any()):
            return False
    return True


def has_analytic_forward(model: str) -> bool:
    block = block_of(model)
    return evaluations(block, lambda: block(points(3))) == 1


def has_analytic_inverse(model: str) -> bool:
    block = block_of(model)
    if not all(leaf.has_closed_inverse for leaf in leaves(block)):
        return False
    y = block(points(3))
    torch.testing.assert_close(block.inverse(y), points(3))
    return evaluations(block, lambda: block.inverse(y)) == 1


def changes_volume(model: str) -> bool:
    block = block_of(model)
    return any(torch.linalg.slogdet(jacobian(block, x))[1].abs() > 1e-8 for x in points(3))


def has_exact_likelihood(model: str) -> bool:
    """In more dimensions than our default computes determinants for."""
    block, x = block_of(model, LARGE), points(2, LARGE)
    if not certify(block).is_invertible:
        return False
    flow = Flow(block, LARGE)
    first, second = flow.log_prob(x).detach(), flow.log_prob(x).detach()
    if not torch.equal(first, second):
        return False
    logdet = torch.stack([torch.linalg.slogdet(jacobian(block, row))[1] for row in x])
    expected = flow.base.log_prob(block(x), None) + logdet
    return torch.allclose(first, expected, rtol=0, atol=1e-8)


def has_unbiased_estimator(model: str) -> bool:
    """Random, and its mean within four standard errors of the exact value."""
    block = steep(block_of(model))
    x = points(1).repeat(8192, 1)
    if not certify(block).is_invertible:
        return False
    torch.manual_seed(1)
    means = torch.stack([block.forward_with_logdet(x)[1].mean() for _ in range(20)]).detach()
    exact = torch.linalg.slogdet(jacobian(block, x[0]))[1]
    error = means.std() / len(means) ** 0.5
    return bool(means.std() > 1e-6) and bool((means.mean() - exact).abs() < 4 * error)


def steep(block: Bijection) -> Bijection:
    """Contractions as strong as those of a trained block: dg/dx = -0.6, where five terms of a series are not enough."""
    with torch.no_grad():
        if isinstance(block, Residual) and block.lipschitz is None:
            layers = [m for m in block.modules() if isinstance(m, nn.Linear)]
            for layer, scale, bias in zip(layers, (0.75, -0.8), (5.0, 0.0), strict=True):
                layer.weight = scale * torch.eye(SMALL, dtype=torch.float64)
                layer.bias.fill_(bias)
    return block


PROPERTIES = {
    "free-form Jacobian": has_free_form_jacobian,
    "analytic forward": has_analytic_forward,
    "analytic inverse": has_analytic_inverse,
    "non-volume preserving": changes_volume,
    "exact likelihood": has_exact_likelihood,
    "unbiased log-det estimator": has_unbiased_estimator,
}
PAPER = {
    "free-form Jacobian": {"ResNet", "FFJORD", "i-ResNet"},
    "analytic forward": {"ResNet", "NICE", "RealNVP", "Glow", "i-ResNet"},
    "analytic inverse": {"NICE", "RealNVP", "Glow"},
    "non-volume preserving": {"ResNet", "RealNVP", "Glow", "FFJORD", "i-ResNet"},
    "exact likelihood": {"NICE", "RealNVP", "Glow"},
    "unbiased log-det estimator": {"FFJORD"},
}


@cache
def documented() -> dict[str, dict[str, str]]:
    """The table of the page: property to model to tick, footnote marks left out."""
    rows = re.findall(r"^\|(.*)\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    cells = [[re.sub(r"<sup>.*?</sup>", "", cell).strip() for cell in row.split("|")] for row in rows]
    header = next(row for row in cells if row[1:] == list(BLOCKS))
    return {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in cells if row[0] in PROPERTIES}


@pytest.mark.parametrize("name", PROPERTIES)
def test_the_page_says_what_the_models_do(name):
    found = {model: YES if PROPERTIES[name](model) else NO for model in BLOCKS}
    assert found == documented()[name]
    assert {model for model, tick in found.items() if tick == YES and model != "Residual Flow"} == PAPER[name]


def test_ours_is_exact_in_few_dimensions_and_unbiased_in_training():
    """The footnotes."""
    torch.manual_seed(0)
    block, x = contraction(SMALL, None).double().eval(), points(3)
    exact = torch.stack([torch.linalg.slogdet(jacobian(block, row))[1] for row in x])
    torch.testing.assert_close(block.forward_with_logdet(x)[1], exact, rtol=0, atol=1e-10)
    assert isinstance(block.training_logdet, RussianRoulette)

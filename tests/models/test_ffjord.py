"""FFJORD: the paper's sizes, and what every flow promises."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from invertible.errors import ConfigError
from invertible.flow import Flow
from invertible.layers import ContinuousFlow
from invertible.models import build
from invertible.models.ffjord import ffjord, ffjord_2d, ffjord_digits, ffjord_table


def n_parameters(flow: Flow) -> int:
    return sum(p.numel() for p in flow.parameters())


def squash(sizes: list[int]) -> int:
    """Concat-squash layers: a weight, a bias, a gate's slope and offset, a shift's slope."""
    return sum(a * b + 4 * b for a, b in pairwise(sizes))


def concat(channels: int, hidden: tuple[int, ...] = (64, 64, 64)) -> int:
    """3x3 convolutions that see the time as one more channel."""
    sizes = [channels, *hidden, channels]
    return sum(9 * (a + 1) * b + b for a, b in pairwise(sizes))


def test_sizes_of_the_paper() -> None:
    assert n_parameters(ffjord_2d()) == squash([2, 64, 64, 64, 2]) == 9224
    assert n_parameters(ffjord_table(43, 1, (860, 860))) == squash([43, 860, 860, 43])
    # MNIST: 1 channel, squeezed to 4, of which 2 stay; squeezed to 8, of which 4 stay.
    mnist = 2 * sum(map(concat, [1, 4, 2, 8, 4]))
    assert n_parameters(ffjord((1, 28, 28), 3)) == mnist
    cifar = 2 * sum(map(concat, [3, 12, 6, 24, 12, 48, 24]))
    assert n_parameters(ffjord()) == cifar


def test_latents_of_images() -> None:
    flow = ffjord((1, 8, 8), 2, 1, (4,), n_levels=17, tolerance=1e-3)
    x = torch.randint(0, 17, (3, 1, 8, 8))
    assert flow.encode(x).shape == (3, 4, 4, 4)
    assert len([m for m in flow.modules() if isinstance(m, ContinuousFlow)]) == 3
    sample = flow.sample(2)
    assert torch.equal(sample, sample.round())
    assert 0 <= sample.min() <= sample.max() <= 16


def test_density_integrates_to_one() -> None:
    flow = ffjord_table(2, 2, (16, 16))
    grid = torch.linspace(-7, 7, 101)
    x = torch.cartesian_prod(grid, grid)
    with torch.no_grad():
        total = flow.log_prob(x).exp().sum().item() * (14 / 100) ** 2
    assert abs(total - 1) < 1e-3


@pytest.mark.parametrize("model", ["table", "image"])
def test_conditional(model: str) -> None:
    if model == "table":
        flow, x = ffjord_table(3, hidden=(8, 8), n_classes=4), torch.randn(1, 3).expand(4, 3)
    else:
        flow = ffjord((1, 4, 4), 2, 1, (4,), n_levels=None, n_classes=4, tolerance=1e-3)
        x = torch.randn(1, 1, 4, 4).expand(4, 1, 4, 4)
    torch.manual_seed(0)
    with torch.no_grad():
        z = flow.encode(x, torch.arange(4)).flatten(1)
    assert torch.pdist(z).min() > 1e-3
    assert flow.sample(2, torch.arange(4)).shape == (2, *x.shape)


@pytest.mark.parametrize("memory", ["store", "checkpoint"])
def test_digits_train(memory: str) -> None:
    torch.manual_seed(0)
    flow, x = ffjord_digits(memory=memory), torch.randint(0, 17, (2, 1, 8, 8))
    loss = flow(x)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.any() for p in flow.parameters())
    reports = [m.report for m in flow.modules() if isinstance(m, ContinuousFlow)]
    assert all(r.kinetic > 0 and r.jacobian > 0 for r in reports)


def test_save_and_load(tmp_path: Path) -> None:
    flow = build("ffjord_table", n_dims=2, hidden=[8])
    flow.save(tmp_path / "flow")
    x = torch.randn(3, 2)
    assert torch.equal(Flow.load(tmp_path / "flow").log_prob(x), flow.log_prob(x))


def test_log_prob_of_the_untrained_is_near_normal_for_a_short_time() -> None:
    flow = ffjord_table(2)
    for module in flow.modules():
        if isinstance(module, ContinuousFlow):
            module.time = 1e-6
    x = torch.randn(5, 2)
    expected = -x.square().sum(dim=1) / 2 - math.log(2 * math.pi)
    torch.testing.assert_close(flow.log_prob(x), expected, atol=1e-4, rtol=0)


def test_bad_arguments() -> None:
    with pytest.raises(ConfigError, match="at least 1 scale and block"):
        ffjord(n_blocks=0)
    with pytest.raises(ConfigError, match="in_shape does not fit"):
        ffjord((1, 28, 28), 4)
    with pytest.raises(ConfigError, match="needs dimensions"):
        ffjord_table(0)
    with pytest.raises(ConfigError, match="one kind of context"):
        ffjord_table(2, n_classes=2, n_context=2)

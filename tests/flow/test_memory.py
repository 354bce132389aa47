"""Sampling in chunks: how large they are, what they are given, and that nobody asks for log-determinants."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor, nn

from cases import assert_close
from flow._make import Two, conditional, couplings
from invertible import Chain, Flow
from invertible.flow import ClassNormal
from invertible.layers import AffineCoupling

WIDTH = 256


class Counts(nn.Module):
    """A wide network that remembers how many rows it got."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.rows = nn.Sequential(nn.Linear(1, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 2)), []

    def forward(self, x: Tensor) -> Tensor:
        self.rows.append(len(x))
        return self.net(x)


def test_chunks_respect_the_bound() -> None:
    network = Counts()
    flow = Flow(AffineCoupling(network), 2)
    row = 2 * WIDTH * 4  # bytes that Tanh reads and writes for one
    assert flow.sample(1000, max_bytes=100 * row).shape == (1000, 2)
    chunks = network.rows[1:]
    assert network.rows[0] <= 2  # the probe
    assert sum(chunks) == 1000
    assert 50 <= max(chunks) <= 100
    network.rows.clear()
    assert flow.sample((3, 2), max_bytes=1).shape == (3, 2, 2)
    assert max(network.rows[1:]) == 1
    network.rows.clear()
    flow.sample(1000)
    assert network.rows[-1] == 1000


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_size_of_chunks_does_not_change_the_samples(temperature: float) -> None:
    flow = Flow(couplings(), 2).double()
    torch.manual_seed(0)
    once = flow.sample(50, temperature=temperature)
    torch.manual_seed(0)
    assert_close(flow.sample(50, temperature=temperature, max_bytes=500), once, 1e-12)


def test_chunks_get_their_own_contexts() -> None:
    flow, context = conditional().double(), torch.randn(7, 3).double()
    torch.manual_seed(0)
    once = flow.sample(5, context)
    torch.manual_seed(0)
    assert_close(flow.sample(5, context, max_bytes=400), once, 1e-12)
    by_class = Flow(Chain(), ClassNormal(4, 2))
    with torch.no_grad():
        by_class.base.get_parameter("means").copy_(torch.arange(4.0)[:, None].expand(4, 2))
    labels = torch.tensor([3, 0, 2])
    cold = by_class.sample(4, labels, temperature=0.0, max_bytes=16)
    assert_close(cold, labels.float()[None, :, None].expand(4, 3, 2), 0.0)


class NoVolume(AffineCoupling):
    """Refuses to compute a log-determinant."""

    def _forward_with_logdet(self, x: Any, context: Any) -> NoReturn:
        raise RuntimeError("nobody asked for it")

    def _inverse_with_logdet(self, y: Any, context: Any) -> NoReturn:
        raise RuntimeError("nobody asked for it")


def test_samples_and_codes_ask_for_no_log_determinant() -> None:
    flow = Flow(Chain(NoVolume(nn.Linear(1, 2))), 2)
    assert_close(flow.decode(flow.encode(z := flow.sample(500, max_bytes=1000))), z, 1e-5)
    with pytest.raises(RuntimeError, match="nobody"):
        flow.log_prob(z)


def test_the_probe_leaves_nothing_behind() -> None:
    network = nn.Sequential(nn.Linear(1, WIDTH), nn.BatchNorm1d(WIDTH), nn.Dropout(), nn.Linear(WIDTH, 2))
    network[2].eval()
    flow = Flow(AffineCoupling(network), 2)
    modes, state = [m.training for m in flow.modules()], {k: v.clone() for k, v in flow.state_dict().items()}
    flow.bijection.eval()
    torch.manual_seed(0)
    flow.sample(100, max_bytes=10_000)
    after = torch.get_rng_state()
    torch.manual_seed(0)
    torch.randn(100, 2)
    assert torch.equal(after, torch.get_rng_state())
    assert not any(m._forward_hooks for m in flow.modules())
    assert all(torch.equal(v, state[k]) for k, v in flow.state_dict().items())
    flow.bijection.train()
    network[2].eval()
    assert [m.training for m in flow.modules()] == modes


def test_no_samples_at_all() -> None:
    assert Flow(couplings(), 2).sample(0).shape == (0, 2)
    flow = Flow(AffineCoupling(Two(1, 3, 2), takes_context=True), 2)
    assert flow.sample(4, torch.zeros(0, 3)).shape == (4, 0, 2)
    assert flow.rsample(0, torch.zeros(2, 3)).shape == (0, 2, 2)

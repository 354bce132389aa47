"""The control variate of log-determinants."""

import pytest
import torch
from torch import nn

from invertible.layers import Residual, constrain
from invertible.layers._layered import layered
from invertible.logdet import AutoLogDet, ExactLogDet, Krylov
from invertible.logdet._control import deviations, mean_jacobian
from invertible.logdet._linearised import Linearised
from invertible.logdet._mean_field import mean_field_deviations
from invertible.logdet._probes import draw
from invertible.logdet.layered import LinearisedLayers


@pytest.fixture
def net():
    torch.manual_seed(0)
    layers = [nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16)]
    for layer in (layers[0], layers[2]):
        nn.init.normal_(layer.weight)
    return constrain(nn.Sequential(*layers), 0.95).double()


def test_all_signs_of_a_hadamard_matrix_average_to_zero():
    torch.manual_seed(0)
    u = draw("orthogonal", 16, torch.empty(5, 16, dtype=torch.float64))
    assert deviations(torch.randn(16, 16, dtype=torch.float64), u).mean(0).abs().max() < 1e-10


def test_every_row_comes_from_as_many_samples(net):
    x = torch.randn(32, 16, dtype=torch.float64)
    at = Linearised(net, x)
    dense = at.jacobian()
    found = mean_jacobian(at)
    for row in (0, 5, 15):
        tellers = [row, row + 16, (row - 8) % 16, (row - 8) % 16 + 16]
        torch.testing.assert_close(found[row], dense[tellers, row].mean(0).detach())


def test_fewer_samples_than_rows_leave_rows_at_zero(net):
    found = mean_jacobian(Linearised(net, torch.randn(3, 16, dtype=torch.float64)))
    assert (found.abs().sum(1) > 0).sum() == 6


def test_it_takes_variance_away_and_adds_no_bias(net):
    torch.manual_seed(1)
    x = 0.5 * torch.randn(64, 16, dtype=torch.float64)
    with torch.no_grad():
        exact = ExactLogDet()(net, x)[1].value
        errors = {n: torch.stack([Krylov(3, 5)(net, part)[1].value for _ in range(100) for part in [x[:n]]]) - exact[:n]
                  for n in (31, 64)}  # fmt: skip
        claimed = Krylov(3, 5)(net, x)[1].standard_error
    plain, controlled = (errors[n].std(0).square().mean().sqrt() for n in (31, 64))
    assert controlled < 0.8 * plain
    bias = errors[64].mean().item()  # samples of one draw share rows of the probes: 100 independent draws
    assert abs(bias) < 4 * errors[64].mean(1).std().item() / 100**0.5 + 0.02
    assert 0.6 * controlled < claimed.square().mean().sqrt() < 1.6 * controlled


def test_the_mean_field_averages_to_zero_and_is_exact_for_one_sample(net):
    torch.manual_seed(0)
    for first in ([], [nn.ELU()]):  # whether the Jacobian begins and ends with slopes
        g, x = nn.Sequential(*first, *net, nn.Tanh()), 0.3 * torch.randn(5, 16, dtype=torch.float64)
        at = layered_at(g, x)
        u = draw("orthogonal", 16, at.like)
        assert mean_field_deviations(at.factors, u).mean(0).abs().max() < 1e-10
        alone = layered_at(g, x[:1])
        torch.testing.assert_close(mean_field_deviations(alone.factors, u[:, :1]),
                                   deviations(alone.jacobian()[0], u[:, :1]))  # fmt: skip


def test_the_mean_field_follows_each_sample_to_first_order():
    torch.manual_seed(0)
    last = nn.Linear(32, 16)
    nn.init.normal_(last.weight, std=1e-5)  # J is so small that log(I + J) is J
    at = layered_at(
        nn.Sequential(nn.Linear(16, 32), nn.Tanh(), last).double(), torch.randn(64, 16, dtype=torch.float64)
    )
    u, j = draw("orthogonal", 8, at.like), at.jacobian()
    exact = (at.pull(u) * u).sum(-1) - j.diagonal(dim1=1, dim2=2).sum(-1)
    assert (exact - mean_field_deviations(at.factors, u)).abs().max() < 1e-3 * exact.abs().max()


def test_the_mean_field_leaves_little_variance_and_no_bias():
    torch.manual_seed(1)
    layers = [nn.ELU(), nn.Linear(48, 64), nn.ELU(), nn.Linear(64, 48)]
    nn.init.orthogonal_(layers[1].weight)
    block = Residual(constrain(nn.Sequential(*layers), 0.95).double(), logdet=AutoLogDet(20)).eval()
    x = torch.randn(64, 48, dtype=torch.float64)
    with torch.no_grad():
        exact = ExactLogDet()(block.network, x)[1].value
        plain = torch.stack([Krylov.within(20)(block.network, x)[1].value for _ in range(60)]) - exact
        errors = torch.stack([block.forward_with_logdet(x)[1] for _ in range(60)]) - exact
    assert block.estimate is not None
    assert block.estimate.products <= 20
    assert errors.std(0).mean() < 0.8 * plain.std(0).mean()
    assert abs(errors.mean().item()) < 4 * errors.mean(1).std().item() / 60**0.5 + 0.01
    claimed = block.estimate.standard_error.square().mean().sqrt()
    assert 0.6 * errors.std(0).mean() < claimed < 1.8 * errors.std(0).mean()


def layered_at(network: nn.Module, x: torch.Tensor) -> LinearisedLayers:
    g = layered(network, x)
    assert g is not None
    with torch.no_grad():
        return LinearisedLayers(g, x)

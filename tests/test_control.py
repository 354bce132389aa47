"""The control variate of log-determinants."""

import pytest
import torch
from torch import nn

from invertible.layers import constrain
from invertible.logdet import ExactLogDet, Krylov
from invertible.logdet._control import deviations, mean_jacobian
from invertible.logdet._linearised import Linearised
from invertible.logdet._probes import draw


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

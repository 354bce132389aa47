"""Critical points against functions and networks whose critical points are known."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from invertible.errors import ConfigError, DataError, NonFiniteError, ShapeError
from invertible.instruments._critical_findings import _rank_correlation
from invertible.instruments._critical_rows import judge
from invertible.instruments._critical_search import by_gradient_norm, by_saddle_free_newton
from invertible.instruments.critical_points import CriticalPoints, critical_points
from invertible.instruments.untouched import same_bits

F = Callable[[Tensor], Tensor]
TOLERANCE = 1e-8


class Plain:
    """A function written out, by autograd."""

    def __init__(self, f: F) -> None:
        self._f = f

    def value(self, theta: Tensor) -> float:
        return self._f(theta).item()

    def gradient(self, theta: Tensor) -> Tensor:
        return torch.autograd.functional.jacobian(self._f, theta)

    def hessian(self, theta: Tensor) -> Tensor:
        return torch.autograd.functional.hessian(self._f, theta)


def point(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def search(f: F, *start: float, method=by_gradient_norm, n: int = 200):
    return method(Plain(f), point(*start), TOLERANCE, n, lambda: True)


def test_a_quadratic_is_solved_wherever_one_begins() -> None:
    matrix = torch.diag(point(3.0, -2.0, 0.5))
    end = search(lambda t: (t - 1) @ matrix @ (t - 1) / 2, 5.0, -4.0, 2.0)
    torch.testing.assert_close(end.theta, torch.ones(3, dtype=torch.float64), atol=1e-7, rtol=0)
    torch.testing.assert_close(end.values, point(-2.0, 0.5, 3.0))
    assert judge(end, TOLERANCE).verdict == "critical"


def test_saddle_free_newton_leaves_the_saddle_that_the_gradients_norm_finds() -> None:
    def f(t: Tensor) -> Tensor:  # a saddle at 0, minima at (0, +-1)
        return t[0] ** 2 - t[1] ** 2 / 2 + t[1] ** 4 / 4

    to_saddle = search(f, 0.3, 0.05)
    assert float(to_saddle.theta.norm()) < 1e-8
    torch.testing.assert_close(to_saddle.values, point(-1.0, 2.0))
    to_minimum = search(f, 0.3, 0.05, method=by_saddle_free_newton)
    torch.testing.assert_close(to_minimum.theta, point(0.0, 1.0), atol=1e-8, rtol=0)
    torch.testing.assert_close(to_minimum.values, point(2.0, 2.0))


def test_monkey_saddle_is_critical_and_degenerate() -> None:
    def monkey(t: Tensor) -> Tensor:
        return t[0] ** 3 - 3 * t[0] * t[1] ** 2

    end = search(monkey, 0.4, 0.3)
    assert float(end.theta.norm()) < 1e-4
    assert judge(end, TOLERANCE).verdict == "critical"
    assert end.largest < 1e-3  # all of the Hessian vanishes there
    at_it = search(monkey, 0.0, 0.0)
    assert judge(at_it, TOLERANCE).verdict == "critical"
    assert not at_it.values.any()
    away = search(monkey, 0.4, 0.3, method=by_saddle_free_newton, n=30)
    assert monkey(away.theta).item() < -1  # it has no minimum: downhill it goes


def test_gradient_flat_points_are_told() -> None:
    # The gradient is 1 at least, and stationary at 0.
    end = search(lambda t: t[0] ** 3 / 3 + t[0] + t[1] ** 2 / 2, 0.8, 0.4)
    assert float(end.theta.norm()) < 1e-4
    assert float(end.gradient.norm()) == pytest.approx(1.0)
    assert end.flatness < 1e-4
    assert judge(end, TOLERANCE).verdict == "gradient-flat"


def test_fading_and_kernel_gradients_are_told() -> None:
    fading = search(lambda t: torch.exp(-t[0]), 1.0)
    assert float(fading.gradient.norm()) < TOLERANCE
    assert judge(fading, TOLERANCE).verdict == "fading"
    sloping = search(lambda t: t[0] ** 2 / 2 + 1e-9 * t[1], 1.0, 0.5)  # never flat along t[1]
    assert float(sloping.gradient.norm()) < TOLERANCE
    judged = judge(sloping, TOLERANCE)
    assert (judged.verdict, round(judged.kernel_share, 3)) == ("in the kernel", 1.0)
    assert judge(search(lambda t: t[0] ** 2 / 2, 1.0, n=0), TOLERANCE).verdict == "not converged"


SINGULAR = (3.0, 2.0, 1.0)
HIDDEN = 2


def linear_network(kept: tuple[int, ...]) -> nn.Sequential:
    """Two linear layers at the critical point that keeps some of the target's singular directions, turned at random."""
    net = nn.Sequential(nn.Linear(3, HIDDEN, bias=False), nn.Linear(HIDDEN, 3, bias=False)).double()
    first, second = torch.zeros(HIDDEN, 3).double(), torch.zeros(3, HIDDEN).double()
    for unit, i in enumerate(kept):
        first[unit, i] = second[i, unit] = math.sqrt(SINGULAR[i])
    turn = torch.eye(HIDDEN).double() + 0.3 * torch.randn(HIDDEN, HIDDEN, dtype=torch.float64)
    with torch.no_grad():
        net[0].weight.copy_(turn @ first)
        net[1].weight.copy_(second @ torch.linalg.inv(turn))
    return net


def squared(output: Tensor, y: Tensor) -> Tensor:
    return (output - y).square().sum(1).mean() * 3 / 2  # inputs are the unit vectors: |W2 W1 - S|^2 / 2


@pytest.mark.parametrize("kept", [k for n in range(HIDDEN + 1) for k in itertools.combinations(range(3), n)])
def test_deep_linear_network_has_the_indices_of_the_closed_form(kept: tuple[int, ...]) -> None:
    others = [j for j in range(3) if j not in kept]
    # Each unit that is off and direction that is missing makes a pair +-s; each swap for a larger one goes down, too.
    n_down = (HIDDEN - len(kept)) * len(others) + sum(SINGULAR[j] > SINGULAR[i] for i in kept for j in others)
    data = torch.eye(3).double(), torch.diag(point(*SINGULAR))
    net = linear_network(kept)
    # An end may lie elsewhere on the manifold of equivalent weights; its inertia is the same (Sylvester).
    options = {"loss": squared, "methods": ("gradient-norm",), "n_iterates": 1, "n_steps": 0}
    found = critical_points(net, data, amplitudes=(0.0, 1e-3), **options)
    for end in found.points:
        assert end.is_critical
        assert end.loss == pytest.approx(sum(SINGULAR[j] ** 2 for j in others) / 2, rel=1e-6)
        assert end.index == pytest.approx(n_down / 12)
    assert math.isnan(found.points[0].error)


def test_origin_of_the_linear_network_has_the_spectrum_of_the_closed_form() -> None:
    data = torch.eye(3).double(), torch.diag(point(*SINGULAR))
    found = critical_points(linear_network(()), data, loss=squared, amplitudes=(0.0,), n_iterates=1, n_steps=0)
    expected = sorted([sign * s for s in SINGULAR for sign in (1, -1)] * HIDDEN)
    torch.testing.assert_close(point(*found.points[0].eigenvalues), point(*expected))
    assert found.points[1].same_as == 0  # both methods stay
    assert len(found.critical) == 1


@pytest.fixture(scope="module")
def of_a_network() -> CriticalPoints:
    torch.manual_seed(1)
    x = torch.randn(40, 3)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    return critical_points(net, (x, y), weight_decay=0.01, n_iterates=3, n_steps=300, amplitudes=(0.0, 0.3))


def test_critical_points_of_a_network_pass_and_saddle_free_ends_are_minima(of_a_network: CriticalPoints) -> None:
    found = of_a_network
    assert len(found.points) == 12
    assert len(found.critical) >= 3
    for end in found.points:
        assert end.is_critical == (end.verdict == "critical") == (end.why == "")
        if end.is_critical:
            assert end.gradient_norm <= 1e-8
            assert end.newton_step < 1e-3
            values = point(*end.eigenvalues)
            assert end.index == pytest.approx((values < -1e-6 * values.abs().max()).double().mean().item())
        if end.is_critical and end.method == "saddle-free" and end.start > 0:
            assert end.index == 0
    assert max(end.index for end in found.critical) > 0.1
    losses = [end.loss for end in found.critical]
    assert losses == sorted(losses)


def test_result_is_saved_drawn_and_spoken(of_a_network: CriticalPoints, tmp_path) -> None:
    of_a_network.save(tmp_path / "a.json")
    assert CriticalPoints.load(tmp_path / "a.json").table == of_a_network.table
    assert len(of_a_network.plot().figure.axes) == 2
    text = " ".join(finding.sentence for finding in of_a_network.findings)
    assert "searches ended at a critical point" in text
    assert "The lowest has loss" in text


def test_without_a_critical_point_nothing_is_claimed() -> None:
    x = torch.randn(20, 2)
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    found = critical_points(net, (x, (x[:, 0] > 0).long()), n_iterations=1, n_iterates=2, n_steps=20)
    assert not found.critical
    assert found.findings[0].severity == "warning"
    assert "No search of 12 ended at a critical point" in found.findings[0].sentence
    assert len(found.plot().figure.axes) == 2


def test_the_network_is_untouched_in_any_grad_mode() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Dropout(), nn.Linear(2, 2))
    net[0].weight.grad = torch.ones(2, 2)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    x = torch.randn(9, 2, requires_grad=True)
    state = torch.get_rng_state()
    results = []
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        with mode():
            results.append(critical_points(net, (x, torch.arange(9) % 2), n_iterates=2, n_steps=5, n_iterations=3))
    assert results[0].table == results[1].table == results[2].table
    assert all(same_bits(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert bool((net[0].weight.grad == 1).all())
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training
    assert x.grad is None


def test_budget_and_bad_input() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    x, y = torch.randn(9, 2), torch.arange(9) % 2
    found = critical_points(net, (x, y), seconds=1e-9)
    assert len(found.points) == 1
    assert found.is_partial
    assert "after 1 of 36 searches" in found.findings[0].sentence
    few = {"n_iterates": 1, "n_steps": 1, "n_iterations": 1}
    with pytest.raises(ConfigError, match="too large"):
        critical_points(net, (x, y), n_most=5, **few)
    with pytest.raises(ConfigError, match="no such methods"):
        critical_points(net, (x, y), methods=("newton",), **few)
    with pytest.raises(ConfigError, match="bad amplitudes"):
        critical_points(net, (x, y), amplitudes=(), **few)
    with pytest.raises(ShapeError, match="scalar"):
        critical_points(net, (x, y), loss=lambda output, labels: output.square(), **few)
    with pytest.raises(NonFiniteError, match=r"path diverged.*smaller lr"):
        critical_points(
            net, (x, x), loss=lambda o, t: (o - t).square().mean(), lr=1e200, n_iterates=1, n_steps=50
        )  # fmt: skip
    with pytest.raises(DataError, match="no data"):
        critical_points(net, iter([]), **few)


def test_rank_correlation_is_scipys() -> None:
    from scipy.stats import spearmanr

    random = torch.Generator().manual_seed(0)
    a, b = torch.randint(5, (2, 30), generator=random).double().numpy()
    assert _rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)


def test_results_of_several_networks_are_joined(of_a_network: CriticalPoints) -> None:
    twice = of_a_network.joined(of_a_network)
    assert len(twice.points) == 2 * len(of_a_network.points)
    assert twice.critical == of_a_network.critical  # the second time they are the same points
    assert twice.n_critical == len(of_a_network.critical)
    assert twice.lowest_index == of_a_network.critical[0].index
    assert 0 < twice.critical_share <= 1
    assert -1 <= twice.rank_correlation <= 1

"""Saddle-free Newton as an optimiser against its dense definition."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from invertible.errors import ConfigError, DtypeError, NonFiniteError
from invertible.train.saddle_free_newton import SaddleFreeNewton, lanczos


def network(scale: float = 1.0) -> tuple[nn.Module, Tensor, Tensor]:
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(scale)
    x = torch.randn(30, 4, dtype=torch.float64)
    return net, x, (x[:, 0] > 0).long() + (x[:, 1] > 0.3).long()


def dense(net: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    parameters = dict(net.named_parameters())
    sizes, shapes = [p.numel() for p in parameters.values()], [p.shape for p in parameters.values()]

    def loss(theta: Tensor) -> Tensor:
        own = {n: t.view(s) for n, t, s in zip(parameters, theta.split(sizes), shapes, strict=True)}
        return nn.functional.cross_entropy(torch.func.functional_call(net, own, (x,)), y)

    theta = torch.cat([p.detach().flatten() for p in parameters.values()])
    return theta, torch.autograd.functional.jacobian(loss, theta), torch.autograd.functional.hessian(loss, theta)


def test_in_the_whole_space_the_step_is_the_dense_one() -> None:
    net, x, y = network()
    theta, gradient, matrix = dense(net, x, y)
    values, vectors = torch.linalg.eigh(matrix)
    assert values[0] < -1e-3  # negative curvature is there to be turned
    optimizer = SaddleFreeNewton(net.parameters(), rank=100, lr=0.5)
    optimizer.step(lambda: nn.functional.cross_entropy(net(x), y))
    damping = optimizer.param_groups[0]["damping"] * optimizer.param_groups[0]["scale"]
    assert optimizer.param_groups[0]["scale"] == pytest.approx(values.abs().max().item(), rel=1e-6)
    step = vectors @ ((vectors.T @ gradient) / (values.abs() + damping))
    moved = torch.cat([p.detach().flatten() for p in net.parameters()])
    torch.testing.assert_close(moved, theta - 0.5 * step, rtol=1e-6, atol=1e-8)


def descend(is_ours: bool) -> list[float]:
    torch.manual_seed(3)
    net, x, y = network(scale=0.01)  # next to the saddle at 0
    optimizer = SaddleFreeNewton(net.parameters()) if is_ours else torch.optim.SGD(net.parameters(), 0.5)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        losses.append(loss.item())
        if is_ours:
            optimizer.step(lambda: nn.functional.cross_entropy(net(x), y))
        else:
            loss.backward()
            optimizer.step()
    return losses


def test_the_loss_never_rises_and_a_saddle_is_left_sooner_than_by_descent() -> None:
    ours, descent = descend(is_ours=True), descend(is_ours=False)
    assert all(b <= a for a, b in pairwise(ours))
    assert ours[-1] < 0.3
    assert descent[-1] > 2 * ours[-1]


def test_lanczos_is_orthonormal_and_stops_where_the_space_ends() -> None:
    matrix = torch.randn(12, 12, dtype=torch.float64)
    matrix = matrix + matrix.T
    basis, inside = lanczos(lambda v: matrix @ v, torch.randn(12, dtype=torch.float64), 7)
    torch.testing.assert_close(basis @ basis.T, torch.eye(7, dtype=torch.float64))
    torch.testing.assert_close(basis @ matrix @ basis.T, inside)
    few = torch.diag(torch.tensor([1.0, 1, 1, -2, -2, 5], dtype=torch.float64))
    basis, inside = lanczos(lambda v: few @ v, torch.randn(6, dtype=torch.float64), 6)
    assert len(basis) == 3  # as many as there are different eigenvalues
    expected = torch.tensor([-2.0, 1, 5], dtype=torch.float64)
    torch.testing.assert_close(torch.linalg.eigvalsh(inside), expected)
    assert len(lanczos(lambda v: v, torch.zeros(3), 2)[0]) == 0


def test_a_quadratic_takes_one_step_and_a_minimum_is_kept_to_the_bit() -> None:
    target = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    weights = torch.tensor([1.0, 10.0, 0.3], dtype=torch.float64)
    theta = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = SaddleFreeNewton([theta], damping=1e-10)
    closure = lambda: (weights * (theta - target).square()).sum()  # noqa: E731
    optimizer.step(closure)
    torch.testing.assert_close(theta.detach(), target, rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        theta.copy_(target)
    assert optimizer.step(closure).item() == 0
    assert torch.equal(theta.detach(), target)


def test_state_survives_and_gradients_and_frozen_parameters_are_left() -> None:
    net, x, y = network()
    net[0].bias.requires_grad_(False)
    frozen = net[0].bias.clone()
    net[0].weight.grad = torch.ones_like(net[0].weight)
    optimizer = SaddleFreeNewton(net.parameters(), rank=5)
    closure = lambda: nn.functional.cross_entropy(net(x), y)  # noqa: E731
    optimizer.step(closure)
    assert torch.equal(net[0].bias, frozen)
    assert bool((net[0].weight.grad == 1).all())
    again = SaddleFreeNewton(net.parameters())
    again.load_state_dict(optimizer.state_dict())
    kept = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    optimizer.step(closure)
    moved = net[2].weight.clone()
    net.load_state_dict(kept)
    again.step(closure)
    assert torch.equal(net[2].weight, moved)


def test_what_does_not_fit_is_said() -> None:
    net, x, y = network()
    optimizer = SaddleFreeNewton(net.parameters())
    with pytest.raises(ConfigError, match="needs a closure"):
        optimizer.step()
    with pytest.raises(ConfigError, match=r"no loss.*without backward"):
        optimizer.step(lambda: nn.functional.cross_entropy(net(x), y, reduction="none"))
    with pytest.raises(ConfigError, match=r"no loss.*detach"):
        optimizer.step(lambda: nn.functional.cross_entropy(net(x), y).detach())

    def with_backward() -> Tensor:
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        return loss

    with pytest.raises(ConfigError, match=r"cannot be differentiated.*without backward"):
        optimizer.step(with_backward)
    with pytest.raises(NonFiniteError, match="loss must be finite"):
        optimizer.step(lambda: net(x).sum() * math.nan)
    with pytest.raises(ConfigError, match="bad rank"):
        SaddleFreeNewton(net.parameters(), rank=0)
    with pytest.raises(ConfigError, match="one group"):
        SaddleFreeNewton([{"params": [net[0].weight]}, {"params": [net[0].bias]}])
    with pytest.raises(ConfigError, match="nothing to train"):
        SaddleFreeNewton([torch.zeros(2)])
    with pytest.raises(DtypeError, match="float32 or float64"):
        SaddleFreeNewton([nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))])


def test_a_linear_loss_is_followed_downhill() -> None:
    theta = nn.Parameter(torch.zeros(2))
    optimizer = SaddleFreeNewton([theta])
    assert optimizer.step(lambda: (theta * torch.tensor([1.0, -2.0])).sum()).item() == 0
    assert (theta * torch.tensor([1.0, -2.0])).sum() < 0

"""Many networks at once against the same networks one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from invertible.errors import ConfigError, DtypeError, NonFiniteError, RangeError, ShapeError
from invertible.instruments._many_mlps import ORDER, ManyMlps
from invertible.instruments._many_mlps_train import Training, losses_of, train

WIDTHS = (5, 7, 6, 3)


def data(n: int = 23, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(n, 5, generator=random, dtype=torch.float64), torch.randint(3, (n,), generator=random)


def one_by_one(nets: ManyMlps, x: Tensor, y: Tensor, training: Training) -> tuple[list[nn.Sequential], Tensor]:
    """What a loop over nn.Sequential with torch's own optimiser and autograd does."""
    models, losses = [nets.network(i) for i in range(nets.n)], []
    criterion = nn.CrossEntropyLoss() if training.loss == "cross_entropy" else nn.MSELoss()
    for i, model in enumerate(models):
        optimizer = torch.optim.SGD(
            model.parameters(), 1.0, momentum=training.momentum, weight_decay=training.weight_decay
        )
        random, own = nets.generator(i, ORDER), []
        for epoch in range(training.n_epochs):
            optimizer.param_groups[0]["lr"] = training.rate(epoch)
            order = torch.arange(len(x)) if training.batch_size is None else torch.tensor(random.permutation(len(x)))
            total = 0.0
            for rows in order.split(training.batch_size or len(x)):
                loss = criterion(model(x[rows]), y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item() * len(rows) / len(x)
            own.append(total)
        losses.append(own)
    return models, torch.tensor(losses, dtype=torch.float64).T


@pytest.mark.parametrize("activation", ["tanh", "relu", "sigmoid", "identity"])
@pytest.mark.parametrize("batch_size", [4, None])
def test_training_is_that_of_a_loop_over_networks(activation: str, batch_size: int | None) -> None:
    nets = ManyMlps(WIDTHS, 3, activation=activation, seed=2, dtype=torch.float64)
    training = Training(4, 0.2, batch_size, weight_decay=0.01, decay=0.9)
    x, y = data()
    models, expected = one_by_one(nets, x, y, training)
    torch.testing.assert_close(train(nets, x, y, training), expected, rtol=1e-10, atol=1e-12)
    for i, model in enumerate(models):
        torch.testing.assert_close(nets(x)[i], model(x), rtol=1e-10, atol=1e-10)


def test_squared_error_and_own_data() -> None:
    nets = ManyMlps(WIDTHS, 2, dtype=torch.float64)
    xs, targets = torch.randn(2, 9, 5, dtype=torch.float64), torch.randn(2, 9, 3, dtype=torch.float64)
    training = Training(3, 0.1, 4, loss="squared_error")
    alone = [one_by_one(nets, xs[i], targets[i], training) for i in range(2)]
    expected = torch.stack([alone[i][1][:, i] for i in range(2)], dim=1)
    torch.testing.assert_close(train(nets, xs, targets, training), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(nets(xs)[1], alone[1][0][1](xs[1]), rtol=1e-10, atol=1e-10)
    error = (nets(xs) - targets).square().mean((1, 2))
    torch.testing.assert_close(losses_of(nets(xs), targets, "squared_error"), error)


def test_own_labels_and_losses() -> None:
    nets = ManyMlps(WIDTHS, 2, dtype=torch.float64)
    x, _ = data()
    y = torch.randint(3, (2, len(x)))
    expected = torch.stack([nn.functional.cross_entropy(nets(x)[i], y[i]) for i in range(2)])
    torch.testing.assert_close(losses_of(nets(x), y), expected)
    before = losses_of(nets(x), y)
    train(nets, x, y, Training(30, 0.1, 5))
    assert bool((losses_of(nets(x), y) < before).all())


@pytest.mark.parametrize("init", ["uniform", "normal"])
def test_a_network_is_the_same_whoever_is_beside_it(init: str) -> None:
    few, many = ManyMlps(WIDTHS, 2, init=init, seed=5), ManyMlps(WIDTHS, 9, init=init, seed=5)
    part = ManyMlps(WIDTHS, 2, init=init, seed=5, first=7)
    x, y = data()
    x = x.float()
    for nets in (few, many, part):
        train(nets, x, y, Training(3, 0.1, 4))
    torch.testing.assert_close(many(x)[:2], few(x))
    torch.testing.assert_close(many(x)[7:], part(x))
    other = ManyMlps(WIDTHS, 9, init=init, seed=6)
    different = torch.pdist(torch.cat([many(x).flatten(1), other(x).flatten(1)]).detach())
    assert float(different.min()) > 0.1


def test_initial_weights_have_the_distribution_they_claim() -> None:
    uniform, normal = ManyMlps((100, 40, 10), 30), ManyMlps((100, 40, 10), 30, init="normal")
    first = uniform.weights[0].detach().flatten()
    assert float(first.abs().max()) <= 0.1
    assert float(first.std()) == pytest.approx(0.1 / 3**0.5, rel=0.01)
    assert float(uniform.biases[0].detach().std()) == pytest.approx(0.1 / 3**0.5, rel=0.05)
    cut = normal.weights[0].detach().flatten()
    assert float(cut.abs().max()) <= 0.2
    assert float(cut.std()) == pytest.approx(0.1 * 0.8796, rel=0.01)  # of a normal cut at two standard deviations
    assert not normal.biases[0].any()


def test_activations_and_networks_of_its_own() -> None:
    nets = ManyMlps(WIDTHS, 4, dtype=torch.float64)
    x, _ = data()
    for own in (x, x.expand(4, -1, -1)):
        layers = nets.activations(own)
        assert [tuple(layer.shape) for layer in layers] == [(4, 23, 7), (4, 23, 6), (4, 23, 3)]
        model = nets.network(2)
        torch.testing.assert_close(layers[0][2], model[:2](x))
        torch.testing.assert_close(layers[1][2], model[:4](x))
        torch.testing.assert_close(layers[2][2], model(x))


def test_gradients_flow_through_forward() -> None:
    nets = ManyMlps((3, 4, 2), 2, activation="relu", dtype=torch.float64)
    x = torch.randn(6, 3, dtype=torch.float64)
    nets(x)[1].sum().backward()
    model = nets.network(1)
    model(x).sum().backward()
    torch.testing.assert_close(nets.weights[0].grad[1], model[0].weight.grad.T)
    assert not nets.weights[0].grad[0].any()


def test_what_does_not_fit_is_said() -> None:
    nets = ManyMlps(WIDTHS, 2)
    x, y = torch.randn(6, 5), torch.zeros(6, dtype=torch.long)
    with pytest.raises(ShapeError, match=r"\(N, 5\) or \(2, N, 5\)"):
        nets(torch.randn(6, 4))
    with pytest.raises(DtypeError, match="real numbers"):
        nets(torch.zeros(6, 5, dtype=torch.long))
    with pytest.raises(ShapeError, match="do not fit"):
        train(nets, x, y[:5], Training(1, 0.1))
    with pytest.raises(ShapeError, match="do not fit"):
        train(nets, x[:0], y[:0], Training(1, 0.1))
    with pytest.raises(RangeError, match="labels 0 to 2"):
        train(nets, x, y + 3, Training(1, 0.1))
    with pytest.raises(NonFiniteError, match="data"):
        train(nets, x / 0, y, Training(1, 0.1))
    with pytest.raises(NonFiniteError, match=r"diverged.*smaller lr"):
        train(nets, x, torch.randn(6, 3), Training(60, 1e6, loss="squared_error"))
    with pytest.raises(ConfigError, match="bad widths"):
        ManyMlps((3,), 2)
    with pytest.raises(ConfigError, match="n >= 1"):
        ManyMlps((3, 2), 0)
    with pytest.raises(ConfigError, match="bad momentum"):
        Training(1, 0.1, momentum=1.0)


def test_callers_tensors_and_modes_are_left() -> None:
    x, y = data()
    x.requires_grad_()
    nets = ManyMlps(WIDTHS, 2, dtype=torch.float64)
    seen: list[int] = []
    train(nets, x, y, Training(3, 0.1), seen.append)
    assert seen == [0, 1, 2]
    assert x.grad is None
    assert (x.requires_grad, x._version) == (True, 0)
    assert train(nets, x, y, Training(0, 0.1)).shape == (0, 2)

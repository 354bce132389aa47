"""Spread of losses over many networks: the figures against plain formulas, one network at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from invertible.errors import ConfigError, DataError, DtypeError, NonFiniteError, RangeError, ShapeError
from invertible.instruments._labelled import reduced
from invertible.instruments._loss_spread_rows import Interval, _correlation, bootstrap, difference
from invertible.instruments._many_mlps import ManyMlps
from invertible.instruments._many_mlps_train import Training, train
from invertible.instruments.loss_spread import LossSpread, loss_spread

Data = tuple[Tensor, Tensor]


def blobs(n: int = 120, seed: int = 0) -> Data:
    random = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (n,), generator=random)
    centres = torch.tensor([[0.0, 0, 0, 0], [2, 0, 1, 0], [0, 2, 0, 1]])
    return centres[y] + torch.randn(n, 4, generator=random), y


@pytest.fixture(scope="module")
def found() -> LossSpread:
    return loss_spread(
        blobs(), blobs(seed=1), widths=(12, 2), n_networks=30, n_epochs=8, batch_size=20, n_index=2, n_threads=2
    )


def test_every_network_is_what_a_loop_would_give(found: LossSpread) -> None:
    (x, y), (test_x, test_y) = blobs(), blobs(seed=1)
    mean, std = x.mean(), x.std()
    narrow = found.widths[0]
    assert narrow.width == 2
    nets = ManyMlps((4, 2, 3), 30, activation="relu")
    train(nets, (x - mean) / std, y, Training(8, 0.1, 20, decay=0.8))
    for i in (0, 7, 29):
        model = nets.network(i)
        outputs = model((test_x - mean) / std)
        assert narrow.test_losses[i] == pytest.approx(nn.functional.cross_entropy(outputs, test_y).item(), rel=1e-5)
        assert narrow.test_errors[i] == pytest.approx((outputs.argmax(1) != test_y).double().mean().item())
        train_loss = nn.functional.cross_entropy(model((x - mean) / std), y)
        assert narrow.train_losses[i] == pytest.approx(train_loss.item(), rel=1e-5)


def test_figures_are_those_of_numpy(found: LossSpread) -> None:
    for row, width in zip(found.table, found.widths, strict=True):
        assert row["n_parameters"] == 4 * width.width + width.width + 3 * width.width + 3
        assert row["std"] == pytest.approx(np.std(width.test_losses, ddof=1))
        assert row["rho"] == pytest.approx(np.corrcoef(width.train_losses, width.test_losses)[0, 1])
        assert row["std_low"] < row["std"] < row["std_high"]
        assert row["rho_low"] < row["rho"] < row["rho_high"]


def test_networks_do_not_depend_on_how_many_there_are(found: LossSpread) -> None:
    options = {"widths": (2,), "n_epochs": 8, "batch_size": 20, "n_index": 0, "n_threads": 1}
    few = loss_spread(blobs(), blobs(seed=1), n_networks=5, **options)
    np.testing.assert_allclose(few.widths[0].test_losses, found.widths[0].test_losses[:5], rtol=1e-4)
    other = loss_spread(blobs(), blobs(seed=1), n_networks=5, seed=1, **options)
    assert not set(other.widths[0].test_losses) & set(few.widths[0].test_losses)


def test_the_index_counts_eigenvalues(found: LossSpread) -> None:
    (x, y), width = blobs(), found.widths[0]
    nets = ManyMlps((4, 2, 3), 30, activation="relu")
    x = (x - x.mean()) / x.std()
    train(nets, x, y, Training(8, 0.1, 20, decay=0.8))
    model = nets.network(1)
    parameters = dict(model.named_parameters())
    shapes = [p.shape for p in parameters.values()]

    def loss(theta: Tensor) -> Tensor:
        parts = theta.split([shape.numel() for shape in shapes])
        own = {name: part.view(s) for name, part, s in zip(parameters, parts, shapes, strict=True)}
        return nn.functional.cross_entropy(torch.func.functional_call(model, own, (x,)), y)

    theta = torch.cat([p.detach().flatten() for p in parameters.values()])
    values = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, theta).double())
    index = width.indices[1]
    assert len(width.indices) == 2
    assert index.negative == pytest.approx((values < -1e-3).double().mean().item(), abs=1e-6)
    assert index.positive == pytest.approx((values > 1e-3).double().mean().item(), abs=1e-6)
    assert index.loss == pytest.approx(width.train_losses[1], rel=1e-5)


def test_bootstrap_covers_as_it_says() -> None:
    random, n_covered, n_trials = np.random.default_rng(0), 0, 200
    for seed in range(n_trials):
        a = random.standard_normal(100)
        pair = np.stack([a, 0.5 * a + math.sqrt(0.75) * random.standard_normal(100)])
        interval = bootstrap(pair, lambda x: _correlation(x[0], x[1]), seed)
        n_covered += interval.low <= 0.5 <= interval.high
    assert 0.88 < n_covered / n_trials < 0.99  # 0.95, four standard errors either way


def test_difference_of_figures() -> None:
    found = difference(Interval(3.0, 2.7, 3.4), Interval(1.0, 0.6, 1.3))
    assert (found.value, found.low, found.high) == pytest.approx(
        (2.0, 2 - math.hypot(0.3, 0.3), 2 + math.hypot(0.4, 0.4))
    )


def test_reduced_keeps_the_mean_and_is_area_interpolation() -> None:
    images = torch.rand(5, 2, 28, 21)
    assert torch.allclose(reduced(images, 10).mean((2, 3)), images.mean((2, 3)), atol=1e-6)
    assert torch.allclose(reduced(images, 7), nn.functional.avg_pool2d(images, (4, 3)), atol=1e-6)
    assert reduced(images[:, 0], 10).shape == (5, 1, 10, 10)


def test_result_is_saved_drawn_and_spoken(found: LossSpread, tmp_path) -> None:
    found.save(tmp_path / "a.json")
    assert LossSpread.load(tmp_path / "a.json") == found
    figure = found.plot().figure
    assert len(figure.axes) == 3
    sentences = [finding.sentence for finding in found.findings]
    assert any("30 networks of width 2 tell little" in text for text in sentences)
    assert any("Standard deviation of the test loss" in text for text in sentences)
    assert any("had not come to rest" in text for text in sentences)
    assert not found.is_partial


def test_budget_ends_early() -> None:
    found = loss_spread(
        blobs(), blobs(seed=1), widths=(400, 500), n_networks=9, n_epochs=1, n_index=0, seconds=1e-6, n_threads=1
    )
    assert found.is_partial
    assert len(found.widths[0].test_losses) == 2
    assert found.findings[0].severity == "warning"
    assert "seconds=1e-06, after 2 of 9 networks of width 400" in found.findings[0].sentence
    assert math.isnan(found.widths[0].rho.value)


def test_bad_input_is_said() -> None:
    x, y = blobs()
    good = {"widths": (2,), "n_networks": 3, "n_epochs": 1}
    with pytest.raises(ConfigError, match=r"two or more.*got 1"):
        loss_spread((x, torch.zeros_like(y)), (x, y), **good)
    with pytest.raises(RangeError, match="labels"):
        loss_spread((x, y - 1), (x, y), **good)
    with pytest.raises(DtypeError, match=r"labels.*int64"):
        loss_spread((x, y.double()), (x, y), **good)
    with pytest.raises(ConfigError, match="needs labels"):
        loss_spread(x, (x, y), **good)
    with pytest.raises(ShapeError, match="train and test"):
        loss_spread((x, y), (x[:, :3], y), **good)
    with pytest.raises(ShapeError, match="reduce to 10 x 10"):
        loss_spread((x, y), (x, y), side=10, **good)
    with pytest.raises(NonFiniteError, match="data"):
        loss_spread((x * math.nan, y), (x, y), **good)
    with pytest.raises(NonFiniteError, match="diverged"):
        loss_spread((x, y), (x, y), lr=1e30, activation="identity", **{**good, "n_epochs": 9})
    with pytest.raises(ConfigError, match="all alike"):
        loss_spread((x * 0, y), (x, y), **good)
    with pytest.raises(ConfigError, match="bad widths"):
        loss_spread((x, y), (x, y), widths=(3, 3))
    with pytest.raises(ConfigError, match="bad n_networks"):
        loss_spread((x, y), (x, y), n_networks=0)
    with pytest.raises(DataError, match="no data"):
        loss_spread(iter([]), (x, y), **good)


def test_loaders_float64_and_grad_modes() -> None:
    x, y = blobs()
    good = {"widths": (2,), "n_networks": 3, "n_epochs": 1, "n_index": 1}
    plain = loss_spread((x, y), (x, y), **good)
    batches = [(x[:50].double(), y[:50]), (x[50:].double(), y[50:].int())]
    own = x.clone().requires_grad_()
    with torch.inference_mode():
        other = loss_spread(batches, (own, y), **good)
    np.testing.assert_allclose(other.widths[0].test_losses, plain.widths[0].test_losses, rtol=1e-5)
    assert own.grad is None


def test_widths_measured_one_by_one_are_joined(found: LossSpread) -> None:
    options = {"n_networks": 30, "n_epochs": 8, "batch_size": 20, "n_index": 0, "n_threads": 1}
    parts = [loss_spread(blobs(), blobs(seed=1), widths=(width,), **options) for width in (12, 2)]
    joined = parts[0].joined(parts[1])
    assert [width.width for width in joined.widths] == [2, 12]
    np.testing.assert_allclose(joined.widths[1].test_losses, found.widths[1].test_losses, rtol=1e-4)
    assert any("Standard deviation" in finding.sentence for finding in joined.findings)
    with pytest.raises(ConfigError, match="bad widths"):
        parts[0].joined(parts[0])
    other = loss_spread(blobs(), blobs(seed=1), widths=(3,), **{**options, "n_epochs": 1})
    with pytest.raises(ConfigError, match="cannot be joined"):
        parts[0].joined(other)

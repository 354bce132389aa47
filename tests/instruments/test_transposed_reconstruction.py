"""Inputs from transposed weights against the theorem, its table, and what random layers of all kinds do."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch import nn

from invertible.errors import ConfigError, DtypeError
from invertible.instruments import Result, TransposedReconstruction, transposed_reconstruction
from invertible.instruments._relu_layers import find_relu_layers
from invertible.instruments._transposed_theory import relu_moments, transpose
from measured_networks import NETWORKS


def sparse(n: int, m: int, k: int) -> torch.Tensor:
    h = torch.zeros(n, m)
    for row in h:
        row[torch.randperm(m)[:k]] = 0.5 + torch.rand(k)
    return h


def normal(*layers: nn.Module) -> nn.Sequential:
    """A network with Gaussian weights and some biases."""
    for layer in layers:
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.3)
            if layer.bias is not None:
                nn.init.normal_(layer.bias, std=0.5)
    return nn.Sequential(*layers)


@pytest.mark.parametrize("threshold", [0.0, 1.5])
@pytest.mark.parametrize(
    ("n", "m", "k", "rho", "error", "on_support"),
    [
        (1000, 200, 10, 1.0, 0.210, 0.0238),
        (4000, 500, 30, 1.0, 0.133, 0.0162),
        (4000, 500, 30, 0.5, 0.265, 0.0324),
        (4000, 500, 200, 0.5, 0.350, 0.2024),
    ],
)
def test_the_theorems_table(n, m, k, rho, error, on_support, threshold) -> None:
    """The theorem's error without bias, and what was measured on the support, both within 5 %; and any bias."""
    net = normal(nn.Linear(m, n, bias=False), nn.ReLU())
    h = sparse(60, m, k)
    found = transposed_reconstruction(
        net, h, keep=[rho], threshold=threshold, n_controls=12 if n == 1000 else 4, seed=1
    ).layers[0]
    whole = found.whole
    # The draws' mean has a standard error of its own, of some per cent in the smallest case.
    assert (found.n_inputs, found.n_outputs) == (m, n)
    assert found.share_active == pytest.approx(k / m)
    assert whole.gaussian.error == pytest.approx(whole.predicted, rel=0.05)
    assert whole.gaussian.scaled == pytest.approx(whole.predicted_scaled, rel=0.05)
    if not threshold:
        assert whole.predicted == pytest.approx(error, rel=0.05)
        # Where noise is as large as entries (k = 200) the ReLU takes part of the error off.
        rel = 0.05 if k < 200 else 0.1
        assert whole.predicted_active == pytest.approx(on_support, rel=rel)
        assert whole.predicted_active == pytest.approx((2 * k + 4 - rho) / (rho * n), rel=rel)


def test_the_moments_of_a_relu_by_quadrature() -> None:
    for mean, std in ((0.3, 1.2), (-2.0, 0.7), (5.0, 0.1)):
        low, high, law = max(0, mean - 12 * std), mean + 12 * std, norm(mean, std)
        first, second = (quad(lambda z, p=p, law=law: z**p * law.pdf(z), low, high)[0] for p in (1, 2))
        moments = relu_moments(torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64))
        assert [moment.item() for moment in moments] == pytest.approx([first, second], rel=1e-6)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(60, 300), (60,)),
        (nn.Linear(60, 300), (5, 60)),
        (nn.Conv1d(40, 80, 3, padding=1), (40, 12)),
        (nn.Conv2d(32, 64, 3, stride=2, padding=1), (32, 9, 9)),
        (nn.Conv2d(32, 64, 3, padding="same", dilation=2), (32, 7, 7)),
        (nn.Conv2d(64, 128, 2, groups=4), (64, 5, 5)),
    ],
    ids=str,
)
@pytest.mark.parametrize("is_positive", [True, False])
def test_the_prediction_holds_for_random_layers(layer: nn.Module, shape: tuple[int, ...], is_positive: bool) -> None:
    """With biases, dropout, borders, strides, groups; of either sign.

    Mean over draws, within 6 %; for convolutions, whose weights are used again at each position, which the prediction
    neglects, within 20 %.
    """
    rel, n_draws = (0.06, 40) if isinstance(layer, nn.Linear) else (0.2, 16)
    net = normal(layer, nn.ReLU())
    x = torch.randn(12, *shape)
    x = x.relu() if is_positive else x
    found = transposed_reconstruction(net, x, n_controls=n_draws).layers[0]
    assert found.is_clipped == is_positive
    for each in found.reconstructions:
        assert each.gaussian.error == pytest.approx(each.predicted, rel=rel)
        assert each.gaussian.scaled == pytest.approx(each.predicted_scaled, rel=rel)
        assert each.permuted.scaled == pytest.approx(each.gaussian.scaled, rel=0.1)


def test_a_reconstruction_by_hand() -> None:
    net = normal(nn.Linear(6, 9, bias=False), nn.ReLU()).double()
    x = torch.rand(7, 6, dtype=torch.float64)
    weight = net[0].weight.detach()
    y = (x @ weight.T).relu()
    gain = weight.square().mean(1).sum() / 2
    guess = (y @ weight / gain).relu()
    whole = transposed_reconstruction(net, x, keep=[1.0], n_controls=1).layers[0].whole
    error = (guess - x).square().sum() / x.square().sum()
    cosine = (guess * x).sum() / guess.norm() / x.norm()
    assert whole.error == pytest.approx(error.item(), rel=1e-12)
    assert whole.scaled == pytest.approx(1 - cosine.item() ** 2, rel=1e-9)


def test_orthonormal_weights_do_better_than_random_ones() -> None:
    """With W = (Q; -Q), W^T relu(W x) = x."""
    q = torch.linalg.qr(torch.randn(30, 30))[0]
    net = nn.Sequential(nn.Linear(30, 60, bias=False), nn.ReLU())
    with torch.no_grad():
        net[0].weight.copy_(torch.cat([q, -q]))
    found = transposed_reconstruction(net, torch.randn(20, 30))
    whole = found.layers[0].whole
    assert whole.error == pytest.approx(0.0, abs=1e-7)
    assert whole.gaussian.scaled > 0.2
    assert "0 of 1 layers give their input back as random" in found.findings[0].sentence
    assert "better" in found.findings[0].sentence


@pytest.mark.parametrize("is_training", [True, False])
def test_a_batch_norm_counts_to_the_weights(is_training: bool) -> None:
    conv, norm_ = nn.Conv2d(8, 16, 3, bias=True), nn.BatchNorm2d(16)
    with torch.no_grad():
        norm_.weight.normal_()
        norm_.bias.normal_()
        norm_.running_mean.normal_()
        norm_.running_var.uniform_(0.5, 2)
    net = normal(conv, norm_, nn.ReLU(inplace=True)).train(is_training)
    x = torch.randn(6, 8, 8, 8)
    mean, var = norm_.running_mean, norm_.running_var
    if is_training:
        z = conv(x).detach()
        mean, var = z.mean((0, 2, 3)), z.var((0, 2, 3), correction=0)
    scale = (norm_.weight / (var + norm_.eps).sqrt()).detach()
    folded = nn.Conv2d(8, 16, 3)
    with torch.no_grad():
        folded.weight.copy_(conv.weight * scale.view(-1, 1, 1, 1))
        folded.bias.copy_((conv.bias - mean) * scale + norm_.bias)
    found = transposed_reconstruction(net, x).layers[0]
    expected = transposed_reconstruction(nn.Sequential(folded, nn.ReLU()), x).layers[0]
    assert found.end == "1"
    for ours, theirs in zip(found.reconstructions, expected.reconstructions, strict=True):
        values = [value for value in ours.row().values() if value is not None]
        np.testing.assert_allclose(values, [value for value in theirs.row().values() if value is not None], rtol=2e-3)


class Functional(nn.Module):
    """ReLUs of all spellings, and layers without one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.e = (nn.Linear(9, 9) for _ in range(5))
        self.norm = nn.LayerNorm(9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu(self.a(x))
        x = torch.relu_(self.b(x))
        x = self.c(x).clamp_min(0)
        x = nn.functional.gelu(self.d(x))
        return torch.relu(self.norm(self.e(x)))


def test_which_layers_have_a_relu() -> None:
    net = Functional()
    x = torch.randn(5, 9)
    assert [found.layer.name for found in find_relu_layers(net, lambda: net(x))] == ["a", "b", "c"]
    assert [layer.name for layer in transposed_reconstruction(net, x, layers=["c", "b"]).layers] == ["b", "c"]
    with pytest.raises(ConfigError, match=r"nothing to reconstruct here.*got d. Try: a, b, c"):
        transposed_reconstruction(net, x, layers="d")


class Padded(nn.Conv2d):
    """A convolution that pads by itself, as those that came from TensorFlow."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        padded = nn.functional.pad(input, (0, 1, 0, 1))
        return nn.functional.conv2d(padded, self.weight, self.bias, self.stride)


class Strange(nn.Linear):
    """No linear map."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input).square()


def test_layers_with_a_forward_of_their_own() -> None:
    x = torch.rand(8, 16, 6, 6)
    own = normal(Padded(16, 32, 2), nn.ReLU())
    plain = normal(nn.Conv2d(16, 32, 2), nn.ReLU())
    plain.load_state_dict(own.state_dict())
    found = transposed_reconstruction(own, x).layers[0]
    again = transposed_reconstruction(nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), *plain), x).layers[0]
    assert found.n_inputs == again.n_inputs == 64
    # The padded input's inner part, reached as in the other layer, comes back the same.
    assert found.whole.scaled == pytest.approx(again.whole.scaled, abs=0.1)
    strange = transposed_reconstruction(nn.Sequential(Strange(4, 5), nn.ReLU()), torch.rand(6, 4))
    assert strange.layers == ()
    assert any("no affine maps: 0" in finding.sentence for finding in strange.findings)


def test_layers_whose_weight_is_computed() -> None:
    from invertible.layers import ScaledStdConv2d

    x = torch.rand(8, 16, 6, 6)
    found = transposed_reconstruction(nn.Sequential(ScaledStdConv2d(16, 48, 3), nn.ReLU()), x)
    assert [layer.name for layer in found.layers] == ["0"]
    normed = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 20)), nn.ReLU())
    assert len(transposed_reconstruction(normed, torch.rand(9, 6)).layers) == 1


def test_the_transpose_is_autograds() -> None:
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False, dtype=torch.float64)
    x = torch.randn(2, 4, 7, 7, dtype=torch.float64, requires_grad=True)
    z = conv(x)
    y = torch.randn_like(z)
    (expected,) = torch.autograd.grad(z, x, y)
    found = transpose(lambda a, w: nn.functional.conv2d(a, w, None, 2, 1, 1, 2), x.detach(), conv.weight.detach(), y)
    torch.testing.assert_close(found, expected)


def test_batches_count_as_one_and_the_mean_is_a_baseline() -> None:
    net = normal(nn.Linear(10, 40), nn.ReLU())
    x = torch.rand(24, 10)
    parts = transposed_reconstruction(net, list(x.split(8)), keep=[1.0]).layers[0]
    whole = transposed_reconstruction(net, x, keep=[1.0]).layers[0]
    assert parts.whole.error == pytest.approx(whole.whole.error, rel=1e-5)
    assert parts.whole.gaussian.scaled == pytest.approx(whole.whole.gaussian.scaled, rel=1e-5)
    others = (x.sum(0) - x) / 23
    expected = ((x - others).square().sum() / x.square().sum()).item()
    assert parts.mean_error == pytest.approx(expected, rel=1e-5)
    assert whole.mean_error == pytest.approx(expected, rel=1e-5)
    assert transposed_reconstruction(net, x[:1]).layers[0].mean_error is None


@pytest.mark.parametrize("name", NETWORKS)
def test_any_network(name: str) -> None:
    model, shape = NETWORKS[name]()
    found = transposed_reconstruction(model, torch.randn(6, *shape))
    assert all(math.isfinite(layer.whole.scaled) for layer in found.layers)
    if not found.layers:
        assert found.findings[0].severity == "warning"
        assert "nothing measured" in found.findings[0].sentence
    found.plot().figure.clear()


def test_dead_layers_are_findings() -> None:
    found = transposed_reconstruction(normal(nn.Linear(5, 9), nn.ReLU()), torch.zeros(4, 5))
    assert found.findings[0].severity == "error"
    assert "inputs are all zero" in found.findings[0].sentence
    shut = normal(nn.Linear(5, 9), nn.ReLU())
    nn.init.constant_(shut[0].bias, -50.0)
    whole = transposed_reconstruction(shut, torch.rand(4, 5)).layers[0].whole
    assert whole.scaled == 1.0  # nothing comes back
    assert whole.error == 1.0


@pytest.mark.parametrize("caller", [torch.no_grad, torch.inference_mode])
def test_under_any_grad_mode_of_the_caller(caller) -> None:
    net, x = normal(nn.Linear(5, 9), nn.ReLU()), torch.rand(4, 5, requires_grad=True)
    expected = transposed_reconstruction(net, x)
    with caller():
        assert transposed_reconstruction(net, x) == expected
    assert x.grad is None
    bfloat = transposed_reconstruction(normal(nn.Linear(50, 90), nn.ReLU()).bfloat16(), torch.rand(4, 50))
    assert bfloat.layers[0].whole.scaled < 1


def test_files_and_pictures(tmp_path) -> None:
    import matplotlib.pyplot as plt

    net = normal(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
    data = [torch.rand(4, 8)] * 3
    found = transposed_reconstruction(net, data, batches=2, seed=5)
    assert found.is_partial
    assert found == transposed_reconstruction(net, data, batches=2, seed=5)
    found.save(tmp_path / "a.json")
    assert TransposedReconstruction.load(tmp_path / "a.json") == found == Result.load(tmp_path / "a.json")
    assert len(found.table) == 4
    assert len({tuple(row) for row in found.table}) == 1
    assert found.compare(found).get_ylabel().startswith("relative squared error")
    given = plt.subplots()[1]
    assert found.plot(given) is given
    plt.close("all")


@pytest.mark.usefixtures("unchecked")
def test_mistakes_are_said() -> None:
    net, x = normal(nn.Linear(5, 9), nn.ReLU()), torch.rand(4, 5)
    for keep in ([], [0.0], [1.5], [0.5, 0.5]):
        with pytest.raises(ConfigError, match=r"shares in \(0, 1\]"):
            transposed_reconstruction(net, x, keep=keep)
    with pytest.raises(ConfigError, match="threshold >= 0"):
        transposed_reconstruction(net, x, threshold=-1.0)
    with pytest.raises(ConfigError, match="n_controls >= 1"):
        transposed_reconstruction(net, x, n_controls=0)
    with pytest.raises(DtypeError, match="instruments measure modules"):
        transposed_reconstruction(lambda x: x, x)  # pyright: ignore[reportArgumentType]

"""Scaled Weight Standardization, SkipInit, stochastic depth, squeeze-excite: equations, gradients, refusals."""

import math

import pytest
import torch
from torch import nn

from invertible.errors import ConfigError, DtypeError, ShapeError
from invertible.layers import (
    ScaledActivation,
    ScaledStdConv1d,
    ScaledStdConv2d,
    ScaledStdConv3d,
    ScaledStdLinear,
    SkipInit,
    SqueezeExcite,
    StochasticDepth,
    standardize,
    unstandardize,
)
from invertible.layers.weight_standardization import is_standardized, standardize_weight

LAYERS = {
    "1d": (lambda: ScaledStdConv1d(4, 6, 3, padding=1, stride=2, groups=2), (2, 4, 9)),
    "2d": (lambda: ScaledStdConv2d(4, 6, (3, 1), padding="same", dilation=2, padding_mode="circular"), (2, 4, 7, 6)),
    "3d": (lambda: ScaledStdConv3d(2, 3, 2, bias=False), (2, 2, 4, 5, 3)),
    "linear": (lambda: ScaledStdLinear(5, 3), (2, 4, 5)),
}
PLAIN = {"1d": nn.Conv1d, "2d": nn.Conv2d, "3d": nn.Conv3d, "linear": nn.Linear}


def by_hand(weight, gain, eps=1e-4):
    """Channel by channel, in plain Python."""
    rows = []
    for row, g in zip(weight.flatten(1).tolist(), gain.tolist(), strict=True):
        n, mean = len(row), math.fsum(row) / len(row)
        variance = math.fsum((w - mean) ** 2 for w in row) / n
        rows.append([g * (w - mean) / math.sqrt(max(n * variance, eps)) for w in row])
    return torch.tensor(rows, dtype=torch.float64).view_as(weight)


@pytest.fixture(params=LAYERS)
def case(request):
    make, shape = LAYERS[request.param]
    layer = make().double()
    nn.init.normal_(layer.gain)
    nn.init.normal_(layer.weight, mean=2.0)
    return request.param, layer, torch.randn(shape, dtype=torch.float64)


def test_the_layer_computes_with_standardised_weights(case):
    kind, layer, x = case
    expected = by_hand(layer.weight, layer.gain)
    torch.testing.assert_close(layer.standardized(), expected, rtol=1e-12, atol=1e-13)
    plain = PLAIN[kind]
    if kind == "linear":
        twin = plain(5, 3)
    else:
        twin = plain(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding,
                     layer.dilation, layer.groups, layer.bias is not None, layer.padding_mode)  # fmt: skip
    twin = twin.double()
    twin.weight.data.copy_(expected)
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
        twin.bias.data.copy_(layer.bias)
    torch.testing.assert_close(layer(x), twin(x), rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_finite_differences(case):
    _, layer, x = case
    assert torch.autograd.gradcheck(lambda w, g: standardize_weight(w, g), (layer.weight, layer.gain))
    layer(x).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in layer.parameters())


def test_neither_scale_nor_mean_of_the_raw_weight_matters():
    weight = torch.randn(3, 8, dtype=torch.float64)
    torch.testing.assert_close(standardize_weight(5 * weight + 3), standardize_weight(weight))


def test_equal_weights_give_zeros_and_finite_gradients():
    weight = torch.full((2, 9), 0.7, requires_grad=True)
    out = standardize_weight(weight)
    out.sum().backward()
    assert torch.equal(out, torch.zeros(2, 9))
    assert torch.isfinite(weight.grad).all()


def test_small_weights_keep_below_eps():
    weight = torch.tensor([[1e-3, -1e-3]], dtype=torch.float64)  # N Var = 2e-6 < 1e-4
    torch.testing.assert_close(standardize_weight(weight), weight / 1e-2)


def test_half_precision_is_standardised_in_single():
    weight = 30 + torch.randn(4, 4096)
    half = standardize_weight(weight.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), standardize_weight(weight.bfloat16().float()), atol=1e-3, rtol=1e-2)
    layer = ScaledStdLinear(16, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 16)).dtype == torch.bfloat16


def test_initial_values():
    torch.manual_seed(0)
    layer = ScaledStdConv2d(32, 64, 3)
    assert layer.weight.std().item() == pytest.approx((32 * 9) ** -0.5, rel=0.02)
    assert torch.equal(layer.gain, torch.ones(64))
    assert torch.equal(layer.bias, torch.zeros(64))
    assert set(layer.state_dict()) == {"weight", "gain", "bias"}


@pytest.mark.parametrize("activation", ["relu", "silu", "tanh"])
def test_a_deep_stack_keeps_variance_one_and_mean_zero(activation):
    torch.manual_seed(0)
    x, act = torch.randn(2000, 256), ScaledActivation(activation)
    for _ in range(8):
        x = ScaledStdLinear(256, 256)(act(x))
    assert x.var(0).mean().item() == pytest.approx(1, abs=0.1)
    assert x.mean(0).square().mean().item() < 0.01


@pytest.mark.parametrize(
    "make",
    [lambda: ScaledStdLinear(1, 3), lambda: ScaledStdConv2d(4, 4, 1, groups=4), lambda: standardize(nn.Linear(1, 2))],
)
def test_a_single_weight_is_refused(make):
    with pytest.raises(ConfigError, match="a single weight less its mean is 0"):
        make()


def test_standardize_is_the_layer_as_a_parametrization_and_comes_off():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2)).double().eval()
    raw = [net[0].weight.detach().clone(), net[3].weight.detach().clone()]
    assert standardize(net) is net
    for layer, weight in zip((net[0], net[3]), raw, strict=True):
        torch.testing.assert_close(layer.weight, by_hand(weight, torch.ones(len(weight))), rtol=1e-12, atol=1e-13)
        assert is_standardized(layer)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    net(x).sum().backward()
    assert net[0].parametrizations.weight.original.grad is not None
    assert net[0].parametrizations.weight[0].gain.grad is not None
    before = net(x)
    standardize(net)  # a second time changes nothing
    assert len(net[0].parametrizations.weight) == 1
    unstandardize(net)
    torch.testing.assert_close(net(x), before, rtol=1e-12, atol=1e-12)
    assert "0.weight" in net.state_dict()


def test_standardize_leaves_its_own_layers_alone():
    layer = ScaledStdLinear(3, 2)
    assert set(standardize(nn.Sequential(layer)).state_dict()) == {"0.weight", "0.gain", "0.bias"}
    assert is_standardized(unstandardize(layer))


def test_standardize_changes_nothing_when_it_refuses():
    net = nn.Sequential(nn.Linear(3, 2), nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    with pytest.raises(ConfigError, match=r"has a parametrization: expected none, got one on 1"):
        standardize(net)
    assert "0.weight" in net.state_dict()
    with pytest.raises(ConfigError, match="nothing to standardise"):
        standardize(nn.ReLU())
    with pytest.raises(ConfigError, match="eps"):
        standardize(nn.Linear(3, 2), eps=0)


@pytest.mark.usefixtures("unchecked")
def test_standardize_takes_modules():
    with pytest.raises(DtypeError, match=r"an nn.Module"):
        standardize(torch.zeros(2, 2))


def test_skip_init_starts_at_zero_and_learns():
    layer, x = SkipInit(0.2).double(), torch.randn(3, 2, dtype=torch.float64)
    assert torch.equal(layer(x), torch.zeros_like(x))
    layer(x).sum().backward()
    torch.testing.assert_close(layer.skip_gain.grad, 0.2 * x.sum())
    with pytest.raises(ConfigError, match="finite"):
        SkipInit(math.nan)


def test_stochastic_depth_drops_whole_samples_at_its_rate_and_scales_nothing():
    torch.manual_seed(0)
    x = 1 + torch.rand(4000, 2, 3)
    out = StochasticDepth(0.3)(x)
    kept = (out != 0).flatten(1)
    assert torch.equal(kept.any(1), kept.all(1))
    assert torch.equal(out[kept.all(1)], x[kept.all(1)])
    share = 1 - kept.all(1).double().mean().item()
    assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 4000)
    assert StochasticDepth(0.3).eval()(x) is x
    assert StochasticDepth(0.0)(x) is x
    assert StochasticDepth(0.3)(x[:0]).shape == (0, 2, 3)
    assert StochasticDepth(0.3)(x.bfloat16()).dtype == torch.bfloat16
    with pytest.raises(ConfigError, match="0 to below 1"):
        StochasticDepth(1.0)
    with pytest.raises(ShapeError, match="batch"):
        StochasticDepth(0.5)(torch.tensor(1.0))


@pytest.mark.parametrize("space", [(7,), (3, 5), (2, 3, 2)])
def test_squeeze_excite_against_its_equation(space):
    layer, x = SqueezeExcite(8, 0.5).double(), torch.randn(2, 8, *space, dtype=torch.float64)
    pooled = x.mean(tuple(range(2, x.ndim)))
    hidden = (pooled @ layer.squeeze.weight.T + layer.squeeze.bias).clamp(min=0)
    gate = 2 / (1 + torch.exp(-(hidden @ layer.excite.weight.T + layer.excite.bias)))
    torch.testing.assert_close(layer(x), x * gate.view(2, 8, *[1] * len(space)), rtol=1e-12, atol=1e-12)
    assert layer.squeeze.out_features == 4


def test_squeeze_excite_refuses():
    with pytest.raises(ConfigError, match="ratio=0"):
        SqueezeExcite(8, 0.0)
    with pytest.raises(ShapeError, match="channels"):
        SqueezeExcite(8)(torch.zeros(2, 4, 3, 3))
    with pytest.raises(ShapeError, match="space"):
        SqueezeExcite(8)(torch.zeros(2, 8))
    assert SqueezeExcite(2, 0.25).squeeze.out_features == 1

"""RevNet: sizes, the two-stream equations, invertible stages, refusals."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from invertible import Chain, models
from invertible.errors import ConfigError
from invertible.models import revnet

# Exact, and in millions as Gomez et al. 2017 print them in table 2 (from memory).
PARAMETERS = {38: (464_890, 0.46), 110: (1_729_194, 1.73), 164: (1_748_778, 1.75)}
IMAGENET = {56: 27_553_128, 104: 45_428_072}
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
BLOCKS = ["basic", "bottleneck"]


def n_parameters(model):
    return sum(p.numel() for p in model.parameters())


def small(block="basic", dtype=torch.float64, strides=(1, 2, 2)):
    net = revnet((3, 16, 16), 10, (3, 2, 2), (8, 16, 20), strides, block).to(dtype).train()
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(16, 3, 16, 16, dtype=dtype))
    return net.eval()


@pytest.mark.parametrize("depth", PARAMETERS)
def test_cifar_networks_have_the_published_numbers_of_parameters(depth):
    exact, millions = PARAMETERS[depth]
    with torch.device("meta"):
        n = n_parameters(getattr(models, f"revnet{depth}")())
    assert n == exact
    assert round(n / 1e6, 2) == millions


@pytest.mark.parametrize("depth", IMAGENET)
def test_imagenet_networks_have_their_numbers_of_parameters(depth):
    with torch.device("meta"):
        net = getattr(models, f"revnet{depth}")().eval()
        assert n_parameters(net) == IMAGENET[depth]
        x = net.stem(torch.zeros(1, 3, 224, 224))
        for transition, stage in zip(net.transitions, net.stages, strict=True):
            x = stage(transition(x))
    assert x.shape == (1, 3328, 7, 7)


@pytest.mark.parametrize("depth", [38, 110, 164, 56, 104])
def test_depth_counts_the_layers_with_weights(depth):
    with torch.device("meta"):
        net = getattr(models, f"revnet{depth}")()
    layers = [m for name, m in net.named_modules() if isinstance(m, nn.Conv2d) and "shortcut" not in name]
    assert len(layers) + 1 == depth


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("block", BLOCKS)
def test_every_stage_inverts(block, dtype):
    net = small(block, dtype)
    x = net.stem(torch.randn(4, 3, 16, 16, dtype=dtype))
    with torch.no_grad():
        for transition, stage in zip(net.transitions, net.stages, strict=True):
            assert isinstance(stage, Chain)
            start = transition(x)
            x = stage(start)
            torch.testing.assert_close(stage.inverse(x), start, atol=TOLERANCE[dtype], rtol=0)
            torch.testing.assert_close(stage.inverse_with_logdet(x)[1], torch.zeros(4, dtype=dtype))


@pytest.mark.parametrize("block", BLOCKS)
def test_stage_is_the_two_stream_recursion(block):
    stage = small(block).stages[1]
    n = 16 if block == "basic" else 64
    x1, x2 = torch.randn(2, 2, n // 2, 8, 8, dtype=torch.float64)
    y = stage(torch.cat([x1, x2], dim=1))
    for first, second in stage:
        x1 = x1 + first.network(x2)
        x2 = x2 + second.network(x1)
    torch.testing.assert_close(y, torch.cat([x1, x2], dim=1), atol=1e-12, rtol=0)


def residual(x, layers, stride):
    """BatchNorm, ReLU and convolution in turn; the first convolution carries the stride."""
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d):
            x = F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias)
        elif isinstance(layer, nn.Conv2d):
            x = F.conv2d(x, layer.weight, stride=stride, padding=layer.weight.shape[-1] // 2)
            stride = 1
        else:
            x = torch.relu(x)
    return x


@pytest.mark.parametrize("block", BLOCKS)
def test_downsampling_unit_against_its_equations(block):
    unit, n = small(block).transitions[1], 4 if block == "basic" else 16
    x1, x2 = torch.randn(2, 2, n, 6, 6, dtype=torch.float64)

    def shortcut(x, which):
        if block == "bottleneck":
            return F.conv2d(x, unit.shortcuts[which].weight, stride=2)
        zeros = torch.zeros(2, 2, 3, 3, dtype=torch.float64)
        means = (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4
        return torch.cat([zeros, means, zeros], dim=1)

    y1 = shortcut(x1, 0) + residual(x2, unit.residuals[0], 2)
    y2 = shortcut(x2, 1) + residual(y1, unit.residuals[1], 1)
    y = torch.cat([y1, y2], dim=1)
    torch.testing.assert_close(unit(torch.cat([x1, x2], dim=1)), y, atol=1e-12, rtol=0)


def test_logits_are_the_composition_of_the_parts():
    net, x = small(), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    conv, norm, _ = net.stem
    z = residual(x, [conv, norm, nn.ReLU()], 1)
    for transition, stage in zip(net.transitions, net.stages, strict=True):
        z = stage(transition(z))
    norm, _, _, _, linear = net.head
    pooled = residual(z, [norm, nn.ReLU()], 1).mean((2, 3))
    torch.testing.assert_close(net(x), pooled @ linear.weight.T + linear.bias, atol=1e-12, rtol=0)


def test_stem_activates_for_the_first_residual_function():
    basic, bottleneck = small("basic"), small("bottleneck")
    assert isinstance(basic.transitions[0], nn.Identity)
    assert isinstance(basic.stages[0][0][0].network[0], nn.Conv2d)
    assert isinstance(basic.stages[0][0][1].network[0], nn.BatchNorm2d)
    assert isinstance(basic.stages[0][1][0].network[0], nn.BatchNorm2d)
    assert isinstance(bottleneck.transitions[0].residuals[0][0], nn.Conv2d)
    assert isinstance(bottleneck.stages[0][0][0].network[0], nn.BatchNorm2d)


def test_stage_lengths():
    assert [len(stage) for stage in small("basic").stages] == [3, 1, 1]
    assert [len(stage) for stage in small("bottleneck").stages] == [2, 1, 1]


def test_there_is_no_reconstruction():
    assert not hasattr(small(), "reconstruct")


@pytest.mark.parametrize("in_shape", [(1, 28, 28), (3, 27, 31), (4, 2, 2)])
@pytest.mark.parametrize("block", BLOCKS)
def test_any_image_shape_and_single_blocks(in_shape, block):
    net = revnet(in_shape, 4, (1, 1, 1), (8, 8, 12), (1, 2, 2), block)
    assert net(torch.rand(2, *in_shape)).shape == (2, 4)


def test_shortcut_pads_the_larger_half_behind_if_odd():
    shortcut = revnet((3, 8, 8), 4, (1, 1), (4, 10), (1, 2)).transitions[1].shortcuts[0]
    out = shortcut(torch.ones(1, 2, 5, 4))
    assert out[0, :, 0, 0].tolist() == [0, 1, 1, 0, 0]
    assert torch.equal(out[:, 1:3], torch.ones(1, 2, 3, 2))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"channels": (32, 63, 112)}, "even numbers"),
        ({"channels": (32, 64, 48)}, "bottleneck"),
        ({"channels": (32, 64)}, "one entry per stage"),
        ({"n_blocks": (3, 0, 3)}, "numbers >= 1"),
        ({"n_classes": 0}, "numbers >= 1"),
    ],
)
def test_impossible_networks_are_refused(arguments, says):
    with pytest.raises(ConfigError, match=says):
        revnet(**arguments)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("arguments", [{"block": "preact-basic"}, {"stem": "mnist"}])
def test_unknown_options_are_refused(arguments):
    with pytest.raises(ConfigError, match="revnet has a bad"):
        revnet(**arguments)

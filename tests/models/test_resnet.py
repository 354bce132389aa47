"""ResNet: sizes as published, blocks against their equations, refusals."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from invertible import models
from invertible.errors import ConfigError
from invertible.models import irevnet, resnet

# ImageNet: the numbers everybody counts. CIFAR: He et al. 2016, table 6, in millions; 164: Gomez et al. 2017, table 2.
IMAGENET = {18: 11_689_512, 34: 21_797_672, 50: 25_557_032, 101: 44_549_160, 152: 60_192_808}
CIFAR = {20: (269_722, 0.27), 32: (464_154, 0.46), 44: (658_586, 0.66), 56: (853_018, 0.85), 110: (1_727_962, 1.7)}


def n_parameters(model):
    return sum(p.numel() for p in model.parameters())


def random_statistics(model):
    """Give every BatchNorm weights and statistics of its own."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(std=0.3)
    return model.double().eval()


def norm(x, bn):
    shape = (1, -1, 1, 1)
    scale = bn.weight / (bn.running_var + bn.eps).sqrt()
    return (x - bn.running_mean.view(shape)) * scale.view(shape) + bn.bias.view(shape)


@pytest.mark.parametrize("depth", IMAGENET)
def test_imagenet_networks_have_the_known_numbers_of_parameters(depth):
    with torch.device("meta"):
        net = getattr(models, f"resnet{depth}")()
        assert n_parameters(net) == IMAGENET[depth]
        assert net.stages(net.stem(torch.zeros(1, 3, 224, 224))).shape[2:] == (7, 7)


@pytest.mark.parametrize("depth", CIFAR)
def test_cifar_networks_have_the_published_numbers_of_parameters(depth):
    exact, millions = CIFAR[depth]
    with torch.device("meta"):
        n = n_parameters(getattr(models, f"resnet{depth}")())
    assert n == exact
    assert f"{n / 1e6:.{len(str(millions)) - 2}f}" == str(millions)


def test_preactivated_resnet164():
    with torch.device("meta"):
        net = models.resnet164()
        assert n_parameters(net) == 1_703_258
        assert net.stages(net.stem(torch.zeros(1, 3, 32, 32))).shape == (1, 256, 8, 8)


@pytest.mark.parametrize("depth", [20, 110, 164])
def test_depth_counts_the_layers_with_weights_on_the_longest_path(depth):
    with torch.device("meta"):
        net = getattr(models, f"resnet{depth}")()
    layers = [m for name, m in net.named_modules() if isinstance(m, nn.Conv2d) and "shortcut" not in name]
    assert len(layers) + 1 == depth


def test_basic_block_with_projection_against_its_equation():
    net = random_statistics(resnet((2, 6, 6), 3, (1,), (4,), (2,), shortcut="projection"))
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    conv, bn, _ = net.stem
    stem = torch.relu(norm(F.conv2d(x, conv.weight, padding=1), bn))
    block = net.stages[0][0]
    conv1, bn1, _, conv2, bn2 = block.residual
    hidden = torch.relu(norm(F.conv2d(stem, conv1.weight, stride=2, padding=1), bn1))
    residual = norm(F.conv2d(hidden, conv2.weight, padding=1), bn2)
    shortcut = norm(F.conv2d(stem, block.shortcut[0].weight, stride=2), block.shortcut[1])
    out = torch.relu(shortcut + residual)
    torch.testing.assert_close(net.stages(net.stem(x)), out, atol=1e-12, rtol=0)
    linear = net.head[2]
    torch.testing.assert_close(net(x), out.mean((2, 3)) @ linear.weight.T + linear.bias, atol=1e-12, rtol=0)


def test_padding_takes_every_second_pixel_and_appends_zeros():
    net = random_statistics(resnet((2, 7, 6), 3, (1, 1), (4, 6), (1, 2)))
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64)
    shortcut = net.stages[1][0].shortcut(x)
    assert shortcut.shape == (2, 6, 4, 3)
    assert torch.equal(shortcut[:, :4], x[:, :, ::2, ::2])
    assert torch.equal(shortcut[:, 4:], torch.zeros(2, 2, 4, 3, dtype=torch.float64))
    assert isinstance(net.stages[0][0].shortcut, nn.Identity)


def test_preactivated_bottlenecks_against_their_equations():
    net = random_statistics(resnet((3, 4, 4), 2, (2,), (2,), (1,), "preact-bottleneck", "cifar", "projection"))
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    first, second = net.stages[0]

    def residual(z, layers):
        for layer in layers:
            size = layer.weight.shape[-1] if isinstance(layer, nn.Conv2d) else 0
            z = F.conv2d(z, layer.weight, padding=size // 2) if size else z
            z = torch.relu(norm(z, layer)) if isinstance(layer, nn.BatchNorm2d) else z
        return z

    shared = torch.relu(norm(x, first.before[0]))
    y = F.conv2d(shared, first.shortcut.weight) + residual(shared, first.residual)
    torch.testing.assert_close(first(x), y, atol=1e-12, rtol=0)
    torch.testing.assert_close(second(y), y + residual(y, second.residual), atol=1e-12, rtol=0)
    assert [type(m) for m in net.stem] == [nn.Conv2d]


def test_preactivated_network_whose_first_block_keeps_the_shape_activates_before_the_shortcut():
    net = random_statistics(resnet((3, 4, 4), 2, (2,), (4,), (1,), "preact-basic"))
    x = torch.randn(1, 4, 4, 4, dtype=torch.float64)
    block = net.stages[0][0]
    shared = torch.relu(norm(x, block.before[0]))
    torch.testing.assert_close(block(x), shared + block.residual(shared), atol=1e-12, rtol=0)
    assert len(net.stages[0][1].before) == 0


def test_bottleneck_has_its_stride_in_the_middle():
    net = resnet((3, 8, 8), 2, (1,), (4,), (2,), "bottleneck", shortcut="projection")
    strides = [m.stride for m in net.stages[0][0].residual if isinstance(m, nn.Conv2d)]
    assert strides == [(1, 1), (2, 2), (1, 1)]


def test_imagenet_stem_divides_the_image_by_four():
    net = resnet((1, 33, 40), 2, (1,), (4,), (1,), stem="imagenet")
    assert net.stem(torch.rand(1, 1, 33, 40)).shape == (1, 4, 9, 10)


def test_initial_weights_have_the_variance_of_he():
    torch.manual_seed(0)
    conv = resnet((3, 8, 8), 2, (1, 1), (32, 64), (1, 2)).stages[1][0].residual[0]
    torch.testing.assert_close(conv.weight.std().item(), (2 / (9 * 64)) ** 0.5, rtol=0.03, atol=0)


@pytest.mark.parametrize("in_shape", [(1, 28, 28), (3, 27, 31), (5, 2, 2), (3, 1, 1)])
def test_any_image_shape(in_shape):
    assert resnet(in_shape, n_classes=4, n_blocks=(1, 1, 1))(torch.rand(2, *in_shape)).shape == (2, 4)


def test_width_matches_the_parameters_of_an_irevnet():
    with torch.device("meta"):
        target = n_parameters(irevnet())
        net = resnet(n_blocks=(9, 9, 9), channels=(43, 87, 174))
    assert abs(n_parameters(net) / target - 1) < 0.01


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"n_blocks": (3, 3)}, "one entry per stage"),
        ({"n_blocks": (), "channels": (), "strides": ()}, "one entry per stage"),
        ({"n_blocks": (3, 0, 3)}, "numbers >= 1"),
        ({"n_classes": 0}, "numbers >= 1"),
        ({"in_shape": (0, 32, 32)}, "numbers >= 1"),
        ({"channels": (16, 32, 24)}, "projection"),
    ],
)
def test_impossible_networks_are_refused(arguments, says):
    with pytest.raises(ConfigError, match=says):
        resnet(**arguments)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"in_shape": (32, 32)}, "channels, height, width"),
        ({"block": "botleneck"}, "basic or bottleneck or preact-basic"),
        ({"stem": "mnist"}, "cifar or imagenet"),
        ({"shortcut": "A"}, "projection or padding"),
    ],
)
def test_unknown_options_are_refused(arguments, says):
    with pytest.raises(ConfigError, match=says):
        resnet(**arguments)

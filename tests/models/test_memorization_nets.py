"""The networks of Zhang et al. 2017: as many parameters as they count, any image, forward passes by hand."""

import pytest
import torch
from torch.nn import functional as F

from invertible.errors import ConfigError, ShapeError
from invertible.models import build, mlp, small_alexnet, small_inception
from invertible.models.small_inception import ShiftedBatchNorm

PUBLISHED = {
    "small_inception": ({}, 1_649_402),
    "small_inception without BN": ({"batch_norm": False}, 1_649_402),
    "small_alexnet": ({}, 1_387_786),
    "mlp 3x512": ({}, 1_735_178),
    "mlp 1x512": ({"hidden": [512]}, 1_209_866),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_many_as_published(name):
    arguments, n = PUBLISHED[name]
    with torch.device("meta"):
        net = build(name.split()[0], **arguments)
    assert sum(p.numel() for p in net.parameters()) == n


@pytest.mark.parametrize("make", [small_inception, small_alexnet, mlp])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 9, 13), (1, 8, 8), (1, 1, 1)])
def test_any_image(make, shape):
    options = {"width": 0.05} if make is small_inception else {}
    net = make(shape, 7, **options)
    x = torch.rand(2, *shape)
    net(x).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert net.eval()(x).shape == (2, 7)
    with pytest.raises(ShapeError):
        net(torch.rand(2, shape[0] + 1, *shape[1:]))


def test_an_mlp_of_rows():
    net = mlp((6,), 3, (5,)).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    first, last = net.layers[1], net.layers[3]
    torch.testing.assert_close(net(x), (x @ first.weight.T + first.bias).relu() @ last.weight.T + last.bias)


def test_inception_against_its_plan():
    """Modules by hand: 1x1 beside 3x3; every second pixel of a 3x3 convolution beside the maximum of 3x3."""
    net = small_inception((3, 12, 12), width=0.1).double()
    for module in net.modules():
        if isinstance(module, ShiftedBatchNorm):
            torch.nn.init.normal_(module.shift)
    x = torch.randn(5, 3, 12, 12, dtype=torch.float64)
    by_hand = layer(net.features[0], x)
    for module in net.features[1:]:
        one, other = module.branches
        second = F.max_pool2d(by_hand, 3, 2, 1) if isinstance(other, torch.nn.MaxPool2d) else layer(other, by_hand)
        by_hand = torch.cat([layer(one, by_hand), second], 1)
    by_hand = net.head[2](by_hand.mean((2, 3)))
    torch.testing.assert_close(net(x), by_hand)


def layer(conv, x):
    weight, norm = conv[0].weight, conv[1]
    x = F.conv2d(x, weight, stride=conv[0].stride, padding=weight.shape[-1] // 2)
    x = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), correction=0, keepdim=True) + norm.eps).sqrt()
    return (x + norm.shift[:, None, None]).relu()


def test_downsampling_quarters_crops_of_28():
    assert small_inception(width=0.1).features(torch.rand(1, 3, 28, 28)).shape[2:] == (7, 7)
    assert small_alexnet().features(torch.rand(1, 3, 28, 28)).shape == (1, 64, 7, 7)


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (small_inception, {"width": 0.0}),
        (small_inception, {"n_classes": 0}),
        (small_alexnet, {"channels": ()}),
        (small_alexnet, {"hidden": (0,)}),
        (mlp, {"hidden": (4, 0)}),
        (mlp, {"in_shape": ()}),
    ],
)
def test_impossible_networks_are_refused(make, arguments):
    with pytest.raises(ConfigError):
        make(**arguments)

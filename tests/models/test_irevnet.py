"""i-RevNet: sizes, equations, exact inversion, refusals."""

import copy

import pytest
import torch
from torch import nn

from invertible import Chain
from invertible.errors import ConfigError, NotInImageError
from invertible.layers import InjectivePad, Squeeze
from invertible.models import IRevNetBlock, irevnet, irevnet_a, irevnet_b, irevnet_digits, irevnet_fashion_mnist

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
SMALL = {
    "bijective": lambda: irevnet((3, 16, 16), 10, (2, 3), (2, 2), None, init_squeeze=2),
    "bijective, one channel": irevnet_fashion_mnist,
    "digits": irevnet_digits,
    "injective": lambda: irevnet((3, 16, 16), 10, (3, 2), (1, 2), (16, 64)),
    "injective, twice": lambda: irevnet((1, 8, 8), 10, (1, 2, 1), (1, 2, 1), (4, 16, 20), init_squeeze=2),
    "stride 4": lambda: irevnet((2, 16, 8), 10, (2,), (4,), None),
}


def n_parameters(model):
    return sum(p.numel() for p in model.parameters())


def trained_a_little(model, dtype=torch.float32):
    """Give BatchNorm statistics that are not its initial ones."""
    model.to(dtype).train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(16, *model.in_shape, dtype=dtype))
    return model.eval()


def test_cifar_network_has_the_released_number_of_parameters():
    with torch.device("meta"):
        assert n_parameters(irevnet()) == 6_274_826


def test_imagenet_networks_have_their_number_of_parameters():
    with torch.device("meta"):
        assert n_parameters(irevnet_b()) == 125_120_356
        assert n_parameters(irevnet_a()) == 180_999_208  # the paper's table: 181 M


@pytest.mark.parametrize("build", [irevnet_a, irevnet_b])
def test_imagenet_networks_keep_every_number(build):
    with torch.device("meta"):
        net, x = build().eval(), torch.zeros(2, 3, 224, 224)
    z = net.body(x)
    assert z[0].numel() >= x[0].numel()
    assert z.shape[2:] == (7, 7)
    assert net.head(z).shape == (2, 1000)
    assert net.body.inverse(z).shape == x.shape if build is irevnet_b else True


def test_bijective_imagenet_network_is_volume_preserving_in_size():
    with torch.device("meta"):
        z = irevnet_b().eval().body(torch.zeros(1, 3, 224, 224))
    assert z.shape == (1, 3072, 7, 7)
    assert z.numel() == 3 * 224 * 224


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", SMALL)
def test_reconstruction(case, dtype):
    torch.manual_seed(0)
    net = trained_a_little(SMALL[case](), dtype)
    x = torch.randn(5, *net.in_shape, dtype=dtype)
    with torch.no_grad():
        z = net.representation(x)
        torch.testing.assert_close(net.reconstruct(z), x, atol=TOLERANCE[dtype], rtol=0)
    grows = "injective" in case
    assert (z.numel() > x.numel()) if grows else (z.numel() == x.numel())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_reconstruction_through_all_54_blocks_of_the_cifar_network(dtype):
    torch.manual_seed(0)
    net = irevnet().to(dtype)
    with torch.no_grad():
        net(torch.randn(4, 3, 32, 32, dtype=dtype))
        x = torch.randn(1, 3, 32, 32, dtype=dtype)
        back = net.eval().reconstruct(net.representation(x))
    torch.testing.assert_close(back, x, atol=TOLERANCE[dtype], rtol=0)


def test_injective_network_refuses_what_it_never_produces():
    net = trained_a_little(SMALL["injective"](), torch.float64)
    z = net.representation(torch.randn(2, 3, 16, 16, dtype=torch.float64))
    with pytest.raises(NotInImageError):
        net.reconstruct(z + torch.randn_like(z))


def test_log_determinant_is_zero():
    net = trained_a_little(SMALL["bijective"](), torch.float64)
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    z, logdet = net.body.forward_with_logdet(x)
    assert torch.equal(z, net.body(x))
    assert torch.equal(logdet, torch.zeros(3, dtype=torch.float64))


def test_jacobian_of_a_bijective_network_has_determinant_one():
    torch.manual_seed(0)
    net = trained_a_little(irevnet((2, 4, 4), 2, (1, 2), (2, 2), None, (3, 3)), torch.float64)
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: net.body(v).flatten(), x).reshape(32, 32)
    torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet.item(), 0.0, atol=1e-9, rtol=0)


def space_to_depth(x, b):
    """Offset slow, channel fast, by slicing."""
    return torch.cat([x[:, :, i::b, j::b] for i in range(b) for j in range(b)], dim=1)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_block_equation_and_its_inverse(stride):
    torch.manual_seed(0)
    residual = nn.Conv2d(2, 2 * stride**2, 3, stride=stride, padding=1).double()
    block = IRevNetBlock(residual, stride)
    x1, x2 = torch.randn(2, 3, 2, 6, 12, dtype=torch.float64)
    y1, y2 = block((x1, x2))
    torch.testing.assert_close(y1, space_to_depth(x2, stride), atol=0, rtol=0)
    torch.testing.assert_close(y2, space_to_depth(x1, stride) + residual(x2), atol=0, rtol=0)
    for back, x in zip(block.inverse((y1, y2)), (x1, x2), strict=True):
        torch.testing.assert_close(back, x, atol=1e-12, rtol=0)


def test_forward_is_the_composition_of_its_parts():
    torch.manual_seed(0)
    net = trained_a_little(SMALL["injective, twice"](), torch.float64)
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    z = x
    for member in net.body:
        z = member(z)
    torch.testing.assert_close(net.representation(x), z, atol=1e-12, rtol=0)
    torch.testing.assert_close(net(x), net.head(z), atol=1e-12, rtol=0)
    norm, _, _, _, linear = net.head
    pooled = torch.relu(norm(z)).mean(dim=(2, 3))
    torch.testing.assert_close(net(x), pooled @ linear.weight.T + linear.bias, atol=1e-12, rtol=0)


def test_members_of_the_body():
    kinds = [type(member) for member in SMALL["injective, twice"]().body]
    block = IRevNetBlock
    assert kinds == [Squeeze, InjectivePad, block, block, block, InjectivePad, block]


def test_first_residual_has_no_activation_and_batchnorm_momenta_are_the_released_ones():
    net = irevnet((3, 16, 16), 10, (1, 1), (1, 2), (8, 32))
    _, first, second = net.body
    assert isinstance(first.residual[0], nn.Conv2d)
    assert isinstance(second.residual[0], nn.BatchNorm2d)
    assert (second.residual[0].momentum, net.head[0].momentum) == (0.1, 0.9)


def test_dropout_is_active_in_training_only():
    torch.manual_seed(0)
    net = trained_a_little(irevnet((2, 8, 8), 10, (2,), (2,), None, (16,), dropout=0.5), torch.float64)
    x = torch.randn(4, 2, 8, 8, dtype=torch.float64)
    assert torch.equal(net(x), net(x))
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.train()
    assert not torch.equal(net(x), net(x))


def test_lists_and_other_image_shapes():
    net = irevnet((6, 12, 20), 3, [1, 1], [2, 2], None, hidden=[4, 4]).eval()
    assert net.representation(torch.rand(1, 6, 12, 20)).shape == (1, 96, 3, 5)


def test_odd_number_of_channels_without_padding_is_padded_to_an_even_one():
    net = trained_a_little(irevnet((3, 8, 8), 2, (2,), (1,), (2,), hidden=(2,)), torch.float64)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert net.representation(x).shape == (2, 4, 8, 8)
    torch.testing.assert_close(net.reconstruct(net.representation(x)), x, atol=1e-9, rtol=0)


def test_first_residual_of_the_cifar_network_sees_only_padding():
    """Three channels padded to 32 leave nothing but zeros in the second stream, so F of the first block stays idle."""
    torch.manual_seed(0)
    net = irevnet((3, 8, 8), 10, (2, 1), (1, 2), (16, 64), dropout=0.0).train()
    net(torch.randn(8, 3, 8, 8)).square().sum().backward()
    idle = {name for name, p in net.named_parameters() if not p.grad.abs().sum() > 0}
    assert idle == {name for name, _ in net.named_parameters() if name.startswith("body.1.")}


def test_deepcopy_of_the_body_still_inverts():
    net = trained_a_little(SMALL["bijective"](), torch.float64)
    body = copy.deepcopy(net.body)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    assert isinstance(body, Chain)
    assert torch.equal(body(x), net.body(x))
    torch.testing.assert_close(body.inverse(net.body(x)), x, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"in_shape": (3, 30, 32)}, "multiples of 4"),
        ({"in_shape": (3, 32, 33)}, "multiples of 4"),
        ({"n_blocks": (18, 18)}, "one entry per stage"),
        ({"hidden": (4,)}, "one entry per stage"),
        ({"n_blocks": (), "strides": (), "channels": ()}, "one entry per stage"),
        ({"n_blocks": (18, 0, 18)}, "numbers >= 1"),
        ({"strides": (1, 0, 2)}, "numbers >= 1"),
        ({"channels": (2, 8, 32)}, "numbers >= 1"),
        ({"channels": (16, 64, 200)}, "does not fit"),
        ({"channels": (16, 80, 320)}, "does not fit"),
        ({"channels": (16, 64, 300)}, "does not fit"),
    ],
)  # fmt: skip
def test_impossible_networks_are_refused(arguments, says):
    with torch.device("meta"), pytest.raises(ConfigError, match=says):
        irevnet(**arguments)


def test_stage_that_would_drop_channels_is_refused():
    with pytest.raises(ConfigError, match="does not fit"):
        irevnet((8, 8, 8), 2, (1,), (1,), (3,), hidden=(2,))


@pytest.mark.usefixtures("unchecked")
def test_image_shape_without_channels_is_refused():
    with pytest.raises(ConfigError, match="channels, height, width"):
        irevnet((32, 32))


def test_odd_number_of_channels_before_a_stride_is_refused():
    with pytest.raises(ConfigError, match="even"):
        irevnet((3, 8, 8), 2, (1,), (2,), None)


@pytest.mark.parametrize(
    "arguments", [{"n_blocks": 2}, {"strides": (1.0, 2.0, 2.0)}, {"channels": "16"}, {"hidden": 4}]
)
@pytest.mark.usefixtures("unchecked")
def test_what_is_no_list_of_numbers(arguments: dict) -> None:
    with pytest.raises(ConfigError, match=r"is no list: expected whole numbers, one per stage"):
        irevnet(**arguments)

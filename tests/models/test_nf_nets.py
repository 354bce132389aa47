"""NF-ResNet and NF-RegNet: counts in closed form, blocks against their equations, variances against theory."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from invertible import models
from invertible._tap_points import HasTapPoints
from invertible.errors import ConfigError, NonFiniteError, ShapeError
from invertible.layers import gain
from invertible.models import nf_regnet, nf_resnet, resnet

DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3), 288: (24,) * 4, 600: (50,) * 4}


def n_parameters(model):
    return sum(p.numel() for p in model.parameters())


def conv_count(n_in, n_out, size, groups=1):
    return n_out * (n_in // groups * size**2 + 2)  # each channel has a gain and a bias


def resnet_count(n_blocks, widths, se=0.0, n_classes=1000, stem=7):
    total, n_in = conv_count(3, widths[0], stem), widths[0]
    for n, w in zip(n_blocks, widths, strict=True):
        out, hidden = 4 * w, int(4 * w * se)
        gate = 2 * out * hidden + out + hidden if se else 0
        first = conv_count(n_in, w, 1) + conv_count(n_in, out, 1)
        total += first + (n - 1) * conv_count(out, w, 1)
        total += n * (conv_count(w, w, 3) + conv_count(w, out, 1) + gate + 1)  # 1: the skip gain
        n_in = out
    return total + n_classes * (n_in + 1)


def regnet_count(widths, n_blocks):
    widths = [3 * w // 4 for w in widths]
    total, n_in, factor = conv_count(3, widths[0], 3), widths[0], 4 / 4
    for n, w in zip(n_blocks, widths, strict=True):
        for i in range(n):
            inner = int(n_in * factor) // 8 * 8
            hidden = inner // 2
            total += conv_count(n_in, inner, 1) + conv_count(inner, inner, 3, inner // 8) + conv_count(inner, w, 1) + 1
            total += 2 * inner * hidden + inner + hidden
            total += conv_count(n_in, w, 1) if i == 0 else 0
            n_in, factor = w, 9 / 4
    last = 1280 * n_in // 440
    return total + conv_count(n_in, last, 1) + 1000 * (last + 1)


@pytest.mark.parametrize("depth", DEPTHS)
def test_nf_resnets_have_the_counted_parameters(depth):
    with torch.device("meta"):
        make = getattr(models, f"nf_resnet{depth}")
        net = make()
        assert n_parameters(net) == resnet_count(DEPTHS[depth], (64, 128, 256, 512))
        assert f"{n_parameters(net):,}" in make.__doc__
        if depth == 50:
            gated = make(se_ratio=0.25)
            assert n_parameters(gated) == resnet_count(DEPTHS[depth], (64, 128, 256, 512), 0.25)
            assert net.stages[0](net.stem(torch.zeros(1, 3, 224, 224))).shape == (1, 256, 56, 56)
    layers = [m for n, m in net.named_modules() if isinstance(m, nn.Conv2d) and "shortcut" not in n]
    assert len(layers) == 3 * sum(DEPTHS[depth]) + 1


def test_nf_resnet_50_to_152_are_resnets_with_a_skip_gain_per_block():
    # The counts everybody knows; gain and bias of a convolution stand for BatchNorm's weight and bias.
    for depth, count in {50: 25_557_032, 101: 44_549_160, 152: 60_192_808}.items():
        assert resnet_count(DEPTHS[depth], (64, 128, 256, 512)) == count + sum(DEPTHS[depth])


REGNETS = [
    ((48, 104, 208, 440), (1, 3, 6, 6)), ((48, 104, 208, 440), (2, 4, 7, 7)), ((56, 112, 232, 488), (2, 4, 8, 8)),
    ((56, 128, 248, 528), (2, 5, 9, 9)), ((64, 144, 288, 616), (2, 6, 11, 11)), ((80, 168, 336, 704), (3, 7, 14, 14)),
]  # fmt: skip


@pytest.mark.parametrize("level", range(6))
def test_nf_regnets_have_the_counted_parameters(level):
    with torch.device("meta"):
        make = getattr(models, f"nf_regnet_b{level}")
        net = make()
        assert n_parameters(net) == regnet_count(*REGNETS[level])
        assert f"{n_parameters(net):,}" in make.__doc__


def test_the_twin_has_the_same_convolutions():
    shapes = []
    arguments = ((3, 8, 8), 5, (2, 1), (4, 8), (1, 2))
    for net in (resnet(*arguments, "preact-bottleneck", "cifar", "projection"), nf_resnet(*arguments)):
        shapes.append(sorted(tuple(m.weight.shape) for m in net.modules() if isinstance(m, nn.Conv2d)))
    assert shapes[0] == shapes[1]


def ws(conv, x):
    w = conv.weight.flatten(1)
    w = (w - w.mean(1, keepdim=True)) / (w.shape[1] * w.var(1, correction=0, keepdim=True)).clamp(min=1e-4).sqrt()
    w = (conv.gain[:, None] * w).view_as(conv.weight)
    return F.conv2d(x, w, conv.bias, conv.stride, conv.padding, groups=conv.groups)


def excited(se, x):
    hidden = torch.relu(F.linear(x.mean((2, 3)), se.squeeze.weight, se.squeeze.bias))
    return 2 * torch.sigmoid(F.linear(hidden, se.excite.weight, se.excite.bias))[:, :, None, None] * x


def random(net):
    for p in net.parameters():
        nn.init.normal_(p, std=0.5)
    return net.double().eval()


@pytest.mark.parametrize("scaling", ["act(x)/beta", "act(x/beta)"])
def test_nf_resnet_against_its_equations(scaling):
    arguments = {"activation": "silu", "se_ratio": 0.5, "alpha": 0.3, "scaling": scaling}
    net = random(nf_resnet((2, 6, 6), 3, (2, 1), (4, 6), (1, 2), **arguments))
    x, gamma = torch.randn(2, 2, 6, 6, dtype=torch.float64), gain("silu")

    def g(x, beta):
        return gamma * F.silu(x) / beta if scaling == "act(x)/beta" else gamma * F.silu(x / beta)

    y = ws(net.stem[0], x)
    # The third block resets, but its input has grown two blocks long.
    betas = [1.0, math.sqrt(1 + 0.09), math.sqrt(1 + 2 * 0.09)]
    for block, beta in zip([*net.stages[0], *net.stages[1]], betas, strict=True):
        z = g(y, beta)
        conv0, _, conv1, _, conv2, se = block.residual
        f = excited(se, ws(conv2, g(ws(conv1, g(ws(conv0, z), 1)), 1)))
        y = (y if block.shortcut is None else ws(block.shortcut, z)) + 0.3 * block.skip.skip_gain * f
        assert block.beta == pytest.approx(beta, rel=1e-12)
    logits = F.linear(g(y, 1).mean((2, 3)), net.head[-1].weight, net.head[-1].bias)
    torch.testing.assert_close(net(x), logits, rtol=1e-11, atol=1e-11)
    assert [block.shortcut is None for stage in net.stages for block in stage] == [False, True, False]


def test_nf_regnet_against_its_equations():
    net = random(nf_regnet((2, 7, 6), 3, (1, 2), (16, 20), (1, 2)))
    x, gamma = torch.randn(2, 2, 7, 6, dtype=torch.float64), gain("silu")

    def g(x):
        return gamma * F.silu(x)

    y = ws(net.stem[0], x)
    blocks, betas = [*net.stages[0], *net.stages[1]], [1.0, math.sqrt(1.04), math.sqrt(1.04)]
    for block, beta, width in zip(blocks, betas, (16, 32, 40), strict=True):
        z = g(y) / beta
        conv0, _, conv1, se, _, conv2 = block.residual
        assert (conv1.groups, conv1.out_channels) == (width // 8, width)
        f = ws(conv2, g(excited(se, ws(conv1, g(ws(conv0, z))))))
        if block.shortcut is not None:
            y = ws(block.shortcut[1], F.avg_pool2d(z, 2, 2, 0, True, False))
        y = y + 0.2 * block.skip.skip_gain * f
    conv, _, _, _, linear = net.head
    logits = F.linear(g(ws(conv, y)).mean((2, 3)), linear.weight, linear.bias)
    torch.testing.assert_close(net(x), logits, rtol=1e-11, atol=1e-11)


def signals(net, x):
    """(squared mean, variance, expected, residual variance, expected) of each block."""
    rows = []

    def listen(module, _, out):
        rows.append([out.mean((0, 2, 3)).square().mean().item(), out.var((0, 2, 3), correction=0).mean().item()])

    hooks = []
    for block in (block for stage in net.stages for block in stage):
        hooks += [block.get_submodule(block.tap_points().residual_end).register_forward_hook(listen)]
        hooks += [block.register_forward_hook(listen)]
    with torch.no_grad():
        net(x)
    for hook in hooks:
        hook.remove()
    return torch.tensor(rows, dtype=torch.float64).view(-1, 2, 2)


def averaged(make, n_seeds=4):
    found = []
    for seed in range(n_seeds):
        torch.manual_seed(seed)
        net, x = make().eval(), torch.randn(8, 16, 16, 16)
        found.append(signals(net, (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)))
    taps = [block.tap_points() for stage in net.stages for block in stage]
    return torch.stack(found).mean(0), taps


# With three channels a 3x3 window would span 27 dimensions only, which costs a percent of the variance behind ReLU.
PLAIN = {"in_shape": (16, 16, 16), "n_blocks": (4, 3), "channels": (64, 64), "strides": (1, 2), "skip_gain": 1.0,
         "padding_mode": "circular"}  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [{}, {"activation": "silu", "scaling": "act(x/beta)"}, {"activation": "tanh"}, {"alpha": 0.5}],
    ids=["relu", "silu inside", "tanh outside", "alpha"],
)
def test_variance_is_theorys_at_every_block(arguments):
    found, taps = averaged(lambda: nf_resnet(**PLAIN, **arguments))
    for (residual, output), tap in zip(found, taps, strict=True):
        assert output[1].item() == pytest.approx(tap.expected_variance, rel=0.02)
        assert residual[1].item() == pytest.approx(tap.expected_residual_variance, rel=0.08)
        assert output[0] < 0.02


def test_expected_variances_of_relu_are_the_papers_recursion():
    net = nf_resnet(**PLAIN)
    expected = [1.04, 1.08, 1.12, 1.16, 1.04, 1.08, 1.12]
    taps = [block.tap_points() for stage in net.stages for block in stage]
    assert [tap.expected_variance for tap in taps] == pytest.approx(expected, rel=1e-9)
    assert [tap.expected_residual_variance for tap in taps] == pytest.approx([1] * 7, rel=1e-9)
    assert all(isinstance(block, HasTapPoints) for stage in net.stages for block in stage)
    assert all(net.stages[0][0].get_parameter(name).item() == 1 for name in taps[0].skip_gains)


def test_an_outer_beta_and_silu_have_the_variance_of_a_monte_carlo():
    net = nf_resnet((3, 8, 8), 2, (6,), (4,), (1,), activation="silu")
    tap, beta = net.stages[0][5].tap_points(), net.stages[0][5].beta
    before = net.stages[0][4].tap_points().expected_variance
    z = math.sqrt(before) * torch.randn(1_000_000, dtype=torch.float64)
    measured = (gain("silu") * F.silu(z) / beta).var().item()
    assert tap.expected_residual_variance == pytest.approx(measured, rel=0.006)
    assert tap.expected_residual_variance > 1.015


def test_nf_regnet_with_strided_shortcuts_keeps_theorys_variance():
    make = lambda: nf_regnet((16, 16, 16), 10, (3, 3), (96, 96), (1, 2), se_ratio=0.0, downsampling="stride",  # noqa: E731
                             skip_gain=1.0, padding_mode="circular", activation="relu", group_size=24)  # fmt: skip
    found, taps = averaged(make)
    for row, tap in zip(found, taps, strict=True):
        assert row[1, 1].item() == pytest.approx(tap.expected_variance, rel=0.02)
    pooled = nf_regnet(n_blocks=(1, 1), channels=(16, 16), strides=(1, 2))
    assert [stage[0].tap_points().expected_variance is None for stage in pooled.stages] == [False, True]


def test_without_standardised_weights_means_shift():
    found, taps = averaged(lambda: nf_resnet(**PLAIN, weights="he"), n_seeds=2)
    assert found[:, 1, 0].min() > 0.2
    assert {tap.expected_variance for tap in taps} == {None}


PREACT = {"in_shape": (3, 16, 16), "n_blocks": (6,), "channels": (32,), "strides": (1,), "shortcut": "projection",
          "block": "preact-bottleneck", "initial": "fan_in"}  # fmt: skip


def test_baselines_do_what_the_paper_says():
    # Section 3: BN-ReLU-Conv has a residual variance of .68 = 1 - 1 / pi, a mean and a variance that grow by the block;
    # ReLU-BN-Conv 1 and no mean; without normalisation variances double; without ReLU there is no mean shift.
    def measure(order):
        found = []
        for seed in range(3):
            torch.manual_seed(seed)
            found.append(signals(resnet(**PREACT, order=order), torch.randn(8, 3, 16, 16)))
        return torch.stack(found).mean(0)

    usual, other, none, linear = (measure(order) for order in ("bn-relu", "relu-bn", "relu", "bn"))
    assert usual[:, 0, 1].mean().item() == pytest.approx(1 - 1 / math.pi, rel=0.1)
    growth = usual[1:, 1] - usual[:-1, 1]
    assert growth.min() > 0.1
    assert other[:, 0, 1].mean().item() == pytest.approx(1, rel=0.1)
    assert other[:, 1, 0].max() < 0.1 * usual[:, 1, 0].max()
    assert linear[:, 1, 0].max() < 0.1 * usual[:, 1, 0].max()
    moments = none[:, 1].sum(1)
    assert (moments[1:] / moments[:-1]).log2().mean().item() == pytest.approx(1, abs=0.25)


def test_orders_are_for_preactivation_blocks():
    with pytest.raises(ConfigError, match="only pre-activation"):
        resnet(order="relu")
    net = resnet(**PREACT, order="relu-bn")
    assert [type(m).__name__ for m in net.stages[0][1].residual] == ["ReLU", "BatchNorm2d", "Conv2d"] * 3
    x = torch.randn(2, 128, 4, 4)
    before = x.clone()
    net.stages[0][1].eval()(x)
    assert torch.equal(x, before)


def test_initial_values_and_stochastic_depth():
    net = nf_resnet(n_blocks=(2, 2), channels=(8, 8), strides=(1, 2), stochastic_depth=0.4)
    blocks = [block for stage in net.stages for block in stage]
    assert [block.drop.rate for block in blocks] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert [block.skip.skip_gain.item() for block in blocks] == [0] * 4
    torch.testing.assert_close(net.head[-1].weight.std().item(), 0.01, rtol=0.2, atol=0)
    x = torch.randn(3, 3, 32, 32)
    assert torch.equal(net.train()(x), net.train()(x)), "branches at zero: nothing to drop"
    assert torch.equal(nf_regnet().eval()(x), torch.zeros(3, 10))


def test_activations_of_any_kind():
    shared = nn.PReLU()
    net = nf_resnet((1, 8, 8), 2, (1,), (4,), (1,), activation=shared)
    own = [m for m in net.modules() if isinstance(m, nn.PReLU)]
    assert len({id(m) for m in own}) == 4
    assert all(m is not shared for m in own)
    assert nf_resnet((1, 8, 8), 2, (1,), (4,), (1,), activation=torch.tanh)(torch.zeros(1, 1, 8, 8)).shape == (1, 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nf_resnet((1, 28, 28), 10, (2, 1), (8, 8), (1, 2), se_ratio=0.25, dropout=0.1),
        lambda: nf_regnet((1, 28, 28), 10, (1, 2), (16, 24), (1, 2)),
    ],
    ids=["nf_resnet", "nf_regnet"],
)
def test_they_learn_export_and_copy(make):
    torch.manual_seed(0)
    net = make()
    x, y = torch.randn(16, 1, 28, 28), torch.arange(16) % 10
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    losses = []
    for _ in range(12):
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    assert all(p.abs().sum() > 0 for name, p in net.named_parameters() if "skip_gain" in name)
    twin = copy.deepcopy(net.eval())
    assert torch.equal(twin(x), net(x))
    torch.testing.assert_close(net(x)[1:2], net(x[1:2]), atol=1e-5, rtol=1e-5)
    assert net.double()(x.double()).dtype == torch.float64


@pytest.mark.usefixtures("unchecked")
def test_it_exports():
    net, x = nf_resnet((1, 8, 8), 2, (2,), (4,), (1,), skip_gain=1.0).eval(), torch.randn(2, 1, 8, 8)
    program = torch.export.export(net, (x,))
    torch.testing.assert_close(program.module()(x), net(x), atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: nf_resnet(n_blocks=(3, 3)), "one entry per stage"),
        (lambda: nf_resnet(alpha=0), "alpha is out of range"),
        (lambda: nf_resnet(alpha=math.nan), "alpha is out of range"),
        (lambda: nf_resnet(se_ratio=-1), "se_ratio"),
        (lambda: nf_resnet(dropout=1), "dropout"),
        (lambda: nf_resnet(stochastic_depth=2.0), "rate of stochastic depth"),
        (lambda: nf_resnet(scaling="x"), r"act\(x\)/beta or act\(x/beta\)"),
        (lambda: nf_resnet(activation="rel"), "unknown activation"),
        (lambda: nf_resnet(padding_mode="none"), "zeros or circular"),
        (lambda: nf_regnet(channels=(4, 8, 16)), "has not one group"),
        (lambda: nf_regnet(group_size=0), "has not one group"),
    ],
)
def test_impossible_networks_are_refused(make, says):
    with pytest.raises(ConfigError, match=says):
        make()


def test_inputs_are_checked():
    net = nf_resnet()
    with pytest.raises(ShapeError, match="batch, 3, 32, 32"):
        net(torch.zeros(2, 3, 28, 28))
    with pytest.raises(NonFiniteError):
        net(torch.full((1, 3, 32, 32), math.nan))

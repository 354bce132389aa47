"""Conversion of networks as others write them: structure, signals, training, and what is refused."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from invertible.errors import ConfigError, DtypeError
from invertible.layers import ScaledStdConv2d
from invertible.models import nf_resnet, normalizer_free, resnet
from invertible.models._nf_network import ResidualSum

# This library's own networks cannot be traced while their annotations are enforced.
pytestmark = pytest.mark.usefixtures("unchecked")

# Networks in the styles of libraries ---------------------------------------------------------------------------------


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, n_in, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None
        if stride != 1 or n_in != width:
            self.downsample = nn.Sequential(nn.Conv2d(n_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, n_in, width, stride):
        super().__init__()
        sizes = [(n_in, width, 1, 1), (width, width, 3, stride), (width, 4 * width, 1, 1)]
        for i, (a, b, size, s) in enumerate(sizes, start=1):
            setattr(self, f"conv{i}", nn.Conv2d(a, b, size, s, size // 2, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(b))
        self.downsample = None
        if stride != 1 or n_in != 4 * width:
            self.downsample = nn.Sequential(
                nn.Conv2d(n_in, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class VisionResNet(nn.Module):
    def __init__(self, block, depths, widths=(64, 128, 256, 512), n_classes=1000):
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        n_in = widths[0]
        for i, (n, w) in enumerate(zip(depths, widths, strict=True), start=1):
            layers = []
            for j in range(n):
                layers.append(block(n_in, w, 2 if j == 0 and i > 1 else 1))
                n_in = w * block.expansion
            setattr(self, f"layer{i}", nn.Sequential(*layers))
        self.n_stages = len(depths)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(n_in, n_classes)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for i in range(1, self.n_stages + 1):
            x = getattr(self, f"layer{i}")(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


class PreBlock(nn.Module):
    """Pre-activation, with the shortcut from the activated input where the shape changes."""

    def __init__(self, n_in, width, stride):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(n_in), nn.Conv2d(n_in, width, 3, stride, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, 1, 1)
        self.shortcut = nn.Conv2d(n_in, width, 1, stride) if stride > 1 or n_in != width else nn.Identity()

    def forward(self, x):
        z = self.norm1(x).relu()
        skip = x if isinstance(self.shortcut, nn.Identity) else self.shortcut(z)
        return torch.add(self.conv2(torch.relu(self.norm2(self.conv1(z)))), skip)


class PreResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(16, 48, 3, padding=1, padding_mode="circular")
        self.blocks = nn.Sequential(PreBlock(48, 64, 1), PreBlock(64, 64, 1), PreBlock(64, 96, 2), PreBlock(96, 96, 1))
        self.norm, self.head = nn.BatchNorm2d(96), nn.Linear(96, 10)

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.stem(x))).relu().mean((2, 3)))


class Swish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


class Gate(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(n, n // 4, 1), nn.Conv2d(n // 4, n, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True)))))


class DropPath(nn.Module):
    def __init__(self, rate):
        super().__init__()
        self.rate = rate

    def forward(self, x):
        if self.rate == 0.0 or not self.training:
            return x
        return x * (torch.rand(len(x), 1, 1, 1) >= self.rate) / (1 - self.rate)


class InvertedBlock(nn.Module):
    """Expand, depthwise, squeeze-excite, project, without an activation at the end."""

    def __init__(self, n_in, n_out, stride=1):
        super().__init__()
        inner = 3 * n_in
        self.layers = nn.Sequential(
            nn.Conv2d(n_in, inner, 1, bias=False), nn.BatchNorm2d(inner), Swish(),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False), nn.BatchNorm2d(inner), Swish(),
            Gate(inner), nn.Conv2d(inner, n_out, 1, bias=False), nn.BatchNorm2d(n_out),
        )  # fmt: skip
        self.drop_path = DropPath(0.1)
        self.has_shortcut = stride == 1 and n_in == n_out

    def forward(self, x, features: bool = False):
        out = self.drop_path(self.layers(x))
        return x + out if self.has_shortcut else out


def mobile():
    blocks = [InvertedBlock(16, 16), InvertedBlock(16, 24, 2), InvertedBlock(24, 24), InvertedBlock(24, 24)]
    stem = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.Hardswish()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(24, 10))


def vgg():
    layers, n_in = [], 3
    for width in (16, 32):
        layers += [nn.Conv2d(n_in, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
        n_in = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 16, 10))


SMALL = (16, 24, 32)
NETS = {
    "vision basic": (lambda: VisionResNet(BasicBlock, (2, 1, 1), SMALL, 10), (3, 32, 32)),
    "vision bottleneck": (lambda: VisionResNet(Bottleneck, (1, 2, 1), (8, 8, 16), 10), (3, 32, 32)),
    "preactivated": (PreResNet, (16, 8, 8)),
    "mobile": (mobile, (3, 16, 16)),
    "ours": (lambda: resnet((3, 8, 8), 10, (2, 1), (8, 12), (1, 2), "basic", "cifar", "projection"), (3, 8, 8)),
    "ours preactivated": (
        lambda: resnet((3, 8, 8), 10, (2, 2), (4, 6), (1, 2), "preact-bottleneck", "cifar", "projection"), (3, 8, 8)),
}  # fmt: skip


@pytest.fixture(params=NETS)
def case(request):
    torch.manual_seed(0)
    make, shape = NETS[request.param]
    return make(), shape


def convs(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}


def test_norms_are_gone_and_weights_standardised_under_their_old_names(case):
    net, shape = case
    before = copy.deepcopy(net.state_dict())
    report = normalizer_free(net)
    assert report.is_possible, report.obstacles
    converted = report.model
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in converted.modules())
    gates = {name for name in convs(net) if "reduce" in name or "expand" in name}
    assert {name for name, m in convs(converted).items() if isinstance(m, ScaledStdConv2d)} == set(convs(net)) - gates
    for name, conv in convs(net).items():
        assert torch.equal(conv.weight, convs(converted)[name].weight)
        assert conv.stride == convs(converted)[name].stride
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items()), "the given network stays"
    assert net(torch.randn(2, *shape)).shape == converted(torch.randn(2, *shape)).shape
    n_norms = sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    assert report.findings[0] == f"{n_norms} BatchNorms go"
    assert sum(row.becomes == "gone" for row in report.rows) == n_norms
    assert len(report.table) == len(report.rows)
    assert "residual additions get alpha = 0.2" in str(report)


def test_they_train(case):
    net, shape = case
    converted = normalizer_free(net.train()).model
    assert converted.training
    x, y = torch.randn(12, *shape), torch.arange(12) % 10
    optimizer = torch.optim.Adam(converted.parameters(), lr=0.01)
    losses = []
    for _ in range(12):
        loss = F.cross_entropy(converted(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    gains = [p for name, p in converted.named_parameters() if name.endswith("skip_gain")]
    assert all(gain.abs() > 0 for gain in gains)
    twin = copy.deepcopy(converted.eval())
    assert torch.equal(twin(x), converted(x))


def sums(model, x):
    found = []
    hooks = [
        m.register_forward_hook(lambda m, _, y: found.append((m, y)))
        for m in model.modules()
        if isinstance(m, ResidualSum)
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return [(m.tap_points(), y.var((0, 2, 3), correction=0).mean().item(), y.mean((0, 2, 3))) for m, y in found]


def without_borders(net):
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            m.padding_mode = "circular"
            m._reversed_padding_repeated_twice = [p for p in reversed(m.padding) for _ in range(2)]
    return net


SIGNALS = {
    "preactivated": (lambda: without_borders(PreResNet()), (8, 16, 16, 16)),
    "postactivated": (
        lambda: without_borders(nn.Sequential(
            nn.Conv2d(16, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU(), *[BasicBlock(48, 48, 1) for _ in range(4)],
            BasicBlock(48, 64, 2), BasicBlock(64, 64, 1))), (8, 16, 16, 16)),
    "silu": (
        lambda: without_borders(resnet((16, 16, 16), 10, (3, 2), (48, 48), (1, 2), shortcut="projection")),
        (8, 16, 16, 16)),
}  # fmt: skip


@pytest.mark.parametrize("name", SIGNALS)
def test_signals_are_theorys(name):
    make, shape = SIGNALS[name]
    found = []
    for seed in range(4):
        torch.manual_seed(seed)
        net, x = make(), torch.randn(shape)
        if name == "silu":
            for module in net.modules():
                for key, child in module.named_children():
                    if isinstance(child, nn.ReLU):
                        setattr(module, key, nn.SiLU(inplace=True))
        rows = sums(normalizer_free(net, skip_gain=1.0).model.eval(), (x - x.mean()) / x.std())
        found.append(torch.tensor([[variance, mean.square().mean()] for _, variance, mean in rows]))
    measured = torch.stack(found).mean(0)
    for (tap, _, _), (variance, squared_mean) in zip(rows, measured.tolist(), strict=True):
        assert variance == pytest.approx(tap.expected_variance, rel=0.04)
        assert squared_mean < 0.02
    expected = [tap.expected_variance for tap, _, _ in rows]
    assert expected[0] == pytest.approx(1.04, rel=1e-9)
    assert expected[1] == pytest.approx(1.08, rel=1e-9)


def test_a_converted_preactivation_resnet_computes_our_nf_resnet():
    # The same network in two ways: built normalizer-free, and converted from its twin with BatchNorm.
    shape, sizes = (3, 8, 8), ((2, 2), (4, 6), (1, 2))
    twin = resnet(shape, 5, *sizes, "preact-bottleneck", "cifar", "projection")
    converted = normalizer_free(twin, skip_gain=0.7).model.double().eval()
    built = nf_resnet(shape, 5, *sizes, skip_gain=0.7).double().eval()
    load(built.stem[0], converted.get_submodule("stem.0"))
    for i, stage in enumerate(built.stages):
        for j, block in enumerate(stage):
            source = converted.get_submodule(f"stages.{i}.{j}")
            pairs = [*zip(own_convs(block.residual), own_convs(source.get_submodule("residual")), strict=True)]
            shortcut = [(block.shortcut, source.get_submodule("shortcut"))] if block.shortcut is not None else []
            for target, given in pairs + shortcut:
                load(target, given)
    x = torch.randn(2, *shape, dtype=torch.float64)
    theirs = built.stages(built.stem(x))
    mine = list(capture(converted, x))[-1]
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def own_convs(module):
    return [m for m in module.modules() if isinstance(m, nn.Conv2d)]


def load(target, source):
    # What had no BatchNorm behind it has no bias; ours has one, of zero.
    target.load_state_dict(source.state_dict(), strict=False)


def capture(model, x):
    found = []
    for m in model.modules():
        if isinstance(m, ResidualSum):
            m.register_forward_hook(lambda m, _, y: found.append(y))
    model(x)
    return found


def test_the_stem_s_activation_moves_behind_its_pooling():
    net = normalizer_free(VisionResNet(BasicBlock, (1,), (8,), 4)).model
    seen = []
    for name, m in net.named_modules():
        if name in ("maxpool", "relu_nf"):
            m.register_forward_hook(lambda m, _i, _o: seen.append(type(m).__name__))
    net(torch.randn(1, 3, 32, 32))
    assert seen == ["MaxPool2d", "BetaActivation"]


def test_arguments_and_modes_are_those_of_the_network():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), BasicBlock(8, 8, 1))

        def forward(self, image, features=False, scale=2.0):
            out = self.body(image)
            return {"features": out} if features else (out, scale * out.mean((2, 3)))

    net = normalizer_free(Two().eval()).model
    assert not net.training
    first, second = net(image=torch.zeros(2, 3, 4, 4))
    assert (first.shape, second.shape) == ((2, 8, 4, 4), (2, 8))
    with pytest.raises(ConfigError, match="does not take"):
        net(torch.zeros(1), feature=True)
    with pytest.raises(ConfigError, match="too few"):
        net()


class Dropping(nn.Module):
    """A branch with a dropout that is a function, and an activation at its end."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(4, 4, 3, padding=1), nn.BatchNorm1d(4)

    def forward(self, x):
        return x + F.dropout(F.silu(self.norm(self.conv(x))), 0.5, self.training)


def test_a_dropout_that_is_a_function_follows_the_mode_and_a_last_activation_is_told():
    report = normalizer_free(nn.Sequential(Dropping(), Dropping()).train(), skip_gain=1.0)
    x = torch.randn(8, 4, 32)
    assert not torch.equal(report.model(x), report.model(x))
    report.model.eval()
    assert torch.equal(report.model(x), report.model(x))
    assert any("end with an activation" in text and "(0, 1)" in text for text in report.findings)


@pytest.mark.parametrize("make", [lambda: VisionResNet(BasicBlock, (1, 1), (8, 12), 4), mobile])
def test_the_result_compiles_and_exports(make):
    net, x = normalizer_free(make().eval(), skip_gain=1.0).model, torch.randn(2, 3, 16, 16)
    expected = net(x)
    torch.testing.assert_close(torch.compile(net, backend="eager", fullgraph=True)(x), expected)
    torch.testing.assert_close(torch.export.export(net, (x,)).module()(x), expected)


class Branches(nn.Module):
    def __init__(self, first, second, norm=None):
        super().__init__()
        self.first, self.second, self.norm = first, second, norm or nn.Identity()

    def forward(self, x):
        return self.norm(self.first(x) + self.second(x))


class Deciding(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Doubled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return x + torch.fft.fft2(self.conv(x)).real


def conv(n_in=4, n_out=4, size=3, **options):
    return nn.Conv2d(n_in, n_out, size, padding=size // 2, **options)


REFUSED = {
    "vgg": (vgg, "no residual addition"),
    "pooled shortcut": (
        lambda: Branches(nn.Sequential(conv(), nn.BatchNorm2d(4)), nn.AvgPool2d(3, 1, 1)), "may change its"),
    "two branches": (lambda: Branches(conv(), conv()), "neither is a shortcut"),
    "two shortcuts": (lambda: Branches(conv(size=1), conv(size=1)), "neither is a shortcut"),
    "group norm": (
        lambda: Branches(nn.Sequential(conv(), nn.GroupNorm(2, 4)), nn.Identity()), r"first.1 is a GroupNorm"),
    "layer norm": (lambda: Branches(conv(), nn.Identity(), nn.LayerNorm(8)), "norm is a LayerNorm"),
    "norm of the input": (
        lambda: nn.Sequential(nn.BatchNorm2d(4), Branches(conv(), nn.Identity())), "0 follows the network's input"),
    "deciding": (lambda: nn.Sequential(Deciding(), BasicBlock(4, 4, 1)), "cannot be read as a graph"),
    "custom": (Doubled, "fft_fft2"),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 4, 3), BasicBlock(4, 4, 1)), "0 is a transposed convolution"),
    "softmax": (lambda: Branches(nn.Sequential(conv(), nn.Softmax(1)), nn.Identity()), "a Softmax"),
    "one weight": (lambda: Branches(conv(size=1, groups=4), nn.Identity()), "one weight per channel"),
    "padding": (lambda: resnet((3, 8, 8), n_blocks=(1, 1), channels=(4, 8), strides=(1, 2)), "use a 1x1 convolution"),
    "already": (nf_resnet, "already"),
    "lstm": (lambda: nn.Sequential(nn.LSTM(3, 3)), "no residual addition"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_refused_with_a_reason(name):
    make, says = REFUSED[name]
    net = make()
    report = normalizer_free(net)
    assert not report.is_possible
    assert report.rows == ()
    with pytest.raises(ConfigError, match=says):
        _ = report.model
    assert "cannot be made normalizer-free" in str(report)


@pytest.mark.usefixtures("unchecked")
def test_wrong_arguments():
    with pytest.raises(DtypeError, match=r"an nn.Module"):
        normalizer_free(torch.zeros(1))
    with pytest.raises(ConfigError, match="alpha above 0"):
        normalizer_free(BasicBlock(4, 4, 1), alpha=0.0)


def test_the_sizes_of_the_real_ones():
    with torch.device("meta"):
        for block, depths, count in ((BasicBlock, (2, 2, 2, 2), 11_689_512), (Bottleneck, (3, 4, 6, 3), 25_557_032)):
            net = VisionResNet(block, depths)
            assert sum(p.numel() for p in net.parameters()) == count
            converted = normalizer_free(net).model
            assert sum(p.numel() for p in converted.parameters()) == count + sum(depths)


def test_the_random_state_is_left_alone():
    net, before = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), torch.get_rng_state()
    normalizer_free(net)
    assert torch.equal(before, torch.get_rng_state())

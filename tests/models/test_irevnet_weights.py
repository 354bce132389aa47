"""Released i-RevNet weights, against an independent account of the released network."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from invertible.errors import CheckpointError, ConfigError
from invertible.layers import AdditiveCoupling, Squeeze
from invertible.models import (
    Classifier,
    irevnet,
    irevnet_b,
    load_released_irevnet,
    resnet,
    revnet,
    squeeze_permutation,
    to_released_layout,
)

EPS = 1e-5


class Released:
    """The released network as functions of a state dict. `init_ds` is its name for our init_squeeze (0 means none)."""

    def __init__(self, in_shape, n_blocks, strides, channels, init_ds):
        self.in_shape, self.init_ds = in_shape, init_ds
        n_in = in_shape[0] * max(init_ds, 1) ** 2
        self.blocks = []  # (channels in, channels out of a stream, stride, channels padded)
        for n, stride, out in zip(n_blocks, strides, channels, strict=True):
            for s in [stride] + [1] * (n - 1):
                pad = 2 * out - n_in if s == 1 else 0
                self.blocks.append((n_in, out, s, pad))
                n_in = 2 * out
        self.n_out, self.ours = n_in, (in_shape, 7, n_blocks, strides, channels, None, max(init_ds, 1))

    def random_weights(self):
        state = {}
        for i, (n_in, out, _, pad) in enumerate(self.blocks):
            sizes = [(n_in + pad) // 2, out // 4, out // 4, out]
            for k, (bn, conv) in enumerate(self.layers(i)):
                if bn is not None:
                    self.batchnorm(state, bn, sizes[k])
                fan_in = 9 * sizes[k]
                state[f"{conv}.weight"] = torch.randn(sizes[k + 1], sizes[k], 3, 3).double() / fan_in**0.5
        self.batchnorm(state, "bn1", self.n_out)
        state["linear.weight"], state["linear.bias"] = torch.randn(7, self.n_out).double(), torch.randn(7).double()
        return state

    @staticmethod
    def batchnorm(state, key, n):
        for name, low, high in (
            ("weight", 0.5, 1.5),
            ("bias", -1, 1),
            ("running_mean", -1, 1),
            ("running_var", 0.5, 2),
        ):
            state[f"{key}.{name}"] = torch.empty(n).uniform_(low, high).double()
        state[f"{key}.num_batches_tracked"] = torch.tensor(3)

    @staticmethod
    def layers(i):
        """Places of (BatchNorm, convolution) in the released Sequential: ReLU and dropout take places too."""
        key = f"stack.{i}.bottleneck_block"
        places = [(None, 0), (1, 3), (5, 7)] if i == 0 else [(0, 2), (3, 5), (7, 9)]
        return [(None if bn is None else f"{key}.{bn}", f"{key}.{conv}") for bn, conv in places]

    def residual(self, state, i, x):
        stride = self.blocks[i][2]
        for bn, conv in self.layers(i):
            x = x if bn is None else torch.relu(normalised(state, bn, x))
            x, stride = F.conv2d(x, state[f"{conv}.weight"], stride=stride, padding=1), 1
        return x

    def forward(self, state, x):
        x = psi(x, self.init_ds) if self.init_ds else x
        x1, x2 = halves(x)
        for i, (_, _, stride, pad) in enumerate(self.blocks):
            if pad:
                x1, x2 = halves(F.pad(torch.cat([x1, x2], 1), (0, 0, 0, 0, 0, pad)))
            change = self.residual(state, i, x2)
            x1, x2 = psi(x2, stride), psi(x1, stride) + change
        z = torch.cat([x1, x2], 1)
        pooled = torch.relu(normalised(state, "bn1", z)).mean((2, 3))
        return pooled @ state["linear.weight"].T + state["linear.bias"], z

    def inverse(self, state, z):
        x1, x2 = halves(z)
        for i, (n_in, _, stride, pad) in reversed(list(enumerate(self.blocks))):
            second = psi_inverse(x1, stride)
            x1, x2 = psi_inverse(x2 - self.residual(state, i, second), stride), second
            if pad:
                whole = torch.cat([x1, x2], 1)[:, :n_in]
                x1, x2 = halves(whole)
        x = torch.cat([x1, x2], 1)
        return psi_inverse(x, self.init_ds) if self.init_ds else x


def halves(x):
    n = x.shape[1] // 2
    return x[:, :n], x[:, n:]


def psi(x, b):
    return torch.cat([x[:, :, i::b, j::b] for i in range(b) for j in range(b)], 1)


def psi_inverse(y, b):
    n, c, h, w = y.shape
    x = y.new_empty(n, c // b**2, h * b, w * b)
    for k, part in enumerate(y.chunk(b**2, 1)):
        x[:, :, k // b :: b, k % b :: b] = part
    return x


def normalised(state, key, x):
    mean, var, weight, bias = (state[f"{key}.{n}"].view(1, -1, 1, 1) for n in
                               ("running_mean", "running_var", "weight", "bias"))  # fmt: skip
    return (x - mean) / (var + EPS).sqrt() * weight + bias


CONFIGS = {
    "bijective": Released((3, 16, 16), (1, 2), (2, 2), (24, 96), 2),
    "injective, as for CIFAR": Released((3, 16, 16), (2, 3, 2), (1, 2, 2), (16, 64, 256), 0),
    "many stages, padded twice": Released((1, 16, 16), (2, 1, 2), (1, 2, 1), (4, 16, 20), 2),
    "as for ImageNet, narrow": Released((1, 32, 32), (1, 2, 2, 1), (2, 2, 2, 2), (8, 32, 128, 512), 2),
}


@pytest.fixture(params=CONFIGS, ids=list(CONFIGS))
def released(request):
    return CONFIGS[request.param]


def ours(released):
    return irevnet(*released.ours).double().eval()


def test_logits_representation_and_inverse_are_the_released_ones(released):
    state, x = released.random_weights(), torch.randn(3, *released.in_shape).double()
    net = load_released_irevnet(ours(released), state)
    logits, z = released.forward(state, x)
    torch.testing.assert_close(net.representation(x), z, atol=1e-6, rtol=1e-9)
    torch.testing.assert_close(net(x), logits, atol=1e-6, rtol=1e-9)
    torch.testing.assert_close(released.inverse(state, z), x, atol=1e-6, rtol=0)
    torch.testing.assert_close(net.reconstruct(z), released.inverse(state, z), atol=1e-6, rtol=0)


def test_released_layout_round_trip(released):
    state = released.random_weights()
    net = load_released_irevnet(ours(released), state)
    back = to_released_layout(net)
    assert set(back) == set(state)
    assert all(torch.equal(back[key], value) for key, value in state.items())
    twin = load_released_irevnet(ours(released), back)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), twin.state_dict().values(), strict=True))


def test_weights_of_our_network_run_in_the_released_one(released):
    net, x = ours(released), torch.randn(2, *released.in_shape).double()
    torch.testing.assert_close(released.forward(to_released_layout(net), x)[0], net(x), atol=1e-6, rtol=1e-9)


def test_names_of_the_imagenet_checkpoint():
    with torch.device("meta"):
        keys = to_released_layout(irevnet_b())
    assert sum(t.numel() for k, t in keys.items() if "running" not in k and "num_" not in k) == 125_120_356
    assert {int(k.split(".")[1]) for k in keys if k.startswith("stack")} == set(range(100))
    assert keys["stack.99.bottleneck_block.9.weight"].shape == (1536, 384, 3, 3)


SMALL = CONFIGS["bijective"]


def test_dataparallel_prefix_and_files_and_old_checkpoints(tmp_path):
    state = SMALL.random_weights()
    expected = load_released_irevnet(ours(SMALL), state).state_dict()
    prefixed = {f"module.{key}": value for key, value in state.items()}
    without_counters = {key: value for key, value in state.items() if "num_batches" not in key}
    save_file(prefixed, tmp_path / "weights.safetensors")
    sources = (prefixed, without_counters, tmp_path / "weights.safetensors", str(tmp_path / "weights.safetensors"))
    for source in sources:
        got = load_released_irevnet(ours(SMALL), source).state_dict()
        assert all(torch.equal(got[key], expected[key]) for key in expected if "num_batches" not in key)


def test_weights_take_the_dtype_of_the_model():
    net = load_released_irevnet(ours(SMALL).float(), SMALL.random_weights())
    assert {p.dtype for p in net.parameters()} == {torch.float32}


def broken(change):
    state = SMALL.random_weights()
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("bn1.bias"), r"missing bn1\.bias; unexpected none; mis-shaped none"),
        (lambda s: s.update(extra=torch.zeros(1)), r"missing none; unexpected extra"),
        (lambda s: s.update({"linear.bias": torch.zeros(9)}), r"mis-shaped linear\.bias of \(9,\) for \(7,\)"),
        (lambda s: [s.pop(k) for k in list(s) if k.startswith("stack.2")], r"3 blocks, got 2 blocks: .* and 12 more"),
    ],
    ids=["missing", "unexpected", "shape", "block"],
)
def test_weights_that_do_not_fit_are_refused_and_change_nothing(change, says):
    net = ours(SMALL)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(CheckpointError, match=says):
        load_released_irevnet(net, broken(change))
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", ["model.t7", "checkpoint.pth", "model_best.pth.tar", "weights.pt", "weights"])
def test_pickles_are_never_opened(tmp_path, name):
    torch.save({"state_dict": SMALL.random_weights()}, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"weights_only=True.*save_file"):
        load_released_irevnet(ours(SMALL), tmp_path / name)


def test_files_that_are_missing_or_something_else_are_refused(tmp_path):
    torch.save(SMALL.random_weights(), tmp_path / "pickle.safetensors")
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "folder.safetensors").mkdir()
    for name in ("pickle", "empty", "folder", "absent"):
        with pytest.raises(CheckpointError, match=f"{name}.safetensors"):
            load_released_irevnet(ours(SMALL), tmp_path / f"{name}.safetensors")


@pytest.mark.usefixtures("unchecked")
def test_whole_checkpoints_are_refused_with_a_hint():
    for checkpoint in ({"epoch": 3, "state_dict": SMALL.random_weights()}, [1, 2]):
        with pytest.raises(CheckpointError, match="state_dict"):
            load_released_irevnet(ours(SMALL), checkpoint)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "model",
    [resnet(), revnet(), nn.Linear(2, 2), Classifier(AdditiveCoupling(nn.Linear(2, 2)), nn.Linear(4, 2))],
    ids=["resnet", "revnet", "linear", "classifier"],
)
def test_other_models_are_refused(model):
    with pytest.raises(ConfigError, match="irevnet"):
        to_released_layout(model)
    with pytest.raises(ConfigError, match="irevnet"):
        load_released_irevnet(model, {})


@pytest.mark.parametrize("n_channels", [1, 3, 4])
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_squeeze_permutation_relates_the_two_orders(n_channels, factor):
    x = torch.randn(2, n_channels, 6, 12)
    permutation = squeeze_permutation(n_channels, factor)
    assert permutation.shape == (n_channels * factor**2,)
    shuffled = F.pixel_unshuffle(x, factor)
    assert torch.equal(shuffled[:, permutation], Squeeze(factor, order="offset")(x))
    assert torch.equal(shuffled[:, permutation], psi(x, factor))


def test_squeeze_permutation_converts_the_layers_that_follow():
    x, permutation = torch.randn(2, 3, 8, 8).double(), squeeze_permutation(3, 2)
    norm, conv = nn.BatchNorm2d(12).double().train(), nn.Conv2d(12, 5, 3, bias=False).double()
    nn.init.normal_(norm.weight)
    y = conv(norm(F.pixel_unshuffle(x, 2)))
    norm.weight.data, norm.bias.data = norm.weight.data[permutation], norm.bias.data[permutation]
    conv.weight.data = conv.weight.data[:, permutation]
    torch.testing.assert_close(conv(norm(Squeeze(2, order="offset")(x))), y, atol=1e-12, rtol=0)


@pytest.mark.parametrize("arguments", [(0, 2), (3, 0)])
def test_squeeze_permutation_refuses_empty_sizes(arguments):
    with pytest.raises(ConfigError):
        squeeze_permutation(*arguments)

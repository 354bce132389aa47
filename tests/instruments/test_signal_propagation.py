"""Signal propagation against figures computed by hand with numpy, in float64."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from invertible import Chain
from invertible._tap_points import TapPoints
from invertible.errors import ConfigError, NonFiniteError, ShapeError
from invertible.instruments import Result, SignalHistory, SignalPropagationRecorder, find_taps, signal_propagation
from invertible.layers import AdditiveCoupling
from invertible.models import irevnet_digits, resnet, revnet
from measured_networks import Block, Net, TupleNet


def by_hand(x: np.ndarray, axis: int) -> tuple[float, float]:
    flat = np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)
    return float((flat.mean(1) ** 2).mean()), float(flat.var(1).mean())


def outputs(model: nn.Module, names: list[str], x: Tensor) -> dict[str, np.ndarray]:
    """What modules return, by hooks of the plainest kind."""
    kept: dict[str, np.ndarray] = {}
    handles = []
    for name in names:
        module = model.get_submodule(name)
        handle = module.register_forward_hook(
            lambda _m, _a, out, name=name: kept.__setitem__(name, np.array(out.tolist()))
        )
        handles.append(handle)
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return kept


@pytest.mark.parametrize("n_batches", [1, 3])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_three_quantities(mode: str, n_batches: int) -> None:
    torch.manual_seed(0)
    net = Net().double().train(mode == "train")
    for block in net.blocks:
        block.drop.p = 0.0
        block.norm.running_mean.normal_()
    x = torch.randn(6, 3, 5, 7, dtype=torch.float64) + 0.3
    found = signal_propagation(net, list(x.chunk(n_batches)))
    names = ["stem", *(f"blocks.{i}" for i in range(3)), *(f"blocks.{i}.conv" for i in range(3))]
    parts = [outputs(net, names, part) for part in x.chunk(n_batches)]
    expected = {name: by_hand(np.concatenate([part[name] for part in parts]), 1) for name in names}
    stem, *blocks = found.blocks
    assert (stem.squared_mean, stem.variance) == pytest.approx(expected["stem"], rel=1e-12)
    for i, block in enumerate(blocks):
        assert (block.squared_mean, block.variance) == pytest.approx(expected[f"blocks.{i}"], rel=1e-11)
        (end,) = block.branches
        assert end.name == f"blocks.{i}.conv"
        assert (end.squared_mean, end.variance) == pytest.approx(expected[f"blocks.{i}.conv"], rel=1e-11)
        assert block.n_values == 6 * 35
    assert found.provenance.mode == mode
    assert found.provenance.n_batches == n_batches
    assert found.provenance.n_examples == 6


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 7), (5, 4, 3, 3), (5, 4, 2, 3, 2)])
def test_any_rank_and_any_channel_axis(shape: tuple[int, ...]) -> None:
    net, x = nn.Identity(), torch.randn(shape, dtype=torch.float64) * 2 + 1
    for axis in (1, -1):
        (_, block) = signal_propagation(net, x, channel_axis=axis).blocks
        assert (block.squared_mean, block.variance) == pytest.approx(by_hand(x.numpy(), axis % x.ndim), rel=1e-12)
        assert block.channel_axis == axis % x.ndim
    assert signal_propagation(net, x).blocks[1].channel_axis == 1
    with pytest.raises(ShapeError, match="no such channel axis"):
        signal_propagation(net, x, channel_axis=6)


def test_transformers_have_their_channels_last() -> None:
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval().double()
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    found = signal_propagation(net, x)
    assert {block.channel_axis for block in found.blocks} == {2}
    assert [end.name for end in found.blocks[1].branches] == ["layers.0.self_attn", "layers.0.linear2"]
    assert (found.blocks[0].squared_mean, found.blocks[0].variance) == pytest.approx(by_hand(x.numpy(), 2), rel=1e-12)
    assert len(found.table) == 5
    assert {tuple(row) for row in found.table} == {tuple(found.table[0])}


def test_bfloat16_and_large_means_are_not_lost() -> None:
    x = torch.randn(64, 4, 16) + 100
    (_, block) = signal_propagation(nn.Identity(), [x[:32], x[32:]]).blocks
    assert block.variance == pytest.approx(by_hand(x.double().numpy(), 1)[1], rel=1e-4)
    half = signal_propagation(nn.Linear(4, 4).bfloat16(), (16, 4))
    assert math.isfinite(half.blocks[-1].variance)


class Declared(nn.Module):
    """y = x + 0.5 * gain * f(x), f with unit variance by construction."""

    def __init__(self, expected: float) -> None:
        super().__init__()
        self.f, self.gain, self.expected = nn.Flatten(), nn.Parameter(torch.zeros(())), expected

    def tap_points(self) -> TapPoints:
        return TapPoints("f", ("gain",), self.expected, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.5 * self.gain * self.f(x)


def test_what_blocks_declare() -> None:
    net = nn.Sequential(Declared(2.25), Declared(2.25**2))
    still = signal_propagation(net, (4096, 3))
    assert "2 skip gains are zero, 0.gain first" in still.findings[0].sentence
    assert still.blocks[2].variance == still.blocks[0].variance
    found = signal_propagation(net, (4096, 3), unit_gains=True)
    assert found.unit_gains == ("0.gain", "1.gain")
    assert [block.expected_variance for block in found.blocks] == [None, 2.25, 2.25**2]
    assert found.blocks[2].variance == pytest.approx(2.25**2 * found.blocks[0].variance, rel=1e-5)
    assert found.blocks[1].branches[0].expected_variance == 1.0
    assert any(f.sentence.startswith("As designed: the variance is up to") for f in found.findings)
    assert not net[0].gain.any()


def test_leaving_the_expected_curve_is_a_warning() -> None:
    found = signal_propagation(nn.Sequential(Declared(2.25), Declared(50.0)), (4096, 3), unit_gains=True)
    assert found.findings[0].severity == "warning"
    assert "From 1 on the signal leaves the expected curve" in found.findings[0].sentence
    assert found.table[found.findings[0].row]["name"] == "1"


class Rezero(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f, self.resweight = nn.Linear(6, 6), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.resweight * self.f(x)


def test_foreign_skip_gains_are_found_and_set() -> None:
    net = nn.Sequential(Rezero(), Rezero())
    assert "0.resweight first" in signal_propagation(net, (8, 6)).findings[0].sentence
    found = signal_propagation(net, (8, 6), unit_gains=True)
    assert found.unit_gains == ("0.resweight", "1.resweight")
    assert found.blocks[1].branches[0].name == "0.f"
    assert found.blocks[1].variance != found.blocks[0].variance


def words(found: Result) -> str:
    return " | ".join(f"{finding.severity}: {finding.sentence}" for finding in found.findings)


def stack(scale: float, n: int = 12, bias: float = 0.0) -> nn.Sequential:
    net = nn.Sequential(*(nn.Sequential(nn.Linear(32, 32), nn.Tanh() if bias else nn.Identity()) for _ in range(n)))
    for layer in net:
        nn.init.orthogonal_(layer[0].weight, gain=scale)
        nn.init.constant_(layer[0].bias, bias)
    return net


def test_exploding_vanishing_constant_and_nan() -> None:
    assert "error: The variance explodes: 1.7e+07 times the stem's at 11" in words(
        signal_propagation(stack(2.0), (64, 32))
    )
    assert "error: The variance vanishes: 6e-08 times the stem's at 11" in words(
        signal_propagation(stack(0.5), (64, 32))
    )
    assert "note: The variance goes from" in words(signal_propagation(stack(1.0), (64, 32)))
    assert "explodes" not in words(signal_propagation(stack(1.0), (64, 32)))
    assert "error: 0 is constant" in words(signal_propagation(stack(0.0), (64, 32)))
    assert "error: 0 is constant" in words(signal_propagation(stack(0.0, bias=0.1), (64, 32)))
    broken = stack(1.0)
    broken[5][0].weight.data[0, 0] = math.nan
    found = signal_propagation(broken, (64, 32))
    assert found.findings[0].sentence == "NaN or infinity from 5 on."
    assert found.table[found.findings[0].row]["name"] == "5"


def test_mean_shift_is_that_of_relu_and_vanishes_without_it() -> None:
    """Branch of BN-ReLU-Conv at He init: residual variance 1 - 1/pi = 0.68, squared mean 1/pi."""
    net = resnet((3, 16, 16), n_blocks=(3,), channels=(64,), strides=(1,), block="preact-basic")
    found = signal_propagation(net, (16, 3, 16, 16), mode="train")
    assert "warning: Mean shift: 3 of 3 residual branches" in words(found)
    assert found.blocks[-1].residual_variance == pytest.approx(0.68, abs=0.08)
    assert found.blocks[-1].branches[0].squared_mean == pytest.approx(1 / math.pi, abs=0.08)
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.Identity())
    assert "Mean shift" not in words(signal_propagation(net, (16, 3, 16, 16), mode="train"))


def test_dead_branches_and_single_values() -> None:
    net = Net()
    nn.init.zeros_(net.blocks[1].conv.weight)
    nn.init.zeros_(net.blocks[1].conv.bias)
    found = signal_propagation(net, (4, 3, 6, 6))
    assert (
        "warning: Dead: 1 of 3 residual branches with nothing in it that varies, the first at blocks.1.conv"
        in words(found)
    )
    assert "One value per channel has no variance" in words(signal_propagation(nn.Linear(3, 4), (1, 3)))


def test_places_by_name() -> None:
    found = signal_propagation(Net(), (4, 3, 6, 6), layers="blocks.?", residuals="*.norm")
    assert [block.branches[0].name for block in found.blocks[1:]] == [f"blocks.{i}.norm" for i in range(3)]
    assert not any(block.branches for block in signal_propagation(Net(), (4, 3, 6, 6), residuals=None).blocks)
    with pytest.raises(ConfigError, match=r"a residual end lies in no block.*got head"):
        signal_propagation(Net(), (4, 3, 6, 6), residuals="head")
    net = Net()
    net.spare = nn.Linear(1, 1)
    with pytest.raises(ConfigError, match=r"never ran.*spare"):
        signal_propagation(net, (4, 3, 6, 6), layers=["stem", "spare"])


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.block(x))


def test_a_block_used_twice_counts_twice_with_its_branch() -> None:
    found = signal_propagation(Shared(), (4, 4, 6, 6), layers="block")
    assert [block.name for block in found.blocks] == ["input of block", "block (call 1)", "block (call 2)"]
    assert [len(block.branches) for block in found.blocks] == [0, 1, 1]
    assert found.blocks[1].branches[0].variance != found.blocks[2].branches[0].variance


def test_blocks_that_return_tuples() -> None:
    found = signal_propagation(TupleNet(), (4, 4, 6, 6))
    assert [block.branches[0].name for block in found.blocks[1:]] == [f"layers.{i}.inner.conv" for i in range(3)]


@pytest.mark.parametrize("exact", [False, True])
def test_the_residual_ends_of_couplings(exact: bool) -> None:
    """An exact sum is no addition that could be watched: the coupling declares its network."""
    chain = Chain(*(AdditiveCoupling(nn.Conv1d(2, 2, 1), target) for target in ("first", "second")), exact=exact)
    x = torch.randn(5, 4, 7)
    found = signal_propagation(chain, x)
    assert [[end.name for end in block.branches] for block in found.blocks] == [[], ["0.network"], ["1.network"]]
    expected = by_hand(np.array(chain[0].network(x[:, 2:]).tolist()), 1)
    (end,) = found.blocks[1].branches
    assert (end.squared_mean, end.variance) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    net = revnet((3, 8, 8), n_blocks=(2, 2, 2), channels=(4, 8, 16), strides=(1, 2, 2), exact=exact)
    blocks = signal_propagation(net, (4, 3, 8, 8)).blocks[1:]
    ends = [block.branches[0].name for block in blocks if block.kind == "AdditiveCoupling"]
    assert ends == [f"{block.name}.network" for block in blocks if block.kind == "AdditiveCoupling"]
    assert "transitions.1" in [block.name for block in blocks], "couplings do not hide what declares nothing"


def test_values_whose_squares_leave_float32() -> None:
    x = torch.randn(64, 3, 5) * 1e25
    found = signal_propagation(nn.Sequential(nn.Identity(), nn.Identity()), x, layers="*").blocks[-1]
    assert (found.squared_mean, found.variance) == pytest.approx(by_hand(x.double().numpy(), 1), rel=1e-5)
    assert found.is_finite


class Tokens(nn.Module):
    """Takes token numbers and a mask by name, returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layers = nn.Embedding(9, 8), nn.ModuleList(Prenorm() for _ in range(2))

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        x = self.embed(ids)
        for layer in self.layers:
            (x,) = layer(x, mask=mask)
        return {"last_hidden_state": x}


class Prenorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.f = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor]:
        return (x + self.f(self.norm(x)) * (1 if mask is None else mask.unsqueeze(-1)),)


def test_token_numbers_in_a_dict() -> None:
    batch = {"ids": torch.randint(0, 9, (3, 5)), "mask": torch.ones(3, 5), "labels": torch.zeros(3)}
    found = signal_propagation(Tokens(), [batch, batch], residuals="layers.?.f")
    assert [block.name for block in found.blocks] == ["input of layers.0", "layers.0", "layers.1"]
    assert [block.branches[0].name for block in found.blocks[1:]] == ["layers.0.f", "layers.1.f"]
    assert {block.channel_axis for block in found.blocks} == {2}
    places = ["embed", "layers.0", "layers.1"]
    assert signal_propagation(Tokens(), batch, layers=places).blocks[0].name == "input of layers.0"


def test_hostile_data() -> None:
    with pytest.raises(NonFiniteError, match="the data must be finite"):
        signal_propagation(nn.Linear(2, 2), torch.tensor([[1.0, math.nan]]))
    with pytest.raises(ShapeError, match="a batch is empty"):
        signal_propagation(nn.Linear(2, 2), torch.zeros(0, 2))
    with pytest.raises(RuntimeError, match="mat1 and mat2") as caught:
        signal_propagation(nn.Linear(3, 2), torch.zeros(4, 2))
    assert "batch_fn" in caught.value.__notes__[0]
    strided = torch.randn(6, 4, 3).transpose(1, 2)[::2]
    assert signal_propagation(nn.Identity(), strided).blocks[1].n_values == 12


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_under_a_callers_autocast(mode: str) -> None:
    net = Net()
    plain = signal_propagation(net, (8, 3, 6, 6), mode=mode)
    with torch.autocast("cpu", torch.bfloat16):
        half = signal_propagation(net, (8, 3, 6, 6), mode=mode)
    assert half.blocks[-1].variance == pytest.approx(plain.blocks[-1].variance, rel=0.1)


def test_files_plot_and_comparison(tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    a = signal_propagation(Net(), (4, 3, 6, 6), mode="eval")
    b = signal_propagation(Net(), (4, 3, 6, 6), mode="eval", seed=1)
    a.save(tmp_path / "a.json")
    assert Result.load(tmp_path / "a.json") == a
    a.save_csv(tmp_path / "a.csv")
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 1 + len(a.table)
    a.save_plot(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    axes = a.plot()
    assert "residual variance" in axes.get_legend_handles_labels()[1]
    assert axes.get_title() == "Signal propagation: Net, eval mode"
    compared = a.compare(b, labels=("one", "two"), curve="squared mean")
    assert compared.get_legend_handles_labels()[1] == ["one", "two"]
    assert list(compared.lines[1].get_ydata()) == [block.squared_mean for block in b.blocks]
    plt.close("all")


def train(recorder: SignalPropagationRecorder | None, net: nn.Module, n_steps: int) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def loop() -> None:
        for _ in range(n_steps):
            optimizer.zero_grad()
            net(torch.randn(8, 3, 6, 6)).square().mean().backward()
            optimizer.step()

    if recorder is None:
        loop()
        return
    with recorder.following(optimizer):
        loop()
    assert not optimizer._optimizer_step_post_hooks


def test_a_recorded_training_is_the_same_training(tmp_path: Path) -> None:
    nets = []
    for recorded in (False, True):
        torch.manual_seed(0)
        net = Net()
        recorder = SignalPropagationRecorder(net, (4, 3, 6, 6), every=2) if recorded else None
        train(recorder, net, 5)
        nets.append(net)
    assert all(torch.equal(a, b) for a, b in zip(*(net.state_dict().values() for net in nets), strict=True))
    history = recorder.result
    assert history.steps == (0, 2, 4)
    assert [row["step"] for row in history.table] == [0] * 4 + [2] * 4 + [4] * 4
    history.save(tmp_path / "h.json")
    assert SignalHistory.load(tmp_path / "h.json") == history
    assert len(history.plot().lines) == 4
    assert history.compare(history).get_xlabel() == "step"


def test_a_recorder_needs_data_it_can_use_again() -> None:
    with pytest.raises(ConfigError, match="again and again"):
        SignalPropagationRecorder(Net(), iter([torch.zeros(1, 3, 6, 6)]))
    with pytest.raises(ConfigError, match="every >= 1"):
        SignalPropagationRecorder(Net(), (4, 3, 6, 6), every=0)
    with pytest.raises(ConfigError, match="nothing was recorded"):
        _ = SignalPropagationRecorder(Net(), (4, 3, 6, 6)).result


def test_find_taps_agrees_with_what_was_measured() -> None:
    net = Net()
    assert [tap.name for tap in find_taps(net)] == [
        block.name for block in signal_propagation(net, (4, 3, 6, 6)).blocks[1:]
    ]


def test_branches_of_exact_irevnets_are_found():
    """Their sums are on a lattice: no plain addition."""
    images = torch.rand(4, 1, 8, 8)
    plain, exact = irevnet_digits().eval(), irevnet_digits(exact=True).eval()
    exact.load_state_dict(plain.state_dict())
    found = [signal_propagation(net, images, quiet=True) for net in (plain, exact)]
    plain_ends, exact_ends = ([block.residual_variance for block in result.blocks[1:]] for result in found)
    assert None not in plain_ends
    assert exact_ends == pytest.approx(plain_ends, rel=1e-2)

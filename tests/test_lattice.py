"""Sums on a lattice are exact, ranges are checked, and an exact chain gives back every bit, or raises."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from invertible import Chain, Inverse
from invertible.errors import ConfigError, DtypeError, RangeError, ReconstructionError
from invertible.lattice import Lattice, session
from invertible.layers import AdditiveCoupling, AffineCoupling, InjectivePad, Permute, Squeeze
from invertible.models import irevnet, revnet

FLOATS = st.floats(-60, 60, width=32)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# --- arithmetic ---


@given(FLOATS)
def test_quantise_gives_the_nearest_multiple(value: float) -> None:
    rounded = Lattice(18).quantise(torch.tensor([value])).item()
    exact = Fraction(rounded) * 2**18
    assert exact.denominator == 1
    assert abs(Fraction(value) - Fraction(rounded)) <= Fraction(1, 2**19)


@given(st.lists(FLOATS, min_size=1, max_size=8), st.floats(-60, 60, width=32))
def test_sums_are_exact_and_are_undone(values: list[float], shift: float) -> None:
    lattice = Lattice(12)
    x, s = lattice.quantise(torch.tensor(values)), torch.full((len(values),), shift)
    y = lattice.add(x, s)
    rounded = Fraction(round(Fraction(shift) * 2**12), 2**12)  # half to even, as torch rounds
    assert [Fraction(a) for a in y.tolist()] == [Fraction(a) + rounded for a in x.tolist()]
    assert torch.equal(lattice.subtract(y, s), x)


def test_pixels_of_8_bits_lie_on_the_lattice() -> None:
    pixels = torch.arange(256.0) / 256
    assert torch.equal(Lattice().quantise(pixels), pixels)


@pytest.mark.parametrize(("k", "limit"), [(12, 4096), (14, 1024), (16, 256), (18, 64), (20, 16)])
def test_range_in_float32(k: int, limit: float) -> None:
    lattice = Lattice(k)
    assert lattice.limit(torch.float32) == limit
    largest = torch.tensor([limit - lattice.step])
    assert torch.equal(lattice.quantise(largest), largest)
    with pytest.raises(RangeError, match=rf"below {limit}"):
        lattice.quantise(torch.tensor([float(limit)]))
    with pytest.raises(RangeError):
        lattice.add(largest, torch.tensor([lattice.step]))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_raises(value: float) -> None:
    with pytest.raises(RangeError):
        Lattice().quantise(torch.tensor([0.0, value]))
    with pytest.raises(RangeError):
        Lattice().add(torch.zeros(2), torch.tensor([value, 0.0]))


@pytest.mark.parametrize("k", [-1, 41, 1.5, True, "18"])
def test_bad_resolution(k: object, unchecked: None) -> None:
    with pytest.raises(ConfigError, match="resolution"):
        Lattice(k)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_streams_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(DtypeError, match="float32 or float64"):
        chain(2)(torch.zeros(1, 8, 4, 4, dtype=dtype))


def test_gradients_pass_straight_through() -> None:
    lattice = Lattice(4)
    x, s = torch.randn(5, requires_grad=True), torch.randn(5, requires_grad=True)
    weights = torch.randn(5)
    (lattice.add(lattice.quantise(x), s) * weights).sum().backward()
    assert torch.equal(x.grad, weights)  # type: ignore[arg-type]
    assert torch.equal(s.grad, weights)  # type: ignore[arg-type]
    with torch.no_grad():
        without = lattice.add(lattice.quantise(x), s)
    assert torch.equal(lattice.add(lattice.quantise(x), s), without)


def test_add_does_not_touch_its_arguments() -> None:
    lattice, target, shift = Lattice(), torch.randn(7), torch.randn(7)
    before = target.clone(), shift.clone()
    with torch.no_grad(), session("test"):
        lattice.add(target, shift)
        lattice.subtract(target, shift)
    assert torch.equal(target, before[0])
    assert torch.equal(shift, before[1])


def test_a_session_looks_at_every_sum_at_its_end() -> None:
    def three_sums() -> None:
        with session("three sums"):
            x = lattice.add(torch.zeros(1), torch.tensor([1.0]))
            lattice.add(x, torch.tensor([70.0]))
            lattice.add(x, torch.tensor([1.0]))

    lattice = Lattice()
    with pytest.raises(RangeError, match="sum 2 of 3"):
        three_sums()


# --- chains ---


def residual(n: int) -> nn.Module:
    half = [nn.BatchNorm2d(n), nn.ReLU(), nn.Conv2d(n, n, 3, padding=1)]
    return nn.Sequential(*half, *copy.deepcopy(half))


def chain(depth: int, n: int = 4, exact: bool | int = True, gain: float = 0.4) -> Chain:
    """Small weights keep 300 blocks within the range."""
    net = Chain(*(AdditiveCoupling(residual(n), ("first", "second")[i % 2]) for i in range(depth)), exact=exact)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.mul_(gain)
    return net


def on_lattice(net: Chain, x: Tensor) -> Tensor:
    assert net.lattice is not None
    return net.lattice.quantise(x)


@pytest.mark.parametrize("is_training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("is_autocast", [True, False], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(("depth", "n_threads"), [(300, 1), (20, 2)])  # two threads crawl where cores are taken
def test_every_bit_comes_back(
    depth: int, n_threads: int, is_training: bool, is_autocast: bool, layout: torch.memory_format, threads: None
) -> None:
    torch.set_num_threads(n_threads)
    net = chain(depth).train(is_training).to(memory_format=layout)  # type: ignore[call-overload]
    x = torch.randn(4, 8, 6, 6).contiguous(memory_format=layout)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
        y = net(x)
        back = net.inverse(y)
    assert not torch.equal(y, on_lattice(net, x))
    assert torch.equal(back, on_lattice(net, x))


def test_without_the_lattice_bits_are_lost() -> None:
    net, x = chain(300, exact=False).eval(), torch.randn(4, 8, 6, 6)
    with torch.no_grad():
        assert not torch.equal(net.inverse(net(x)), x)


@pytest.mark.parametrize("exact", [14, 16, 20])
def test_other_resolutions(exact: int) -> None:
    net, x = chain(40, exact=exact).eval(), torch.randn(4, 8, 6, 6)
    with torch.no_grad():
        assert torch.equal(net.inverse(net(x)), on_lattice(net, x))


def test_float64() -> None:
    net, x = chain(40, exact=40).double(), torch.randn(4, 8, 6, 6, dtype=torch.float64)
    assert torch.equal(net.inverse(net(x)), on_lattice(net, x))


def test_what_only_moves_numbers_and_nesting() -> None:
    inner = Chain(Permute.reverse(8), AdditiveCoupling(residual(4)), Inverse(Squeeze(2)))
    net = Chain(InjectivePad(6, 2), AdditiveCoupling(residual(4)), inner, AdditiveCoupling(residual(1)), exact=True)
    x = torch.randn(3, 6, 4, 4)
    y = net(x)
    assert torch.equal(net.inverse(y), on_lattice(net, x))
    assert torch.equal(inner.inverse(inner(y.new_ones(3, 8, 4, 4))), y.new_ones(3, 8, 4, 4))
    assert torch.equal(net[1:3].inverse(net[1:3](y.new_ones(3, 8, 4, 4))), y.new_ones(3, 8, 4, 4))


def test_uneven_streams_and_networks_that_return_views() -> None:
    net = Chain(
        AdditiveCoupling(nn.Identity(), sizes=(3, 3)),
        AdditiveCoupling(nn.Linear(5, 1), sizes=(5, 1)),
        AdditiveCoupling(nn.Flatten(), "first", sizes=(3, 3)),
        exact=True,
    )
    x = torch.randn(4, 6)
    with torch.no_grad():
        assert torch.equal(net.inverse(net(x)), on_lattice(net, x))


def test_members_that_are_no_sums_are_refused() -> None:
    with pytest.raises(ConfigError, match="AffineCoupling"):
        Chain(AdditiveCoupling(nn.Linear(2, 2)), AffineCoupling(nn.Linear(2, 4)), exact=True)


def test_members_are_not_shared_between_lattices() -> None:
    members = [AdditiveCoupling(nn.Linear(2, 2)) for _ in range(2)]
    net = Chain(*members, exact=True)
    with pytest.raises(ConfigError, match="members of an exact chain"):
        Chain(*members)(torch.randn(3, 4))
    with pytest.raises(ConfigError, match="members of an exact chain"):
        Chain(Inverse(members[0]))(torch.randn(3, 4))
    with pytest.raises(ConfigError, match="another lattice"):
        Chain(*members, exact=14)
    affine, x = AffineCoupling(nn.Linear(2, 4)), torch.randn(3, 4)
    mixed = Chain(affine, net, Permute.reverse(4), affine, Chain(net, affine), memory="reconstruct")
    mixed(x).sum().backward()
    torch.testing.assert_close(mixed.inverse(mixed(x)), x, atol=1e-5, rtol=1e-5)


def test_members_that_come_later_are_noticed() -> None:
    net = Chain(AdditiveCoupling(nn.Linear(2, 2)), exact=True)
    net.add_module("1", AdditiveCoupling(nn.Linear(2, 2)))
    with pytest.raises(ConfigError, match="member 1, added later"):
        net(torch.randn(3, 4))


def test_float64_input_that_is_not_contiguous() -> None:
    net, x = Chain(AdditiveCoupling(nn.Linear(4, 4)), exact=40).double(), torch.randn(8, 3, dtype=torch.float64).t()
    assert torch.equal(net.inverse(net(x)), on_lattice(net, x))


def test_a_stream_that_leaves_the_range_raises_both_ways() -> None:
    net = Chain(AdditiveCoupling(nn.Linear(1, 1)), exact=True)
    with torch.no_grad():
        net[0].network.weight.fill_(10.0)  # type: ignore[union-attr]
    with pytest.raises(RangeError, match="exact chain"):
        net(torch.tensor([[10.0, 10.0]]))
    with pytest.raises(RangeError, match="exact chain"):
        net.inverse(torch.tensor([[10.0, 10.0]]))
    with pytest.raises(RangeError, match="input"):
        net(torch.tensor([[100.0, 0.0]]))


def test_the_padded_irevnet_that_explodes_in_float32() -> None:
    """The configuration of the paper's first stage on CIFAR-10, in train mode and trained a little."""
    torch.manual_seed(0)
    net = irevnet((3, 16, 16), 10, (6,), (1,), (16,), dropout=0.0, exact=True, memory="reconstruct")
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(torch.rand(8, 3, 16, 16)), torch.arange(8)).backward()
        optimizer.step()
    net.eval()
    x = torch.rand(8, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(net.reconstruct(net.representation(x)), net.body.lattice.quantise(x))  # type: ignore[union-attr]


def test_revnet_takes_the_same_argument() -> None:
    net = revnet((1, 8, 8), n_blocks=(2, 2), channels=(8, 16), strides=(1, 2), exact=True)
    stage, x = net.stages[0], torch.randn(2, 8, 8, 8)
    assert torch.equal(stage.inverse(stage(x)), stage.lattice.quantise(x))  # type: ignore[union-attr, operator]


# --- receipts ---


class PerThreadCount(nn.Module):
    """Gives other bits with another number of threads, as a real network may."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + 0.01 * torch.get_num_threads())


class PerBatchSize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + 0.01 * len(x))


def test_another_number_of_threads_is_noticed(threads: None) -> None:
    net, x = Chain(AdditiveCoupling(PerThreadCount()), exact=True), torch.randn(4, 6)
    y = net(x)
    torch.set_num_threads(2)
    with pytest.raises(ReconstructionError, match="other bits"):
        net.inverse(y)
    torch.set_num_threads(1)
    assert torch.equal(net.inverse(y), on_lattice(net, x))


def test_a_part_of_the_batch_is_right_or_noticed() -> None:
    net, x = Chain(AdditiveCoupling(PerBatchSize()), exact=True), torch.randn(4, 6)
    y = net(x)
    with pytest.raises(ReconstructionError, match="element 0"):
        net.inverse(y[1:])
    plain = Chain(AdditiveCoupling(nn.Tanh()), exact=True)
    y = plain(x)
    assert torch.equal(plain.inverse(y[[2, 0]]), on_lattice(plain, x)[[2, 0]])


def test_another_mode_is_noticed() -> None:
    net, x = chain(4), torch.randn(4, 8, 6, 6)
    y = net.train()(x)
    with pytest.raises(ReconstructionError):
        net.eval().inverse(y)
    dropping = Chain(AdditiveCoupling(nn.Dropout(0.5)), exact=True)
    y = dropping(x)
    with pytest.raises(ReconstructionError):
        dropping.inverse(y)


def test_other_weights_are_another_map() -> None:
    net, x = chain(2), torch.randn(4, 8, 6, 6)
    y = net(x)
    with torch.no_grad():
        net[0].network[2].weight.add_(0.1)  # type: ignore[index, union-attr, operator]
    assert not torch.equal(net.inverse(y), on_lattice(net, x))


def test_outputs_that_nobody_has_seen_pass() -> None:
    net = chain(3).eval()
    y = on_lattice(net, torch.randn(4, 8, 6, 6))
    assert torch.equal(net(net.inverse(y)), y)

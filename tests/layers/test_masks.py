"""Masks against the patterns of the papers, and couplings that use them against their equation."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from cases import Constant, assert_close, conv, mlp
from invertible import Chain
from invertible.bijection import Bijection
from invertible.errors import ConfigError, ShapeError
from invertible.layers import (
    AdditiveCoupling,
    AffineCoupling,
    Alternating,
    ChannelMask,
    Checkerboard,
    Coupling,
    FixedMask,
    Mask,
    SplineCoupling,
)

CPU = torch.device("cpu")


def pattern(mask: Mask, *shape: int) -> list:
    return mask.build(shape, CPU).expand(shape).int().tolist()


def test_checkerboard() -> None:
    assert pattern(Checkerboard(), 2, 3, 4) == 2 * [[[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]]]
    assert pattern(Checkerboard(), 2, 3) == 2 * [[0, 1, 0]]
    assert pattern(Checkerboard(), 1, 1, 3) == [[[0, 1, 0]]]
    assert pattern(Checkerboard(), 1, 2, 2, 2) == [[[[0, 1], [1, 0]], [[1, 0], [0, 1]]]]


def test_channel_mask_is_the_first_half() -> None:
    assert pattern(ChannelMask(), 4) == [1, 1, 0, 0]
    assert pattern(ChannelMask(), 3, 1, 2) == [[[1, 1]], [[0, 0]], [[0, 0]]]


def test_alternating() -> None:
    assert pattern(Alternating(), 5) == [1, 0, 1, 0, 1]
    assert pattern(Alternating(), 2, 2) == [[1, 1], [0, 0]]


def test_fixed_mask_from_anything() -> None:
    masks = [FixedMask(p) for p in ([[True, False]], ((True, False),), torch.tensor([[True, False]]))]
    assert masks[0] == masks[1] == masks[2]
    assert hash(masks[0]) == hash(masks[2])
    assert pattern(masks[0], 1, 2) == [[1, 0]]


@pytest.mark.parametrize(
    ("mask", "shape", "words"),
    [
        (Checkerboard(), (4,), r"2 or more after the channels, got \(4,\). Try: Alternating"),
        (Checkerboard(), (4, 1, 1), "Checkerboard needs positions"),
        (ChannelMask(), (1, 8, 8), r"ChannelMask needs channels to part.*got \(1, 8, 8\). Try: Checkerboard"),
        (Alternating(), (1,), "Alternating needs channels"),
        (FixedMask([True, False]), (3,), r"expected \(batch, \*\(2,\)\), got \(3,\)"),
        (Alternating(), (), "elements with a shape"),
    ],
)
def test_shapes_that_cannot_be_parted(mask: Mask, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        AdditiveCoupling(nn.Identity(), mask=mask)(torch.zeros(2, *shape))


@pytest.mark.parametrize("bad", [[1, 0], [[True], [True, False]], [True, True], [False], True, ["x"]])
def test_bad_fixed_masks(bad: object) -> None:
    with pytest.raises(ConfigError, match="FixedMask"):
        FixedMask(bad)


@pytest.mark.parametrize("arguments", [{"sizes": (1, 3)}, {"dim": 2}])
def test_a_mask_and_a_split_exclude_each_other(arguments: dict) -> None:
    with pytest.raises(ConfigError, match="in one way: expected sizes and dim, or a mask"):
        AdditiveCoupling(nn.Identity(), mask=Alternating(), **arguments)


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_mask() -> None:
    with pytest.raises(ConfigError, match=r"expected Checkerboard\(\) or the like, got a str"):
        AdditiveCoupling(nn.Identity(), mask="checkerboard")


# --- couplings ---


@pytest.mark.parametrize("target", ["second", "first"])
def test_equation_9_of_realnvp(target: str) -> None:
    """y = b x + (1 - b) (x exp(s(b x)) + t(b x)), written with a b made by hand."""
    network, x = conv(2, 4), torch.randn(3, 2, 3, 3)
    b = torch.tensor([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]])
    b = b if target == "second" else 1 - b
    t, s = network(b * x).chunk(2, dim=1)
    coupling = AffineCoupling(network, target, scale_bound=None, mask=Checkerboard())
    y, logdet = coupling.forward_with_logdet(x)
    assert_close(y, b * x + (1 - b) * (x * s.exp() + t))
    assert_close(logdet, ((1 - b) * s).sum((1, 2, 3)))


def test_alternating_additive_coupling_is_that_of_streams() -> None:
    """On features sorted by parity, with the same network seen through the sorting."""
    network, x = mlp(2, 2), torch.randn(4, 4)

    class Spread(nn.Module):
        def forward(self, kept: Tensor) -> Tensor:
            assert torch.equal(kept[:, 1::2], torch.zeros(4, 2))
            return torch.stack([torch.full((4, 2), 9.0), network(kept[:, ::2])], dim=2).flatten(1)

    y = AdditiveCoupling(Spread(), mask=Alternating())(x)
    expected = AdditiveCoupling(network)(torch.cat([x[:, ::2], x[:, 1::2]], dim=1))
    assert torch.equal(torch.cat([y[:, ::2], y[:, 1::2]], dim=1), expected)


KINDS = {
    "additive": lambda n, **kwargs: AdditiveCoupling(mlp(n, n), mask=Alternating(), **kwargs),
    "affine": lambda n, **kwargs: AffineCoupling(mlp(n, 2 * n), mask=Alternating(), **kwargs),
    "spline": lambda n, **kwargs: SplineCoupling(mlp(n, 8 * n), n_bins=3, mask=Alternating(), **kwargs),
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@every_kind
def test_kept_elements_are_kept_to_the_bit(kind) -> None:
    x = torch.tensor([[-0.0, 1.0, 1e-40, 3.0], [1e30, 1.0, 0.1, -2.0]])
    for coupling, kept in ((kind(4), slice(0, None, 2)), (kind(4, target="first"), slice(1, None, 2))):
        for y in (coupling(x), coupling.inverse(x)):
            assert torch.equal(y[:, kept].view(torch.int32), x[:, kept].view(torch.int32))
            assert not torch.equal(y, x)


def test_an_overflow_where_nothing_changes_is_nobodys_business() -> None:
    coupling = AffineCoupling(Constant(0, 1, 1e4, 0.5), mask=FixedMask([True, False]), scale_bound=None).double()
    x = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
    y, logdet = coupling.forward_with_logdet(x)
    (y.sum() + logdet.sum()).backward()
    e = torch.tensor(0.5, dtype=torch.float64).exp().item()
    assert_close(y, y.new_tensor([[1.0, e + 1]]))
    assert_close(logdet, y.new_tensor([0.5]))
    assert_close(x.grad, y.new_tensor([[1.0, e]]))


class Stretch(Coupling):
    """Changes what it changes whatever the network says."""

    def _change(self, target: Tensor, h: Tensor) -> Tensor:
        return 2 * target + h

    def _restore(self, target: Tensor, h: Tensor) -> Tensor:
        return (target - h) / 2

    def _log_derivative(self, target: Tensor, h: Tensor) -> Tensor:
        return torch.full_like(target, math.log(2))


def test_a_coupling_of_ones_own() -> None:
    coupling, x = Stretch(Constant(1, 1, 1), mask=Alternating()), torch.tensor([[1.0, 2, 3]])
    y, logdet = coupling.forward_with_logdet(x)
    assert y.tolist() == [[1, 5, 3]]
    assert_close(logdet, torch.tensor([math.log(2)]))
    back, backward = coupling.inverse_with_logdet(y)
    assert torch.equal(back, x)
    assert torch.equal(backward, -logdet)


def test_a_coupling_of_ones_own_reconstructs() -> None:
    """The kept elements of a reconstructed input are those of the output, not what undoing nothing makes of them."""
    first, stretch = KINDS["affine"](4), Stretch(mlp(4, 4), mask=ChannelMask())
    x, grads = torch.randn(3, 4), []
    for memory in ("store", "reconstruct"):
        Chain(first, stretch, memory=memory).forward_with_logdet(x)[0].square().sum().backward()
        grads.append([p.grad.clone() for p in first.parameters()])
        first.zero_grad()
    for stored, reconstructed in zip(*grads, strict=True):
        assert_close(reconstructed, stored, 1e-4)


def chain(kind, memory: str, **kwargs) -> Chain:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        members = [kind(4, target="second" if i % 2 else "first") for i in range(3)]
        return Chain(*members, memory=memory, **kwargs).double()


def second_order(model: Chain, x: Tensor) -> list[Tensor]:
    y, logdet = model.forward_with_logdet(x)
    (slope,) = torch.autograd.grad(y.square().sum() + logdet.sum(), x, create_graph=True)
    return [slope, *torch.autograd.grad(slope.square().sum(), [x, *model.parameters()], allow_unused=True)]


@every_kind
def test_second_derivatives_through_a_chain_that_reconstructs(kind) -> None:
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    results = (second_order(chain(kind, memory), x) for memory in ("reconstruct", "store"))
    for found, expected in zip(*results, strict=True):
        assert (found is None) == (expected is None)
        if found is not None:
            assert_close(found, expected, 1e-10)


class Counted(nn.Module):
    """Counts its calls."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.n_calls = network, 0

    def forward(self, x: Tensor) -> Tensor:
        self.n_calls += 1
        return self.network(x)


@every_kind
def test_the_network_runs_once_per_direction_and_per_reconstruction(kind) -> None:
    coupling = kind(4)
    coupling.network = Counted(coupling.network)
    x = torch.randn(3, 4)
    for method in ("forward", "inverse", "forward_with_logdet", "inverse_with_logdet"):
        coupling.network.n_calls = 0
        getattr(coupling, method)(x)
        assert coupling.network.n_calls == 1, method
        coupling.network.n_calls = 0
        out = getattr(Chain(coupling, memory="reconstruct"), method)(x)
        sum(t.sum() for t in (out if isinstance(out, tuple) else (out,))).backward()
        assert coupling.network.n_calls == 2, method


def test_exact_chain_of_masks() -> None:
    model = chain(KINDS["additive"], "reconstruct", exact=True)
    x = torch.randn(5, 4, dtype=torch.float64)
    y = model(x)
    assert torch.equal(model.inverse(y), model.lattice.quantise(x))
    y.square().sum().backward()
    found = [p.grad for p in model.parameters()]
    stored = chain(KINDS["additive"], "store", exact=True)
    stored(x).square().sum().backward()
    for grad, p in zip(found, stored.parameters(), strict=True):
        assert_close(grad, p.grad)


def cached(coupling: Bijection) -> list[Tensor]:
    return [t for pair in coupling._roles._cache.values() for t in pair]


def test_patterns_are_kept_but_not_saved() -> None:
    """One built under inference mode serves training, one built under vmap is not kept."""
    coupling, x = AffineCoupling(conv(1, 2), mask=Checkerboard()), torch.randn(2, 1, 3, 3)
    torch.func.vmap(coupling)(x[None])
    torch.func.grad(lambda z: coupling(z).sum())(x)
    assert cached(coupling) == []
    with torch.inference_mode():
        coupling(x)
    first = cached(coupling)
    coupling(x).sum().backward()
    assert all(a is b for a, b in zip(first, cached(coupling), strict=True))
    assert not any(t.is_inference() for t in first)
    assert set(coupling.state_dict()) == {f"network.{name}" for name in coupling.network.state_dict()}
    assert torch.equal(copy.deepcopy(coupling)(x), coupling(x))


def test_the_cache_is_bounded() -> None:
    coupling = AdditiveCoupling(nn.Identity(), mask=Alternating())
    for n in range(2, 60):
        coupling(torch.zeros(1, n))
    assert len(cached(coupling)) <= 32


def test_meta_tensors() -> None:
    coupling = AffineCoupling(conv(1, 2).to("meta"), mask=Checkerboard())
    assert coupling(torch.zeros(2, 1, 3, 3, device="meta")).is_meta


def test_repr_shows_the_mask() -> None:
    assert "mask=Checkerboard(), target='first'" in repr(
        AdditiveCoupling(nn.Identity(), mask=Checkerboard(), target="first")
    )

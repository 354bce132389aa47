"""Bijection, Chain, Inverse and Split: how maps compose, what that costs, and the documented errors."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cases import Constant, add, affine, affine_given, assert_close
from invertible import Bijection, Chain, Inverse, Split
from invertible.bijection import VolumePreserving
from invertible.errors import ConfigError, ContextError, DtypeError, NotInImageError, ShapeError
from invertible.layers import AffineCoupling, InjectivePad, Permute, Squeeze


def test_chain_is_its_members_one_after_the_other() -> None:
    members = [affine(2, 3), Permute.random(5), add(3, 2, target="first"), affine(1, 4, sizes=(1, 4))]
    x = torch.randn(4, 5)
    y, total = x, torch.zeros(4)
    for member in members:
        y, logdet = member.forward_with_logdet(y)
        total = total + logdet
    chain_y, chain_logdet = Chain(*members).forward_with_logdet(x)
    assert torch.equal(chain_y, y)
    assert_close(chain_logdet, total)
    for member in reversed(members):
        y = member.inverse(y)
    assert torch.equal(Chain(*members).inverse(chain_y), y)


def test_context_reaches_those_members_that_take_it() -> None:
    plain, conditional, context = add(2, 2), affine_given(2), torch.randn(3, 2)
    x = torch.randn(3, 4)
    chain = Chain(plain, conditional, plain)
    assert torch.equal(chain(x, context), plain(conditional(plain(x), context)))
    assert not torch.equal(chain(x, context), chain(x, context + 1))


def test_chain_logdet_is_summed_in_float32_for_bfloat16() -> None:
    step = AffineCoupling(Constant(0.0, 2**-10), scale_bound=None)
    _, logdet = Chain(*[step] * 1000).forward_with_logdet(torch.zeros(1, 2, dtype=torch.bfloat16))
    assert logdet.item() == torch.tensor(1000 / 1024).bfloat16().item()


class CountOps(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **kwargs or {})

    @property
    def n_splits(self) -> int:
        return sum(n for name, n in self.counts.items() if name.startswith("split"))


@pytest.mark.parametrize("method", ["forward", "inverse", "forward_with_logdet", "inverse_with_logdet"])
@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
def test_a_stage_is_split_once_and_concatenated_once(method: str, nested: bool) -> None:
    couplings = [add(2, 2, target=("first", "second")[i % 2]) for i in range(8)]
    chain = Chain(*couplings[:3], Chain(*couplings[3:5]), *couplings[5:]) if nested else Chain(*couplings)
    with torch.no_grad(), CountOps() as ops:
        getattr(chain, method)(torch.randn(3, 4))
    assert ops.counts["cat"] == 1
    assert ops.n_splits == 1


def test_one_split_per_stage() -> None:
    chain = Chain(add(2, 2), add(2, 2), Permute.reverse(4), add(2, 2), add(1, 3, sizes=(1, 3)))
    with torch.no_grad(), CountOps() as ops:
        chain(torch.randn(3, 4))
    assert ops.counts["cat"] == ops.n_splits == 3


def test_hooks_of_a_chain_and_its_members_fire_once_per_forward() -> None:
    chain, fired = Chain(add(2, 2), Permute.reverse(4), Chain(affine(2, 2))), Counter()
    for name, module in chain.named_modules():
        if isinstance(module, Bijection):
            module.register_forward_hook(lambda *_, name=name: fired.update([name]))
    chain(torch.randn(3, 4))
    assert fired == {"": 1, "0": 1, "1": 1, "2": 1, "2.0": 1}


def test_hooks_of_a_member_see_streams_and_may_change_them() -> None:
    chain = Chain(add(2, 2), add(2, 2))
    x = torch.randn(3, 4)
    plain = chain(x)
    chain[1].register_forward_hook(lambda _, __, out: (out[0], out[1] + 1))
    assert torch.equal(chain(x)[:, 2:], plain[:, 2:] + 1)


# --- nesting where the splits differ ---


@pytest.mark.parametrize("after", [add(2, 2), affine(2, 2)], ids=["additive", "affine"])
@pytest.mark.parametrize("method", ["forward_with_logdet", "inverse_with_logdet"])
def test_no_logdet_of_what_bends_after_padding(after: Bijection, method: str) -> None:
    """log det(J^T J) / 2 is no sum there: even an additive coupling stretches the padded image."""
    chain, x = Chain(InjectivePad(2, 2), after).double(), torch.randn(1, 2, dtype=torch.float64)
    j = torch.autograd.functional.jacobian(lambda row: chain(row).flatten(), x).flatten(1)
    assert abs(torch.linalg.slogdet(j.T @ j).logabsdet.item()) > 1e-3  # the members' sum would be off
    with pytest.raises(ConfigError, match=r"no sum: expected only permutations.*Pad, got A.*bijective network"):
        getattr(chain, method)(x if method[0] == "f" else chain(x))


def test_logdet_of_what_keeps_distances_after_padding() -> None:
    chain = Chain(affine(1, 1), Chain(InjectivePad(2, 2), Permute.random(4)), Permute.reverse(4)).double()
    x = torch.randn(1, 2, dtype=torch.float64)
    j = torch.autograd.functional.jacobian(lambda row: chain(row).flatten(), x).flatten(1)
    assert_close(chain.forward_with_logdet(x)[1], torch.linalg.slogdet(j.T @ j).logabsdet[None] / 2)


# --- Chain is a sequence ---


def members(n: int = 4) -> list[Bijection]:
    return [add(2, 2) for _ in range(n)]


def test_chain_indexes_iterates_and_has_a_length() -> None:
    parts = members()
    chain = Chain(*parts)
    assert len(chain) == 4
    assert list(chain) == parts
    assert list(reversed(chain)) == parts[::-1]
    assert chain[0] is parts[0]
    assert chain[-1] is parts[3]
    with pytest.raises(IndexError):
        chain[4]


@pytest.mark.parametrize("where", [slice(1, 3), slice(None, -1), slice(None, None, 2), slice(4, 9)])
def test_slice_of_a_chain_is_a_chain_of_the_same_members(where: slice) -> None:
    parts = members()
    part = Chain(*parts)[where]
    assert isinstance(part, Chain)
    assert list(part) == parts[where]


def test_slices_compose_to_the_whole() -> None:
    chain, x = Chain(*members(), Permute.reverse(4), affine(2, 2)), torch.randn(3, 4)
    assert torch.equal(chain[3:](chain[:3](x)), chain(x))
    assert chain[:4].split_out == Split()
    assert chain[:5].split_out is None


def test_slice_knows_whether_it_takes_a_context() -> None:
    chain = Chain(add(2, 2), affine_given(2))
    assert chain.takes_context
    assert chain[1:].takes_context
    assert not chain[:1].takes_context


def test_state_dict_keys_are_those_of_sequential() -> None:
    parts = members(2)
    assert list(Chain(*parts).state_dict()) == list(nn.Sequential(*parts).state_dict())


def test_empty_chain_is_the_identity() -> None:
    x = torch.randn(3, 4)
    y, logdet = Chain().forward_with_logdet(x)
    assert torch.equal(y, x)
    assert torch.equal(logdet, torch.zeros(3))


def test_a_member_may_come_twice() -> None:
    layer, x = add(2, 2), torch.randn(3, 4)
    chain = Chain(layer, Permute.reverse(4), layer)
    assert len(list(chain.parameters())) == len(list(layer.parameters()))
    assert_close(chain.inverse(chain(x)), x)


# --- Inverse ---


def test_inverse_turns_everything_round() -> None:
    layer, x = Chain(Squeeze(2), AffineCoupling(nn.Conv2d(2, 4, 1))), torch.randn(2, 1, 4, 4)
    turned = Inverse(layer)
    y = layer(x)
    assert torch.equal(turned(y), layer.inverse(y))
    assert torch.equal(turned.inverse(x), y)
    assert torch.equal(turned.forward_with_logdet(y)[1], layer.inverse_with_logdet(y)[1])
    assert torch.equal(turned.inverse_with_logdet(x)[1], layer.forward_with_logdet(x)[1])
    assert (turned.split_in, turned.split_out) == (layer.split_out, layer.split_in)


def test_inverse_of_padding_refuses_what_has_no_preimage() -> None:
    turned = Inverse(InjectivePad(2, 1))
    assert turned(torch.tensor([[1.0, 2.0, 0.0]])).tolist() == [[1, 2]]
    assert turned.inverse(torch.tensor([[1.0, 2.0]])).tolist() == [[1, 2, 0]]
    with pytest.raises(NotInImageError):
        turned(torch.ones(1, 3))


# --- Split ---


@pytest.mark.parametrize(("size", "sizes"), [(2, (1, 1)), (5, (2, 3)), (6, (3, 3))])
def test_halves_are_even_or_the_second_is_larger(size: int, sizes: tuple[int, int]) -> None:
    assert tuple(s.shape[1] for s in Split().part(torch.zeros(3, size))) == sizes


def test_split_parts_views_and_merges_them_again() -> None:
    x, split = torch.randn(2, 3, 6), Split((1, 2, 3), dim=2)
    streams = split.part(x)
    assert split.n_streams == 3
    assert [s.shape for s in streams] == [(2, 3, 1), (2, 3, 2), (2, 3, 3)]
    assert all(s.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for s in streams)
    assert torch.equal(split.merge(streams), x)


@pytest.mark.parametrize(
    ("split", "shape", "words"),
    [
        (
            Split(),
            (2, 1),
            r"cannot part the tensor into streams: expected 2 channels or more, got shape \(2, 1\)",
        ),
        (Split(), (2,), "expected 2 channels or more"),
        (Split((2, 2)), (2, 5), "expected size 4 in dimension 1"),
        (Split((2, 2), dim=2), (2, 4), "expected size 4 in dimension 2"),
    ],
)
def test_what_does_not_part(split: Split, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ShapeError, match=words + ".*Try: pad with InjectivePad"):
        split.part(torch.zeros(shape))


@pytest.mark.parametrize("arguments", [{"dim": 0}, {"dim": -1}, {"sizes": (3,)}, {"sizes": (3, 0)}, {"sizes": ()}])
def test_bad_split(arguments: dict) -> None:
    with pytest.raises(ConfigError, match="expected"):
        Split(**arguments)


# --- errors ---


@pytest.mark.parametrize("method", ["forward", "inverse", "forward_with_logdet", "inverse_with_logdet"])
@pytest.mark.usefixtures("unchecked")
class TestBadInput:
    """The same four checks stand before each public method."""

    def test_no_tensor(self, method: str) -> None:
        words = r"^Chain takes tensors: expected a torch.Tensor, got a ndarray. Try: torch.as_tensor\(x"
        with pytest.raises(DtypeError, match=words):
            getattr(Chain(*members()), method)(np.zeros((1, 4)))

    def test_list_of_streams(self, method: str) -> None:
        with pytest.raises(DtypeError, match="got a list of 2"):
            getattr(Chain(*members()), method)([torch.zeros(1, 2)] * 2)

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.complex64])
    def test_integer_images(self, method: str, dtype: torch.dtype) -> None:
        words = r"expected a floating-point tensor, got shape .* and dtype .*Try: x.float\(\) / 255"
        with pytest.raises(DtypeError, match=words):
            getattr(Squeeze(2), method)(torch.zeros(1, 4, 4, 4, dtype=dtype))
        with pytest.raises(DtypeError, match=words):
            getattr(add(2, 2), method)((torch.zeros(1, 2, dtype=dtype), torch.zeros(1, 2)))

    def test_scalar(self, method: str) -> None:
        with pytest.raises(ShapeError, match=r"works on batches: expected shape \(batch, ...\), got shape \(\)"):
            getattr(Chain(), method)(torch.tensor(1.0))

    @pytest.mark.parametrize("n", [0, 1, 3])
    def test_wrong_number_of_streams(self, method: str, n: int) -> None:
        words = f"^AdditiveCoupling got the wrong number of streams: expected .* tuple of 2, got a tuple of {n}"
        with pytest.raises(ShapeError, match=words):
            getattr(add(2, 2), method)((torch.zeros(1, 2),) * n)

    def test_streams_where_none_are(self, method: str) -> None:
        with pytest.raises(ShapeError, match="expected a tensor or a tuple of 1, got a tuple of 2"):
            getattr(Permute.reverse(2), method)((torch.zeros(1, 2),) * 2)

    def test_unlike_streams(self, method: str) -> None:
        words = r"unlike streams: expected one dtype and device, got \[torch.float32, torch.float64\]"
        with pytest.raises(DtypeError, match=words):
            getattr(add(2, 2), method)((torch.zeros(1, 2), torch.zeros(1, 2).double()))

    def test_context_missing(self, method: str) -> None:
        for b in (affine_given(2), Chain(add(2, 2), affine_given(2)), Inverse(affine_given(2))):
            with pytest.raises(ContextError, match=r"is conditional: expected a context, got None. Try: pass context="):
                getattr(b, method)(torch.zeros(1, 4))

    def test_context_superfluous(self, method: str) -> None:
        for b in (affine(2, 2), Chain(affine(2, 2)), Inverse(affine(2, 2)), Permute.reverse(4)):
            with pytest.raises(ContextError, match=r"not conditional: expected no context, got one. Try: leave it out"):
                getattr(b, method)(torch.zeros(1, 4), torch.zeros(1, 2))


@pytest.mark.parametrize("member", [nn.Linear(2, 2), Squeeze, [Squeeze(2)], None])
@pytest.mark.usefixtures("unchecked")
def test_chain_and_inverse_of_no_bijection(member: object) -> None:
    with pytest.raises(DtypeError, match=r"member 1 of a Chain: expected a Bijection, got a .*Try: wrap a network"):
        Chain(Squeeze(2), member)
    with pytest.raises(DtypeError, match="Inverse turns round: expected a Bijection, got a "):
        Inverse(member)


def test_abstract_classes_cannot_be_built() -> None:
    for abstract in (Bijection, VolumePreserving):
        with pytest.raises(TypeError, match="abstract"):
            abstract()


def test_no_logdet_of_what_bends_before_a_cut() -> None:
    """The chain of inverses, written by hand, is refused as the inverse of the chain is."""
    chain = Chain(InjectivePad(1, 3), affine(2, 2))
    backwards, x = Chain(Inverse(chain[1]), Inverse(chain[0])), torch.randn(2, 1)
    y = chain(x)
    assert_close(backwards(y), x)
    for method, point in (("forward_with_logdet", y), ("inverse_with_logdet", x)):
        with pytest.raises(ConfigError, match="no sum: expected only permutations and the like before Inverse"):
            getattr(backwards, method)(point)


class Swap(VolumePreserving):
    """Wrong for odd sizes: it declares halves and leaves them the other way round."""

    split_in = split_out = Split()

    def _forward(self, x, context):
        return x[1], x[0]

    def _inverse(self, y, context):
        return y[1], y[0]


def test_streams_must_come_out_as_declared() -> None:
    assert Swap()(torch.zeros(2, 4)).shape == (2, 4)
    with pytest.raises(ShapeError, match="Swap's output got the wrong number of channels"):
        Swap()(torch.zeros(2, 5))


class WrongLogdet(VolumePreserving):
    """Its log-determinant is what it is given."""

    def __init__(self, logdet) -> None:
        super().__init__()
        self.logdet = logdet

    def _forward(self, x, context):
        return x

    def _inverse(self, y, context):
        return y

    def _forward_with_logdet(self, x, context):
        return x, self.logdet


@pytest.mark.parametrize("logdet", [torch.tensor(1.0), torch.zeros(3, 6), torch.zeros(4), 0.5])
@pytest.mark.parametrize("in_chain", [False, True])
@pytest.mark.usefixtures("unchecked")
def test_log_determinants_have_one_number_per_element(logdet: object, in_chain: bool) -> None:
    layer = WrongLogdet(logdet)
    with pytest.raises(ShapeError, match=r"WrongLogdet's log-determinant: expected shape \(3,\)"):
        (Chain(layer) if in_chain else layer).forward_with_logdet(torch.zeros(3, 6))

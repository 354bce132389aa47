"""Half of the channels leave after each level, and every level can be reconstructed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from cases import add_conv, affine, affine_conv, affine_given, assert_close
from invertible import Chain, Inverse
from invertible.errors import ConfigError, DtypeError
from invertible.layers import OnFirst, Permute, Squeeze, multi_scale


def levels() -> Chain:
    return multi_scale(
        [
            [Squeeze(2), affine_conv(2, 2), Permute.reverse(4), affine_conv(2, 2, target="first")],
            [Squeeze(2), Chain(affine_conv(4, 4), add_conv(4, 4))],
            [affine_conv(2, 2), Inverse(affine_conv(2, 2))],
        ],
        n_channels=1,
    ).double()


def test_channels_leave_in_halves() -> None:
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    chain = levels()
    y = chain(x)
    assert y.shape == (3, 16, 2, 2)
    first = chain[:4](x)  # level 1: 4 channels of 4x4, of which the last two leave
    left = Squeeze(2)(first[:, 2:])
    assert torch.equal(y[:, 8:], left)
    second = chain[:7](x)  # level 2 leaves with channels 4 to 7
    assert torch.equal(y[:, 4:8], second[:, 4:8])
    assert_close(chain.inverse(y), x)


def test_levels_that_left_do_not_reach_those_that_stay() -> None:
    chain, x = levels(), torch.randn(2, 1, 8, 8, dtype=torch.float64)
    z = chain[:4](x)
    changed = torch.cat([z[:, :2], z[:, 2:] + 1], dim=1)
    rest = chain[4:]
    assert torch.equal(rest(z)[:, :8], rest(changed)[:, :8])


def test_logdet_is_that_of_the_levels() -> None:
    chain, x = levels(), torch.randn(2, 1, 8, 8, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda t: chain(t).flatten(1).sum(0), x)
    dense = torch.stack([torch.linalg.slogdet(jacobian[:, i].reshape(64, 64)).logabsdet for i in range(2)])
    assert_close(chain.forward_with_logdet(x)[1], dense)


@pytest.mark.parametrize("method", ["forward_with_logdet", "inverse_with_logdet"])
def test_reconstruct_gives_the_gradients_of_store(method: str) -> None:
    stored = levels()
    saving = copy.deepcopy(stored)
    saving.memory, saving.check_every = "reconstruct", 1
    shape = (3, 1, 8, 8) if method.startswith("forward") else (3, 16, 2, 2)
    x = torch.randn(shape, dtype=torch.float64)
    grads = []
    for chain in (stored, saving):
        leaf = x.clone().requires_grad_()
        y, logdet = getattr(chain, method)(leaf)
        ((y**2).sum() + logdet.sum()).backward()
        grads.append([leaf.grad, *(p.grad for p in chain.parameters())])
    for plain, ours in zip(*grads, strict=True):
        assert_close(ours, plain, 1e-10)


def test_each_network_runs_once_a_direction_and_once_more_in_the_backward_pass() -> None:
    calls = []
    chain = levels().float()
    chain.memory = "reconstruct"
    for part in chain.modules():
        if isinstance(part, nn.Conv2d):
            part.register_forward_hook(lambda *_: calls.append(1))
    n = sum(isinstance(part, nn.Conv2d) for part in chain.modules())
    y, logdet = chain.forward_with_logdet(torch.randn(2, 1, 8, 8))
    assert len(calls) == n
    (y.sum() + logdet.sum()).backward()
    assert len(calls) == 2 * n


def test_conditional_members_get_the_context() -> None:
    chain = Chain(OnFirst(affine_given(2), (4, 2)), affine(3, 3)).double()
    x, context = torch.randn(3, 6, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    assert not torch.allclose(chain(x, context), chain(x, context + 1))
    assert_close(chain.inverse(chain(x, context), context), x)


def test_an_odd_number_of_channels_leaves_the_larger_half() -> None:
    chain = multi_scale([[Permute.reverse(5)], [Permute.reverse(2)]], n_channels=5)
    assert chain(torch.tensor([[0.0, 1, 2, 3, 4]])).tolist() == [[3, 4, 2, 1, 0]]


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(ConfigError, match="too few channels to halve"):
        multi_scale([[Permute([0])], [Permute([0])]], n_channels=1)
    with pytest.raises(ConfigError, match="order='offset'"):
        multi_scale([[Squeeze(2, order="offset")]], n_channels=1)
    with pytest.raises(ConfigError, match="single bijections"):
        OnFirst(Chain(affine(2, 2)), (4, 2))


@pytest.mark.usefixtures("unchecked")
def test_only_bijections_are_wrapped() -> None:
    with pytest.raises(DtypeError, match="a Bijection"):
        OnFirst(nn.Linear(2, 2), (2, 1))

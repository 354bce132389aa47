"""Scaling, Tanh, SoftTails: closed forms, hard inputs, errors. The common promises are in test_properties.py."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from invertible import Chain, Inverse
from invertible.errors import ConfigError, DtypeError, RangeError, ShapeError
from invertible.layers import InjectivePad, Logit, Scaling, SoftTails, Tanh


def column(*values: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(values, dtype=dtype)[:, None]


def test_scaling_starts_as_the_identity_and_multiplies_by_exp() -> None:
    scaling, x = Scaling(2).double(), torch.randn(3, 2, 5, dtype=torch.float64)
    assert torch.equal(scaling(x), x)
    with torch.no_grad():
        scaling.log_scale.copy_(torch.tensor([math.log(2), math.log(5)]))
    y, logdet = scaling.forward_with_logdet(x)
    torch.testing.assert_close(y, x * torch.tensor([2.0, 5.0]).double()[:, None], rtol=1e-7, atol=0)
    torch.testing.assert_close(logdet, torch.full((3,), 5 * math.log(10)).double(), rtol=1e-6, atol=0)


def test_scaling_learns_the_width_of_a_normal() -> None:
    """At the maximum of the likelihood y has variance 1."""
    x = torch.randn(200, 1, dtype=torch.float64) * 7
    scaling = Scaling(1).double()
    with torch.no_grad():
        scaling.log_scale.copy_(-x.square().mean().sqrt().log())
    y, logdet = scaling.forward_with_logdet(x)
    (y.square().sum(1) / 2 - logdet).mean().backward()
    assert scaling.log_scale.grad is not None
    assert abs(scaling.log_scale.grad.item()) < 1e-7


def test_scaling_refuses() -> None:
    with pytest.raises(ConfigError, match="Scaling needs channels"):
        Scaling(0)
    with pytest.raises(ConfigError, match="leaves the batch alone"):
        Scaling(3, dim=0)
    with pytest.raises(ShapeError, match="size 3 in dimension 1"):
        Scaling(3)(torch.zeros(2, 4))
    with pytest.raises(DtypeError, match=r"module.to\(torch.float64\)"):
        Scaling(3)(torch.zeros(2, 3, dtype=torch.float64))


def test_tanh_is_exact_where_it_saturates() -> None:
    x = column(-400, -20, 0, 20, 400)
    _, logdet = Tanh().forward_with_logdet(x)
    exact = 2 * math.log(2) - 2 * x.abs().flatten()  # up to exp(-40)
    exact[2] = 0
    torch.testing.assert_close(logdet, exact, rtol=1e-15, atol=1e-15)


def test_inverse_of_tanh_near_the_ends() -> None:
    y = 1 - 1e-12
    x, logdet = Tanh().inverse_with_logdet(column(y, -y))
    torch.testing.assert_close(x, column(math.atanh(y), -math.atanh(y)), rtol=1e-14, atol=0)
    torch.testing.assert_close(logdet, -torch.tensor([1 - y, 1 - y]).double().log() - math.log(2), rtol=1e-11, atol=0)


@pytest.mark.parametrize("bad", [1.0, -1.0, 3.0, math.nan])
def test_tanh_has_no_preimage_of_that(bad: float) -> None:
    y = torch.zeros(4, 3)
    y[2, 1] = y[3, 0] = bad
    with pytest.raises(RangeError, match=r"2 of 12 outside, the first at index \(2, 1\)"):
        Tanh().inverse(y)
    with pytest.raises(RangeError, match="inverse of Tanh"):
        Inverse(Tanh()).forward_with_logdet(y)


def test_soft_tails_by_hand() -> None:
    x = column(-4, -2, -1, 0.5, 2, 3)
    y, logdet = SoftTails(2).forward_with_logdet(x)
    torch.testing.assert_close(y, column(-2 - math.log(3), -2, -1, 0.5, 2, 2 + math.log(2)), rtol=1e-15, atol=0)
    expected = torch.tensor([-math.log(3), 0, 0, 0, 0, -math.log(2)], dtype=torch.float64)
    torch.testing.assert_close(logdet, expected, rtol=1e-15, atol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_soft_tails_bring_outliers_near_and_back(dtype: torch.dtype, tolerance: float) -> None:
    x = column(1e6, -1e6, 1e30, 0, dtype=dtype)
    y, logdet = SoftTails().forward_with_logdet(x)
    assert y[:2].abs().max() < 20
    assert y.abs().max() < 80
    back, backward = SoftTails().inverse_with_logdet(y)
    torch.testing.assert_close(back, x, rtol=tolerance * 10, atol=0)
    torch.testing.assert_close(backward, -logdet)


@pytest.mark.parametrize("x", [0.0, 1.0, -1.0])
def test_soft_tails_slope_is_continuous_and_one_at_the_knee(x: float) -> None:
    points = column(x - 1e-9, x, x + 1e-9).requires_grad_()
    SoftTails(1).forward(points).sum().backward()
    assert points.grad is not None
    torch.testing.assert_close(points.grad, torch.ones_like(points), rtol=0, atol=1e-8)


@pytest.mark.parametrize("knee", [0.0, -1.0, math.inf, math.nan])
def test_soft_tails_refuse(knee: float) -> None:
    with pytest.raises(ConfigError, match="bad knee"):
        SoftTails(knee)


@pytest.mark.parametrize("layer", [Tanh(), SoftTails(0.5), Logit(), Logit(0)], ids=lambda b: type(b).__name__)
def test_gradients_with_log_determinants(layer: Tanh | SoftTails | Logit) -> None:
    x = torch.rand(3, 2, dtype=torch.float64, requires_grad=True)
    y = layer(x).detach().requires_grad_()
    assert torch.autograd.gradcheck(layer.forward_with_logdet, x)
    assert torch.autograd.gradcheck(layer.inverse_with_logdet, y)


def test_a_chain_sums_their_log_determinants_in_any_order() -> None:
    """They keep the dimension: the rule against bending after padding is none of theirs."""
    chain = Chain(Logit(), SoftTails(1), Tanh(), Inverse(Tanh()), Inverse(Logit()))
    x = torch.rand(4, 3, dtype=torch.float64)
    y, logdet = chain.forward_with_logdet(x)
    back, backward = chain.inverse_with_logdet(y)
    torch.testing.assert_close(back, x, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(backward, -logdet, rtol=1e-11, atol=1e-11)
    with pytest.raises(ConfigError, match="is no sum"):
        Chain(InjectivePad(3, 1), Tanh()).forward_with_logdet(x)


def test_tanh_data_in_a_chain_that_saves_memory() -> None:
    x = torch.rand(4, 3, dtype=torch.float64) - 0.5
    found = []
    for memory in ("store", "reconstruct"):
        scaling = Scaling(3).double()
        _, logdet = Chain(Inverse(Tanh()), scaling, SoftTails(0.1), memory=memory).forward_with_logdet(x)
        logdet.sum().backward()
        found.append(scaling.log_scale.grad)
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=0)

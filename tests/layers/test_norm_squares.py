"""The bound of a small matrix's norm by squaring."""

import pytest
import torch

from invertible.layers._norm_squares import LARGEST, norm_by_squaring


def cases():
    torch.manual_seed(0)
    q = torch.linalg.qr(torch.randn(LARGEST, LARGEST)).Q
    yield "one number", torch.tensor([[-1.0]])
    yield "a row", torch.randn(1, 300)
    yield "orthogonal", q
    yield "tall", torch.randn(400, 20)
    yield "wide", torch.randn(30, 200)
    yield "rank one", torch.outer(torch.randn(50), torch.randn(60))
    yield "two equal", q @ torch.diag(torch.cat([torch.ones(2), torch.rand(LARGEST - 2)])) @ q.T
    yield "diagonal", torch.diag(torch.logspace(0, -30, 40))
    yield "one entry", torch.nn.functional.pad(torch.ones(1, 1), (5, 6, 7, 8))
    yield "defective", torch.eye(64).roll(1, 1).triu(1)


@pytest.mark.parametrize(("weight"), [pytest.param(weight, id=name) for name, weight in cases()])
def test_the_bound_is_sound_and_tight_and_its_derivative_finds_the_norm(weight):
    weight = weight / weight.abs().max()
    bound, gradient = norm_by_squaring(weight)
    true = torch.linalg.svdvals(weight.double())[0].item()
    assert true <= bound.item() <= true * 1.0035
    assert (gradient * weight).sum().item() == pytest.approx(bound.item(), rel=1e-5)  # Euler: it is homogeneous
    assert torch.linalg.svdvals(gradient.double())[:2].tolist() == pytest.approx(
        [bound.item() / true, 0][: min(gradient.shape)], abs=2e-3
    )

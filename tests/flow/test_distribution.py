"""A flow as a `torch.distributions.Distribution`."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import AffineTransform, Distribution, Independent, TransformedDistribution, constraints

from cases import assert_close
from flow._make import conditional, plane
from invertible.flow import DiagonalNormal, FlowDistribution, NormalMixture, UniformDequantization


def test_it_is_a_distribution() -> None:
    flow, x = plane(), torch.randn(4, 3, 2)
    distribution = flow.distribution()
    assert isinstance(distribution, Distribution)
    assert (distribution.batch_shape, distribution.event_shape) == ((), (2,))
    assert_close(distribution.log_prob(x), flow.log_prob(x), 0.0)
    assert distribution.sample().shape == (2,)
    assert distribution.sample((5, 4)).shape == distribution.sample(torch.Size((5, 4))).shape == (5, 4, 2)
    assert repr(distribution)


def test_the_context_is_the_batch() -> None:
    flow, context = conditional(), torch.randn(4, 5, 3)
    distribution = flow.distribution(context)
    assert distribution.batch_shape == (4, 5)
    assert distribution.sample((7,)).shape == distribution.rsample((7,)).shape == (7, 4, 5, 2)
    x = torch.randn(7, 4, 5, 2)
    assert_close(distribution.log_prob(x), flow.log_prob(x, context), 0.0)
    assert distribution.log_prob(torch.zeros(2)).shape == (4, 5)
    assert flow.distribution(context.numpy()).batch_shape == (4, 5)


def test_expanded() -> None:
    plain = plane().distribution().expand((3,))
    assert (plain.batch_shape, plain.sample((4,)).shape) == ((3,), (4, 3, 2))
    assert plain.log_prob(torch.zeros(4, 3, 2)).shape == (4, 3)
    assert plain.log_prob(torch.zeros(2)).shape == (3,)
    context = torch.randn(5, 3)
    wide = conditional().distribution(context).expand(torch.Size((2, 5)))
    assert wide.rsample((4,)).shape == (4, 2, 5, 2)
    x = torch.randn(4, 2, 5, 2)
    assert_close(wide.log_prob(x), conditional().log_prob(x, context), 1e-6)


def test_values_are_validated_when_asked() -> None:
    distribution = FlowDistribution(plane(), validate_args=True)  # torch's compiler switches the default off
    for bad in (torch.tensor([0.0, float("nan")]), torch.zeros(3)):
        with pytest.raises(ValueError):  # noqa: PT011
            distribution.log_prob(bad)
    pixels = FlowDistribution(plane(dequantization=UniformDequantization(4)), validate_args=True)
    assert pixels.log_prob(torch.tensor([0.0, 3.0])).shape == ()
    with pytest.raises(ValueError, match="support"):
        pixels.log_prob(torch.tensor([0.0, 4.0]))
    assert not pixels.has_rsample


def test_inside_other_distributions() -> None:
    flow, context = conditional(), torch.randn(5, 3)
    independent = Independent(flow.distribution(context), 1)
    x = independent.rsample((4,))
    assert (independent.event_shape, x.shape) == ((5, 2), (4, 5, 2))
    assert_close(independent.log_prob(x), flow.log_prob(x, context).sum(1), 1e-5)
    scaled = TransformedDistribution(plane().distribution(), [AffineTransform(1.0, 2.0)])
    y = scaled.sample((6,))
    expected = plane().log_prob((y - 1) / 2) - 2 * torch.tensor(2.0).log()
    assert_close(scaled.log_prob(y), expected, 1e-5)


def test_rsample_has_gradients_where_the_base_has_them() -> None:
    flow = plane(DiagonalNormal(2))
    assert flow.distribution().has_rsample
    flow.distribution().rsample((3,)).sum().backward()
    assert all(p.grad is not None for p in flow.parameters())
    assert not plane(NormalMixture(2, 2)).distribution().has_rsample


def test_the_support() -> None:
    assert plane().distribution().support.event_dim == 1
    assert isinstance(plane().distribution().support, constraints.independent)

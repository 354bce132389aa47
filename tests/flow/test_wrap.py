"""Distributions of torch as bases: fixed ones, and ones that modules make."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    Beta,
    Categorical,
    ComposeTransform,
    Distribution,
    ExpTransform,
    Gumbel,
    Independent,
    Laplace,
    LogNormal,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    StudentT,
    TransformedDistribution,
    Uniform,
)

from cases import assert_close
from flow._make import couplings, plane
from invertible.errors import ConfigError, NonFiniteError, ShapeError
from invertible.flow import FixedBase, Flow, LearnedBase

A, B = torch.tensor([0.3, -1.2], dtype=torch.float64), torch.tensor([0.7, 2.1], dtype=torch.float64)
FIXED: dict[str, Distribution] = {
    "normal": Normal(A, B),
    "laplace": Laplace(A, B),
    "student": StudentT(B + 3, A, B),
    "covariance": MultivariateNormal(A, torch.diag(B) + 0.1),
    "precision": MultivariateNormal(A, precision_matrix=torch.diag(B) + 0.1),
    "low rank": LowRankMultivariateNormal(A, A[:, None], B),
    "independent": Independent(Normal(A, B), 1),
    "mixture": MixtureSameFamily(Categorical(B), Independent(Normal(torch.stack([A, B]), torch.stack([B, B])), 1)),
    "uniform": Uniform(A - 5, A + 5),
    "gumbel": Gumbel(A, B),
    "beta": Beta(B + 1, B + 2),
    "lognormal": LogNormal(A, B),
    "transformed": TransformedDistribution(
        Normal(A, B),
        [AffineTransform(A, B), ExpTransform(), ComposeTransform([ExpTransform().inv, AffineTransform(B, A)])],
    ),
}  # fmt: skip
every_fixed = pytest.mark.parametrize("distribution", FIXED.values(), ids=FIXED)
LOCATED = ("normal", "laplace", "student", "covariance", "precision", "low rank", "independent", "gumbel")


@every_fixed
def test_fixed_densities_are_torch_s(distribution: Distribution) -> None:
    base, z = FixedBase(distribution), distribution.sample((7,))
    expected = distribution.log_prob(z).reshape(7, -1).sum(1)
    assert_close(base.double().log_prob(z), expected, 1e-12)  # the tensors keep their own dtype until then
    for same in (copy.deepcopy(base), pickle.loads(pickle.dumps(base))):  # noqa: S301
        assert torch.equal(same.log_prob(z), base.log_prob(z))
    assert copy.deepcopy(base).float().log_prob(z.float()).dtype == torch.float32
    torch.manual_seed(0)
    drawn = base.double().sample(5)
    torch.manual_seed(0)
    own = distribution.rsample((5,)) if distribution.has_rsample else distribution.sample((5,))
    assert_close(drawn, own, 1e-12)


@pytest.mark.parametrize("name", LOCATED)
def test_temperature_of_location_scale_families(name: str) -> None:
    base, loc = FixedBase(FIXED[name]).double(), A
    torch.manual_seed(0)
    ones = base.sample(5)
    torch.manual_seed(0)
    assert_close(base.sample(5, None, 0.25), loc + 0.25 * (ones - loc), 1e-12)


def test_other_families_have_no_temperature() -> None:
    for name in sorted(FIXED.keys() - set(LOCATED)):
        with pytest.raises(ConfigError, match="no temperature"):
            FixedBase(FIXED[name]).sample(3, None, 0.5)


def test_a_fixed_base_is_state_and_moves_with_its_module() -> None:
    flow, other = plane(FIXED["normal"]), plane(Normal(B, B.clone()))
    assert set(flow.base.state_dict()) == {"tensor_0", "tensor_1"}
    assert not list(flow.base.parameters())
    other.load_state_dict(flow.state_dict())
    x = torch.randn(3, 2)
    assert flow.log_prob(x).dtype == torch.float32
    assert_close(other.log_prob(x), flow.log_prob(x), 1e-6)
    x = x.double()
    z, logdet = flow.double().bijection.forward_with_logdet(x)
    assert_close(flow.log_prob(x), FIXED["normal"].log_prob(z).sum(1) + logdet, 1e-12)


def test_changing_the_original_changes_nothing() -> None:
    loc = torch.zeros(2)
    base = FixedBase(Normal(loc, torch.ones(2)))
    before = base.log_prob(torch.ones(1, 2))
    loc += 5
    assert torch.equal(base.log_prob(torch.ones(1, 2)), before)


def test_vmap_over_a_fixed_base() -> None:
    flow, x = plane(FIXED["covariance"]).double(), torch.randn(4, 2).double()
    assert_close(torch.func.vmap(flow.log_prob)(x), flow.log_prob(x), 1e-12)


def test_outside_the_support_the_error_names_the_base() -> None:
    with pytest.raises(NonFiniteError, match=r"the base's log-density is not.*positive everywhere"):
        Flow(couplings(), Uniform(A, A + 1e-3)).log_prob(torch.full((2, 2), 9.0))


class Made(nn.Module):
    """Makes a distribution from parameters."""

    def __init__(self, kind: str = "normal") -> None:
        super().__init__()
        self.kind, self.loc, self.scale = kind, nn.Parameter(A.clone()), nn.Parameter(B.clone())

    def forward(self) -> Distribution:
        normal = Independent(Normal(self.loc, self.scale), 1)
        if self.kind == "normal":
            return normal
        if self.kind == "one event":
            return MultivariateNormal(self.loc, torch.diag(self.scale))
        several = Independent(Normal(torch.stack([self.loc, self.scale]), torch.stack([self.scale] * 2)), 1)
        return MixtureSameFamily(Categorical(self.scale), several)


class OfContext(nn.Module):
    """Makes one normal per context."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2).double()

    def forward(self, context: Tensor) -> Distribution:
        return Normal(self.linear(context), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["normal", "one event", "mixture"])
def test_learned_bases_learn(kind: str) -> None:
    module = Made(kind)
    base, z = LearnedBase(module, 2).double(), torch.randn(5, 2).double()
    nats = base.log_prob(z)
    assert_close(nats, module().log_prob(z), 1e-12)
    nats.sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in module.parameters())
    flow = Flow(couplings().double(), base)
    assert flow.double().sample(4).shape == (4, 2)
    if kind == "mixture":
        with pytest.raises(ConfigError, match="no gradient"):
            flow.rsample(4)
    else:
        gradients = torch.autograd.grad(flow.rsample(4).sum(), list(module.parameters()))
        assert all(bool(g.any()) for g in gradients)


def test_conditional_learned_base() -> None:
    module = OfContext()
    flow = Flow(couplings(), LearnedBase(module, 2, takes_context=True)).double()
    x, context = torch.randn(5, 2).double(), torch.randn(5, 3).double()
    z, logdet = flow.bijection.forward_with_logdet(x)
    assert_close(flow.log_prob(x, context), module(context).log_prob(z).sum(1) + logdet, 1e-12)
    flow(x, context).backward()
    assert module.linear.weight.grad is not None
    cold = flow.sample(2, context, temperature=0.0)
    assert_close(cold, flow.decode(module.linear(context), context).expand(2, 5, 2), 1e-12)


def test_a_module_that_makes_another_shape_is_refused() -> None:
    with pytest.raises(ShapeError, match="another shape"):
        LearnedBase(Made(), 3).log_prob(torch.zeros(1, 3).double())


def test_parameters_to_learn_are_refused_by_a_fixed_base() -> None:
    with pytest.raises(ConfigError, match="parameters to learn"):
        FixedBase(Normal(nn.Parameter(A.clone()), B))


@pytest.mark.parametrize("base", [2, (2,), torch.Size([2]), [2]], ids=str)
def test_a_shape_stands_for_a_standard_normal(base: Any) -> None:
    assert plane(base).base.event_shape == (2,)

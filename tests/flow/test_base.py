"""The bases against `torch.distributions`: densities, moments of samples, temperatures, dtypes, state."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    Normal,
    SigmoidTransform,
    TransformedDistribution,
    Uniform,
)

from cases import assert_close
from invertible.errors import ConfigError, DtypeError, RangeError
from invertible.flow import (
    Base,
    ClassNormal,
    ConditionalNormal,
    DiagonalNormal,
    NormalMixture,
    StandardLogistic,
    StandardNormal,
)

SHAPE = (2, 3)
LABELS = torch.tensor([0, 2, 1, 2, 0])


def disturbed(base: Base) -> Base:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return base.double()


def reference(base: Base) -> Distribution:
    """The same as an object of torch; one event per element of LABELS for those with a context."""
    zeros = torch.zeros(SHAPE).double()
    match base:
        case StandardNormal():
            return Independent(Normal(zeros, torch.ones_like(zeros)), 2)
        case StandardLogistic():
            uniform = Uniform(zeros, torch.ones_like(zeros))
            return Independent(TransformedDistribution(uniform, [SigmoidTransform().inv, AffineTransform(0.0, 1.0)]), 2)
        case DiagonalNormal():
            return Independent(Normal(base.mean, base.log_std.exp()), 2)
        case NormalMixture():
            return MixtureSameFamily(
                Categorical(logits=base.logits), Independent(Normal(base.means, base.log_stds.exp()), 2)
            )
        case ClassNormal():
            return Independent(Normal(base.means[LABELS], base.log_stds[LABELS].exp()), 2)
    raise NotImplementedError


BASES = [StandardNormal, StandardLogistic, DiagonalNormal, lambda s: NormalMixture(3, s), lambda s: ClassNormal(3, s)]
every_base = pytest.mark.parametrize("make", BASES, ids=["normal", "logistic", "diagonal", "mixture", "class"])


@every_base
def test_density_is_torch_s(make: Any) -> None:
    base = disturbed(make(SHAPE))
    context = LABELS if base.takes_context else None
    z = 3 * torch.randn(5, *SHAPE, dtype=torch.float64)
    assert_close(base.log_prob(z, context), reference(base).log_prob(z), 1e-11)
    assert_close(base.float().log_prob(z.float(), context).double(), base.double().log_prob(z, context), 1e-4)
    assert base.log_prob(z[:0], None if context is None else context[:0]).shape == (0,)


@every_base
def test_far_out_densities_stay_finite(make: Any) -> None:
    base = make(SHAPE)
    z = torch.full((1, *SHAPE), 1e6, requires_grad=True)
    nats = base.log_prob(z, LABELS[:1] if base.takes_context else None)
    nats.sum().backward()
    assert z.grad is not None
    assert bool(nats.isfinite().all() & z.grad.isfinite().all())


@every_base
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_have_the_moments(make: Any, temperature: float) -> None:
    """Within 5 standard errors; temperature multiplies each (component's) standard deviation."""
    base, n = disturbed(make(SHAPE)), 4000
    context = LABELS[:1].expand(n) if base.takes_context else None
    with torch.no_grad():
        z = base.sample(n, context, temperature)
        mean, variance = moments(base, temperature)
    assert z.shape == (n, *SHAPE)
    assert z.dtype == torch.float64
    assert bool(((z.mean(0) - mean).abs() < 5 * (variance / n).sqrt()).all())
    squares = (z - mean) ** 2
    assert bool(((squares.mean(0) - variance).abs() < 5 * squares.std(0) / math.sqrt(n)).all())


def moments(base: Base, temperature: float) -> tuple[Tensor, Tensor]:
    if isinstance(base, NormalMixture):
        weights = base.logits.softmax(0)[:, None, None]
        mean = (weights * base.means).sum(0)
        return mean, (weights * ((base.log_stds.exp() * temperature) ** 2 + (base.means - mean) ** 2)).sum(0)
    if isinstance(base, StandardLogistic):
        return torch.zeros(SHAPE), torch.full(SHAPE, (math.pi * temperature) ** 2 / 3)
    if isinstance(base, ClassNormal):
        return base.means[0], (base.log_stds[0].exp() * temperature) ** 2
    expected = reference(base)
    return expected.mean, expected.variance * temperature**2


@every_base
def test_scalars_are_latents_too(make: Any) -> None:
    base = make(())
    context = LABELS if base.takes_context else None
    assert base.log_prob(torch.zeros(5), context).shape == base.sample(5, context).shape == (5,)


@every_base
def test_learned_parameters_get_gradients_and_are_kept(make: Any) -> None:
    base, other = disturbed(make(SHAPE)), make(SHAPE).double()
    context, z = LABELS if base.takes_context else None, torch.randn(5, *SHAPE, dtype=torch.float64)
    base.log_prob(z, context).sum().backward() if list(base.parameters()) else None
    assert all(p.grad is not None and bool(p.grad.any()) for p in base.parameters())
    other.load_state_dict(base.state_dict())
    for same in (other, copy.deepcopy(base)):
        assert torch.equal(same.log_prob(z, context), base.log_prob(z, context))


@every_base
def test_rsample_is_differentiable_where_it_says_so(make: Any) -> None:
    base = make(SHAPE)
    if base.has_rsample and list(base.parameters()):
        base.sample(5, LABELS if base.takes_context else None).sum().backward()
        assert bool(next(base.parameters()).grad.any())
    else:
        assert isinstance(base, NormalMixture) or not list(base.parameters())


def test_conditional_normal() -> None:
    base = ConditionalNormal(nn.Linear(3, 12), SHAPE).double()
    context, z = torch.randn(5, 3).double(), torch.randn(5, *SHAPE).double()
    mean, log_std = base.network(context).unflatten(1, (2, *SHAPE)).unbind(1)
    expected = Independent(Normal(mean, log_std.exp()), 2)
    assert_close(base.log_prob(z, context), expected.log_prob(z), 1e-11)
    assert_close(base.sample(5, context, 0.0), mean, 1e-12)


def test_no_samples_are_drawn_where_none_are_wanted() -> None:
    assert NormalMixture(3, 2).sample(0).shape == StandardLogistic(2).sample(0).shape == (0, 2)


def test_logistic_samples_are_finite_and_reach_far() -> None:
    z = StandardLogistic(()).sample(200_000)
    assert bool(z.isfinite().all())
    assert z.abs().max().item() > 9  # P(|z| > 9) is 2.5e-4


def test_bad_arguments() -> None:
    for make in (lambda: StandardNormal((2, 0)), lambda: NormalMixture(0, 2), lambda: ClassNormal(0, 2)):
        with pytest.raises(ConfigError):
            make()
    base = ClassNormal(3, 2)
    with pytest.raises(RangeError, match="labels 0 to 2"):
        base.log_prob(torch.zeros(1, 2), torch.tensor([3]))
    with pytest.raises(DtypeError, match="labels"):
        base.sample(1, torch.zeros(1))

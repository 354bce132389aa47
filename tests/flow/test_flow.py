"""`Flow`: densities in closed form and by quadrature, samples, dtypes, shapes, contexts, torch.func, compilation."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cases import affine_given, assert_close
from flow._make import conditional, couplings, normal, plane
from invertible import Chain, Flow
from invertible.errors import ConfigError, ContextError, DtypeError, ShapeError
from invertible.flow import (
    ClassNormal,
    ConditionalNormal,
    DiagonalNormal,
    NormalMixture,
    StandardLogistic,
    StandardNormal,
    UniformDequantization,
)
from invertible.layers import ActNorm, AffineCoupling, Permute


def grid(side: float = 12.0, n: int = 600) -> tuple[Tensor, float]:
    line = torch.linspace(-side, side, n, dtype=torch.float64)
    return torch.cartesian_prod(line, line), ((2 * side) / (n - 1)) ** 2


def test_an_affine_map_of_a_normal_is_normal() -> None:
    flow, x = normal().double(), torch.randn(7, 2, dtype=torch.float64)
    expected = torch.distributions.Normal(torch.tensor([1.0, -1.0]).double(), torch.tensor([2.0, 0.5]).double())
    assert_close(flow.log_prob(x), expected.log_prob(x).sum(1), 1e-6)  # the deviations were made in float32
    assert_close(flow(x), -flow.log_prob(x).mean(), 1e-12)
    assert_close(flow.bits_per_dim(x), -flow.log_prob(x) / 2 / math.log(2), 1e-12)


@pytest.mark.parametrize(
    "base", [StandardNormal(2), StandardLogistic(2), NormalMixture(3, 2)], ids=lambda b: type(b).__name__
)
def test_densities_integrate_to_one(base: nn.Module) -> None:
    x, cell = grid(60.0 if isinstance(base, StandardLogistic) else 12.0, 800)
    with torch.no_grad():
        assert plane(base).double().log_prob(x).exp().sum().item() * cell == pytest.approx(1, abs=2e-3)


def test_samples_follow_the_density() -> None:
    """Moments of samples lie within 5 standard errors of those by quadrature."""
    flow = plane().double()
    x, cell = grid()
    with torch.no_grad():
        weight = flow.log_prob(x).exp()[:, None] * cell
    samples = flow.sample(20_000)
    for power in (1, 2):
        errors = (samples**power).mean(0) - (x**power * weight).sum(0)
        standard = (samples**power).std(0) / math.sqrt(len(samples))
        assert bool((errors.abs() < 5 * standard).all())


def test_rsample_has_the_gradients_of_finite_differences() -> None:
    flow = plane(DiagonalNormal(2)).double()
    parameters = list(flow.parameters())

    def total() -> Tensor:
        torch.manual_seed(1)
        return flow.rsample(6).sin().sum()

    gradients = torch.autograd.grad(total(), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        direction = torch.randn_like(parameter)
        with torch.no_grad():
            up, down = (total_at(parameter, step * direction, total) for step in (1e-5, -1e-5))
        assert_close(((up - down) / 2e-5)[None], (gradient * direction).sum()[None], 1e-6)


def total_at(parameter: nn.Parameter, step: Tensor, total) -> Tensor:
    before = parameter.detach().clone()
    parameter.copy_(before + step)
    value = total()
    parameter.copy_(before)
    return value


def test_samples_come_with_their_own_density() -> None:
    flow = plane(DiagonalNormal(2)).double()
    x, nats = flow.rsample_with_log_prob((3, 2))
    assert x.shape == (3, 2, 2)
    assert_close(nats, flow.log_prob(x), 1e-10)
    conditioned = conditional().double()
    context = torch.randn(4, 3, dtype=torch.float64)
    x, nats = conditioned.rsample_with_log_prob(5, context)
    assert_close(nats, conditioned.log_prob(x, context), 1e-10)


def test_samples_without_gradients_are_refused_where_gradients_are_wanted() -> None:
    for flow in (plane(NormalMixture(2, 2)), plane(dequantization=UniformDequantization(4))):
        with pytest.raises(ConfigError, match="no gradient"):
            flow.rsample(3)
        assert not flow.sample(3).requires_grad


@pytest.mark.parametrize("base", [2, DiagonalNormal(2), StandardLogistic(2)], ids=["normal", "diagonal", "logistic"])
def test_temperature_scales_the_noise(base) -> None:
    flow = Flow(Chain(), base).double()
    torch.manual_seed(3)
    ones = flow.sample(8)
    torch.manual_seed(3)
    assert_close(flow.sample(8, temperature=0.5), 0.5 * ones, 1e-12)
    assert_close(flow.sample(8, temperature=0.0), torch.zeros(8, 2).double(), 0.0)


def test_float64_data_give_float64_nats_from_float32_weights() -> None:
    for flow in (plane(), plane(memory="reconstruct"), plane(NormalMixture(3, 2)), tied()):
        x, finer = torch.randn(5, 2, dtype=torch.float64), copy.deepcopy(flow).double()
        nats = flow.log_prob(x)
        assert nats.dtype == torch.float64
        assert_close(nats, finer.log_prob(x), 1e-12)
        assert_close(flow.decode(flow.encode(x)), x, 1e-12)
        flow(x).backward()
        finer(x).backward()
        for own, expected in zip(flow.parameters(), finer.parameters(), strict=True):
            assert own.grad is not None
            assert expected.grad is not None
            assert own.grad.dtype == torch.float32
            assert_close(own.grad.double(), expected.grad, 1e-6)


def tied() -> Flow:
    chain = couplings()
    return Flow(Chain(chain[0], AffineCoupling(chain[0].network, target="first")), 2)


def test_layers_that_the_first_batch_sets_are_set_by_a_finer_one() -> None:
    flow, x = Flow(Chain(ActNorm(2)), 2), 3 + 2 * torch.randn(50, 2, dtype=torch.float64)
    flow(x)
    assert bool(flow.bijection[0].initialised)
    assert_close(flow.encode(x).mean(0), torch.zeros(2).double(), 1e-5)


def test_coarser_data_are_computed_in_the_weights_dtype() -> None:
    flow, x = plane(), torch.randn(5, 2).bfloat16()
    assert_close(flow.log_prob(x), flow.log_prob(x.float()), 0.0)
    assert plane().bfloat16().log_prob(x).shape == (5,)
    with torch.autocast("cpu", torch.bfloat16):
        for dtype in (torch.bfloat16, torch.float32, torch.float64):
            nats = flow.log_prob(x.to(dtype))
            assert nats.dtype == torch.promote_types(dtype, torch.float32)
            assert_close(nats.float(), flow.log_prob(x.float()).float(), 0.1)
        assert_close(flow.decode(flow.encode(x.float())), x.float(), 1e-5)


def test_arrays_and_lists_are_data() -> None:
    flow, x = plane(), np.random.default_rng(0).normal(size=(5, 2))
    expected = flow.log_prob(torch.from_numpy(x))
    frozen = x.copy()
    frozen.flags.writeable = False
    for same in (x, frozen, x[::-1].copy()[::-1], np.asfortranarray(x)):
        assert_close(flow.log_prob(same), expected, 0.0)
    assert_close(flow.log_prob(x.tolist()).double(), expected, 1e-5)
    assert flow.log_prob([0.5, 1.0]).shape == ()


def test_what_is_no_real_data_is_refused() -> None:
    flow = plane()
    assert_close(flow.log_prob(torch.ones(3, 2, dtype=torch.int64)), flow.log_prob(torch.ones(3, 2)))  # counts
    with pytest.raises(DtypeError, match="real numbers"):
        flow.log_prob(torch.zeros(3, 2, dtype=torch.complex64))
    with pytest.raises(DtypeError, match="real numbers"):
        Flow(Permute.reverse(2), (2, 1, 1)).log_prob(torch.zeros(3, 2, 1, 1, dtype=torch.uint8))
    with pytest.raises(DtypeError, match="takes numbers"):
        flow.log_prob(np.array([["a", "b"]], dtype=object))
    with pytest.raises(ShapeError, match=r"\(batch, 2\)"):
        flow.log_prob(torch.zeros(5, 3))
    with pytest.raises(ShapeError, match="pair all with all"):
        Flow(affine_given(1), 2)(torch.zeros(3, 2), torch.zeros(3, 1, 2))
    with pytest.raises(ShapeError, match="no mean"):
        flow(torch.zeros(0, 2))
    with pytest.raises(ShapeError, match="base's shape"):
        plane((1, 2), event_shape=2).log_prob(torch.zeros(3, 2))
    with pytest.raises(ConfigError, match="differ in size"):
        plane(2, event_shape=3)
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="temperature"):
            flow.sample(2, temperature=bad)
    with pytest.raises(ConfigError, match="number of samples"):
        flow.sample(-1)
    with pytest.raises(ConfigError, match="max_bytes"):
        flow.sample(2, max_bytes=0)


def test_what_is_no_flow_is_refused(unchecked: None) -> None:
    with pytest.raises(DtypeError, match="needs a bijection"):
        Flow(nn.Linear(2, 2), 2)  # pyright: ignore[reportArgumentType]
    with pytest.raises(DtypeError, match="needs a base"):
        Flow(Chain(), nn.Linear(2, 2))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("lead", [(), (4,), (2, 3), (0,), (0, 3), (2, 0)])
def test_any_leading_shape(lead: tuple[int, ...]) -> None:
    flow, x = plane(), torch.randn(*lead, 2)
    nats = flow.log_prob(x)
    assert nats.shape == lead
    assert_close(nats.reshape(-1), flow.log_prob(x.reshape(-1, 2)), 1e-6)
    assert flow.encode(x).shape == flow.decode(x).shape == (*lead, 2)
    assert flow.sample(lead).shape == (*lead, 2)
    assert flow.rsample(lead).shape == (*lead, 2)


CASES = [((), ()), ((4,), ()), ((), (4,)), ((4,), (4,)), ((3, 4), (4,)), ((3, 1), (4,)), ((0,), ()), ((2, 0), (0,))]


@pytest.mark.parametrize(("lead", "contexts"), CASES)
def test_data_and_contexts_broadcast(lead: tuple[int, ...], contexts: tuple[int, ...]) -> None:
    flow = conditional().double()
    x, context = torch.randn(*lead, 2).double(), torch.randn(*contexts, 3).double()
    nats, shape = flow.log_prob(x, context), torch.broadcast_shapes(lead, contexts)
    assert nats.shape == shape
    rows, own = x.expand(*shape, 2).reshape(-1, 2), context.expand(*shape, 3).reshape(-1, 3)
    one_by_one = [flow.log_prob(row, c) for row, c in zip(rows, own, strict=True)]
    assert_close(nats.reshape(-1), torch.stack(one_by_one) if one_by_one else nats.reshape(-1), 1e-12)
    assert flow.sample((2,), context).shape == (2, *contexts, 2)


def test_labels_as_context_in_any_whole_dtype() -> None:
    flow = plane(ClassNormal(3, 2))
    with torch.no_grad():
        flow.base.get_parameter("means").normal_()
    x, labels = torch.randn(4, 2), torch.tensor([0, 2, 1, 2])
    expected = flow.log_prob(x, labels)
    assert_close(expected[1], flow.log_prob(x[1], torch.tensor(2)), 1e-6)
    for same in (labels.to(torch.uint8), labels.int(), labels.numpy(), labels.tolist()):
        assert_close(flow.log_prob(x, same), expected, 0.0)


def test_embedding_of_labels_goes_to_the_bijection_and_labels_to_the_base() -> None:
    flow = conditional(embed=nn.Embedding(5, 3))
    x, labels = torch.randn(4, 2), torch.tensor([0, 4, 1, 4])
    assert flow.embed is not None
    z, logdet = flow.bijection.forward_with_logdet(x, flow.embed(labels))
    assert_close(flow.log_prob(x, labels), flow.base.log_prob(z) + logdet, 1e-6)
    both = Flow(conditional().bijection, ClassNormal(5, 2), embed=flow.embed)
    assert_close(both.log_prob(x, labels), flow.log_prob(x, labels), 1e-6)


def test_contexts_of_a_given_shape() -> None:
    class Image(nn.Module):
        def forward(self, context: Tensor) -> Tensor:
            return context.flatten(1)[:, :3]

    flow = conditional(embed=Image(), context_shape=(2, 2))
    assert flow.log_prob(torch.randn(5, 1, 2), torch.randn(7, 2, 2)).shape == (5, 7)
    with pytest.raises(ContextError, match="wrong shape"):
        flow.log_prob(torch.randn(5, 2), torch.randn(5, 4))


def test_contexts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ContextError, match="expected a context"):
        conditional().log_prob(torch.zeros(3, 2))
    with pytest.raises(ContextError, match="expected no context"):
        plane().log_prob(torch.zeros(3, 2), torch.zeros(3, 3))
    with pytest.raises(ShapeError, match="broadcast"):
        conditional().log_prob(torch.zeros(3, 2), torch.zeros(4, 3))


def test_vmap_over_data_over_contexts_and_over_both() -> None:
    flow = conditional()
    x, context = torch.randn(4, 2), torch.randn(4, 3)
    expected = flow.log_prob(x, context)
    for dims, arguments in (((0, 0), (x, context)), ((0, None), (x, context[0])), ((None, 0), (x[0], context))):
        result = torch.func.vmap(flow.log_prob, in_dims=dims)(*arguments)
        assert_close(result, flow.log_prob(*arguments), 1e-5)
    assert_close(torch.func.vmap(flow.log_prob)(x, context), expected, 1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # inside torch.func.jacfwd
def test_scores_and_hessians_of_single_points() -> None:
    """grad, jacfwd and hessian inside vmap, where no value can be looked at."""
    flow, x = normal().double(), torch.randn(4, 2, dtype=torch.float64)
    score = torch.func.vmap(torch.func.grad(flow.log_prob))(x)
    mean, variance = torch.tensor([1.0, -1.0]).double(), torch.tensor([4.0, 0.25]).double()
    assert_close(score, (mean - x) / variance, 1e-6)
    hessian = torch.func.vmap(torch.func.hessian(flow.log_prob))(x)
    assert_close(hessian, torch.diag(-1 / variance).expand(4, 2, 2), 1e-6)


@pytest.mark.parametrize(
    "base", [NormalMixture(2, 2), torch.distributions.Laplace(torch.zeros(2), 1.0)], ids=["mixture", "laplace"]
)  # fmt: skip
def test_compiled_whole_with_gradients(unchecked: None, base) -> None:
    flow, x = plane(base), torch.randn(5, 2)
    torch._dynamo.reset()
    compiled = torch.compile(flow, fullgraph=True, backend="aot_eager")
    flow(x).backward()
    expected = [p.grad.clone() for p in flow.parameters() if p.grad is not None]
    flow.zero_grad()
    compiled(x).backward()
    for own, gradient in zip((p for p in flow.parameters() if p.grad is not None), expected, strict=True):
        assert own.grad is not None
        assert_close(own.grad, gradient, 1e-5)
    log_prob = torch.compile(flow.log_prob, fullgraph=True, backend="eager")
    assert_close(log_prob(x), flow.log_prob(x), 1e-5)


def test_exported(unchecked: None) -> None:
    flow, x = plane(), torch.randn(5, 2)
    program = torch.export.export(flow, (x,), strict=True)
    assert_close(program.module()(x), flow(x), 1e-6)


def test_conditional_normal_base() -> None:
    base = ConditionalNormal(nn.Linear(3, 4), 2)
    flow = Flow(couplings(), base)
    context = torch.randn(6, 3)
    assert flow.takes_context
    mean, log_std = base.network(context).chunk(2, dim=1)
    z, logdet = flow.bijection.forward_with_logdet(x := torch.randn(6, 2))
    expected = torch.distributions.Normal(mean, log_std.exp()).log_prob(z).sum(1) + logdet
    assert_close(flow.log_prob(x, context), expected, 1e-5)

"""log|det(I + dg/dx)| against dense determinants: values, gradients, what the results claim of themselves."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from invertible.errors import ConfigError, DtypeError, InvertibleError, NonFiniteError, RangeError, ShapeError
from invertible.logdet import (
    AutoLogDet,
    ExactLogDet,
    Krylov,
    LogDetEstimator,
    PowerSeries,
    RussianRoulette,
)

STOCHASTIC: list[LogDetEstimator] = [
    PowerSeries(n_terms=30),
    PowerSeries(n_terms=30, probe="rademacher"),
    RussianRoulette(),
    RussianRoulette(length="poisson", parameter=2.0, probe="rademacher"),
    RussianRoulette(n_exact=0, probe="orthogonal"),
    Krylov(n_steps=6, n_probes=1),
    Krylov(n_steps=6, n_probes=5),
    AutoLogDet(max_products=12, exact_up_to=1),
]
ALL = [
    ExactLogDet(),
    ExactLogDet(chunk=2),
    AutoLogDet(),
    *STOCHASTIC,
    PowerSeries(gradient="backprop"),
    Krylov(gradient="backprop"),
]


def contraction(dimension: int = 8, norm: float = 0.9, seed: int = 0) -> nn.Sequential:
    """A network whose Jacobian is not symmetric, with this Lipschitz constant or a little less; float64."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(dimension, 16), nn.Tanh(), nn.Linear(16, dimension)).double()
    with torch.no_grad():
        for layer in (net[0], net[2]):
            layer.weight.mul_(math.sqrt(norm) / torch.linalg.matrix_norm(layer.weight, 2))
    return net


def dense(net: nn.Module, x: Tensor) -> Tensor:
    """dg/dx of each sample."""
    n = x[0].numel()
    return torch.func.vmap(torch.func.jacrev(lambda one: net(one[None])[0]))(x).reshape(len(x), n, n)


def exact(net: nn.Module, x: Tensor) -> Tensor:
    jacobian = dense(net, x)
    return torch.linalg.slogdet(torch.eye(jacobian.shape[-1], dtype=x.dtype) + jacobian)[1]


def repeated(x: Tensor, n: int) -> Tensor:
    return x[:1].repeat(n, *[1] * (x.ndim - 1))


def assert_centred(errors: Tensor, allowed: float = 0.0) -> None:
    """The mean lies within 4.5 standard errors of zero, plus what is allowed."""
    error = errors.std(dim=0) / math.sqrt(len(errors))
    assert bool((errors.mean(dim=0).abs() <= 4.5 * error + allowed + 1e-12).all()), (errors.mean(dim=0), error)


# Values


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 3), (2, 2, 2, 2)])
@pytest.mark.parametrize("estimator", [ExactLogDet(), ExactLogDet(chunk=3), AutoLogDet()])
def test_exact_in_every_shape(shape: tuple[int, ...], estimator: LogDetEstimator) -> None:
    net = nn.Sequential(nn.Flatten(), contraction(math.prod(shape)), nn.Unflatten(1, shape))
    x = torch.randn(4, *shape, dtype=torch.float64)
    y, found = estimator(net, x)
    assert torch.equal(y, net(x))
    torch.testing.assert_close(found.value, exact(net, x), atol=1e-12, rtol=0)
    assert found.products == estimator.cost(math.prod(shape)).products == math.prod(shape)
    assert not found.standard_error.any()


@pytest.mark.parametrize("estimator", STOCHASTIC, ids=repr)
def test_mean_is_the_truth(estimator: LogDetEstimator) -> None:
    net, x = contraction(), torch.randn(1, 8, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # a batch shares the roulette's length: several calls
        found = [estimator(net, repeated(x, 40), generator=generator)[1].value for _ in range(60)]
    assert_centred(torch.stack(found).mean(dim=1) - exact(net, x), allowed=2e-3 if "Krylov" in repr(estimator) else 0)


def test_power_series_is_biased_as_it_says() -> None:
    net, x = nn.Linear(4, 4, bias=False).double(), torch.randn(1, 4, dtype=torch.float64)
    net.weight.data = -0.9 * torch.eye(4, dtype=torch.float64)  # the worst case
    found = PowerSeries(3, probe="rademacher")(net, x, lipschitz=0.9)[1]
    assert found.bias_bound is not None
    torch.testing.assert_close(found.value - exact(net, x), found.bias_bound, atol=1e-12, rtol=0)


@pytest.mark.parametrize("norm", [0.5, 0.9, 0.97])
def test_bias_bound_of_krylov_holds_and_is_reached_to_a_factor(norm: float) -> None:
    net = nn.Linear(4, 4, bias=False).double()
    net.weight.data = -norm * torch.diag(torch.tensor([1.0, 0.98, 0.95, 0.9], dtype=torch.float64))
    x = torch.randn(500, 4, dtype=torch.float64)
    found = Krylov(n_steps=1, n_probes=1)(net, x, lipschitz=norm)[1]
    assert found.bias_bound is not None
    assert bool(((found.value.mean() - exact(net, x)).abs() <= found.bias_bound).all())
    assert RussianRoulette()(net, x, lipschitz=norm)[1].bias_bound is not None
    assert Krylov()(net, x)[1].bias_bound is None


@pytest.mark.parametrize("estimator", [Krylov.within(20), Krylov(3, 8, taper=1.0), PowerSeries(30, n_probes=12)])
def test_standard_errors_are_honest(estimator: LogDetEstimator) -> None:
    net, x = contraction(24), torch.randn(1, 24, dtype=torch.float64)
    torch.manual_seed(2)
    runs = [estimator(net, repeated(x, 50))[1] for _ in range(12)]
    errors = torch.cat([run.value.detach() for run in runs]) - exact(net, x).detach()
    claims = torch.cat([run.standard_error for run in runs])
    assert 0.85 < claims.square().mean().sqrt() / errors.square().mean().sqrt() < 1.2
    assert 0.86 < (errors.abs() < 2 * claims).double().mean() < 0.99


def test_one_probe_has_no_standard_error() -> None:
    net, x = contraction(), torch.randn(3, 8, dtype=torch.float64)
    for estimator in (PowerSeries(), RussianRoulette(), Krylov(n_probes=1)):
        assert bool(estimator(net, x)[1].standard_error.isnan().all())


def test_krylov_beats_the_roulette_at_equal_cost() -> None:
    net, x = contraction(32), torch.randn(1, 32, dtype=torch.float64)
    truth = exact(net, x)

    def error(estimator: LogDetEstimator) -> float:
        torch.manual_seed(0)
        with torch.no_grad():
            found = torch.cat([estimator(net, repeated(x, 10))[1].value for _ in range(60)])
        return (found - truth).square().mean().sqrt().item()

    krylov, roulette = Krylov.within(20), RussianRoulette(n_probes=5, probe="rademacher")
    assert krylov.cost(32).products == roulette.cost(32).products == 20
    assert error(krylov) < 0.65 * error(roulette)


def test_auto_reaches_its_accuracy() -> None:
    net, x = contraction(40), torch.randn(60, 40, dtype=torch.float64)
    truth, products = exact(net, x), []
    for accuracy in (0.4, 0.25, 1e-3):
        found = AutoLogDet(max_products=None, accuracy=accuracy, exact_up_to=8)(net, x)[1]
        assert (found.value - truth).square().mean().sqrt() < 1.3 * accuracy
        products.append(found.products)
    assert products == sorted(products)
    capped = AutoLogDet(max_products=16, accuracy=1e-3, exact_up_to=8)(net, x)[1]
    assert capped.standard_error.mean() > 1e-3  # and says so


# Spaces that are exhausted


@pytest.mark.parametrize("gradient", ["neumann", "backprop"])
@pytest.mark.parametrize("case", ["zero", "constant", "identity", "rank one", "nilpotent", "defective", "1-d", "2-d"])
def test_krylov_where_the_space_ends(case: str, gradient: str) -> None:
    eye, n = torch.eye(5, dtype=torch.float64), 5
    up = torch.diag(torch.ones(4, dtype=torch.float64), 1)
    matrix = {
        "zero": 0 * eye,
        "constant": 0 * eye,
        "identity": 0.9 * eye,
        "rank one": 0.7 * torch.outer(eye[0] + eye[1], eye[2] - eye[0]) / 2,
        "nilpotent": 0.9 * up,
        "defective": 0.5 * eye + 0.4 * up,
        "1-d": torch.tensor([[-0.97]], dtype=torch.float64),
        "2-d": torch.tensor([[0.1, -0.8], [0.5, 0.3]], dtype=torch.float64),
    }[case].requires_grad_()
    n = len(matrix)
    x = torch.randn(3, n, dtype=torch.float64)
    g = (lambda x: torch.ones_like(x) * matrix[0, 0]) if case == "constant" else (lambda x: x @ matrix.T)
    estimator = Krylov(
        n_steps=n + (3 if gradient == "neumann" else 22),
        n_probes=8,
        taper=1.0,
        gradient="neumann" if gradient == "neumann" else "backprop",
    )
    found = estimator(g, x)[1]
    expected = torch.linalg.slogdet(torch.eye(n, dtype=torch.float64) + matrix)[1].expand(3)
    torch.testing.assert_close(found.value, expected, atol=1e-10, rtol=0)  # all 8 orthogonal probes: no noise
    if case != "constant":
        (slope,) = torch.autograd.grad(found.value.sum(), matrix)
        (truth,) = torch.autograd.grad(expected.sum(), matrix)
        torch.testing.assert_close(slope, truth, atol=1e-9, rtol=0)


# Gradients


@pytest.mark.parametrize("estimator", [*STOCHASTIC, PowerSeries(30, gradient="backprop")])
def test_gradients_of_weighted_losses(estimator: LogDetEstimator) -> None:
    """Each sample has its own upstream gradient (and in eval mode the graph is there, with x as one of its ends)."""
    net, n = contraction().eval(), 60
    two = torch.randn(2, 8, dtype=torch.float64)
    weights = torch.tensor([1.0, -3.0], dtype=torch.float64)
    inputs = [two.clone().requires_grad_(), net[0].weight, net[2].weight]
    truth = torch.autograd.grad((exact(net, inputs[0]) * weights).sum(), inputs)
    torch.manual_seed(3)
    found = []
    for _ in range(40):
        value = estimator(net, inputs[0].repeat(n, 1))[1].value.reshape(n, 2).mean(dim=0)
        found.append(torch.autograd.grad((value * weights).sum(), inputs))
    allowed = 0.01 if "Krylov" in repr(estimator) or "Auto" in repr(estimator) else 0.0
    for parts, true in zip(zip(*found, strict=True), truth, strict=True):
        errors = torch.stack(parts) - true
        direction = true / true.norm()
        assert_centred((errors * direction).flatten(1).sum(dim=1), allowed * true.norm().item())
        spread = errors.var(dim=0).sum() / len(errors)
        assert errors.mean(dim=0).square().sum() < 2 * spread + (2 * allowed * true.norm()) ** 2


@pytest.mark.parametrize("gradient", ["neumann", "backprop"])
def test_surrogate_is_never_the_value(gradient: str) -> None:
    net, x = contraction(), torch.randn(5, 8, dtype=torch.float64)
    for make in (PowerSeries, RussianRoulette, Krylov):
        values = []
        for needs_graph in (True, False):
            with torch.set_grad_enabled(needs_graph):
                found = make(n_probes=3, gradient=gradient)(net, x, generator=torch.Generator().manual_seed(0))[1]
            values.append(found.value.detach())
            assert found.value.requires_grad == needs_graph
        torch.testing.assert_close(*values, atol=1e-12, rtol=0)


def test_gradient_of_exact_to_second_order() -> None:
    net, x = contraction(3), torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ExactLogDet()(net, x)[1].value, x)
    assert torch.autograd.gradgradcheck(lambda x: ExactLogDet()(net, x)[1].value, x)
    full = Krylov(n_steps=3, n_probes=4, taper=1.0, gradient="backprop")  # no noise, no truncation
    assert torch.autograd.gradgradcheck(lambda x: full(net, x)[1].value, x)


@pytest.mark.parametrize("make", [PowerSeries, RussianRoulette, Krylov])
def test_neumann_refuses_second_derivatives(make: type[PowerSeries]) -> None:
    net, x = contraction(), torch.randn(2, 8, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(make()(net, x)[1].value.sum(), x, create_graph=True)
    with pytest.raises(ConfigError, match="backprop"):
        first.square().sum().backward()


def test_neumann_keeps_the_graph_of_one_product() -> None:
    net, x = contraction(16), torch.randn(64, 16, dtype=torch.float64)

    def saved(estimator: LogDetEstimator) -> int:
        kept: dict[int, int] = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept.update({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()}) or t, lambda t: t
        ):
            value = estimator(net, x)[1].value
        assert value.requires_grad
        return sum(kept.values())

    for make in (lambda g, n: PowerSeries(n, gradient=g), lambda g, n: Krylov(n, 1, gradient=g)):
        assert saved(make("neumann", 10)) < 1.1 * saved(make("neumann", 3))
        assert saved(make("backprop", 10)) > 2 * saved(make("neumann", 10))


# How it is called


@pytest.mark.parametrize("estimator", [*ALL[:5], RussianRoulette(), Krylov(), *ALL[-3:]], ids=repr)
class TestEveryEstimator:
    def test_leaves_the_callers_tensor_alone(self, estimator: LogDetEstimator) -> None:
        net, x = contraction(), torch.randn(3, 8, dtype=torch.float64)
        before = x.clone()
        y, found = estimator(net, x)
        assert not x.requires_grad
        assert torch.equal(x, before)
        assert found.value.dtype == torch.float64
        assert found.value.requires_grad
        assert y.requires_grad

    def test_evaluates_g_once(self, estimator: LogDetEstimator) -> None:
        net, calls = contraction(), []
        net.register_forward_hook(lambda *_: calls.append(1))
        estimator(net, torch.randn(3, 8, dtype=torch.float64))
        assert len(calls) == 1

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    def test_without_gradients(self, estimator: LogDetEstimator, mode: type) -> None:
        net = contraction()
        with mode():
            y, found = estimator(net, torch.randn(3, 8, dtype=torch.float64))
        assert not y.requires_grad
        assert not found.value.requires_grad
        assert bool(found.value.isfinite().all())

    def test_frozen_networks_make_no_graph(self, estimator: LogDetEstimator) -> None:
        y, found = estimator(contraction().requires_grad_(False), torch.randn(3, 8, dtype=torch.float64))
        assert not y.requires_grad
        assert not found.value.requires_grad

    def test_context_may_depend_on_x(self, estimator: LogDetEstimator) -> None:
        """Its share of the derivative is no part of dg/dx, but of the gradient."""
        x = torch.rand(3, 8, dtype=torch.float64, requires_grad=True)
        scale = 0.3 * x
        found = estimator(lambda z: scale * z, x)[1]
        (slope,) = torch.autograd.grad(found.value.sum(), x)
        if found.standard_error.eq(0).all():
            torch.testing.assert_close(found.value, torch.log1p(0.3 * x).sum(dim=1))
            torch.testing.assert_close(slope, 0.3 / (1 + 0.3 * x))

    def test_autocast_is_off(self, estimator: LogDetEstimator) -> None:
        net = contraction().float()
        for x in (torch.randn(3, 8), torch.randn(3, 8).bfloat16()):
            with torch.autocast("cpu", torch.bfloat16):
                y, found = estimator(net, x)
            assert (y.dtype, found.value.dtype) == (x.dtype, torch.float32)
            found.value.sum().backward()

    def test_half_precision_networks(self, estimator: LogDetEstimator) -> None:
        y, found = estimator(contraction().bfloat16(), torch.randn(3, 8).bfloat16())
        assert (y.dtype, found.value.dtype) == (torch.bfloat16, torch.float32)

    @pytest.mark.parametrize("shape", [(0, 8), (0, 2, 4), (2, 0)])
    def test_nothing(self, estimator: LogDetEstimator, shape: tuple[int, ...]) -> None:
        x = torch.zeros(shape, requires_grad=True)
        y, found = estimator(lambda x: 0.5 * x, x)
        assert (y.shape, found.value.shape, found.standard_error.shape) == (x.shape, shape[:1], shape[:1])
        found.value.sum().backward()

    def test_not_contiguous(self, estimator: LogDetEstimator) -> None:
        net, x = contraction(), torch.randn(8, 3, dtype=torch.float64).T
        found = [estimator(net, z, generator=torch.Generator().manual_seed(0))[1].value for z in (x, x.contiguous())]
        torch.testing.assert_close(*found)

    def test_seeds(self, estimator: LogDetEstimator) -> None:
        net, x = contraction(), torch.randn(3, 8, dtype=torch.float64)
        state = torch.get_rng_state()
        found = [estimator(net, x, generator=torch.Generator().manual_seed(s))[1].value for s in (0, 0)]
        assert torch.equal(*found)
        assert torch.equal(torch.get_rng_state(), state)

    def test_refuses(self, estimator: LogDetEstimator) -> None:
        x = torch.randn(3, 8)
        cases: list[tuple[type[InvertibleError], object, Tensor]] = [
            (ShapeError, lambda x: x[:, :3], x),
            (ShapeError, lambda x: x, torch.tensor(1.0)),
            (DtypeError, lambda x: x, torch.ones(3, 8).long()),
            (ConfigError, lambda x: x.mul_(0.5), x.clone()),
            (ConfigError, lambda x: x.mul_(0.5), x.clone().requires_grad_() * 1),
            (NonFiniteError, lambda x: 0.5 * x.sin(), torch.full((3, 8), math.nan)),
        ]
        for error, g, value in cases:
            with pytest.raises(error):
                PowerSeries.__call__(estimator, g, value)  # pyright: ignore[reportArgumentType]
        with pytest.raises(RangeError, match="contraction"):
            estimator(lambda x: 0.5 * x, x, lipschitz=1.0)
        with pytest.raises(ConfigError, match=r"torch\.func"):
            torch.func.vmap(lambda one: estimator(lambda x: 0.5 * x, one[None])[1].value)(x)

    def test_zero(self, estimator: LogDetEstimator) -> None:
        x = torch.randn(3, 8, requires_grad=True)
        for g in (lambda x: torch.ones_like(x), lambda x: 0 * x):
            y, found = estimator(g, x)
            assert not found.value.any()
            (slope,) = torch.autograd.grad(found.value.sum() + y.sum() + x.sum(), x)
            assert torch.equal(slope, torch.ones(3, 8))


@pytest.mark.parametrize("factor", [-1.0, -2.0])
@pytest.mark.parametrize("estimator", [PowerSeries(), RussianRoulette(n_exact=3), Krylov()])
def test_what_is_no_contraction_is_named(estimator: LogDetEstimator, factor: float) -> None:
    with pytest.raises(RangeError, match="ExactLogDet"):
        estimator(lambda x: factor * x, torch.randn(3, 5))


def test_functions_in_python_are_no_obstacle() -> None:
    class Half(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x / 2

        @staticmethod
        def backward(ctx, *gradients):
            return gradients[0] / 2

    x = torch.randn(2, 4)
    for estimator in (ExactLogDet(), Krylov(n_probes=4)):
        torch.testing.assert_close(estimator(Half.apply, x)[1].value, torch.full((2,), 4 * math.log(1.5)))


def test_context_of_inference_mode_is_named() -> None:
    with torch.inference_mode():
        context = torch.rand(3, 8)
        with pytest.raises(ConfigError, match="inference"):
            Krylov()(lambda x: 0.3 * x.sin() * context, torch.randn(3, 8))


@pytest.mark.parametrize(
    "make",
    [
        lambda: PowerSeries(0),
        lambda: PowerSeries(n_probes=0),
        lambda: RussianRoulette(n_exact=-1),
        lambda: RussianRoulette(parameter=0.0),
        lambda: Krylov(n_steps=0),
        lambda: Krylov(taper=0.0),
        lambda: Krylov.within(0),
        lambda: AutoLogDet(max_products=None),
        lambda: AutoLogDet(accuracy=0.0),
        lambda: ExactLogDet(chunk=0),
    ],
)
def test_arguments_out_of_range(make) -> None:
    with pytest.raises(ConfigError):
        make()


@pytest.mark.parametrize("budget", [1, 2, 3, 5, 10, 20, 100])
def test_budgets_are_kept(budget: int) -> None:
    estimator = Krylov.within(budget)
    assert budget - 1 <= estimator.cost(64).products <= budget
    net, x = contraction(), torch.randn(2, 8, dtype=torch.float64)
    with torch.no_grad():
        assert estimator(net, x)[1].products == estimator.cost(8).products

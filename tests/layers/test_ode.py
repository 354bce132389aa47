"""Continuous flows against closed forms: matrix exponentials of linear fields, dense Jacobians for divergences."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from cases import Call
from invertible import Chain
from invertible.errors import ConfigError, ContextError, ConvergenceError, DtypeError, ShapeError
from invertible.layers import ContinuousFlow, ConvField, MLPField, ModuleField, Solver, VectorField

A = torch.tensor([[0.3, -1.0, 0.2], [0.8, -0.4, 0.0], [-0.1, 0.5, 0.6]], dtype=torch.float64)


class Linear(VectorField):
    """f = A x."""

    def __init__(self, matrix: Tensor = A) -> None:
        super().__init__()
        self.matrix = nn.Parameter(matrix.clone())

    def forward(self, t: float, x: Tensor, context: Any = None) -> Tensor:
        return x @ self.matrix.T


class Blast(VectorField):
    """dx/dt = x^2, which is infinite at t = 1/x."""

    def forward(self, t: float, x: Tensor, context: Any = None) -> Tensor:
        return x.square()


class NotANumber(VectorField):
    """Fails at t = 0.5."""

    def forward(self, t: float, x: Tensor, context: Any = None) -> Tensor:
        return x / 0 * 0 if t > 0.5 else x


def rough(gradient: str = "auto", **kwargs) -> ContinuousFlow:
    """A field with some curvature, coarsely solved."""
    torch.manual_seed(0)
    flow = ContinuousFlow(MLPField(3, hidden=(8, 8, 8)), 2.0, Solver(rtol=1e-4, atol=1e-4, gradient=gradient), **kwargs)
    return flow.double()


def gradients(flow: ContinuousFlow | Chain, x: Tensor, method: str = "forward_with_logdet") -> list[Tensor]:
    leaf = x.clone().requires_grad_()
    y, logdet = getattr(flow, method)(leaf)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    inputs = [leaf, *flow.parameters()]
    return list(torch.autograd.grad((y * weights).sum() + logdet.sum(), inputs))


# --- against closed forms ---

METHODS = [
    Solver("dopri5", 1e-8, 1e-8),
    Solver("bosh3", 1e-6, 1e-6),
    Solver("dopri5", n_steps=40),
    Solver("rk4", n_steps=60),
    Solver("midpoint", n_steps=100),
    Solver("dopri8", 1e-9, 1e-9),
    Solver("adaptive_heun", 1e-5, 1e-5),
    Solver("implicit_adams", n_steps=60),
]


@pytest.mark.parametrize("solver", METHODS, ids=lambda s: f"{s.method}-{s.n_steps}")
def test_linear_field(solver: Solver) -> None:
    flow, x = ContinuousFlow(Linear(), 1.5, solver), torch.randn(4, 3, dtype=torch.float64)
    flow = flow.requires_grad_(False)
    y, logdet = flow.forward_with_logdet(x)
    back, minus = flow.inverse_with_logdet(y)
    tolerance = 1e-3 if solver.method in ("midpoint", "adaptive_heun") else 1e-5
    torch.testing.assert_close(y, x @ torch.matrix_exp(1.5 * A).T, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(logdet, (1.5 * A.trace()).expand(4), atol=1e-10, rtol=0)
    torch.testing.assert_close(back, x, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(minus, -logdet, atol=1e-10, rtol=0)


def test_tolerance_decides_the_error_and_the_cost() -> None:
    x, exact = torch.randn(4, 3, dtype=torch.float64), torch.matrix_exp(1.5 * A).T
    errors, costs = [], []
    for tolerance in (1e-3, 1e-6, 1e-9):
        flow = ContinuousFlow(Linear(), 1.5, Solver(rtol=tolerance, atol=tolerance))
        errors.append((flow(x) - x @ exact).abs().max().item())
        costs.append(flow.report.n_evaluations)
    assert all(e <= 10 * t for e, t in zip(errors, (1e-3, 1e-6, 1e-9), strict=True)), errors
    assert errors[0] > 30 * errors[1] > 1e3 * errors[2]
    assert costs == sorted(set(costs))


@pytest.mark.parametrize("order", [("euler", 1), ("midpoint", 2), ("rk4", 4), ("bosh3", 3), ("dopri5", 5)])
def test_order(order: tuple[str, int]) -> None:
    method, p = order
    x, exact = torch.randn(4, 3, dtype=torch.float64), torch.matrix_exp(A).T
    coarse, fine = ((ContinuousFlow(Linear(), 1.0, Solver(method, n_steps=n))(x) - x @ exact).norm() for n in (8, 16))
    assert abs(torch.log2(coarse / fine).item() - p) < 0.35


def test_the_worst_element_decides() -> None:
    """One fast element among many at rest, where the mean over the batch would let its error pass."""
    x = torch.zeros(1000, 1, dtype=torch.float64)
    x[0] = 3.0
    flow = ContinuousFlow(Linear(torch.tensor([[1.0]], dtype=torch.float64)), 2.0)
    assert (flow(x)[0] / (3 * math.exp(2)) - 1).abs() < 2e-5
    assert torch.equal(flow(x)[0], flow(x[:1])[0])


# --- divergences ---


def dense(field: VectorField, x: Tensor, context: Tensor | None) -> Tensor:
    n = x[0].numel()
    given = [None if context is None else context[i : i + 1] for i in range(len(x))]
    rows = [jacobian(lambda r, c=c: field(0.3, r, c), x[i : i + 1]).reshape(n, n) for i, c in enumerate(given)]
    return torch.stack(rows)


def perceptron(activation: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), activation, nn.Linear(6, 4))


FIELDS = {
    "one-layer": (lambda: MLPField(4, (5,)), (4,)),
    "two-layers": (lambda: MLPField(4, (5, 6), "softplus"), (4,)),
    "three-layers-narrow": (lambda: MLPField(6, (5, 6, 7)), (6,)),
    "three-layers-wide": (lambda: MLPField(2, (5, 6, 7), "softplus"), (2,)),
    "four-layers-narrow": (lambda: MLPField(6, (5, 4, 3, 4)), (6,)),
    "context-one-layer": (lambda: MLPField(4, (5,), n_context=2), (4,)),
    "context": (lambda: MLPField(4, (5, 6), n_context=2), (4,)),
    "conv": (lambda: ConvField(2, (3, 4)), (2, 3, 2)),
    "conv-context": (lambda: ConvField(1, (3,), "tanh", n_context=2), (1, 3, 3)),
    "module": (lambda: ModuleField(nn.Sequential(nn.Linear(4, 6), nn.SiLU(), nn.Linear(6, 4))), (4,)),
    "module-inplace": (
        lambda: ModuleField(nn.Sequential(nn.Linear(4, 6), nn.ELU(inplace=True), nn.Linear(6, 4))),
        (4,),
    ),
}


@pytest.mark.parametrize("name", FIELDS)
def test_tangents_and_divergence(name: str) -> None:
    build, shape = FIELDS[name]
    field, x = build().double(), torch.randn(3, *shape, dtype=torch.float64)
    context = torch.randn(3, 2, dtype=torch.float64) if field.takes_context else None
    j, v = dense(field, x, context), torch.randn(2, *x.shape, dtype=torch.float64)
    value = field(0.3, x, context)
    f, jv = field.forward_with_jvp(0.3, x, v, context)
    torch.testing.assert_close(f, value)
    torch.testing.assert_close(jv.flatten(2), torch.einsum("bij,kbj->kbi", j, v.flatten(2)))
    f, divergence = field.forward_with_divergence(0.3, x, context)
    torch.testing.assert_close(f, value)
    torch.testing.assert_close(divergence, torch.einsum("bii->b", j))


def test_fields_depend_on_time() -> None:
    for field, x in ((MLPField(2), torch.randn(3, 2)), (ConvField(1, (3,)), torch.randn(3, 1, 4, 4))):
        assert (field(0.0, x) - field(1.0, x)).abs().max() > 1e-2


def test_the_mean_over_all_probes_is_the_divergence() -> None:
    field, x = MLPField(4, (5, 5)).double(), torch.randn(3, 4, dtype=torch.float64)
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4)), dtype=torch.float64)
    probes = signs[:, None].expand(-1, 3, -1)
    estimates = (field.forward_with_jvp(0.3, x, probes)[1] * probes).sum(dim=2)
    torch.testing.assert_close(estimates.mean(dim=0), field.forward_with_divergence(0.3, x)[1])
    assert estimates.std(dim=0).min() > 1e-3


def test_hutchinson_is_unbiased_and_drawn_from_the_global_state() -> None:
    flow, x = rough(trace="hutchinson"), torch.randn(1, 3, dtype=torch.float64)
    with torch.no_grad():
        torch.manual_seed(0)
        first, second = (flow.forward_with_logdet(x.expand(50, 3))[1] for _ in range(2))
        torch.manual_seed(0)
        assert torch.equal(flow.forward_with_logdet(x.expand(50, 3))[1], first)
        assert not torch.equal(first, second)
        many = flow.forward_with_logdet(x.expand(4000, 3))[1]
        flow.trace = "exact"
        exact = flow.forward_with_logdet(x)[1]
    assert (many.mean() - exact).abs().item() < 5 * many.std().item() / math.sqrt(4000)
    assert many.std() > 1e-3


def test_auto_is_exact_in_few_dimensions_and_where_it_is_cheap() -> None:
    for field, shape, is_random in (
        (MLPField(8), (8,), False),
        (MLPField(9), (9,), True),
        (MLPField(64, (8, 8)), (64,), False),
        (ConvField(1, (2,)), (1, 4, 4), True),
    ):
        flow, x = ContinuousFlow(field), torch.randn(2, *shape)
        before = torch.get_rng_state()
        flow.forward_with_logdet(x)
        assert torch.equal(before, torch.get_rng_state()) != is_random


# --- gradients ---


@pytest.mark.parametrize("method", ["forward_with_logdet", "inverse_with_logdet"])
def test_replay_is_the_gradient_of_the_computed_numbers(method: str) -> None:
    """Also where the tolerance is coarse, so that the equation's own gradient would differ."""
    x = torch.randn(5, 3, dtype=torch.float64)
    replayed, direct = (gradients(rough(gradient), x, method) for gradient in ("replay", "direct"))
    torch.testing.assert_close(replayed, direct, atol=1e-12, rtol=1e-12)


def test_adjoint_solves_for_the_same_gradient() -> None:
    x = torch.randn(5, 3, dtype=torch.float64)
    found = []
    for gradient in ("replay", "adjoint"):
        flow = rough(gradient)
        flow.solver = Solver(rtol=1e-9, atol=1e-9, gradient=gradient)
        found.append(gradients(flow, x))
        assert flow.report.n_backward > 0
    torch.testing.assert_close(*found, atol=1e-6, rtol=1e-6)


def test_gradient_of_the_context_and_of_frozen_and_unused_parameters() -> None:
    field = MLPField(2, (4,), n_context=2).double()
    field.unused = nn.Parameter(torch.zeros(1))
    field.bias.requires_grad_(False)
    flow, x = ContinuousFlow(field), torch.randn(3, 2, dtype=torch.float64)
    results = []
    for gradient in ("replay", "direct", "adjoint"):
        flow.solver = Solver(rtol=1e-8, atol=1e-8, gradient=gradient)
        context = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(3, 2).requires_grad_()
        flow.zero_grad()
        y, logdet = flow.forward_with_logdet(x, context)
        (y.square().sum() + logdet.sum()).backward()
        assert field.bias.grad is None
        assert field.unused.grad is None or not field.unused.grad.any()
        results.append([context.grad, field.gate_slope.grad])
    torch.testing.assert_close(results[0], results[1], atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(results[2], results[1], atol=1e-6, rtol=1e-6)


def test_second_derivatives_need_direct() -> None:
    x = torch.randn(2, 3, dtype=torch.float64)
    flow = rough("direct")
    assert torch.autograd.gradgradcheck(flow, x.clone().requires_grad_(), atol=1e-4)
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(rough()(leaf).square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_weights_changed_before_backward() -> None:
    flow = rough()
    y = flow(torch.randn(2, 3, dtype=torch.float64))
    with torch.no_grad():
        flow.field.bias.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.filterwarnings("ignore:ContinuousFlow has no exact inverse")
@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_chains_in_every_memory_mode(trace: str) -> None:
    x, found = torch.randn(4, 3, dtype=torch.float64), []
    for memory in ("store", "checkpoint", "reconstruct"):
        members = [rough(trace=trace, kinetic=0.1, jacobian=0.1), rough("direct", trace=trace)]
        torch.manual_seed(3)
        found.append(gradients(Chain(*members, memory=memory), x))
    torch.testing.assert_close(found[1], found[0], atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(found[2], found[0], atol=1e-12, rtol=1e-12)


# --- regularisation ---


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_penalties_enter_the_gradient_only(trace: str) -> None:
    """f = a x in n dimensions: |J|_F^2 = n a^2, for any probe, and |f|^2 = a^2 |x|^2 exp(2 a t)."""
    a, n, time, w, u = 0.7, 3, 1.5, 0.05, 0.02
    x = torch.randn(4, n, dtype=torch.float64)
    solver = Solver(rtol=1e-7, atol=1e-7)
    for sign, method, start in ((1, "forward_with_logdet", x), (-1, "inverse_with_logdet", x * math.exp(a * time))):
        scale = torch.full((), a, dtype=torch.float64, requires_grad=True)
        flow = ContinuousFlow(Scale(scale), time, solver, trace, kinetic=w, jacobian=u)
        logdet = getattr(flow, method)(start)[1]
        torch.testing.assert_close(logdet.detach(), torch.full((4,), sign * n * a * time, dtype=torch.float64))
        (grad,) = torch.autograd.grad(logdet.sum(), flow.field.scale)
        s = torch.full((), a, dtype=torch.float64, requires_grad=True)
        x0 = start if sign > 0 else start * torch.exp(-s * time)
        energy = s * x0.square().sum(dim=1) * (torch.exp(2 * s * time) - 1) / 2
        target = sign * n * s * time - w * energy - u * n * s.square() * time
        torch.testing.assert_close(grad, torch.autograd.grad(target.sum(), s)[0], atol=1e-5, rtol=1e-5)
        assert flow.report.kinetic == pytest.approx(energy.mean().item(), rel=1e-5)
        assert flow.report.jacobian == pytest.approx(n * a * a * time, rel=1e-5)
        flow.eval()
        (plain,) = torch.autograd.grad(getattr(flow, method)(start)[1].sum(), flow.field.scale)
        torch.testing.assert_close(plain, torch.tensor(4.0 * sign * n * time, dtype=torch.float64))
        assert flow.report.kinetic is None


class Scale(VectorField):
    """f = a x."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale.detach().clone())

    def forward(self, t: float, x: Tensor, context: Any = None) -> Tensor:
        return self.scale * x


# --- reports ---


def test_report_counts_evaluations() -> None:
    flow, x = rough(), torch.randn(4, 3, dtype=torch.float64)
    n = {"all": 0}
    flow.field.register_forward_pre_hook(lambda *_: n.update(all=n["all"] + 1))
    flow.inverse(x.requires_grad_()).sum().backward()
    report = flow.report
    assert report.direction == "inverse"
    assert report.n_backward % 6 == 0
    assert n["all"] == report.n_evaluations + report.n_backward
    assert report.n_evaluations == 2 + report.n_backward + 6 * report.n_rejected
    flow.solver = Solver("dopri8", gradient="adjoint")
    n["all"] = 0
    flow(x).sum().backward()
    assert n["all"] == flow.report.n_evaluations + flow.report.n_backward > 20


def test_measured_errors_are_the_true_ones() -> None:
    x = torch.randn(4, 3, dtype=torch.float64)
    flow = ContinuousFlow(Linear(), 1.5, Solver(rtol=1e-4, atol=1e-4))
    before, error = torch.get_rng_state(), flow.measure(x)
    true = (flow(x) - x @ torch.matrix_exp(1.5 * A).T).abs().max().item()
    assert error.value == pytest.approx(true, rel=0.1)
    assert error.value > 1e-7
    assert error.probe == 0
    assert error.n_evaluations_tight > error.n_evaluations
    assert 0 < error.round_trip < 1e-2
    assert torch.equal(before, torch.get_rng_state())


def test_measure_tells_the_probe_from_the_solver() -> None:
    flow, x = rough(trace="hutchinson").float(), torch.randn(50, 3)
    error = flow.measure(x)
    assert error.probe > 20 * error.logdet
    assert flow.trace == "hutchinson"
    steps = ContinuousFlow(MLPField(3), solver=Solver("rk4", n_steps=3), trace="exact")
    assert steps.measure(x).n_evaluations_tight == 4 * math.ceil(3 * 100**0.25)


def test_report_does_not_get_in_the_way() -> None:
    flow, x = rough(), torch.randn(2, 3, dtype=torch.float64)
    y = flow(x)
    for twin in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):  # noqa: S301
        assert twin.report == flow.report
        assert torch.equal(twin(x), y)


# --- errors ---


def test_stiffness_explains_itself() -> None:
    flow = ContinuousFlow(Blast(), trace="exact")
    with pytest.raises(ConvergenceError, match=r"time 0\.1.* evaluations.*largest number.*kinetic=") as caught:
        flow(torch.full((1, 1), 10.0, dtype=torch.float64))
    assert "steps have become too small" in str(caught.value) or "not finite" in str(caught.value)


@pytest.mark.parametrize("method", ["dopri5", "dopri8"])
def test_a_field_that_is_not_finite(method: str) -> None:
    flow = ContinuousFlow(NotANumber(), solver=Solver(method))
    with pytest.raises(ConvergenceError, match=r"ODE could not be solved"):
        flow(torch.ones(2, 2))


@pytest.mark.parametrize("method", ["dopri5", "dopri8"])
def test_too_many_evaluations(method: str) -> None:
    flow = ContinuousFlow(Linear(100 * A), 1.0, Solver(method, max_evaluations=50))
    with pytest.raises(ConvergenceError, match=r"more than 50 evaluations.*time 0\.0"):
        flow(torch.randn(2, 3, dtype=torch.float64))


def test_an_adaptive_solver_cannot_be_traced() -> None:
    flow, x = ContinuousFlow(MLPField(2)), torch.randn(3, 4, 2)
    with pytest.raises(ConfigError, match=r"Solver\('rk4', n_steps=20\)"):
        torch.func.vmap(flow)(x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "rk5"}, "unknown ODE method.*rk4"),
        ({"method": "rk4"}, "rk4 does not choose its steps"),
        ({"method": "rk4", "n_steps": 0}, "n_steps >= 1"),
        ({"method": "dopri8", "n_steps": 4}, "n_steps does not fit"),
        ({"method": "dopri8", "gradient": "replay"}, "cannot be replayed"),
        ({"rtol": 0.0}, "out of range"),
        ({"atol": math.inf}, "out of range"),
        ({"max_evaluations": 0}, "out of range"),
    ],
)
def test_bad_solvers(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Solver(**arguments)


@pytest.mark.usefixtures("unchecked")
def test_bad_arguments() -> None:
    for arguments in ({"time": 0.0}, {"kinetic": -1.0}, {"jacobian": math.inf}):
        with pytest.raises(ConfigError, match="out of range"):
            ContinuousFlow(MLPField(2), **arguments)
    with pytest.raises(ConfigError, match="unknown trace"):
        ContinuousFlow(MLPField(2), trace="some")
    with pytest.raises(DtypeError, match="a field needs a network"):
        ContinuousFlow(lambda x: x)
    with pytest.raises(ConfigError, match="a field cannot be called"):
        ModuleField(nn.MultiheadAttention(2, 1))
    for sizes in ((0, (3,)), (2, ()), (2, (3, 0))):
        with pytest.raises(ConfigError, match="bad sizes"):
            MLPField(*sizes)


def test_bad_inputs() -> None:
    with pytest.raises(ShapeError, match="must keep its input's shape"):
        ContinuousFlow(nn.Linear(2, 3))(torch.zeros(1, 2))
    with pytest.raises(ShapeError, match="MLPField got the wrong number of channels"):
        ContinuousFlow(MLPField(2))(torch.zeros(1, 3))
    with pytest.raises(DtypeError, match="ContinuousFlow got a tensor of another dtype"):
        ContinuousFlow(MLPField(2))(torch.zeros(1, 2, dtype=torch.float64))
    with pytest.raises(ContextError, match=r"expected shape \(batch, 3\)"):
        ContinuousFlow(MLPField(2, n_context=3))(torch.zeros(1, 2), torch.zeros(1, 2))


# --- surroundings ---


class Timed(nn.Module):
    """A module of (t, x)."""

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return t * x


class Steered(nn.Module):
    """A module of (t, x, context)."""

    def forward(self, t: Tensor, x: Tensor, context: Tensor) -> Tensor:
        return t * x * context


def test_modules_of_time_and_context() -> None:
    """dx/dt = c t x: y = x exp(c T^2 / 2)."""
    x, c = torch.randn(3, 2, dtype=torch.float64), torch.rand(3, 1, dtype=torch.float64)
    y, logdet = ContinuousFlow(Timed(), 2.0, Solver(rtol=1e-9, atol=1e-9)).forward_with_logdet(x)
    torch.testing.assert_close(y, x * math.exp(2), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(logdet, torch.full((3,), 4.0, dtype=torch.float64))
    flow = ContinuousFlow(ModuleField(Steered(), takes_context=True), 2.0, Solver(rtol=1e-9, atol=1e-9))
    y, logdet = flow.forward_with_logdet(x, c)
    torch.testing.assert_close(y, x * torch.exp(2 * c), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(logdet, 4 * c[:, 0])


def test_autocast_stays_outside() -> None:
    flow, x = ContinuousFlow(MLPField(2)), torch.randn(8, 2)
    expected = flow.forward_with_logdet(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, flow.forward_with_logdet(x), expected))
        y = flow(x.bfloat16())
    torch.testing.assert_close(y.float(), expected[0], atol=2e-2, rtol=2e-2)


@pytest.mark.usefixtures("unchecked")
def test_equal_steps_compile() -> None:
    flow, x = ContinuousFlow(MLPField(2, (4, 4)), solver=Solver("rk4", n_steps=2)), torch.randn(3, 2)
    call = Call(flow, "forward_with_logdet")
    compiled = torch.compile(call, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), call(x))


def test_training_finds_a_density() -> None:
    """Two clusters: within a few steps the likelihood beats the best normal distribution's."""
    torch.manual_seed(0)
    flow = ContinuousFlow(MLPField(1, (16, 16)), solver=Solver("rk4", n_steps=4, gradient="direct"), kinetic=0.01)
    optimizer = torch.optim.Adam(flow.parameters(), 2e-2)
    for _ in range(100):
        x = torch.randn(64, 1) * 0.2 + torch.randint(0, 2, (64, 1)) * 4 - 2
        z, logdet = flow.forward_with_logdet(x)
        loss = (z.square().sum(dim=1) / 2 + math.log(2 * math.pi) / 2 - logdet).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    normal = math.log(2 * math.pi * math.e * 4.04) / 2
    assert loss.item() < normal - 0.5

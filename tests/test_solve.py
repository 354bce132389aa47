"""Solving x + g(x) = y: right, honest about its error, cheap, and loud when it fails."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from invertible import FixedPointSolver, SolveReport, solve_linear, solve_residual
from invertible.errors import ConfigError, ConvergenceError, DtypeError, NonFiniteError, RangeError, ShapeError
from invertible.solve.solver import METHODS

Map = Callable[[Tensor], Tensor]
ACTIVATIONS: list[Map] = [torch.relu, torch.tanh, torch.sin, nn.functional.elu]


def matrix(kind: str, size: int, c: float, seed: int = 0) -> Tensor:
    """A matrix of norm c, float64."""
    a = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    a = {
        "general": a,
        "orthogonal": torch.linalg.qr(a)[0],
        "symmetric+": a + a.T,
        "symmetric-": -(a + a.T),
        "positive": a @ a.T,
        "negative": -a @ a.T,
    }[kind]
    return a * (c / torch.linalg.matrix_norm(a, 2))


def linear(a: Tensor) -> Map:
    return lambda x: x @ a.T.to(x.dtype)


def network(size: int, c: float, seed: int) -> Map:
    """A net of two layers with Lipschitz constant at most c, in the dtype of its input."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(2 * size, size, dtype=torch.float64, generator=generator)
    last = torch.randn(size, 2 * size, dtype=torch.float64, generator=generator) if seed % 2 else -first.T
    first, last = first / torch.linalg.matrix_norm(first, 2), last / torch.linalg.matrix_norm(last, 2) * c
    bias = torch.randn(2 * size, dtype=torch.float64, generator=generator)
    act = ACTIVATIONS[seed % 4]
    return lambda x: act(x @ first.T.to(x.dtype) + bias.to(x.dtype)) @ last.T.to(x.dtype)


class Counting:
    """Remembers how many rows each call had."""

    def __init__(self, g: Map) -> None:
        self.g, self.rows = g, []

    def __call__(self, x: Tensor) -> Tensor:
        self.rows.append(len(x))
        return self.g(x)


def error(x: Tensor, exact: Tensor) -> Tensor:
    return (x.double() - exact).flatten(1).norm(dim=1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("c", [0.0, 0.5, 0.9, 0.97])
@pytest.mark.parametrize("kind", ["general", "orthogonal", "symmetric+", "negative"])
def test_solution_is_that_of_the_dense_system(method: str, c: float, kind: str) -> None:
    a, y = matrix(kind, 12, c), torch.randn(6, 12, dtype=torch.float64)
    solver = FixedPointSolver(cast("str", method), max_evaluations=3000)  # pyright: ignore[reportArgumentType]
    x, report = solve_residual(linear(a), y, c, solver)
    exact = torch.linalg.solve(torch.eye(12, dtype=torch.float64) + a, y.T).T
    torch.testing.assert_close(x, exact, rtol=1e-12, atol=1e-12)
    assert report.guaranteed_error is not None
    assert (error(x, exact) <= report.guaranteed_error).all()
    assert (report.guaranteed_error < 1e-12 * exact.norm(dim=1)).all()
    assert report.converged.all()


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    size=st.sampled_from([1, 2, 3, 7, 40]),
    c=st.sampled_from([0.1, 0.5, 0.9, 0.99]),
    tolerance=st.sampled_from([None, 1e-2, 1e-3]),
    method=st.sampled_from(METHODS),
)
def test_guaranteed_error_is_never_below_the_true_one(
    seed: int, size: int, c: float, tolerance: float | None, method: str
) -> None:
    kinds = ["general", "orthogonal", "symmetric+", "positive", "negative"]
    kind = seed % (len(kinds) + 1)
    g = network(size, c, seed) if kind == len(kinds) else linear(matrix(kinds[kind], size, c, seed))
    y = torch.randn(5, size, generator=torch.Generator().manual_seed(seed))
    y *= torch.tensor([[1e-20], [1e-3], [1.0], [1e3], [1e25]])
    solver = FixedPointSolver(method, tolerance, max_evaluations=5000)  # pyright: ignore[reportArgumentType]
    x, report = solve_residual(g, y, c, solver)
    exact, _ = solve_residual(g, y.double(), c, FixedPointSolver(max_evaluations=5000))
    assert report.guaranteed_error is not None
    assert report.relative_error is not None
    assert (error(x, exact) <= report.guaranteed_error).all(), error(x, exact) / report.guaranteed_error
    assert (report.relative_error <= (tolerance or 2e-6 / (1 - c))).all()


@pytest.mark.parametrize("kind", ["symmetric+", "symmetric-", "positive", "negative", "orthogonal", "general"])
def test_anderson_never_takes_more_than_two_evaluations_more_than_plain(kind: str) -> None:
    to_rounding = [] if kind == "orthogonal" else [(torch.float64, None), (torch.float32, None)]
    for c in (0.5, 0.7, 0.9, 0.97):  # at the level of rounding, an orthogonal g makes the end a matter of luck
        for dtype, tolerance in ((torch.float32, 1e-3), (torch.float64, 1e-6), *to_rounding):
            g, y = linear(matrix(kind, 16, c)), torch.randn(4, 16, dtype=dtype)
            found = [
                solve_residual(g, y, c, FixedPointSolver(method, tolerance, max_evaluations=3000))[1].evaluations
                for method in ("anderson", "plain")
            ]
            assert (found[0] <= found[1] + 2).all(), (c, dtype, tolerance, found)


def test_anderson_and_broyden_pay() -> None:
    g, y = linear(matrix("symmetric+", 64, 0.9)), torch.randn(8, 64, dtype=torch.float64)
    mean = {
        m: solve_residual(g, y, 0.9, FixedPointSolver(m, 1e-6))[1].evaluations.double().mean().item() for m in METHODS
    }
    assert mean["anderson"] < 0.35 * mean["plain"], mean
    assert mean["broyden"] < 0.7 * mean["plain"], mean


def test_a_step_that_makes_the_residual_grow_is_taken_back() -> None:
    kinks = lambda x: 0.45 * (x - 2 * torch.relu(x - 0.3) + 2 * torch.relu(x - 0.31) - torch.relu(-x))  # noqa: E731
    g = lambda x: kinks(x * torch.tensor([1.0, -1.0, 0.5, 1.0])).roll(1, dims=1)  # noqa: E731
    y = torch.randn(64, 4, dtype=torch.float64)
    own = {m: solve_residual(g, y, 0.9, FixedPointSolver(m)) for m in METHODS}
    for x, _ in own.values():
        torch.testing.assert_close(x + g(x), y, rtol=0, atol=1e-14)
    assert (own["anderson"][1].evaluations <= own["plain"][1].evaluations + 2).all()


@pytest.mark.parametrize("method", METHODS)
def test_finished_samples_cost_nothing_more(method: str) -> None:
    easy, hard = torch.zeros(30, 8, dtype=torch.float64), torch.randn(2, 8, dtype=torch.float64)
    g = Counting(linear(matrix("orthogonal", 8, 0.9)))
    _, report = solve_residual(g, torch.cat([easy, hard]), 0.9, FixedPointSolver(method))  # pyright: ignore[reportArgumentType]
    assert report.evaluations[:30].tolist() == [1] * 30
    assert g.rows[:2] == [32, 2]
    assert sum(g.rows) == report.evaluations.sum()


def test_compact_false_shows_g_the_whole_batch() -> None:
    g = Counting(linear(matrix("orthogonal", 8, 0.5)))
    y = torch.cat([torch.zeros(30, 8), torch.randn(2, 8)])
    solve_residual(g, y, 0.5, FixedPointSolver(compact=False))
    assert set(g.rows) == {32}


def test_context_follows_its_rows() -> None:
    context = torch.linspace(0.0, 0.9, 16, dtype=torch.float64).unsqueeze(1)
    y = torch.randn(16, 3, dtype=torch.float64)
    select = lambda rows: lambda x: context[rows] * torch.sin(x)  # noqa: E731
    x, report = solve_residual(lambda x: context * torch.sin(x), y, 0.9, select=select)
    torch.testing.assert_close(x + context * torch.sin(x), y, rtol=0, atol=1e-14)
    assert report.evaluations.unique().numel() > 3
    whole, _ = solve_residual(lambda x: context * torch.sin(x), y, 0.9, FixedPointSolver(compact=False))
    torch.testing.assert_close(whole, x, rtol=0, atol=1e-14)


def test_context_without_select_is_an_error_that_says_so() -> None:
    context = torch.linspace(0.0, 0.9, 16).unsqueeze(1)
    with pytest.raises((RuntimeError, ShapeError)) as caught:
        solve_residual(lambda x: context * torch.sin(x), torch.randn(16, 3), 0.9)
    assert "select=" in str(caught.value) + "".join(getattr(caught.value, "__notes__", []))


def test_result_does_not_depend_on_the_rest_of_the_batch() -> None:
    g, y = network(6, 0.9, seed=3), torch.randn(20, 6, dtype=torch.float64)
    y[:10] *= 1e6
    together, report = solve_residual(g, y, 0.9, FixedPointSolver(tolerance=1e-6))
    for i in (0, 7, 13, 19):
        alone, own = solve_residual(g, y[i : i + 1], 0.9, FixedPointSolver(tolerance=1e-6))
        torch.testing.assert_close(alone[0], together[i], rtol=1e-9, atol=1e-9)
        assert abs(int(own.evaluations) - int(report.evaluations[i])) <= 1


def test_images_non_contiguous_and_channels_last() -> None:
    conv = nn.Conv2d(3, 3, 3, padding=1).double()
    conv.weight.data *= 0.9 / conv.weight.abs().sum().item()
    y = torch.randn(4, 5, 6, 3, dtype=torch.float64).permute(0, 3, 1, 2)
    with torch.no_grad():
        for given_y in (y, y.contiguous(), y.contiguous(memory_format=torch.channels_last)):
            x, _ = solve_residual(conv, given_y, 0.9)
            torch.testing.assert_close(x + conv(x), y, rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (1, 3), (3,), (2, 1, 1, 5)])
def test_shapes_at_the_edge(shape: tuple[int, ...]) -> None:
    y = torch.randn(shape)
    x, report = solve_residual(lambda x: x.sin() / 2, y, 0.5)
    assert x.shape == y.shape
    assert report.evaluations.shape == shape[:1]
    assert str(report)
    torch.testing.assert_close(x + x.sin() / 2, y, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    seen = []
    y = torch.randn(5, 4).to(dtype)
    g = lambda x: (seen.append(x.dtype), x.sin() / 2)[1]  # noqa: E731
    x, report = solve_residual(g, y, 0.5)
    exact, _ = solve_residual(lambda x: x.sin() / 2, y.double(), 0.5)
    assert set(seen) == {torch.float32}
    assert x.dtype == dtype
    assert report.guaranteed_error is not None
    assert (error(x, exact) <= report.guaranteed_error).all()
    assert (report.guaranteed_error > 0.1 * torch.finfo(dtype).eps * report.scale).all()


def test_a_g_in_bfloat16_and_autocast_are_allowed_for() -> None:
    a, y = matrix("general", 8, 0.5), torch.randn(5, 8)
    g = lambda x: x.bfloat16() @ a.T.bfloat16()  # noqa: E731
    x, report = solve_residual(g, y, 0.51)
    exact, _ = solve_residual(linear(a.bfloat16().double()), y.double(), 0.51)
    assert report.guaranteed_error is not None
    assert (error(x, exact) <= report.guaranteed_error).all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, report = solve_residual(linear(a.float()), y, 0.51)
    assert report.relative_error is not None
    assert (report.relative_error < 1e-5).all()


def test_rounding_inside_g_is_noticed() -> None:
    g = lambda x: (0.25 * x.sin() + 100.0) - 100.0  # loses six bits  # noqa: E731
    y = torch.randn(8, 40)
    x, report = solve_residual(g, y, 0.25)
    exact, _ = solve_residual(lambda x: 0.25 * x.sin(), y.double(), 0.25)
    assert report.guaranteed_error is not None
    assert (error(x, exact) <= report.guaranteed_error).all()


def test_without_a_constant_nothing_is_guaranteed_and_the_residual_decides() -> None:
    g, y = network(5, 0.9, seed=1), torch.randn(6, 5, dtype=torch.float64)
    x, report = solve_residual(g, y, None, FixedPointSolver(tolerance=1e-8))
    assert report.guaranteed_error is None
    assert report.relative_error is None
    assert "no guarantee" in str(report)
    assert ((x + g(x) - y).norm(dim=1) <= 1e-8 * report.scale).all()
    x, _ = solve_residual(g, y, None)
    torch.testing.assert_close(x + g(x), y, rtol=0, atol=1e-13)
    x, _ = solve_residual(g, y.float(), None)
    torch.testing.assert_close(x + g(x), y.float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_no_contraction_no_silent_result(method: str) -> None:
    g, y = lambda x: 3 * torch.tanh(5 * x), torch.randn(6, 5)
    solver = FixedPointSolver(method, max_evaluations=60)  # pyright: ignore[reportArgumentType]
    try:
        x, _ = solve_residual(g, y, None, solver)
    except ConvergenceError:
        assert method != "impossible"
    else:
        torch.testing.assert_close(x + g(x), y, rtol=0, atol=1e-5)
    with pytest.raises(RangeError, match="steeper"):
        solve_residual(g, y, 0.9, solver)


def test_tolerance_below_rounding_is_an_error() -> None:
    words = "below what rounding allows.*tolerance 1e-08.*residual.*guaranteed.*sample.*evaluations.*float64"
    with pytest.raises(ConvergenceError, match=words):
        solve_residual(linear(matrix("negative", 6, 0.9)), torch.randn(4, 6), 0.9, FixedPointSolver(tolerance=1e-8))


def test_too_few_evaluations_are_an_error_that_names_the_worst_sample() -> None:
    y = torch.zeros(4, 6, dtype=torch.float64)
    y[2] = 1.0
    with pytest.raises(ConvergenceError, match=r"max_evaluations=3.*sample 2 is the worst of 1 after 3 evaluations"):
        solve_residual(linear(matrix("orthogonal", 6, 0.9)), y, 0.9, FixedPointSolver(max_evaluations=3))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite(bad: float) -> None:
    y = torch.randn(4, 6)
    with pytest.raises(NonFiniteError, match="y must be finite"):
        solve_residual(torch.sin, torch.where(torch.arange(4)[:, None] == 1, bad, y), 0.5)
    with pytest.raises(NonFiniteError, match=r"g must be finite.*sample 3"):
        solve_residual(lambda x: x * torch.tensor([0.0, 0.0, 0.0, bad])[:, None], y, 0.5)


def test_arguments_are_checked() -> None:
    y = torch.randn(4, 6)
    with pytest.raises(DtypeError):
        solve_residual(torch.sin, torch.arange(4), 0.5)
    with pytest.raises(ShapeError):
        solve_residual(torch.sin, torch.tensor(1.0), 0.5)
    with pytest.raises(ShapeError, match="g must keep the shape"):
        solve_residual(lambda x: x[:, :3], y, 0.5)
    with pytest.raises(DtypeError, match="g must map"):
        solve_residual(lambda x: x.long(), y, 0.5)
    for c in (1.0, 1.5, -0.1, math.nan):
        with pytest.raises(RangeError, match="no contraction"):
            solve_residual(torch.sin, y, c)
    for options in ({"tolerance": 0.0}, {"tolerance": math.nan}, {"max_evaluations": 0}, {"memory": 0}):
        with pytest.raises(ConfigError):
            FixedPointSolver(**options)  # pyright: ignore[reportArgumentType]


def test_transforms_that_see_no_values_are_refused() -> None:
    solve = lambda y: solve_residual(lambda x: x.sin() / 2, y, 0.5)[0]  # noqa: E731
    with pytest.raises(ConfigError, match=r"torch\.func"):
        torch.func.vmap(solve)(torch.randn(3, 2, 4))
    with pytest.raises(ConfigError, match="meta"):
        solve(torch.empty(3, 2, device="meta"))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_without_gradients(mode: Callable[[], torch.no_grad]) -> None:
    y = torch.randn(3, 4)
    with mode():
        x, _ = solve_residual(lambda x: x.sin() / 2, y, 0.5)
    assert not x.requires_grad
    torch.testing.assert_close(x + x.sin() / 2, y, rtol=0, atol=1e-6)


def test_the_report_is_readable() -> None:
    _, report = solve_residual(lambda x: x.sin() / 2, torch.randn(3, 4), 0.5, FixedPointSolver(tolerance=1e-5))
    assert isinstance(report, SolveReport)
    assert "anderson: 3 of 3 samples converged" in str(report)
    assert "guaranteed relative error <=" in str(report)
    assert "0.5" in str(report)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linear_systems(dtype: torch.dtype) -> None:
    a, v = matrix("general", 9, 0.9), torch.randn(5, 9, dtype=dtype)
    w, report = solve_linear(linear(a), v, 0.9, FixedPointSolver(tolerance=1e-9))  # read as rounding in float32
    exact = torch.linalg.solve(torch.eye(9, dtype=torch.float64) + a, v.double().T).T
    assert report.guaranteed_error is not None
    assert (error(w, exact) <= report.guaranteed_error).all()
    assert (error(w, exact) < (1e-5 if dtype == torch.float32 else 1e-8)).all()

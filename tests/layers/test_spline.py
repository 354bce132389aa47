"""Rational-quadratic splines: by hand, against the paper's formulas, at knots and far out, and the coupling."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cases import assert_close, mlp
from invertible.errors import ConfigError, ShapeError
from invertible.layers import SplineCoupling
from invertible.layers.spline import (
    MIN_BIN,
    MIN_DERIVATIVE,
    _root,
    rational_quadratic,
    rational_quadratic_inverse,
)


def parameters(*shape: int, n_bins: int = 8, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    return scale * torch.randn(*shape, 3 * n_bins - 1, dtype=dtype)


def raw_of(derivative: float) -> float:
    return math.log(math.expm1(derivative - MIN_DERIVATIVE)) - math.log(math.expm1(1 - MIN_DERIVATIVE))


def test_by_hand() -> None:
    """Two equal bins on [-1, 1], slope 5 in the middle.

    Half way through the first bin the denominator is 1 + (1 + 5 - 2) / 4 = 2: y = -1 + (1/4 + 1/4) / 2 and
    dy/dx = (5/4 + 2/4 + 1/4) / 4. At the knot y = 0 and the derivative is 5.
    """
    p = torch.tensor([0, 0, 0, 0, raw_of(5.0)], dtype=torch.float64)
    x = torch.tensor([-0.5, 0.0, 0.5], dtype=torch.float64)
    y, log = rational_quadratic(x, p.expand(3, 5), bound=1.0)
    assert_close(y, x.new_tensor([-0.75, 0.0, 0.75]))
    assert_close(log.exp(), x.new_tensor([0.5, 5.0, 0.5]))


def knots(p: Tensor, bound: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of one spline: positions, heights and derivatives, by the definitions."""
    k = (len(p) + 1) // 3
    ends = []
    for raw in (p[:k], p[k : 2 * k]):
        sizes = 2 * bound * (MIN_BIN + (1 - MIN_BIN * k) * torch.softmax(raw, 0))
        ends.append(torch.cat([p.new_tensor([-bound]), sizes.cumsum(0) - bound]))
    inner = nn.functional.softplus(p[2 * k :] + math.log(math.expm1(1 - MIN_DERIVATIVE))) + MIN_DERIVATIVE
    return *ends, torch.cat([p.new_ones(1), inner, p.new_ones(1)])


def paper(x: Tensor, p: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Equations 4 and 5 of Durkan et al., one number at a time."""
    xs, ys, ds = knots(p, bound)
    k = min(int((x >= xs[1:-1]).sum()), len(xs) - 2)
    s, xi = (ys[k + 1] - ys[k]) / (xs[k + 1] - xs[k]), (x - xs[k]) / (xs[k + 1] - xs[k])
    below = s + (ds[k + 1] + ds[k] - 2 * s) * xi * (1 - xi)
    y = ys[k] + (ys[k + 1] - ys[k]) * (s * xi**2 + ds[k] * xi * (1 - xi)) / below
    slope = s**2 * (ds[k + 1] * xi**2 + 2 * s * xi * (1 - xi) + ds[k] * (1 - xi) ** 2) / below**2
    return y, slope.log()


@pytest.mark.parametrize(("n_bins", "bound"), [(2, 1.0), (8, 3.0), (20, 10.0)])
def test_against_the_papers_formulas(n_bins: int, bound: float) -> None:
    p = parameters(50, n_bins=n_bins, scale=2.0)
    x = bound * (2 * torch.rand(50, dtype=torch.float64) - 1)
    y, log = rational_quadratic(x, p, bound)
    expected = [paper(x[i], p[i], bound) for i in range(50)]
    assert_close(y, torch.stack([e[0] for e in expected]))
    assert_close(log, torch.stack([e[1] for e in expected]))


def test_log_derivative_is_autograds() -> None:
    p, x = parameters(40, scale=3.0), (6 * torch.randn(40, dtype=torch.float64)).requires_grad_()
    for f, sign in ((rational_quadratic, 1), (rational_quadratic_inverse, -1)):
        y, log = f(x, p)
        (slope,) = torch.autograd.grad(y.sum(), x)
        assert_close(log, sign * slope.log(), 1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_zeros_are_the_identity(dtype: torch.dtype) -> None:
    x = torch.linspace(-7, 7, 101, dtype=dtype)
    for f in (rational_quadratic, rational_quadratic_inverse):
        y, log = f(x, torch.zeros(101, 23, dtype=dtype))
        tolerance = 1e-14 if dtype == torch.float64 else 2e-6
        assert_close(y, x, tolerance)
        assert_close(log, torch.zeros_like(x), tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_round_trip_with_knots_and_bounds(dtype: torch.dtype) -> None:
    p = parameters(1, dtype=dtype)
    xs, ys, _ = knots(p[0], 5.0)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for ends, f, g in ((xs, rational_quadratic, rational_quadratic_inverse),
                       (ys, rational_quadratic_inverse, rational_quadratic)):  # fmt: skip
        x = torch.cat([ends, ends.new_tensor([-5.0, 5.0, -4.9999, 4.9999]), torch.randn(100, dtype=dtype)])
        x = torch.cat([x, x.nextafter(x + 1), x.nextafter(x - 1)])
        y, log = f(x, p.expand(len(x), -1))
        back, again = g(y, p.expand(len(x), -1))
        assert_close(back, x, tolerance)
        assert_close(again, log, 10 * tolerance)


def test_knots_are_hit() -> None:
    p = parameters(1)
    xs, ys, ds = knots(p[0], 5.0)
    y, log = rational_quadratic(xs, p.expand(9, -1))
    assert_close(y, ys)
    assert_close(log.exp(), ds)


def test_far_out_it_is_exactly_the_identity() -> None:
    x = torch.tensor([-math.inf, -1e6, -100.0, -5.0001, 5.0001, 100.0, 1e6, math.inf])
    for f in (rational_quadratic, rational_quadratic_inverse):
        y, log = f(x, parameters(8, scale=5.0, dtype=torch.float32))
        assert torch.equal(y, x)
        assert torch.equal(log, torch.zeros(8))


@given(st.integers(2, 12), st.floats(0, 30), st.integers(0, 10**6))
def test_monotone(n_bins: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    p = scale * torch.randn(1, 3 * n_bins - 1, dtype=torch.float64, generator=generator)
    x = torch.linspace(-5.5, 5.5, 200, dtype=torch.float64)
    for f in (rational_quadratic, rational_quadratic_inverse):
        y, log = f(x, p.expand(200, -1))
        assert (y.diff() > 0).all()
        assert torch.isfinite(log).all()


@pytest.mark.parametrize("scale", [10.0, 1e3, 1e6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_extreme_parameters_stay_finite(scale: float, dtype: torch.dtype) -> None:
    p = parameters(500, scale=scale, dtype=dtype).requires_grad_()
    for f in (rational_quadratic, rational_quadratic_inverse):
        x = torch.linspace(-6, 6, 500, dtype=dtype).requires_grad_()
        y, log = f(x, p)
        grads = torch.autograd.grad(y.sum() + log.sum(), [x, p])
        assert all(torch.isfinite(t).all() for t in (y, log, *grads))
        assert y.abs().max() <= 6


@pytest.mark.parametrize("d0", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("d1", [1e-3, 1.0, 1e4])
def test_steep_and_flat_knots_are_undone(d0: float, d1: float) -> None:
    """The textbook's stable root, -2c / (b + sqrt(b^2 - 4ac)), cancels where b < 0: next to a steep knot."""
    raw = [-40.0 if d == MIN_DERIVATIVE else raw_of(d) if d < 100 else d for d in (d0, d1)]
    p = torch.tensor([0.0] * 6 + raw, dtype=torch.float64)
    y = torch.linspace(-1, 1, 1001, dtype=torch.float64)
    x, log = rational_quadratic_inverse(y, p.expand(1001, -1), bound=1.0)
    again, log_again = rational_quadratic(x, p.expand(1001, -1), bound=1.0)
    # An error of one rounding in x weighs exp(log) in y.
    assert ((again - y).abs() <= 1e-14 * (1 + log.exp())).all()
    assert_close(log_again.mean(), log.mean(), 1e-9)


def test_rounding_at_the_knots_of_steep_bins_with_flat_knots() -> None:
    """There a point may lie a rounding outside its bin, where root and logarithm would be of negative numbers."""
    p = parameters(2000, n_bins=20, dtype=torch.float32)
    p[:, 9], p[:, 29], p[:, 40:] = -20.0, 10.0, -40.0  # the tenth bin: a slope of about 1000 between slopes of 0.001
    ends = [torch.stack([knots(row, 5.0)[axis][9:11] for row in p]) for axis in (0, 1)]
    p = p.unsqueeze(1).expand(-1, 2, -1).clone().requires_grad_()
    for f, z in zip((rational_quadratic, rational_quadratic_inverse), ends, strict=True):
        for x in (z, z.nextafter(z + 1), z.nextafter(z - 1)):
            leaf = x.clone().requires_grad_()
            y, log = f(leaf, p)
            grads = torch.autograd.grad(y.sum() + log.sum(), [leaf, p])
            assert all(torch.isfinite(t).all() for t in (y, log, *grads))
            with torch.no_grad():
                assert torch.equal(f(x, p)[0], y)


def test_gradient_of_the_identity_at_its_knots() -> None:
    """Zeros in the data lie on a knot before training; the gradient there is one, whatever the rounding."""
    for n_bins in range(2, 20):
        x = torch.linspace(-5, 5, n_bins + 1, requires_grad=True)[1:-1]
        for f in (rational_quadratic, rational_quadratic_inverse):
            (grad,) = torch.autograd.grad(f(x, torch.zeros(n_bins - 1, 3 * n_bins - 1))[0].sum(), x)
            assert_close(grad, torch.ones(n_bins - 1))


def test_gradients() -> None:
    """Of values and log-derivatives, away from knots, where the log-derivative has a kink."""
    p, x = parameters(6, n_bins=4).requires_grad_(), torch.tensor([-7.0, -3.3, -0.4, 0.3, 2.9, 6.0]).double()
    for f in (rational_quadratic, rational_quadratic_inverse):
        assert torch.autograd.gradcheck(f, [x.clone().requires_grad_(), p])
        assert torch.autograd.gradgradcheck(f, [x.clone().requires_grad_(), p], atol=1e-4)


def test_gradients_at_knots_are_finite() -> None:
    p = parameters(1)
    xs, ys, _ = knots(p[0], 5.0)
    for ends, f in ((xs, rational_quadratic), (ys, rational_quadratic_inverse)):
        x = torch.cat([ends, ends.new_tensor([-5.0, 5.0, 1e6, -1e6])]).requires_grad_()
        q = p.expand(len(x), -1).clone().requires_grad_()
        y, log = f(x, q)
        for grad in torch.autograd.grad(y.sum() + log.sum(), [x, q]):
            assert torch.isfinite(grad).all()


def test_gradient_of_the_root_where_its_two_forms_meet() -> None:
    """For equal slopes eta is e; at e = 1/2 the two meet, and the gradient is one, not a subgradient of |g|."""
    e, one = torch.tensor([0.5], dtype=torch.float64, requires_grad=True), torch.ones(1, dtype=torch.float64)
    (grad,) = torch.autograd.grad(_root(e, one, one, one), e)
    assert_close(grad, one)


def test_nan_stays_nan() -> None:
    x = torch.tensor([math.nan, 1.0])
    for f in (rational_quadratic, rational_quadratic_inverse):
        y, log = f(x, parameters(2, dtype=torch.float32))
        assert y.isnan().tolist() == log.isnan().tolist() == [True, False]
        p = parameters(2, dtype=torch.float32)
        p[0] = math.nan
        assert f(torch.ones(2), p)[0].isnan().tolist() == [True, False]


def test_the_dimension_of_the_parameters() -> None:
    x, p = torch.randn(3, 4, 5, dtype=torch.float64), parameters(3, 4, 5)
    expected = rational_quadratic(x, p)
    for dim in (0, 1, 2, 3, -2, -4):
        for found, e in zip(rational_quadratic(x, p.movedim(-1, dim), dim=dim), expected, strict=True):
            assert_close(found, e)


# --- the coupling ---


def test_coupling_is_its_spline() -> None:
    """Numbers for one element lie apart by the number of channels."""
    network, x = mlp(2, 3 * 11), torch.randn(4, 5)
    y, logdet = SplineCoupling(network, n_bins=4).forward_with_logdet(x)
    out = network(x[:, :2])
    assert torch.equal(y[:, :2], x[:, :2])
    for channel in range(3):
        expected, _ = rational_quadratic(x[:, 2 + channel], out[:, channel::3])
        assert_close(y[:, 2 + channel], expected)
    assert_close(logdet, rational_quadratic(x[:, 2:], out.view(4, 11, 3), dim=1)[1].sum(1))


def test_a_network_of_zeros_changes_nothing() -> None:
    network, x = nn.Linear(2, 46), torch.randn(3, 4, dtype=torch.float64)
    nn.init.zeros_(network.weight)
    nn.init.zeros_(network.bias)
    y, logdet = SplineCoupling(network.double()).forward_with_logdet(x)
    assert_close(y, x, 1e-14)
    assert_close(logdet, torch.zeros(3).double(), 1e-13)


def test_autocast_computes_the_spline_in_float32() -> None:
    coupling, x = SplineCoupling(mlp(3, 69)), torch.randn(4, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, logdet = coupling.forward_with_logdet(x)
        back = coupling.inverse(y)
    assert y.dtype == logdet.dtype == back.dtype == torch.float32
    assert_close(back, x)


@pytest.mark.parametrize("n_bins", [1, 0, 1000, True])
def test_bad_numbers_of_bins(n_bins: int) -> None:
    with pytest.raises(ConfigError, match=f"bad n_bins: expected 2 to 256, got {n_bins}"):
        SplineCoupling(nn.Linear(1, 23), n_bins)


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan, math.inf])
def test_bad_bounds(bound: float) -> None:
    with pytest.raises(ConfigError, match="SplineCoupling has a bad bound"):
        SplineCoupling(nn.Linear(1, 23), bound=bound)


def test_wrong_number_of_outputs() -> None:
    with pytest.raises(ShapeError, match=r"SplineCoupling's network .*expected \(1, 46\), got shape \(1, 48\)"):
        SplineCoupling(nn.Linear(2, 48))(torch.zeros(1, 4))


def test_repr_and_number_of_parameters() -> None:
    coupling = SplineCoupling(nn.Linear(2, 28), n_bins=5, bound=2)
    assert coupling.n_parameters == 14
    assert "n_bins=5, bound=2.0" in repr(coupling)

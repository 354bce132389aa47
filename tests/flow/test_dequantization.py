"""Noise for whole numbers: bounds by quadrature, volumes, round trips, ranges, and learned noise."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from cases import assert_close
from flow._make import Affine, Two, couplings
from invertible import Chain, Flow
from invertible.errors import ConfigError, NonFiniteError, RangeError
from invertible.flow import StandardNormal, UniformDequantization, VariationalDequantization
from invertible.layers import AffineCoupling

CDF = torch.distributions.Normal(torch.tensor(0.0).double(), torch.tensor(1.0).double()).cdf


def levels(n_levels: int, mean: float = 0.4, std: float = 0.3) -> Flow:
    """A normal density of one number in [0, 1), seen as whole numbers."""
    return Flow(Affine([mean], [std]), 1, dequantization=UniformDequantization(n_levels)).double()


def exact(x: Tensor, n_levels: int, mean: float = 0.4, std: float = 0.3) -> Tensor:
    edges = [(edge / n_levels - mean) / std for edge in (x, x + 1)]
    return (CDF(edges[1]) - CDF(edges[0])).log()[:, 0]


def test_uniform_noise_bounds_the_log_probability_from_below() -> None:
    x = torch.arange(4).double()[:, None]
    flow = levels(4)
    bound = flow.log_prob(x.expand(4000, 4, 1))
    error = bound.std(0) / math.sqrt(len(bound))
    u = (torch.arange(1000).double() + 0.5) / 1000
    normal = torch.distributions.Normal(torch.tensor(0.4).double(), torch.tensor(0.3).double())
    expected = normal.log_prob((x + u) / 4).mean(1) - math.log(4)  # the bound by quadrature
    assert bool((expected < exact(x, 4)).all())
    assert bool(((bound.mean(0) - expected).abs() < 5 * error + 1e-6).all())


def test_importance_weights_of_learned_noise_give_the_log_probability() -> None:
    """E_q[p(x + u) / q(u | x)] is P(x) for any noise: checks every term of its log-density."""
    flow = Flow(couplings(), 2, dequantization=variational(4)).double()
    x = torch.tensor([[1.0, 2.0]]).double()
    with torch.no_grad():
        weights = flow.log_prob(x.expand(40_000, 2)).exp()
        line = (torch.arange(200).double() + 0.5) / 200
        cell = Flow(couplings(), 2).double().log_prob((x + torch.cartesian_prod(line, line)) / 4).exp().mean() / 16
    assert abs(weights.mean() - cell).item() < 5 * weights.std().item() / math.sqrt(len(weights))


def variational(n_levels: int) -> VariationalDequantization:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = AffineCoupling(Two(1, 2, 2), takes_context=True)
        second = AffineCoupling(Two(1, 2, 2), target="first", takes_context=True)
    return VariationalDequantization(Chain(first, second), n_levels)


def test_learned_noise_makes_the_bound_tighter() -> None:
    """All mass of the model in the upper half of each cell: uniform noise loses, learned noise finds it."""
    x = torch.tensor([[2.0, 2.0]]).expand(64, 2)
    found = {}
    for name, noise in (("uniform", UniformDequantization(4)), ("variational", variational(4))):
        flow = Flow(Affine([0.72, 0.72], [0.02, 0.02]), 2, dequantization=noise)
        flow.bijection.requires_grad_(False)
        learned = [p for p in flow.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(learned, 0.1) if learned else None
        for _ in range(40 if optimizer else 0):
            flow.zero_grad()
            flow(x).backward()
            optimizer.step()
        with torch.no_grad():
            found[name] = flow.log_prob(x.repeat(16, 1)).mean().item()
    exact_2d = 2 * (CDF(torch.tensor(1.5)) - CDF(torch.tensor(-11.0))).log().item()
    assert found["uniform"] < -20
    assert exact_2d - 0.5 < found["variational"] <= exact_2d + 0.02


def test_the_uniform_density_costs_eight_bits() -> None:
    class Uniform(StandardNormal):
        def log_prob(self, z: Tensor, context: object = None) -> Tensor:
            return z.new_zeros(len(z))

    flow = Flow(Chain(), Uniform((3, 2, 2)), dequantization=UniformDequantization(256))
    pixels = torch.randint(256, (5, 3, 2, 2), dtype=torch.uint8)
    assert_close(flow.bits_per_dim(pixels), torch.full((5,), 8.0), 1e-6)


@pytest.mark.parametrize("n_levels", [2, 3, 17, 255, 256, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_whatever_the_noise_levels_come_back(
    n_levels: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the noise: also where x + u would round up to the next level."""
    noise, x = UniformDequantization(n_levels), torch.arange(n_levels, dtype=dtype)[:, None]
    for u in (0.0, 1e-12, 0.5, 1 - torch.finfo(dtype).eps / 2):
        monkeypatch.setattr(noise, "_noise", lambda x, context, u=u: (torch.full_like(x, u), None))
        y, _ = noise(x)
        assert bool(((y >= 0) & (y < 1)).all())
        assert torch.equal(noise.quantise(y), x)


def test_encode_and_decode_give_the_pixels_back() -> None:
    flow = Flow(couplings(), 2, dequantization=UniformDequantization(256)).double()
    pixels = torch.randint(256, (50, 2), dtype=torch.uint8)
    assert torch.equal(flow.decode(flow.encode(pixels)), pixels.double())
    samples = flow.sample(20)
    assert torch.equal(samples, samples.round().clamp(0, 255))
    for same in (pixels.int(), pixels.float(), pixels.numpy()):
        torch.manual_seed(0)
        nats = flow.log_prob(same)
        torch.manual_seed(0)
        assert_close(nats, flow.log_prob(pixels), 1e-12)


@pytest.mark.parametrize("bad", [-1.0, 4.0, 0.5, math.nan])
def test_what_is_no_level_is_refused(bad: float) -> None:
    with pytest.raises(RangeError, match=r"whole numbers 0 to 3.*at index \(1, 0\)"):
        levels(4).log_prob(torch.tensor([[1.0], [bad]]))


def test_learned_noise_that_explodes_is_named() -> None:
    noise = variational(4)
    with torch.no_grad():
        next(noise.parameters()).fill_(math.nan)
    with pytest.raises(NonFiniteError):
        Flow(couplings(), 2, dequantization=noise).log_prob(torch.zeros(2, 2))


def test_bad_arguments() -> None:
    with pytest.raises(ConfigError, match="at least 2"):
        UniformDequantization(1)
    with pytest.raises(ConfigError, match="conditional bijection"):
        VariationalDequantization(couplings(), 4)


def test_gradients_of_learned_noise_reach_its_networks() -> None:
    flow = Flow(couplings(), 2, dequantization=variational(4))
    flow(torch.tensor([[0.0, 3.0]])).backward()
    assert flow.dequantization is not None
    assert all(isinstance(p, nn.Parameter) and p.grad is not None for p in flow.dequantization.parameters())

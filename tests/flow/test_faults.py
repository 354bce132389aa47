"""Faults of other libraries, from their issue trackers and from measurements: ours does not have them."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cases import assert_close
from invertible import Chain, Flow
from invertible.errors import ConvergenceError, NonFiniteError
from invertible.flow import StandardNormal
from invertible.layers import AffineCoupling, ContinuousFlow, SigmoidCoupling, Solver
from invertible.models import (
    ffjord_2d,
    glow,
    nice,
    realnvp,
    realnvp_2d,
    realnvp_table,
    spline_flow,
)

VECTORS: dict[str, Callable[[], Flow]] = {
    "nice": lambda: nice((4,), hidden=(16,), n_levels=None),
    "realnvp": lambda: realnvp_table(4),
    "spline": lambda: spline_flow((4,), 4, (16,)),
}
IMAGES: dict[str, Callable[[], Flow]] = {
    "glow": lambda: glow((1, 4, 4), 2, 2, 8, n_levels=None),
    "glow-affine": lambda: glow((1, 4, 4), 2, 2, 8, "affine", "direct", n_levels=None),
    "realnvp-images": lambda: realnvp((1, 4, 4), 2, 1, 8, n_levels=None),
}
every_flow = pytest.mark.parametrize("make", [*VECTORS.values(), *IMAGES.values()], ids=[*VECTORS, *IMAGES])


def points(flow: Flow, n: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(n, *flow.event_shape)


def with_large_weights(flow: Flow, scale: float = 2.0) -> Flow:
    flow.train()(points(flow, 64))  # ActNorm takes its first values
    for part in flow.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.normal_(part.weight, std=scale)
    return flow.eval()


@every_flow
def test_far_out_an_untrained_flow_is_finite_and_invertible(make: Callable[[], Flow]) -> None:
    """normflows: -inf and NaN at |x| = 100; round trips of zuko off by 1.5e-3, of nflows by 6.6e-2."""
    flow = make()
    flow(points(flow, 64))
    flow.eval()
    x = points(flow, 8).sign() * 100
    assert bool(flow.log_prob(x).isfinite().all())
    assert (flow.decode(flow.encode(x)) - x).abs().max() < 1e-3 * 100 * 1e-1


@every_flow
def test_samples_do_not_run_to_infinity(make: Callable[[], Flow]) -> None:
    """normflows#67."""
    samples = with_large_weights(make()).sample(200, temperature=2.0)
    assert bool(samples.isfinite().all())


def test_nineteen_dimensions_train_without_nan() -> None:
    """normflows#73."""
    torch.manual_seed(0)
    flow = realnvp_table(19)
    optimizer = torch.optim.Adam(flow.parameters(), 5e-3)
    x = torch.randn(256, 19) @ torch.randn(19, 19)
    losses = []
    for _ in range(60):
        loss = flow(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(bool(p.isfinite().all()) for p in flow.parameters())


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(x), torch.full_like(x, 0.5)], 1)


def test_the_sign_of_the_logdet() -> None:
    """normflows#27: stretching the data by e^s lowers their density by s."""
    stretch = Chain(AffineCoupling(Doubled(), scale_bound=None))
    flow, x = Flow(stretch, StandardNormal(2)), torch.zeros(1, 2)
    expected = torch.distributions.Normal(0.0, torch.tensor([1.0, torch.exp(torch.tensor(-0.5))])).log_prob(x).sum(1)
    assert_close(flow.log_prob(x), expected)


@every_flow
def test_the_density_of_a_sample_is_the_same_whoever_is_asked(make: Callable[[], Flow]) -> None:
    """nflows#24: sample_and_log_prob differs from log_prob."""
    flow = with_large_weights(make(), 0.1).double()
    x, log_prob = flow.rsample_with_log_prob(20)
    assert_close(log_prob, flow.log_prob(x), 1e-7)


@every_flow
def test_a_trained_flow_is_finite_in_reverse_too(make: Callable[[], Flow]) -> None:
    """SRFlow#2: NaN only in reverse."""
    torch.manual_seed(0)
    flow = make()
    optimizer = torch.optim.Adam(flow.parameters(), 1e-2)
    x = points(flow, 64) ** 3
    for _ in range(15):
        optimizer.zero_grad()
        flow(x).backward()
        nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
        optimizer.step()
    assert bool(flow.eval().sample(200).isfinite().all())


def test_a_saturated_glow_can_be_inverted() -> None:
    """openai/glow#40: "input is not invertible"."""
    network = nn.Linear(2, 4)
    nn.init.zeros_(network.weight)
    network.bias.data.copy_(torch.tensor([0.0, 0.0, -1e3, -1e3]))
    coupling, x = SigmoidCoupling(network), torch.randn(5, 4)
    assert_close(coupling.inverse(coupling(x)), x, 1e-5)


class Explosive(nn.Module):
    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return 1e3 * x**3


def test_a_stiff_equation_says_what_to_do() -> None:
    """torchdiffeq#27 ("underflow in dt") and #120 (evaluations explode)."""
    layer = ContinuousFlow(Explosive(), solver=Solver(max_evaluations=500))
    with pytest.raises(ConvergenceError, match=r"(?s)more than 500 evaluations.*Try: "):
        layer(torch.ones(3, 2))


@every_flow
def test_flows_can_be_pickled(make: Callable[[], Flow]) -> None:
    """FrEIA's coupling cannot. (Nothing of ours is ever unpickled from disk, but processes exchange modules.)"""
    flow = make()
    flow(points(flow, 64))
    flow.eval()
    again = pickle.loads(pickle.dumps(flow))  # noqa: S301
    x = points(flow, 3)
    assert torch.equal(again.log_prob(x), flow.log_prob(x))


@pytest.mark.parametrize(
    "make", [realnvp_2d, lambda: spline_flow((2,)), ffjord_2d], ids=["realnvp", "spline", "ffjord"]
)
def test_leading_shapes_and_empty_batches(make: Callable[[], Flow]) -> None:
    """An extra batch dimension is an error in nflows, normflows and FrEIA; an empty batch in zuko and FrEIA."""
    flow = make().eval()
    assert flow.log_prob(torch.zeros(3, 4, 2)).shape == (3, 4)
    assert flow.log_prob(torch.zeros(0, 2)).shape == (0,)
    assert flow.log_prob(torch.zeros(2)).shape == ()
    assert flow.sample((2, 0)).shape == (2, 0, 2)


@every_flow
def test_vmap(make: Callable[[], Flow]) -> None:
    """An error in normflows."""
    flow = make()
    flow(points(flow, 64))
    flow.eval()
    x = points(flow, 6)
    assert_close(torch.func.vmap(flow.log_prob)(x), flow.log_prob(x), 1e-4)


@every_flow
def test_hard_columns_leave_values_and_gradients_finite(make: Callable[[], Flow]) -> None:
    """Constant columns, outliers at 1e6, duplicated rows, bfloat16 autocast."""
    flow = make()
    x = points(flow, 32)
    x.flatten(1)[:, 0] = 3.0
    x.flatten(1)[0, 1] = 1e6
    x[16:] = x[:16]
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = flow(x)
        flow.zero_grad()
        loss.backward()
        assert bool(loss.isfinite())
        assert all(bool(p.grad.isfinite().all()) for p in flow.parameters() if p.grad is not None)


@pytest.mark.parametrize("make", [realnvp_2d, lambda: spline_flow(2), ffjord_2d], ids=["realnvp", "spline", "ffjord"])
def test_nan_is_named_whichever_way_it_goes(make: Callable[[], Flow]) -> None:
    flow, x = make().eval(), torch.tensor([[0.0, 1.0], [0.0, float("nan")]])
    with pytest.raises(NonFiniteError, match=r"the data must be finite.*column 1 of row 1"):
        flow.log_prob(x)
    if not isinstance(flow.bijection[0], ContinuousFlow):  # that says itself that its field is not finite
        with pytest.raises(NonFiniteError, match=r"the data must be finite.*column 1 of row 1"):
            flow.encode(x)
        with pytest.raises(NonFiniteError, match=r"the latents must be finite.*column 1 of row 1"):
            flow.decode(x)


def test_state_travels_as_bytes() -> None:
    flow = realnvp_2d()
    buffer = io.BytesIO()
    torch.save(flow.state_dict(), buffer)
    buffer.seek(0)
    again = realnvp_2d()
    again.load_state_dict(torch.load(buffer, weights_only=True))
    x = torch.randn(3, 2)
    assert torch.equal(again.log_prob(x), flow.log_prob(x))

"""The certificate of a model: its bounds hold against dense Jacobians, and it changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from invertible import Chain, Flow, Inverse
from invertible.errors import ConfigError, NonFiniteError
from invertible.layers import (
    ActNorm,
    AffineCoupling,
    InjectivePad,
    Invertible1x1,
    Logit,
    OnFirst,
    Permute,
    Reshape,
    Residual,
    Scaling,
    SoftTails,
    Squeeze,
    Standardize,
    certify,
    constrain,
)
from invertible.models import Classifier, Hybrid, iresnet, iresnet_density, irevnet_digits, residual_flow


def conv(n: int, c: float = 0.9) -> nn.Module:
    return constrain(nn.Sequential(nn.Conv2d(n, 6, 3, padding=1), nn.ELU(), nn.Conv2d(6, n, 3, padding=1)), c)


def dense(n: int, scale: float = 3.0) -> nn.Module:
    network = nn.Sequential(nn.Linear(n, 8), nn.ELU(), nn.Linear(8, n))
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(scale)
    return network


def stretch(f, x: Tensor) -> tuple[float, float]:
    """The largest and the smallest stretch of a map at some points, from its dense Jacobian."""
    jacobians = [torch.autograd.functional.jacobian(lambda row: f(row[None])[0].flatten(), each) for each in x]
    values = torch.stack([torch.linalg.svdvals(j.reshape(len(j), -1)) for j in jacobians])
    return values.max().item(), values[:, -1].min().item()


def images(n: int, channels: int = 2, size: int = 4) -> Tensor:
    return torch.rand(n, channels, size, size, dtype=torch.float64)


def members() -> dict:
    torch.manual_seed(0)
    actnorm = ActNorm(2)
    actnorm(5 * torch.randn(20, 2, 4, 4) + 1)
    mix = Invertible1x1(2)
    mix.set_weight(torch.tensor([[1.0, 2.0], [0.0, 0.5]]))
    scaling = Scaling(2)
    with torch.no_grad():
        scaling.log_scale.copy_(torch.tensor([1.0, -2.0]))
    return {
        "residual": Residual(conv(2)),
        "turned": Inverse(Residual(conv(2, 0.5))),
        "half": OnFirst(Residual(conv(1)), (1, 1)),
        "actnorm": actnorm,
        "mix": mix,
        "scaling": scaling,
        "standardize": Standardize(torch.zeros(2), torch.tensor([0.2, 3.0])),
        "logit": Logit(0.1),
        "pad": InjectivePad(2, 1),
        "squeeze": Squeeze(2),
        "chain": Chain(actnorm, Squeeze(2), Permute.reverse(8), Residual(conv(8)), OnFirst(Scaling(1), (1, 7))),
        "turned chain": Inverse(Chain(scaling, Residual(conv(2, 0.5)))),
    }


@pytest.mark.parametrize("name", members())
def test_no_stretch_exceeds_its_bound(name):
    member = members()[name].double().eval()
    found = certify(member, (2, 4, 4))
    assert found.is_invertible
    largest, smallest = stretch(member, images(1 if "turned" in name else 3))
    assert found.forward is not None and found.inverse is not None  # noqa: PT018
    assert largest <= found.forward * (1 + 1e-9)
    assert 1 / smallest <= found.inverse * (1 + 1e-9)


@pytest.mark.parametrize("name", ["actnorm", "mix", "scaling", "standardize", "squeeze", "pad"])
def test_bounds_of_linear_members_are_attained(name):
    member = members()[name].double().eval()
    found = certify(member)
    assert stretch(member, images(1)) == pytest.approx((found.forward, 1 / (found.inverse or 1)), rel=1e-6)


def test_mixed_norms_bound_the_euclidean_stretch_too():
    torch.manual_seed(0)
    block = Residual(constrain(dense(4), 0.8, norms=[1.0, 1.5, 1.0])).double()
    found = certify(block, (4,))
    assert "L_1" in found.rows[0].note
    assert certify(block).inverse is None  # the dimension decides
    largest, smallest = stretch(block, torch.randn(20, 4, dtype=torch.float64))
    assert found.forward is not None and largest <= found.forward  # noqa: PT018
    assert found.inverse is not None and 1 / smallest <= found.inverse  # noqa: PT018


def test_a_block_that_may_fold_is_named_first():
    good, folding = Residual(conv(2)), Residual(dense(2, 5.0), "unknown")
    chain = Chain(Residual(nn.Tanh(), 0.99), Reshape((2,), (2,)), folding, Residual(constrain(dense(2), 0.5)))
    found = certify(chain, (2,))
    assert not found.is_invertible
    assert (found.worst[0].name, found.worst[1].name) == ("2", "0")
    assert found.inverse is None
    assert found.rows[2].contraction is not None and found.rows[2].contraction > 1  # noqa: PT018
    assert "Residual 2" in found.findings[0]
    assert certify(good).is_invertible


def test_a_bound_lost_later_is_told_instead_of_raised():
    network = constrain(nn.Linear(2, 2), 0.5)
    block = Residual(nn.Sequential(network, nn.Tanh()))
    nn.utils.parametrize.remove_parametrizations(network, "weight")
    with torch.no_grad():
        network.weight.copy_(3 * torch.eye(2))
    found = certify(block)
    assert found.rows[0].contraction == pytest.approx(3, rel=0.01)
    assert not found.is_invertible


class Unheard(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2


def test_a_layer_without_a_rule_is_an_error_only_where_a_bound_was_asked_for():
    assert not certify(Residual(Unheard(), "unknown")).is_invertible
    assert certify(Residual(Unheard(), 0.5)).inverse == 2


def test_couplings_and_tails_leave_the_totals_open():
    found = certify(Chain(AffineCoupling(nn.Linear(2, 4)), SoftTails()), (4,))
    assert found.is_invertible
    assert (found.forward, found.inverse) == (None, None)
    assert found.rows[1].forward == 1
    assert "AffineCoupling" in found.findings[0]


def test_shapes_are_followed_without_touching_the_model():
    torch.manual_seed(0)
    net = iresnet((1, 8, 8), n_blocks=(1, 1), hidden=(8, 8), n_pad=1).train()
    before, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    found = net.certificate()
    blocks = [m for m in net.modules() if isinstance(m, Residual)]
    sizes = [(2, 8, 8), (8, 4, 4)]
    expected = [block.certificate(size).bound for block, size in zip(blocks, sizes, strict=True)]
    assert [row.contraction for row in found.rows if row.kind == "Residual"] == expected
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert net.training and not next(net.body.children()).is_initialised  # noqa: PT018
    assert any("first training batch" in sentence for sentence in found.findings)


def test_an_exact_chain_and_a_network_of_couplings_have_certificates():
    net = irevnet_digits()
    assert "IRevNetBlock" in str(net.certificate())


@pytest.mark.parametrize("make", [
    lambda: iresnet_density((1, 8, 8), 2, 1, 8, n_levels=17),
    lambda: residual_flow((1, 8, 8), (1, 1), 8, 1, dense_hidden=8, n_levels=17),
])  # fmt: skip
def test_trained_flows_keep_their_certificates(make):
    torch.manual_seed(0)
    flow = make()
    optimizer = torch.optim.Adam(flow.parameters(), 0.05)
    for _ in range(4):
        optimizer.zero_grad()
        flow(torch.randint(0, 17, (8, 1, 8, 8))).backward()
        optimizer.step()
    flow = flow.eval().double()
    found = flow.certificate()
    assert found.inverse is not None and found.forward is not None  # noqa: PT018
    x = torch.rand(1, 1, 8, 8, dtype=torch.float64)
    largest, smallest = stretch(flow.bijection, x)
    assert largest <= found.forward
    assert 1 / smallest <= found.inverse
    assert Hybrid(flow, 3).certificate() == found
    assert certify(flow).rows[0].name == "bijection.0"


def test_it_prints_one_line_for_each_member_and_the_branches_on_request():
    found = certify(Chain(Residual(conv(2)), Squeeze(2)), (2, 4, 4))
    lines = str(found).splitlines()
    assert len(lines) == 4
    assert f"{found.inverse:.4g}" in lines[-1]
    assert "Conv2d (certified)" in found.layers()


def test_one_bijection_is_asked_for():
    with pytest.raises(ConfigError, match="one in the model"):
        certify(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="0, 1"):
        certify(nn.ModuleList([Squeeze(2), Squeeze(2)]))
    assert Classifier(Squeeze(2), nn.Flatten()).certificate().inverse == 1
    assert Flow(Residual(nn.Tanh(), 0.5), 3).certificate().inverse == 2


def test_a_scale_that_is_nan_is_an_error():
    actnorm, mix = ActNorm(2), Invertible1x1(2, "direct")
    with torch.no_grad():
        actnorm.log_scale.fill_(torch.nan)
        mix.matrix.factors.fill_(torch.nan)
    for member in (actnorm, mix):
        with pytest.raises(NonFiniteError):
            certify(Chain(member))

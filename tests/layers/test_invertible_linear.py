"""Invertible1x1: against dense matrices and convolutions, what stays fixed, and singular weights."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cases import affine_conv, mixing
from invertible import Chain
from invertible.errors import ConfigError, DtypeError, NonFiniteError, RangeError, ShapeError
from invertible.layers import Invertible1x1
from invertible.layers._square_matrix import random_rotation

KINDS = ["plu", "direct"]
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
@pytest.mark.parametrize("n", [1, 2, 12])
def test_it_starts_as_a_random_rotation(kind: str, n: int) -> None:
    layer = Invertible1x1(n, kind)
    w = layer.weight.detach()
    torch.testing.assert_close(w @ w.T, torch.eye(n).double(), rtol=0, atol=1e-5)
    assert layer.forward_with_logdet(torch.zeros(1, n))[1].abs().item() < 1e-5
    assert sum(p.numel() for p in layer.parameters()) == n * n


def test_rotations_are_uniform() -> None:
    """Of a uniform rotation each entry has mean 0 and variance 1/n; without signs the diagonal would not."""
    torch.manual_seed(0)
    q = torch.stack([random_rotation(3) for _ in range(4000)])
    assert q.mean(0).abs().max() < 4 * math.sqrt(1 / 3 / 4000)
    torch.testing.assert_close(q.square().mean(0), torch.full((3, 3), 1 / 3).double(), rtol=0, atol=0.02)
    assert 0.45 < (torch.linalg.det(q) > 0).double().mean() < 0.55


@every_kind
def test_set_weight_and_by_hand(kind: str) -> None:
    layer = Invertible1x1(2, kind).double()
    layer.set_weight(torch.tensor([[0.0, 2.0], [3.0, 4.0]]))  # needs a permutation
    y, logdet = layer.forward_with_logdet(torch.tensor([[1.0, 10.0]], dtype=torch.float64))
    torch.testing.assert_close(y, torch.tensor([[20.0, 43.0]], dtype=torch.float64))
    torch.testing.assert_close(logdet, torch.tensor([math.log(6)], dtype=torch.float64))


@every_kind
@pytest.mark.parametrize(
    ("shape", "dim"),
    [((5, 3), 1), ((5, 3, 4), 1), ((5, 3, 2, 4), 1), ((2, 3, 2, 2, 2), 1), ((5, 4, 3), 2), ((2, 2, 3, 2), 2)],
)
def test_each_position_is_multiplied_by_the_same_matrix(kind: str, shape: tuple[int, ...], dim: int) -> None:
    layer, x = mixing(3, dim, factorization=kind).double(), torch.randn(shape, dtype=torch.float64)
    y, logdet = layer.forward_with_logdet(x)
    w = layer.weight
    expected = torch.tensordot(w, x, dims=([1], [dim])).movedim(0, dim)
    torch.testing.assert_close(y, expected, rtol=1e-13, atol=1e-13)
    positions = x[0].numel() // 3
    torch.testing.assert_close(logdet, (positions * torch.linalg.slogdet(w).logabsdet).expand(len(x)))
    torch.testing.assert_close(layer.inverse(y), x, rtol=1e-12, atol=1e-12)


def test_both_kinds_are_the_same_map_with_the_same_gradients_for_the_input() -> None:
    plu, direct = mixing(5).double(), Invertible1x1(5, "direct").double()
    direct.set_weight(plu.weight)
    found = []
    for layer in (plu, direct):
        x = torch.linspace(-1, 1, 30, dtype=torch.float64).reshape(2, 5, 3).requires_grad_()
        y, logdet = layer.forward_with_logdet(x)
        back, backward = layer.inverse_with_logdet(x)
        (y.square().sum() + logdet.sum() + back.pow(3).sum() + backward.sum()).backward()
        found.append([y, logdet, back, backward, x.grad])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_signs_and_permutation_stay_and_the_determinant_keeps_its_sign() -> None:
    layer = Invertible1x1(6).double()
    sign, fixed = torch.linalg.det(layer.weight).sign(), {n: b.clone() for n, b in layer.named_buffers()}
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.03)
    for _ in range(30):
        optimizer.zero_grad()
        y, logdet = layer.forward_with_logdet(torch.randn(8, 6, dtype=torch.float64))
        (y.square().sum(1) - logdet).mean().backward()
        optimizer.step()
    assert torch.linalg.det(layer.weight).sign() == sign
    assert all(torch.equal(b, fixed[n]) for n, b in layer.named_buffers())
    assert set(fixed) == {"matrix.permutation", "matrix.signs"}


@every_kind
def test_it_learns_to_whiten(kind: str) -> None:
    """At the maximum likelihood of a normal W^T W is the inverse covariance."""
    torch.manual_seed(1)
    a = torch.tensor([[2.0, 0.0], [1.5, 0.5]], dtype=torch.float64)
    x = torch.randn(500, 2, dtype=torch.float64) @ a.T
    layer = Invertible1x1(2, kind).double()
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        y, logdet = layer.forward_with_logdet(x)
        value = (y.square().sum(1) / 2 - logdet).mean()
        value.backward()
        return value

    optimizer.step(loss)
    w = layer.weight.detach()
    torch.testing.assert_close(torch.linalg.inv(w.T @ w), x.T @ x / 500, rtol=1e-3, atol=1e-3)


@every_kind
def test_gradients_of_everything(kind: str) -> None:
    layer = mixing(3, factorization=kind).double()
    x, factors = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True), layer.matrix.factors

    def both(x: Tensor, factors: Tensor) -> tuple[Tensor, ...]:
        return torch.func.functional_call(Both(layer), {"layer.matrix.factors": factors}, (x,))

    assert torch.autograd.gradcheck(both, (x, factors))


class Both(nn.Module):
    def __init__(self, layer: Invertible1x1) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (*self.layer.forward_with_logdet(x), *self.layer.inverse_with_logdet(x))


@every_kind
@pytest.mark.parametrize("shape", [(9, 8), (3, 8, 4, 4), (3, 8, 5)])
def test_autocast_does_not_round_it(kind: str, shape: tuple[int, ...]) -> None:
    layer, x = mixing(8, factorization=kind), torch.randn(shape)
    y, logdet = layer.forward_with_logdet(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y2, logdet2 = layer.forward_with_logdet(x)
        back = layer.inverse(y2)
    assert torch.equal(y2, y)
    assert torch.equal(logdet2, logdet)
    torch.testing.assert_close(back, x, rtol=1e-5, atol=1e-5)


def test_an_ill_conditioned_weight_is_inverted_as_well_as_float32_allows() -> None:
    """The small matrix is inverted in float64: the error is that of rounding y, times the condition number."""
    layer = Invertible1x1(4)
    layer.set_weight(random_rotation(4) * torch.tensor([1.0, 1.0, 1e-2, 1e-3]).double() @ random_rotation(4))
    x = torch.randn(100, 4)
    assert (layer.inverse(layer(x)) - x).abs().max() < 1e-3


def test_a_singular_direct_weight_is_an_error_with_its_name() -> None:
    layer = Invertible1x1(3, "direct")
    with torch.no_grad():
        layer.matrix.factors[1] = 0
    with pytest.raises(RangeError, match=r"Invertible1x1\(3\) cannot be inverted.*singular"):
        layer.forward_with_logdet(torch.ones(2, 3))
    with pytest.raises(RangeError, match=r"Invertible1x1\(3\) cannot be inverted"):
        layer.inverse(torch.ones(2, 3))
    assert layer(torch.ones(2, 3)).isfinite().all()  # without log-determinant nobody asked


@every_kind
def test_weights_that_are_nan_are_called_so(kind: str) -> None:
    layer = Invertible1x1(3, kind)
    with torch.no_grad():
        layer.matrix.factors[1, 1] = math.nan
    for method in (layer.forward_with_logdet, layer.inverse):
        with pytest.raises(NonFiniteError, match=r"Invertible1x1\(3\) cannot be inverted.*NaN"):
            method(torch.ones(2, 3))


@every_kind
def test_an_inverse_without_digits_is_an_error_with_its_condition_number(kind: str) -> None:
    layer = Invertible1x1(2, kind)
    layer.set_weight(torch.tensor([[1.0, 0.0], [0.0, 1e-9]]))
    with pytest.raises(RangeError, match=r"condition number 1.0e\+09"):
        layer.inverse(torch.ones(2, 2))
    double = copy.deepcopy(layer).double()
    torch.testing.assert_close(
        double.inverse(torch.ones(1, 2).double()), torch.tensor([[1.0, 1e9]]).double(), rtol=1e-6, atol=0
    )


@every_kind
def test_where_it_cannot_look_an_unsound_inverse_is_nan(kind: str) -> None:
    layer = Invertible1x1(2, kind)
    layer.set_weight(torch.tensor([[1.0, 0.0], [0.0, 1e-9]]))
    assert torch.func.vmap(layer.inverse)(torch.ones(2, 2, 2)).isnan().all()


def test_refuses() -> None:
    with pytest.raises(ConfigError, match="needs channels"):
        Invertible1x1(0)
    with pytest.raises(ConfigError, match="leaves the batch alone"):
        Invertible1x1(2, dim=0)
    with pytest.raises(ShapeError, match="size 3 in dimension 1"):
        Invertible1x1(3)(torch.zeros(2, 4, 3))
    with pytest.raises(DtypeError, match="another dtype"):
        Invertible1x1(3)(torch.zeros(2, 3, dtype=torch.float64))
    with pytest.raises(RangeError, match="a singular one"):
        Invertible1x1(2).set_weight(torch.ones(2, 2))
    with pytest.raises(RangeError, match=r"invertible \(2, 2\) matrix"):
        Invertible1x1(2).set_weight(torch.eye(3))


@pytest.mark.usefixtures("unchecked")
def test_bad_factorization() -> None:
    with pytest.raises(ConfigError, match="'plu' or 'direct'"):
        Invertible1x1(3, "qr")  # type: ignore[arg-type]


def test_images_are_convolved() -> None:
    layer, x = mixing(3), torch.randn(2, 3, 5, 4).to(memory_format=torch.channels_last)
    expected = functional.conv2d(x, layer.weight.float()[:, :, None, None])
    torch.testing.assert_close(layer(x), expected, rtol=1e-6, atol=1e-6)


@every_kind
def test_training_with_reconstruction_has_the_gradients_of_stored_activations(kind: str) -> None:
    found = []
    for memory in ("store", "reconstruct"):
        torch.manual_seed(0)
        members = [m for _ in range(3) for m in (mixing(4, factorization=kind), affine_conv(2, 2))]
        chain = Chain(*members, memory=memory).double()
        y, logdet = chain.forward_with_logdet(torch.randn(3, 4, 2, 2, dtype=torch.float64))
        (y.square().sum() / 2 - logdet.sum()).backward()
        found.append([y, logdet, *(p.grad for p in chain.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 6, 1, 2), (0, 3, 4, 5)], ids=["more positions", "fewer", "empty"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_images_of_any_size_and_layout_are_mixed_alike(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    """The product is made in one of two ways, as costs less."""
    mix, x = Invertible1x1(shape[1]).double(), torch.randn(shape, dtype=torch.float64)
    expected = torch.einsum("oi,nihw->nohw", mix.weight, x)
    torch.testing.assert_close(mix(x.to(memory_format=layout)), expected, rtol=1e-12, atol=1e-12)

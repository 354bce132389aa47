"""Jacobian spectra against closed forms and against torch.func."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import jacrev

from invertible.errors import ConfigError, NonFiniteError, ShapeError
from invertible.instruments import JacobianSpectrum, Result, jacobian_spectrum
from invertible.instruments._derivative import Derivative
from invertible.instruments._golub_kahan import golub_kahan
from invertible.instruments.feeding import as_batch
from invertible.instruments.taps import find_taps
from invertible.models import irevnet, revnet
from measured_networks import Block, Net, Output


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0]).double()
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def with_singular_values(values: Tensor, seed: int = 0) -> Tensor:
    n = len(values)
    left, right = (torch.linalg.qr(normal(n, n, seed=seed + i))[0] for i in range(2))
    return left @ values.double().diag() @ right


class Triangular(nn.Module):
    """y_i = exp(a_i) x_i + sin of the numbers before: |det| = exp(sum a)."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(-1, 0.5, n, dtype=torch.float64))
        self.mix = nn.Parameter(torch.tril(normal(n, n), -1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale.exp() * x + torch.sin(x @ self.mix.T)


def quick(model: nn.Module, data: object, **options: object) -> JacobianSpectrum:
    return jacobian_spectrum(model, data, **{"quiet": True} | options)


@pytest.mark.parametrize("shape", [(5, 5), (3, 7), (7, 3), (30, 2)])
def test_linear_networks_have_the_singular_values_of_their_matrix(shape) -> None:
    weight = normal(*shape)
    found = quick(linear(weight), normal(2, shape[1], seed=1))
    for spectrum in found.spectra:
        values = torch.linalg.svdvals(weight)
        assert spectrum.values == pytest.approx(values.tolist(), rel=1e-12)
        assert spectrum.condition == pytest.approx((values[0] / values[-1]).item())
        assert (spectrum.n_in, spectrum.n_out, spectrum.method) == (shape[1], shape[0], "dense")
        assert (spectrum.log_abs_det is None) == (shape[0] != shape[1])
        if spectrum.log_abs_det is not None:
            assert spectrum.log_abs_det == pytest.approx(torch.linalg.slogdet(weight).logabsdet.item())


def test_triangular_networks_have_a_known_determinant() -> None:
    net = Triangular(9)
    found = quick(net, normal(3, 9), n_examples=3)
    assert [spectrum.log_abs_det for spectrum in found.spectra] == pytest.approx([net.scale.sum().item()] * 3)


def test_volume_preserving_networks_have_none_to_speak_of() -> None:
    torch.manual_seed(0)
    net = irevnet((1, 8, 8), 10, (1, 1), (2, 2), None, (8, 16), 2, dropout=0.0).double()
    net.train()(torch.rand(16, 1, 8, 8, dtype=torch.float64))
    found = quick(net, torch.rand(2, 1, 8, 8, dtype=torch.float64), layers="body")
    assert [spectrum.log_abs_det for spectrum in found.spectra] == pytest.approx([0.0, 0.0], abs=1e-9)
    assert found.spectra[0].place == "body"


@pytest.mark.parametrize("layers", ["", "blocks.1", "stem", "head"])
def test_every_place_matches_torch_func(layers: str) -> None:
    torch.manual_seed(0)
    net, x = Net().double().eval(), normal(2, 3, 4, 4)
    found = quick(net, x, layers=layers, n_examples=2)
    for spectrum, one in zip(found.spectra, x, strict=True):
        module = dict(net.named_modules())[layers]
        heard = []
        handle = module.register_forward_hook(lambda _m, _a, y, heard=heard: heard.append(y.clone()))

        def place(z: Tensor, heard=heard) -> Tensor:
            heard.clear()
            net(z[None])
            return heard[0].flatten()

        dense = jacrev(place)(one).flatten(1)
        handle.remove()
        assert spectrum.values == pytest.approx(torch.linalg.svdvals(dense).tolist(), rel=1e-9, abs=1e-12)


def test_products_match_the_dense_jacobian() -> None:
    net, batch = Net().double().eval(), as_batch(normal(3, 3, 4, 4))
    derivative = Derivative(net, find_taps(net, "blocks.2")[0], batch, 1, 4)
    dense, u, v = derivative.dense(), normal(2, 64), normal(3, 48)
    assert torch.allclose(derivative.product(v), v @ dense.T, atol=1e-12)
    assert torch.allclose(derivative.transposed(u), u @ dense, atol=1e-12)


def test_lanczos_finds_the_ends_within_its_residuals() -> None:
    values = torch.cat([torch.tensor([9.0, 7.0, 6.5]), torch.linspace(3, 1, 74), torch.tensor([0.3, 0.2, 0.1])])
    net = linear(with_singular_values(values))
    found = quick(net, normal(1, 80), dense_up_to=10, n_extreme=3, n_steps=60, tolerance=1e-6).spectra[0]
    assert found.method == "lanczos"
    assert 0 < found.n_steps < 60
    assert found.values == pytest.approx([9.0, 7.0, 6.5], rel=1e-8)
    assert found.smallest == pytest.approx([0.3, 0.2, 0.1], rel=1e-4)
    assert found.condition == pytest.approx(90.0, rel=1e-4)
    assert not found.is_lower_bound
    for value, residual in zip(found.values + found.smallest, found.residuals + found.smallest_residuals, strict=True):
        assert (values - value).abs().min().item() <= residual + 1e-9


@pytest.mark.parametrize("shape", [(20, 12), (12, 20)])
def test_lanczos_run_to_its_end_is_exact(shape) -> None:
    weight = normal(*shape)
    found = quick(linear(weight), normal(1, shape[1]), dense_up_to=0, n_extreme=6, tolerance=1e-15).spectra[0]
    assert found.values + found.smallest == pytest.approx(torch.linalg.svdvals(weight).tolist(), rel=1e-10)


def test_lanczos_that_has_not_converged_says_so() -> None:
    values = torch.logspace(0, -4, 60)
    found = quick(linear(with_singular_values(values)), normal(1, 60), dense_up_to=0, n_steps=12, tolerance=1e-8)
    spectrum = found.spectra[0]
    assert spectrum.is_lower_bound
    assert spectrum.condition < 1e4
    assert any("have not converged" in finding.sentence for finding in found.findings)
    assert all((values - v).abs().min() <= r + 1e-9 for v, r in zip(spectrum.values, spectrum.residuals, strict=True))


def test_lanczos_on_nonlinear_networks_matches_dense_ones() -> None:
    net, x = Net().double().eval(), normal(1, 3, 4, 4)
    dense = quick(net, x, layers="blocks.2").spectra[0]
    lanczos = quick(net, x, layers="blocks.2", dense_up_to=0, n_extreme=4, tolerance=1e-9).spectra[0]
    assert lanczos.values == pytest.approx(dense.values[:4], rel=1e-9)
    assert lanczos.condition == pytest.approx(dense.condition, rel=1e-6)


def test_a_multiple_of_the_identity_ends_lanczos_at_once() -> None:
    a = 3 * torch.eye(50, dtype=torch.float64)
    found = golub_kahan(lambda v: a @ v, lambda u: a @ u, 50, 50, 4, 1e-10, 0)
    assert found.values.tolist() == pytest.approx([3.0])
    assert found.n_steps == 1
    zero = golub_kahan(lambda v: 0 * v, lambda u: 0 * u, 50, 50, 4, 1e-10, 0)
    assert zero.values.tolist() == [0.0]


def test_rank_and_effective_rank() -> None:
    weight = with_singular_values(torch.tensor([2.0, 2.0, 2.0, 0.0]))
    found = quick(linear(weight), normal(1, 4))
    assert found.spectra[0].rank == 3
    assert found.spectra[0].effective_rank == pytest.approx(3.0)
    assert found.spectra[0].is_lower_bound
    assert any("1 of 4 directions are lost" in finding.sentence for finding in found.findings)
    exact = quick(linear(torch.zeros(3, 3)), normal(1, 3))
    assert exact.findings[0].severity == "error"
    assert exact.spectra[0].log_abs_det == -math.inf


def test_a_window_keeps_its_columns() -> None:
    net, x = nn.Sequential(nn.Flatten(), linear(normal(10, 32))), normal(1, 2, 4, 4)
    columns = net[1].weight.detach().view(10, 2, 4, 4)[..., 1:3, 1:3].flatten(1)
    for dense_up_to in (100, 0):
        found = quick(net, x, window=2, dense_up_to=dense_up_to).spectra[0]
        assert found.n_in == 8
        assert found.values == pytest.approx(torch.linalg.svdvals(columns).tolist())


@pytest.mark.parametrize("wrap", [lambda y, h: (y, h), lambda y, h: {"y": y}, lambda y, h: Output(None, y, (h,))])
def test_outputs_of_any_kind(wrap) -> None:
    net = Net(wrap).double().eval()
    plain = Net().double().eval()
    plain.load_state_dict(net.state_dict())
    x = normal(1, 3, 4, 4)
    assert quick(net, x).spectra[0].values == pytest.approx(quick(plain, x).spectra[0].values)


def test_chains_that_save_memory_and_attention() -> None:
    net = revnet(n_blocks=(1, 1), channels=(4, 8), strides=(1, 2), in_shape=(3, 8, 8)).double()
    assert len(quick(net, normal(1, 3, 8, 8), layers="stages.0", dense_up_to=0).spectra[0].values) == 8
    assert {chain.memory for chain in net.stages} == {"reconstruct"}
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).double()
    x = normal(1, 5, 8)
    dense, lanczos = (quick(layer, x, dense_up_to=size, tolerance=1e-9).spectra[0] for size in (99, 0))
    assert lanczos.values == pytest.approx(dense.values[:8], rel=1e-6)


def test_inverses_are_exact_on_a_lattice_too() -> None:
    net = irevnet((1, 8, 8), 10, (1, 1), (2, 2), None, (8, 16), 2, dropout=0.0, exact=True)
    found = quick(net, torch.rand(1, 1, 8, 8), layers="body", dense_up_to=0, n_extreme=1)
    dense = quick(net, torch.rand(1, 1, 8, 8), layers="body")
    assert found.spectra[0].values[0] > 0
    assert dense.spectra[0].log_abs_det == pytest.approx(0.0, abs=1e-3)


class Detached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x.detach() * 2).round()


class Root(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.abs().sqrt()


class Empty(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :0]


@pytest.mark.parametrize(
    ("model", "data", "options", "error", "message"),
    [
        (Block().train(), torch.randn(2, 4, 5, 5), {"mode": "as is"}, ConfigError, r"is random.*mode=\"eval\""),
        (nn.BatchNorm1d(3), torch.randn(4, 3), {"mode": "train"}, ConfigError, "depend on each other"),
        (Detached(), torch.randn(2, 3), {}, ConfigError, "no derivative by the input"),
        (nn.Embedding(5, 3), torch.arange(4)[:, None], {}, ConfigError, "no input to differentiate"),
        (Root(), torch.zeros(1, 3), {}, NonFiniteError, "Jacobian.*not finite"),
        (Empty(), torch.zeros(1, 3), {}, ShapeError, "has no Jacobian"),
        (nn.Linear(3, 3), torch.zeros(0, 3), {}, ShapeError, "empty"),
        (nn.Linear(3, 3), torch.full((1, 3), math.nan), {}, NonFiniteError, "data"),
        (nn.Linear(3, 3), torch.zeros(1, 3), {"window": 2}, ShapeError, "window"),
        (nn.Linear(3, 3), torch.zeros(1, 3), {"n_examples": 0}, ConfigError, "bad n_examples"),
        (nn.Linear(3, 3), torch.zeros(1, 3), {"tolerance": 2.0}, ConfigError, "bad tolerance"),
        (nn.Linear(3, 3), torch.zeros(1, 3), {"layers": "body"}, ConfigError, "no module 'body'"),
    ],
)
def test_what_cannot_be_measured_is_said(model, data, options, error, message) -> None:
    with pytest.raises(error, match=message):
        quick(model, data, **options)


def test_json_curves_budget_and_picture(tmp_path) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.inference_mode():
        found = quick(net, [torch.randn(1, 4), torch.randn(3, 4)], layers=["0", "2"], n_examples=3)
    assert [(spectrum.place, spectrum.example) for spectrum in found.spectra] == [
        (place, i) for i in range(3) for place in ("0", "2")
    ]
    found.save(tmp_path / "found.json")
    assert Result.load(tmp_path / "found.json") == found
    found.save_csv(tmp_path / "found.csv")
    assert len({tuple(row) for row in found.table}) == 1
    assert found.curves["singular values"].y[0] == pytest.approx(1.0)
    found.compare(found)
    assert found.plot().get_yscale() == "log"
    partial = quick(net, torch.randn(8, 4), n_examples=8, seconds=1e-6)
    assert len(partial.spectra) == 1
    assert partial.is_partial

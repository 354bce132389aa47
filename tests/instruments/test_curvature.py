"""Curvature against quadratics, a deep linear network in closed form, and the dense matrix of torch.func."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from invertible.errors import ConfigError, DtypeError, NonFiniteError, RangeError, ShapeError
from invertible.instruments import Curvature, curvature, top_eigenvectors
from invertible.instruments._batch import Batch
from invertible.instruments._curvature_rows import share_of
from invertible.instruments._eigenpairs import extremes
from invertible.instruments._hessian import GaussNewton, Hessian, ggnvp, hvp
from invertible.instruments._krylov import lanczos, ritz_pairs
from invertible.instruments._loss_on_data import LossOnData, viewing


class Quadratic(nn.Module):
    """Its loss, the mean of what it returns, is theta^T A theta / 2 + b^T theta."""

    def __init__(self, a: Tensor, b: Tensor | None = None) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.linspace(-1, 1, len(a), dtype=a.dtype))
        self.register_buffer("a", a)
        self.register_buffer("b", torch.zeros(len(a), dtype=a.dtype) if b is None else b)

    def forward(self, x: Tensor) -> Tensor:
        return (self.theta @ self.a @ self.theta / 2 + self.b @ self.theta).expand(len(x))


def mean(output: Tensor, y: object) -> Tensor:
    return output.mean()


def spectrum(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A symmetric matrix whose eigenvalues have outliers at both ends, most of them near zero."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
    values = 0.05 * torch.randn(n, generator=generator, dtype=torch.float64)
    values[:4] = torch.tensor([9.0, 6.0, -3.0, -2.0])
    values = values.sort().values
    return q @ torch.diag(values) @ q.T, values


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 4)
    )
    net(torch.randn(30, 1, 4, 4))  # statistics
    return net.double()


def small_data(n: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 1, 4, 4, generator=generator, dtype=torch.float64), torch.arange(n) % 4


def second(function, at: Tensor) -> Tensor:
    return torch.func.jacrev(torch.func.jacrev(function))(at)


def dense_matrices(net: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Hessian and Gauss-Newton matrix by torch.func alone."""
    net.eval()
    names, tensors = zip(*net.named_parameters(), strict=True)
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])

    def output(theta: Tensor) -> Tensor:
        parts = theta.split([tensor.numel() for tensor in tensors])
        own = {name: part.view_as(t) for name, part, t in zip(names, parts, tensors, strict=True)}
        return functional_call(net, own, (x,))

    hessian = second(lambda theta: nn.functional.cross_entropy(output(theta), y), flat)
    jacobian, z = torch.func.jacrev(output)(flat), output(flat).detach()
    inner = second(lambda z: nn.functional.cross_entropy(z, y), z)
    return hessian, torch.einsum("aip,aibj,bjq->pq", jacobian, inner, jacobian)


@pytest.fixture(scope="module")
def against_dense() -> tuple[nn.Module, tuple[Tensor, Tensor], Tensor, Tensor]:
    net, (x, y) = small_net(), small_data()
    return net, (x, y), *dense_matrices(net, x, y)


@pytest.mark.parametrize("kind", [Hessian, GaussNewton])
def test_products_are_those_of_the_dense_matrix(against_dense, kind) -> None:
    net, (x, y), hessian, gauss_newton = against_dense
    wanted = hessian if kind is Hessian else gauss_newton
    with viewing("test", net.train(), [(x[:5], y[:5]), (x[5:], y[5:])]) as (view, _):
        matrix = kind(view)
        torch.testing.assert_close(matrix.dense(), wanted, rtol=1e-10, atol=1e-14)
        v = torch.randn(view.n, dtype=torch.float64)
        matrix._graphs.clear()  # too large to keep: made anew for every product
        torch.testing.assert_close(matrix.product(v), wanted @ v, rtol=1e-10, atol=1e-14)
        once = hvp if kind is Hessian else ggnvp
        torch.testing.assert_close(once(view, view.theta, v), wanted @ v, rtol=1e-10, atol=1e-14)
    assert net.training


@pytest.mark.parametrize("matrix", ["hessian", "gauss-newton"])
def test_a_network_is_measured_as_the_dense_matrix_has_it(against_dense, matrix) -> None:
    net, data, hessian, gauss_newton = against_dense
    values, vectors = torch.linalg.eigh(hessian if matrix == "hessian" else gauss_newton)
    for dense_up_to in (1000, 0):
        found = curvature(net, data, matrix=matrix, dense_up_to=dense_up_to, n_largest=3, n_smallest=2, n_steps=80)
        assert found.method == ("dense" if dense_up_to else "lanczos")
        got = [pair.value for pair in found.eigenvalues]
        assert got == pytest.approx([*values.flip(0)[:3].tolist(), *values[:2].tolist()], rel=1e-8, abs=1e-10)
        assert max(pair.residual for pair in found.eigenvalues) < 1e-6 * abs(values[-1])
        assert found.trace.value == pytest.approx(values.sum().item(), abs=5 * (found.trace.error or 1e-10))
        below = (values < -found.threshold).double().mean().item()
        assert found.index.low - 1e-9 <= below <= found.index.high + 1e-9
    n_low = int(matrix == "hessian")  # Gauss-Newton's smallest is 0, many times over
    top = top_eigenvectors(net, data, matrix=matrix, n_largest=2, n_smallest=n_low)
    overlaps = (top.vectors @ vectors[:, [-1, -2, 0][: 2 + n_low]]).abs().diagonal()
    assert overlaps.tolist() == pytest.approx([1] * (2 + n_low), abs=1e-8)
    assert {name: tuple(t.shape) for name, t in top.directions[0].items()} == {
        name: tuple(p.shape) for name, p in net.named_parameters()
    }


def test_the_gradient_and_the_loss_are_the_networks_own(against_dense) -> None:
    net, (x, y), hessian, _ = against_dense
    found = curvature(net, (x, y))
    loss = nn.functional.cross_entropy(net.eval()(x), y)
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(net.parameters()))])
    assert found.loss == loss.item()
    assert found.gradient_norm == pytest.approx(gradient.norm().item(), rel=1e-10)
    bend = (gradient @ hessian @ gradient / gradient.square().sum()).item()
    assert found.gradient_curvature == pytest.approx(bend, rel=1e-8)


def test_a_quadratic_by_lanczos() -> None:
    a, values = spectrum(300)
    found = curvature(Quadratic(a), torch.zeros(2, 1).double(), loss=mean, dense_up_to=0, n_largest=2, n_smallest=2)
    assert [p.value for p in found.eigenvalues] == pytest.approx([9, 6, -3, -2], abs=1e-6)
    assert [p.end for p in found.eigenvalues] == ["largest", "largest", "smallest", "smallest"]
    assert found.index.low <= (values < -found.threshold).double().mean() <= found.index.high
    probes = 2.0 * torch.randint(0, 2, (4, 300), generator=torch.Generator().manual_seed(0)) - 1
    for z, seen in zip(probes.double(), found.spectra, strict=True):
        nodes, weights = torch.tensor(seen.nodes), torch.tensor(seen.weights)
        for k in (0, 1, 5, 100):  # Gauss quadrature of 64 nodes is exact up to degree 127
            moment = (z @ torch.linalg.matrix_power(a / 9, k) @ z).item() / 300
            assert (weights * (nodes / 9) ** k).sum().item() == pytest.approx(moment, rel=1e-6)


def test_as_many_copies_of_an_eigenvalue_are_found_as_there_are_probes() -> None:
    values = torch.cat([torch.full((3,), 5.0), torch.linspace(0, 1, 60)]).double()
    found = curvature(Quadratic(torch.diag(values)), torch.zeros(2, 1).double(), loss=mean, dense_up_to=0, n_largest=4)
    assert [p.value for p in found.eigenvalues[:4]] == pytest.approx([5, 5, 5, 1], abs=1e-4)


def test_what_has_not_converged_goes_on_with_arpack() -> None:
    a, _ = spectrum(400)
    model, x = Quadratic(a), torch.zeros(2, 1).double()
    options = {"dense_up_to": 0, "n_largest": 3, "n_smallest": 3, "n_probes": 1, "n_steps": 6, "tolerance": 1e-6}
    found = curvature(model, x, loss=mean, **options)
    exact = torch.linalg.eigvalsh(a)
    wanted = [*exact.flip(0)[:3].tolist(), *exact[:3].tolist()]
    assert [p.value for p in found.eigenvalues] == pytest.approx(wanted, abs=1e-5)
    assert max(p.residual for p in found.eigenvalues) < 1e-5
    assert not [f for f in found.findings if "converged" in f.sentence]


def test_a_residual_bounds_the_distance_to_the_spectrum_and_is_reported() -> None:
    generator = torch.Generator().manual_seed(0)
    b = torch.randn(600, 600, generator=generator, dtype=torch.float64)
    a = b + b.T  # nothing separates its ends
    view = LossOnData(Quadratic(a), [Batch((torch.zeros(1, 1).double(),))], mean)
    found = extremes(Hessian(view), 2, 2, 1e-12, is_over=iter([False] * 30 + [True] * 99).__next__)
    exact = torch.linalg.eigvalsh(a)
    for value, residual in zip(found.values, found.residuals, strict=True):
        assert (exact - value).abs().min() <= residual * (1 + 1e-9)
    result = curvature(Quadratic(a), torch.zeros(1, 1).double(), loss=mean, dense_up_to=0, seconds=1e-9)
    assert result.is_partial
    assert [f.severity for f in result.findings if "stopped early" in f.sentence] == ["warning"]


def test_bounds_of_a_share_hold_for_any_level() -> None:
    a, _ = spectrum(200)
    exact, vectors = torch.linalg.eigh(a)
    start = torch.randn(2, 200, dtype=torch.float64)
    for n_steps in (5, 20, 60):
        for run, z in zip(lanczos(lambda v: v @ a, start, n_steps), start, strict=True):
            masses = (vectors.T @ z).square() / z.square().sum()
            for level in (-2.5, -1.0, -0.06, 0.0, 0.03, 3.0):
                share, low, high = run.below(level)
                assert low - 1e-9 <= masses[exact < level].sum() <= high + 1e-9
                assert low <= share <= high
    for run in lanczos(lambda v: v @ a, start, 60):
        share, low, high = run.below(-1.0)  # in a gap
        assert high - low < 1e-6 < share
    assert share_of([(0.2, 0.1, 0.3), (0.2, 0.1, 0.3)]).high == pytest.approx(0.3)


def test_an_invariant_subspace_ends_a_run_exactly() -> None:
    a = torch.diag(torch.tensor([1.0, 1.0, 2.0, 2.0, 7.0], dtype=torch.float64))
    runs = lanczos(lambda v: v @ a, torch.ones(2, 5, dtype=torch.float64), 5)
    assert [run.nodes.tolist() for run in runs] == [pytest.approx([1, 2, 7])] * 2
    assert runs[0].weights.tolist() == pytest.approx([0.4, 0.4, 0.2])
    assert ritz_pairs(runs, 1, 1).values.tolist() == pytest.approx([1, 7])


def test_standard_errors_of_the_trace_are_true() -> None:
    a, values = spectrum(150)
    x, exact = torch.zeros(1, 1).double(), values.sum().item()
    scores = []
    for seed in range(12):
        options = {"dense_up_to": 0, "n_largest": 2, "n_smallest": 2, "n_probes": 1, "n_steps": 30, "seed": seed}
        found = curvature(Quadratic(a), x, loss=mean, **options)
        assert found.trace.error is not None
        scores.append((found.trace.value - exact) / found.trace.error)
    assert found.trace.error < 0.2  # the outliers alone would give about 0.25 without being taken out
    spread = torch.tensor(scores).square().mean().sqrt().item()
    assert 0.4 < spread < 1.8


def test_deep_linear_network_in_closed_form() -> None:
    # L = (1 - w2 w1)^2 / 2 for x = 1: H = [[w2^2, 2 w1 w2 - 1], [.., w1^2]], and at w1 = w2 = 0 a saddle of index 1/2.
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    x = torch.ones(1, 1, dtype=torch.float64)
    half = lambda output, y: (output - y).square().mean() / 2  # noqa: E731
    for w1, w2 in ((0.0, 0.0), (2.0, 0.5), (-0.3, 1.7)):
        with torch.no_grad():
            net[0].weight.fill_(w1), net[1].weight.fill_(w2)
        found = curvature(net, (x, x), loss=half)
        b = 2 * w1 * w2 - 1
        values = torch.linalg.eigvalsh(torch.tensor([[w2**2, b], [b, w1**2]], dtype=torch.float64))
        assert [p.value for p in found.eigenvalues] == pytest.approx(values.flip(0).tolist(), abs=1e-12)
    with torch.no_grad():
        net[0].weight.zero_(), net[1].weight.zero_()
    saddle = curvature(net, (x, x), loss=half)
    assert saddle.gradient_norm == 0
    assert (saddle.index.value, saddle.index.low, saddle.index.high) == (0.5, 0.5, 0.5)
    assert any("index of what is close to a critical point" in f.sentence for f in saddle.findings)
    gauss = curvature(net, (x, x), loss=half, matrix="gauss-newton")
    assert [p.value for p in gauss.eigenvalues] == [0, 0]


@dataclass
class Output:
    logits: Tensor
    other: None = None


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module, wrap) -> None:
        super().__init__()
        self.net, self.wrap = net, wrap

    def forward(self, x: Tensor) -> object:
        return self.wrap(self.net(x))


@pytest.mark.parametrize("matrix", ["hessian", "gauss-newton"])
@pytest.mark.parametrize("wrap", [lambda z: {"hidden": z * 2, "logits": z}, Output, lambda z: (z, [z.detach()])])
def test_networks_that_return_structures(against_dense, matrix, wrap) -> None:
    net, data, hessian, gauss_newton = against_dense
    loss = lambda output, y: nn.functional.cross_entropy(output[0], y)  # noqa: E731
    loss = loss if isinstance(wrap(data[0]), tuple) else None
    found = curvature(Wrapped(net, wrap), data, matrix=matrix, loss=loss)
    top = torch.linalg.eigvalsh(hessian if matrix == "hessian" else gauss_newton)[-1].item()
    assert found.eigenvalues[0].value == pytest.approx(top, rel=1e-9)


def test_errors_say_what_to_do() -> None:
    net, (x, y) = small_net(), small_data()
    with pytest.raises(ConfigError, match=r"no logits.*a tuple.*loss=lambda output, y"):
        curvature(Wrapped(net, lambda z: (z, z)), (x, y))
    with pytest.raises(ConfigError, match=r"needs labels"):
        curvature(net, x)
    with pytest.raises(RangeError, match=r"labels 0 to 3.*got 1 to 4"):
        curvature(net, (x, y + 1))
    with pytest.raises(ShapeError, match=r"not a scalar.*reduction='none'"):
        curvature(net, (x, y), loss=nn.CrossEntropyLoss(reduction="none"))
    with pytest.raises(DtypeError, match=r"cross-entropy takes labels"):
        curvature(net, (x, y.double()))
    with pytest.raises(ShapeError, match=r"labels do not fit.*\(12, 4\), \(12,\)"):
        curvature(net, (x, y.double()), loss="mse")
    with pytest.raises(ConfigError, match=r"no loss of that name"):
        curvature(net, (x, y), loss="hinge")
    with pytest.raises(ConfigError, match=r"no trainable parameters"):
        curvature(small_net().requires_grad_(False), (x, y))
    with pytest.raises(NonFiniteError, match=r"loss is not finite"):
        curvature(net, (x, y), loss=lambda output, y: output.mean() * float("nan"))
    with pytest.raises(ConfigError, match=r"does not depend on the parameters"):
        curvature(net, (x, y), loss=lambda output, y: output.detach().mean())
    with pytest.raises(ConfigError, match=r"bad n_steps"):
        curvature(net, (x, y), n_steps=1)


@pytest.mark.usefixtures("unchecked")
def test_wrong_kinds_are_said() -> None:
    net, (x, y) = small_net(), small_data()
    with pytest.raises(DtypeError, match=r"no real number.*float"):
        curvature(net, (x, y), loss=lambda output, y: 3.0)
    with pytest.raises(ConfigError, match=r"no such matrix"):
        curvature(net, (x, y), matrix="fisher")
    with pytest.raises(ConfigError, match=r"no such dtype"):
        curvature(net, (x, y), dtype="float16")


def test_dtypes_generators_and_callers() -> None:
    net, (x, y) = small_net(), small_data()
    exact = curvature(net, (x, y)).eigenvalues[0].value
    with torch.inference_mode():
        under = curvature(net, (x.clone(), y.clone())).eigenvalues[0].value
    assert under == exact
    assert curvature(net, (batch for batch in [(x, y)])).eigenvalues[0].value == exact  # a generator runs once
    single = curvature(net.float(), (x, y))
    assert single.eigenvalues[0].value == pytest.approx(exact, rel=1e-4)
    assert curvature(net, (x, y), dtype="float64").eigenvalues[0].value == pytest.approx(exact, rel=1e-6)
    half = curvature(net.bfloat16(), (x, y))
    assert half.eigenvalues[0].value == pytest.approx(exact, rel=0.1)
    one = curvature(net.double(), (x[:1], y[:1]))
    assert any("one class" in f.sentence and f.severity == "warning" for f in one.findings)


def test_attention_and_what_vmap_does_not_know_work_too() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.attend(x, x, x, need_weights=False)[0].mean(1)
            return self.head(h) if float(h.detach().sum()) < 1e9 else h

    torch.manual_seed(0)
    net, x, y = Odd().double(), torch.randn(6, 3, 4).double(), torch.arange(6) % 2
    with viewing("test", net, (x, y)) as (view, _):
        matrix = Hessian(view)
        dense = matrix.dense()
        single = torch.stack([matrix.product(v) for v in torch.eye(view.n, dtype=torch.float64)])
        torch.testing.assert_close(dense, single)


def test_saved_shown_and_compared(tmp_path) -> None:
    net, (x, y) = small_net(), small_data()
    found = curvature(net, [(x[:6], y[:6]), (x[6:], y[6:])], dense_up_to=0, n_steps=20)
    found.save(tmp_path / "c.json")
    assert Curvature.load(tmp_path / "c.json") == found
    assert found.plot().get_yscale() == "log"
    found.compare(curvature(net, (x, y)), labels=["a", "b"])
    assert len({tuple(row) for row in found.table}) == 1
    assert found.table[found.first_row]["standard_error"] > 0
    for finding in found.findings:
        assert finding.row is None or 0 <= finding.row < len(found.table)
    at, density, *_ = found.density(2000)
    assert sum(density) * (at[1] - at[0]) == pytest.approx(1, abs=0.01)

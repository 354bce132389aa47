"""Certified norms against the dense operator, finite differences and SVDs."""

import itertools
import math

import pytest
import torch
from torch import nn

from invertible.layers import _norm_operator
from invertible.layers._constraint import Certified
from invertible.layers._constraint_power import Power
from invertible.layers._norm_certify import is_below
from invertible.layers._norm_geometry import Geometry
from invertible.layers._norm_operator import operator_norm

CASES = {
    "same": (lambda: nn.Conv2d(3, 5, 3, padding=1), (3, 6, 6)),
    "to fewer channels": (lambda: nn.Conv2d(6, 4, 3, padding=1), (6, 8, 7)),
    "even kernel": (lambda: nn.Conv2d(3, 5, (2, 4), padding=(1, 2)), (3, 6, 6)),
    "strided": (lambda: nn.Conv2d(4, 6, 3, padding=1, stride=2), (4, 7, 8)),
    "uneven stride": (lambda: nn.Conv2d(4, 6, 3, padding=1, stride=(1, 3)), (4, 7, 8)),
    "patches": (lambda: nn.Conv2d(3, 5, 2, stride=2), (3, 6, 6)),
    "stride above kernel": (lambda: nn.Conv2d(3, 5, 1, stride=2, padding=1), (3, 6, 6)),
    "dilated groups": (lambda: nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2), (4, 7, 8)),
    "dilated stride": (lambda: nn.Conv2d(3, 2, 3, padding=2, dilation=3, stride=2), (3, 12, 12)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4), (4, 6, 7)),
    "no padding": (lambda: nn.Conv2d(3, 5, 3), (3, 6, 6)),
    "much padding": (lambda: nn.Conv1d(4, 6, 5, padding=7), (4, 9)),
    "circular": (lambda: nn.Conv2d(3, 5, 3, padding=1, padding_mode="circular"), (3, 6, 6)),
    "circular, seam": (lambda: nn.Conv2d(2, 3, 2, padding=1, padding_mode="circular", stride=2), (2, 3, 5)),
    "circular, more": (lambda: nn.Conv1d(3, 5, 3, padding=3, padding_mode="circular"), (3, 4)),
    "reflect": (lambda: nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect"), (3, 6, 5)),
    "replicate": (lambda: nn.Conv2d(3, 5, 3, padding=2, padding_mode="replicate"), (3, 6, 5)),
    "one tap, circular": (lambda: nn.Conv2d(3, 4, 1, padding=1, padding_mode="circular"), (3, 4, 5)),
    "one tap, reflect": (lambda: nn.Conv1d(3, 4, 1, padding=2, padding_mode="reflect"), (3, 5)),
    "one tap, replicate": (lambda: nn.Conv2d(3, 4, 1, padding=2, padding_mode="replicate"), (3, 4, 5)),
    "one tap, groups": (lambda: nn.Conv2d(4, 6, 1, groups=2), (4, 5, 5)),
    "one tap, circular groups": (lambda: nn.Conv2d(4, 6, 1, padding=1, groups=2, padding_mode="circular"), (4, 4, 4)),
    "patches in groups": (lambda: nn.Conv1d(6, 9, 3, stride=3, groups=3), (6, 9)),
    "large groups": (lambda: nn.Conv2d(160, 160, 1, groups=2), (160, 2, 2)),
    "1-d": (lambda: nn.Conv1d(4, 6, 3, padding=1), (4, 9)),
    "3-d": (lambda: nn.Conv3d(2, 3, 3, padding=1), (2, 4, 3, 4)),
    "one pixel": (lambda: nn.Conv2d(3, 5, 3, padding=1), (3, 1, 1)),
    "matrix": (lambda: nn.Linear(20, 30), (20,)),
    "large matrix": (lambda: nn.Linear(100, 80), (100,)),
}


def dense(layer, shape):
    """The layer's matrix without its bias."""
    n = math.prod(shape)
    with torch.no_grad():
        return (layer(torch.eye(n).double().reshape(n, *shape)) - layer(torch.zeros(n, *shape).double())).flatten(1).T


def true_norm(layer, shape):
    return torch.linalg.matrix_norm(dense(layer, shape), 2).item()


@pytest.fixture(params=["whole", "by frequency"])
def way(request, monkeypatch):
    """Small operators are taken whole; without that, the way of the large ones is checked at small size."""
    if request.param == "by frequency":
        monkeypatch.setattr(_norm_operator, "_WHOLE", 0)
    return request.param


@pytest.mark.parametrize("name", CASES)
def test_the_bound_is_sound_and_its_gradient_is_its_derivative(name, way):
    torch.manual_seed(list(CASES).index(name))
    build, shape = CASES[name]
    layer = build().double()
    geometry, truth = Geometry.of(layer), true_norm(layer, shape)
    direction = torch.randn_like(layer.weight)
    for size in (shape[1:], None):
        norm = operator_norm(layer.weight, geometry, size)
        assert norm.value >= truth * (1 - 1e-12)
        if way == "whole" and size is not None:
            assert norm.value <= truth * 1.006 or geometry.mode == "circular"
        step = 1e-5 * direction
        up, down = (operator_norm(layer.weight + s * step, geometry, size).value for s in (1, -1))
        assert ((up - down) / 2e-5).item() == pytest.approx((norm.gradient * direction).sum().item(), rel=2e-5)
        single = operator_norm(layer.weight.float(), geometry, size).value.item()
        assert single == pytest.approx(norm.value.item(), rel=1e-3)
        assert single >= truth * (1 - 1e-7)


@pytest.mark.parametrize("kind", ["low-pass", "chequered", "one direction"])
@pytest.mark.parametrize("size", [(8, 8), (5, 9)])
def test_the_bound_is_tight_for_kernels_with_structure(kind, size):
    torch.manual_seed(0)
    signs = torch.tensor([[1.0, -1, 1], [-1, 1, -1], [1, -1, 1]]) if kind == "chequered" else torch.ones(3, 3)
    rank = 1 if kind == "one direction" else 12
    layer = nn.Conv2d(12, 12, 3, padding=1).double()
    layer.weight.data += (torch.randn(12, rank) @ torch.randn(rank, 12))[:, :, None, None] * signs / 4
    found = operator_norm(layer.weight, Geometry.of(layer), size).value
    assert 1 <= found / true_norm(layer, (12, *size)) <= 1.03


@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_the_bound_for_any_size_holds_for_each_and_is_approached(mode):
    torch.manual_seed(1)
    layer = nn.Conv1d(3, 4, 5, padding=2, padding_mode=mode).double()
    found = operator_norm(layer.weight, Geometry.of(layer), None).value.item()
    truths = [true_norm(layer, (3, n)) for n in (2, 3, 4, 7, 16, 31, 90)]
    assert max(truths) <= found <= truths[-1] * 1.02


def test_a_bound_between_two_grid_points_is_not_missed():
    """The worst case for a grid: a peak of height 1 that the grid for any size looks past."""
    n = 64
    shift = math.pi / n
    layer = nn.Conv1d(2, 2, 3, padding=1, bias=False).double()
    turn = lambda a: torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]]).double() / 3  # noqa: E731
    layer.weight.data = torch.stack([turn(-shift), turn(0), turn(shift)], dim=-1)
    assert operator_norm(layer.weight, Geometry.of(layer), None).value >= 1


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e15])
def test_tiny_and_huge_weights(scale):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3, padding=1)
    geometry = Geometry.of(layer)
    small = operator_norm(layer.weight, geometry, (9, 9))
    found = operator_norm(layer.weight * scale, geometry, (9, 9))
    assert found.value.item() == pytest.approx(small.value.item() * scale, rel=1e-4)


def test_no_weight_no_norm():
    norm = operator_norm(torch.zeros(4, 3, 3, 3), Geometry.of(nn.Conv2d(3, 4, 3)), (8, 8))
    assert norm.value == 0
    assert not norm.gradient.any()


def test_equal_singular_values():
    layer = nn.Linear(128, 128).double()
    layer.weight.data = torch.linalg.qr(torch.randn(128, 128).double()).Q
    found = operator_norm(layer.weight, Geometry.of(layer), None)
    assert 1 <= found.value <= 1.006
    assert torch.linalg.matrix_norm(found.gradient, "nuc").item() == pytest.approx(found.value.item())


@pytest.mark.parametrize("n", [5, 40, 70])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128, torch.complex64])
def test_the_proof_tells_who_is_below(n, dtype):
    torch.manual_seed(0)
    root = torch.randn(9, n, n, dtype=dtype)
    matrices = root @ root.mH
    tops = torch.linalg.eigvalsh(matrices)[:, -1]
    for bound in (tops.median().item() * 1.0001, tops.median().item() * 0.9999, tops.max().item() * 1.001):
        assert is_below(matrices, bound).tolist() == (tops < bound).tolist()
    matrices[3] = torch.nan
    assert not is_below(matrices, tops.max().item() * 2)[3]


@pytest.mark.parametrize("seed", range(2))
def test_a_wrong_guess_does_not_make_a_wrong_bound(seed, monkeypatch):
    """The iteration may find what it likes: what it misses, the proof finds."""
    from invertible.layers import _norm_certify as certify

    monkeypatch.setattr(_norm_operator, "_WHOLE", 0)
    torch.manual_seed(seed)
    layer = nn.Conv2d(40, 34, 3, padding=1).double()
    honest = operator_norm(layer.weight, Geometry.of(layer), (5, 5)).value

    def bad(family):
        vector = torch.zeros(family.n, dtype=torch.complex128)
        vector[0] = 1
        return certify.Leading(float(family.pick([0])[0, 0, 0].real), 0, vector)

    monkeypatch.setattr(_norm_operator, "leading", bad)
    found = operator_norm(layer.weight, Geometry.of(layer), (5, 5)).value
    assert found >= true_norm(layer, (40, 5, 5))
    assert found.item() == pytest.approx(honest.item(), rel=0.03)


NORMS = [1, 1.5, 2, 3, math.inf]


@pytest.mark.parametrize("name", ["matrix", "circular, more", "replicate", "strided"])
def test_mixed_norms_are_sound(name):
    torch.manual_seed(0)
    build, shape = CASES[name]
    layer = build().double()
    matrix, geometry = dense(layer, shape), Geometry.of(layer)
    points = torch.randn(matrix.shape[1], 200).double().sign() * torch.rand(matrix.shape[1], 200).double() ** 4
    for pair in itertools.product(map(float, NORMS), repeat=2):
        bound = Certified(geometry, 1.0, pair).norm(layer.weight, shape[1:])
        before, after = (
            torch.linalg.vector_norm(x, p, dim=0) for x, p in zip((points, matrix @ points), pair, strict=True)
        )
        tried = after / before
        assert bound >= tried.max() * (1 - 1e-12)
    for pair in [(1.0, 1.0), (1.5, 3.0), (math.inf, math.inf), (4.0, 2.0)]:
        bound = Certified(geometry, 1.0, pair).norm(layer.weight, shape[1:])
        assert bound >= Power(geometry, 1.0, pair, n_iterations=30).norm(layer.weight, shape[1:]) * (1 - 1e-9)


@pytest.mark.parametrize("pair", [(1.0, 1.0), (math.inf, math.inf), (1.0, 3.0), (1.5, math.inf)])
def test_mixed_norms_with_a_formula(pair):
    torch.manual_seed(0)
    weight = torch.randn(5, 7).double()
    found = Certified(Geometry(), 1.0, pair).norm(weight, None).item()
    if pair[0] == 1:
        exact = torch.linalg.vector_norm(weight, pair[1], dim=0).max()
    else:
        exact = torch.linalg.vector_norm(weight, 1 if pair[0] == math.inf else 3, dim=1).max()
    assert found == pytest.approx(exact.item(), rel=1e-12)


def test_power_iteration_converges_from_below():
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 8, 3, padding=1).double()
    truth, power = true_norm(layer, (8, 6, 6)), Power(Geometry.of(layer), 0.9)
    found = [power.norm(layer.weight, (6, 6)).item() for _ in range(600)]
    assert max(found) <= truth * (1 + 1e-12)
    assert found[-1] == pytest.approx(truth, rel=1e-4)

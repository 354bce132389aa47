"""Kernel interpolation against dense float64 systems; random convolutions against loops; the theorem's network."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from invertible.errors import (
    ConfigError,
    ConvergenceError,
    DataError,
    DtypeError,
    NonFiniteError,
    RangeError,
    ShapeError,
)
from invertible.instruments import KernelInterpolation, Result, interpolate, memorizing_network
from invertible.instruments._kernel_kinds import FeatureKernel, FunctionKernel, rbf
from invertible.instruments._kernel_patches import RandomConv, standardise
from invertible.instruments._kernel_solve import BlockCholesky, solve_kernel


def points(n: int, d: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def classes(x: torch.Tensor) -> torch.Tensor:
    return (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()


X, X_TEST = points(60), points(40, seed=1)
DATA = ((X, classes(X)), (X_TEST, classes(X_TEST)))


# Solver ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 7, 16, 53, 100])
def test_block_cholesky_against_a_dense_factor(block):
    kernel = FunctionKernel(X[:53], X_TEST, rbf(2.0))
    dense = torch.exp(-2.0 * torch.cdist(X[:53], X[:53]).square()) + 0.3 * torch.eye(53, dtype=torch.float64)
    factor = BlockCholesky(kernel, 0.3, block=block)
    y = points(53, 4, seed=2)
    torch.testing.assert_close(factor.solve(y), torch.linalg.solve(dense, y), atol=1e-11, rtol=1e-11)
    columns = torch.cat([F.pad(c, (0, 0, 53 - len(c), 0)) for c in factor._columns], 1)
    torch.testing.assert_close(columns.tril() @ columns.tril().T, dense, atol=1e-12, rtol=0)


def test_a_float32_factor_is_refined_to_float64():
    kernel = FunctionKernel(X, X_TEST, rbf(2.0))
    y = points(60, 3, seed=2)
    factor = BlockCholesky(kernel, 1e-3, torch.float32, block=16)
    found = solve_kernel(kernel, y, 1e-3, factor, 1e-12)
    dense = torch.exp(-2.0 * torch.cdist(X, X).square()) + 1e-3 * torch.eye(60, dtype=torch.float64)
    torch.testing.assert_close(found.a, torch.linalg.solve(dense, y), atol=1e-8, rtol=1e-8)
    assert found.n_refinements > 0
    assert found.residual <= 1e-12


def test_what_is_not_solved_is_not_returned():
    kernel = FunctionKernel(X, X_TEST, rbf(2.0))
    wrong = BlockCholesky(FunctionKernel(points(60, seed=5), X_TEST, rbf(2.0)), 1.0)
    with pytest.raises(ConvergenceError, match="was not solved"):
        solve_kernel(kernel, points(60, 3, seed=2), 1e-3, wrong, 1e-6)


def test_an_indefinite_matrix_is_refused():
    with pytest.raises(ConvergenceError, match=r"pivot.*at point 3 of 4"):
        BlockCholesky(FunctionKernel(torch.eye(4).double(), X, lambda x, y: x @ torch.diag(torch.tensor([1.0, 1, 1, -1])).double() @ y.T), 0.0, block=2)  # fmt: skip  # noqa: E501


# interpolate ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ridges", [(0.0,), (0.0, 0.1, 2.0)])
def test_closed_form_against_a_dense_solve(ridges):
    found = interpolate(DATA, gamma=1.5, ridges=ridges, quiet=True)
    gram = torch.exp(-1.5 * torch.cdist(X, X).square())
    to_test = torch.exp(-1.5 * torch.cdist(X_TEST, X).square())
    y = F.one_hot(classes(X), 3).double()
    for fit, ridge in zip(found.fits, ridges, strict=True):
        a = torch.linalg.solve(gram + ridge * torch.eye(60, dtype=torch.float64), y)
        accuracy = ((to_test @ a).argmax(1) == classes(X_TEST)).double().mean()
        assert fit.test.mean == pytest.approx(float(accuracy))
        assert fit.norm == pytest.approx(float((a * (gram @ a)).sum().sqrt()), rel=1e-6)
        assert fit.residual < 1e-6
    assert found.fits[0].train.mean == 1
    norms = [fit.norm for fit in found.fits]
    assert norms == sorted(norms, reverse=True)


def test_of_a_function_and_of_an_equal_name():
    laplace = interpolate(DATA, lambda x, y: torch.exp(-torch.cdist(x, y)), quiet=True)
    assert laplace.fits[0].train.mean == 1
    by_hand = interpolate(DATA, lambda x, y: torch.exp(-0.7 * torch.cdist(x, y).square()), quiet=True)
    assert by_hand.fits[0].test == interpolate(DATA, gamma=0.7, quiet=True).fits[0].test


def test_a_matrix_that_a_kernel_keeps_is_left_alone():
    both = torch.cat([X, X_TEST])
    gram = torch.exp(-torch.cdist(both, both))
    kept, where = gram.clone(), {tuple(row): i for i, row in enumerate(both.tolist())}

    def looked_up(x, y):
        first, second = (where[tuple(points[0].tolist())] for points in (x, y))
        return gram[first : first + len(x), second : second + len(y)]

    found = interpolate(DATA, looked_up, quiet=True)
    assert torch.equal(gram, kept)
    assert found.fits[0].test == interpolate(DATA, lambda x, y: torch.exp(-torch.cdist(x, y)), quiet=True).fits[0].test


def test_float32_and_float64_agree_and_the_file_holds_all(tmp_path):
    found = interpolate(DATA, gamma=1.5, ridges=(1e-2, 1e-1), dtype=torch.float32, tolerance=1e-9, quiet=True)
    exact = interpolate(DATA, gamma=1.5, ridges=(1e-2, 1e-1), quiet=True)
    for ours, theirs in zip(found.fits, exact.fits, strict=True):
        assert ours.norm == pytest.approx(theirs.norm, rel=1e-7)
        assert ours.n_refinements > 0
    found.save(tmp_path / "found.json")
    assert Result.load(tmp_path / "found.json") == found
    assert isinstance(found, KernelInterpolation)
    assert found.plot().get_xlabel() == "ridge over the mean diagonal"


def test_duplicates_that_contradict_are_named():
    x, y = torch.cat([X, X[:1]]), torch.cat([classes(X), (classes(X[:1]) + 1) % 3])
    found = interpolate(((x, y), DATA[1]), gamma=1.5, ridges=(0.0, 0.1), quiet=True)
    assert (found.n_duplicates, found.n_conflicts) == (1, 1)
    assert found.findings[0].severity == "error"
    assert "1 points repeat others, 1 of them with another label" in found.findings[0].sentence
    assert not found.fits[1].failure
    found.plot()
    with pytest.raises(ConvergenceError, match="no kernel system"):
        interpolate(((x, y), DATA[1]), gamma=1.5, quiet=True)


def test_nothing_of_the_caller_s_is_touched():
    x, state = X.clone().requires_grad_(), torch.get_rng_state()
    with torch.inference_mode():
        interpolate(((x, DATA[0][1]), DATA[1]), quiet=True)
    images = torch.rand(30, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    y = torch.arange(30) % 2
    interpolate(((images, y), (images, y)), "random-conv", n_filters=8, quiet=True)
    assert x.grad is None
    assert torch.equal(x.detach(), X)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"kernel": "linear"}, ConfigError, "'rbf', 'random-conv'"),
        ({"ridges": ()}, ConfigError, "ridges"),
        ({"ridges": (-1.0,)}, ConfigError, "ridges"),
        ({"gamma": 0.0}, ConfigError, "gamma"),
        ({"dtype": torch.float16}, ConfigError, "float32 or torch.float64"),
        ({"kernel": "random-conv"}, ShapeError, "convolutions take images"),
        ({"kernel": lambda x, y: x}, ShapeError, "gives no matrix"),
        ({"kernel": lambda x, y: x @ y.T * float("nan")}, NonFiniteError, "kernel"),
        ({"n_classes": 2}, RangeError, "0 to 1"),
        ({"data": ((X * 0, classes(X)), DATA[1])}, ShapeError, "gives? no gamma"),
        ({"data": ((X, classes(X) * 0), DATA[1])}, ConfigError, "class 0 only"),
    ],
)
def test_bad_input(change, error, says):
    with pytest.raises(error, match=says):
        interpolate(**{"data": DATA, "quiet": True, **change})


# Random convolutions --------------------------------------------------------------------------------------------------


def test_features_against_patches_one_by_one():
    """Normalised, whitened, compared with a filter of length 1, two signs, averaged over cells."""
    x = torch.rand(12, 2, 7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    layer = RandomConv(x, n_filters=5, patch=3, threshold=0.1, pools=2, seed=1)
    windows = x[:3].unfold(2, 3, 1).unfold(3, 3, 1).permute(0, 2, 3, 1, 4, 5).flatten(3)
    centred = windows - windows.mean(3, keepdim=True)
    scaled = centred / (centred.square().mean(3, keepdim=True) + 10 / 255**2).sqrt()
    filters = layer._filters.flatten(1)
    response = scaled @ filters.T - layer._bias
    by_hand = [F.adaptive_avg_pool2d((s * response - 0.1).relu().permute(0, 3, 1, 2), 2).flatten(1) for s in (1, -1)]
    torch.testing.assert_close(layer(x[:3]), torch.cat(by_hand, 1))


def test_filters_whiten():
    """Responses of whitened patches to filters of length 1 have variances near 1 where images have structure."""
    x = torch.rand(40, 1, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    layer = RandomConv(x, n_filters=64, patch=4)
    windows = F.unfold(x, 4).transpose(1, 2).flatten(0, 1)
    centred = windows - windows.mean(1, keepdim=True)
    scaled = centred / (centred.square().mean(1, keepdim=True) + 10 / 255**2).sqrt()
    variance = (scaled @ layer._filters.flatten(1).T - layer._bias).var(0)
    assert 0.8 < float(variance.median()) < 1.05


def test_features_make_the_kernel_that_they_say():
    features, of_test = points(30, 40, seed=3), points(9, 40, seed=4)
    standardise(features, of_test)
    torch.testing.assert_close(features.square().sum(1).mean(), torch.tensor(1.0).double())
    kernel, a = FeatureKernel(features, of_test), points(30, 2, seed=5)
    gram = features @ features.T + 1
    torch.testing.assert_close(kernel.block(slice(3, 9), slice(None)), gram[3:9])
    torch.testing.assert_close(kernel.times(a), gram @ a)
    torch.testing.assert_close(kernel.test_times(a), (of_test @ features.T + 1) @ a)


def test_random_convolutions_classify_digits():
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = torch.tensor(digits.images).float()[:, None] / 16, torch.tensor(digits.target)
    data = ((x[:500], y[:500]), (x[500:900], y[500:900]))
    found = interpolate(data, "random-conv", n_filters=60, quiet=True)
    assert found.fits[0].train.mean == 1
    assert found.fits[0].test.mean > 0.93
    assert found.n_features == 60 * 32
    few = interpolate(data, "random-conv", n_filters=2, ridges=(0.0, 0.1), quiet=True)
    assert "64 features cannot interpolate 500 points" in few.findings[0].sentence


@pytest.mark.parametrize("options", [{"n_filters": 0}, {"patch": 9}, {"pools": 9}, {"threshold": -1.0}])
def test_impossible_convolutions(options):
    with pytest.raises(ConfigError, match="no such convolution"):
        RandomConv(torch.rand(4, 1, 8, 8), **{"n_filters": 3, **options})


# The theorem ----------------------------------------------------------------------------------------------------------


def awkward(name: str) -> torch.Tensor:
    grid = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 7)
    return {
        "random": points(200, 5),
        "on a line": points(200, 1),
        "corners of a cube": grid.double(),
        "lattice on a diagonal": torch.arange(100.0).double()[:, None].repeat(1, 4),
        "near": torch.cat([points(50), points(1).repeat(2, 1) + torch.tensor([[0.0], [1e-7]])]),
        "far away": points(100) + 1e6,
        "huge": points(100) * 1e200,
        "tiny": points(100) * 1e-200,
        "one constant coordinate": torch.cat([points(100), torch.full((100, 1), 7.0)], 1),
        "one point": points(1),
        "zero": torch.zeros(1, 4).double(),
        "float32 images": torch.rand(30, 1, 3, 3, generator=torch.Generator().manual_seed(0)),
    }[name]


@pytest.mark.parametrize(
    "name",
    [
        *("random", "on a line", "corners of a cube", "lattice on a diagonal", "near", "far away", "huge", "tiny"),
        *("one constant coordinate", "one point", "zero", "float32 images"),
    ],
)
def test_2n_plus_d_weights_memorise_anything(name):
    x = awkward(name)
    n, d = len(x), x[0].numel()
    y = torch.randn(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = torch.randint(10, (n,), generator=torch.Generator().manual_seed(2))
    network = memorizing_network(x, y)
    assert network.n_weights == sum(p.numel() for p in network.parameters()) == 2 * n + d
    torch.testing.assert_close(network(x), y, atol=1e-6, rtol=0)
    one_by_one = torch.cat([network(x[i : i + 1]) for i in range(n)])
    torch.testing.assert_close(one_by_one, y, atol=1e-6, rtol=0)
    assert torch.equal(memorizing_network(x, labels)(x).round().long(), labels)


def test_it_is_the_network_of_the_theorem():
    x, y = points(40, 5), points(40, 2, seed=1)
    network = memorizing_network(x, y)
    projected = (x @ network.a).sort().values
    assert (network.b[0] < projected[0]).all()
    assert (network.b[1:] <= projected[1:]).all()
    assert (network.b[1:] >= projected[:-1] - 1e-12).all()
    by_hand = (x @ network.a)[:, None].sub(network.b).relu() @ network.w
    torch.testing.assert_close(network(x), by_hand, atol=1e-8, rtol=0)
    assert network(x).shape == (40, 2)
    assert isinstance(network, nn.Module)


def test_equal_points():
    x, y = points(5).repeat(2, 1), torch.arange(5.0).repeat(2)
    assert memorizing_network(x, y).n_weights == 2 * 5 + 3
    y[7] += 1
    with pytest.raises(DataError, match=r"points 2 and 7, equal, with 2.0 and 3.0"):
        memorizing_network(x, y)


def test_points_too_near_for_float64():
    x = torch.tensor([[0.0], [1.0], [1 + 2**-52], [2.0], [3.0]], dtype=torch.float64)
    with pytest.raises(ConvergenceError, match="too near"):
        memorizing_network(x, torch.tensor([1.0, 0.0, 5.0, 3.0, 2.0]))


@pytest.mark.parametrize(
    ("x", "y", "error"),
    [
        (torch.zeros(3), torch.zeros(3), ShapeError),
        (torch.zeros(0, 2), torch.zeros(0), ShapeError),
        (torch.zeros(3, 2), torch.zeros(4), ShapeError),
        (torch.zeros(3, 2), torch.zeros(3, 1, 1), ShapeError),
        (torch.full((3, 2), float("nan")), torch.zeros(3), NonFiniteError),
        (torch.zeros(3, 2, dtype=torch.complex64), torch.zeros(3), DtypeError),
    ],
)
def test_no_points(x, y, error):
    with pytest.raises(error):
        memorizing_network(x, y)


def test_the_caller_s_points_are_left_alone():
    x = points(10).requires_grad_()
    state = torch.get_rng_state()
    with torch.inference_mode():
        network = memorizing_network(x, torch.arange(10))
    network(x).sum().backward()
    assert x.grad is not None
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ShapeError):
        network(points(3, 7))

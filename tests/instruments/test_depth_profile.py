"""Depth profiles against closed forms, NumPy's SVD and direct formulas in float64."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from invertible.errors import ConfigError, DtypeError, NonFiniteError
from invertible.instruments import DepthProfile, Result, depth_profile
from invertible.instruments._cka import Cka, debiased_hsic, gram
from invertible.instruments._probes import Prober, components_for, distances
from invertible.instruments._scores import score_of
from invertible.instruments._untrained import obstacle
from measured_networks import Net


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Stack(nn.Sequential):
    """A network whose layers are the places."""


def gaussians(n: int, width: int, distance: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two classes N(+-m, 1) whose means are `distance` apart, in random order."""
    y = torch.arange(n) % 2
    x = normal(n, width, seed=seed)
    x[:, 0] += distance * (y - 0.5)
    return x, y


def quick(model: nn.Module, data: object, **options: object) -> DepthProfile:
    return depth_profile(model, data, **{"untrained": "none", "quiet": True} | options)


@pytest.fixture(scope="module")
def images() -> DepthProfile:
    torch.manual_seed(3)
    x, y = torch.randn(48, 3, 6, 6), torch.arange(48) % 3
    return depth_profile(Net().eval(), [(x[:24], y[:24]), (x[24:], y[24:])], n_folds=3)


def test_gaussian_classes_reach_the_bayes_accuracy_and_no_more() -> None:
    x, y = gaussians(1200, 3, 2.0)
    found = quick(nn.Sequential(nn.Identity(), nn.Linear(3, 3).double()), (x, y), layers="0", n_examples=1200)
    bayes = 0.5 * math.erfc(-1.0 / math.sqrt(2))  # Phi(distance / 2)
    svm, shuffled = found.depths[1].trained.svm, found.depths[1].shuffled.svm
    assert svm.mean == pytest.approx(bayes, abs=0.02)
    assert svm.low < bayes < svm.high
    assert shuffled.mean == pytest.approx(0.5, abs=0.06)
    assert found.chance == 0.5


def test_nearest_neighbours_match_a_direct_search() -> None:
    x, y = gaussians(60, 4, 2.0)
    prober = Prober(y.numpy(), 3, (0.1,), standardize=False, seed=0)
    found = prober.separation(x.numpy())
    accuracies = []
    for train, test in prober._folds:
        nearest = torch.cdist(x[test], x[train]).argmin(1)
        accuracies.append((y[train][nearest] == y[test]).double().mean().item())
    assert found.nearest.folds == pytest.approx(accuracies)


def test_distances_are_those_of_all_pairs_and_of_gaussians() -> None:
    x, y = gaussians(40, 5, 3.0)
    same, pairs = y[:, None] == y, ~torch.eye(40, dtype=torch.bool)
    squared = torch.cdist(x + 1e3, x + 1e3, compute_mode="donot_use_mm_for_euclid_dist").square()
    direct = squared[same & pairs].mean().item(), squared[~same].mean().item()
    assert distances((x + 1e3).numpy(), y.numpy()) == pytest.approx(direct, rel=1e-9)
    within, between = distances(*(t.numpy() for t in gaussians(4000, 5, 3.0)))
    assert within == pytest.approx(2 * 5, rel=0.05)  # 2 d sigma^2
    assert between == pytest.approx(2 * 5 + 3.0**2, rel=0.05)


@pytest.mark.parametrize("standardize", [False, True])
def test_components_match_numpy(standardize: bool) -> None:
    x = (normal(50, 6) * torch.tensor([9.0, 4.0, 2.0, 1.0, 0.3, 0.0]) @ normal(6, 6, seed=1)).numpy()
    scaled = (x - x.mean(0)) / (x.std(0) if standardize else 1)
    variance = np.linalg.svd(scaled, compute_uv=False) ** 2
    shares = np.cumsum(variance) / variance.sum()
    expected = tuple(int((shares < share).sum()) + 1 for share in (0.9, 0.95, 0.99))
    assert components_for(x, standardize) == expected
    assert components_for(np.ones((5, 3)), standardize) == (0, 0, 0)


def test_all_components_keep_the_neighbours_and_the_first_is_the_longest_axis() -> None:
    x, y = gaussians(60, 4, 30.0)
    prober = Prober(y.numpy(), 3, (0.1,), standardize=False, seed=0)
    found = prober.components(x.numpy(), (1, 2, 4, 99))
    assert [components.n for components in found] == [1, 2, 4]
    assert found[0].svm.mean == found[0].nearest.mean == 1.0
    assert found[-1].nearest == prober.separation(x.numpy()).nearest


def hsic_of_quadruples(k: np.ndarray, m: np.ndarray) -> float:
    """The U-statistic itself: the mean over all ordered quadruples of different examples."""
    n, total, count = len(k), 0.0, 0
    for i, j, q, r in itertools.permutations(range(n), 4):
        total += k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])
        count += 1
    return total / count


def test_hsic_matches_the_mean_over_quadruples() -> None:
    x, y = normal(7, 3), normal(7, 2, seed=1) + 5
    k, m = (x @ x.T).numpy(), (y @ y.T).numpy()  # not centred: it must not matter
    assert debiased_hsic(gram(x), gram(y)) == pytest.approx(hsic_of_quadruples(k, m), rel=1e-10)


def test_cka_matches_the_formula() -> None:
    x, y = normal(12, 6), normal(12, 3, seed=1)
    cka = Cka()
    cka.add(gram(x), gram(y))

    def hsic(a: Tensor, b: Tensor) -> float:
        k, m, n = a @ a.T, b @ b.T, len(a)
        k, m, one = k.fill_diagonal_(0), m.fill_diagonal_(0), torch.ones(n, dtype=torch.float64)
        first = torch.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        return ((first - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))).item()

    x, y = x - x.mean(0), y - y.mean(0)
    assert cka.similarity.value == pytest.approx(hsic(x, y) / math.sqrt(hsic(x, x) * hsic(y, y)), rel=1e-10)
    assert cka.similarity.error is None


def test_cka_of_unrelated_wide_representations_is_zero_where_the_plain_one_is_not() -> None:
    values, plain = [], []
    for seed in range(20):
        x, y = normal(16, 200, seed=seed), normal(16, 200, seed=100 + seed)
        cka = Cka()
        cka.add(gram(x), gram(y))
        values.append(cka.similarity.value)
        k, m = gram(x), gram(y)
        plain.append(((k * m).sum() / (k.norm() * m.norm())).item())
    assert np.mean(plain) > 0.8
    assert abs(np.mean(values)) < 4 * np.std(values) / math.sqrt(20) < 0.1


def test_cka_is_one_for_rotations_and_the_same_in_the_profile() -> None:
    x, y = normal(40, 6), torch.arange(40) % 2
    turn = torch.linalg.qr(normal(6, 6, seed=1))[0]
    linear = nn.Linear(6, 6).double()
    with torch.no_grad():
        linear.weight.copy_(3 * turn)
    found = quick(Stack(linear, nn.Linear(6, 2).double()), [(x[:20], y[:20]), (x[20:], y[20:])], layers="0")
    assert found.depths[1].cka_input.value == pytest.approx(1.0, abs=1e-10)
    assert found.depths[1].cka_input.error == pytest.approx(0.0, abs=1e-10)
    last = found.depths[1].cka_output
    assert 0 < last.value < 1
    assert last.error > 0


def test_cka_without_enough_examples_is_none() -> None:
    cka = Cka()
    cka.add(gram(normal(3, 2)), gram(normal(3, 2)))
    assert cka.similarity is None
    cka.add(gram(normal(5, 2)), gram(torch.ones(5, 2)))  # constant
    assert cka.similarity is None


def test_intervals_cover() -> None:
    # Independent folds: the corrected interval is wider than Student's, never narrower.
    draws = np.random.default_rng(0).normal(size=(400, 5))
    scores = [score_of(list(draw)) for draw in draws]
    assert np.mean([score.low < 0 < score.high for score in scores]) > 0.95
    assert score_of([0.5, 0.7]).minus(score_of([0.4, 0.6])).low == pytest.approx(0.1)


def test_features_are_averages_over_space_or_over_tokens(images: DepthProfile) -> None:
    assert [depth.name for depth in images.depths] == ["input", "blocks.0", "blocks.1", "blocks.2"]
    assert [(depth.width, depth.size) for depth in images.depths] == [(3, 108)] + [(4, 144)] * 3
    tokens = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6))
    found = quick(tokens, (torch.randn(8, 3, 5), torch.arange(8) % 2), layers="0", n_folds=2)
    assert (found.depths[1].width, found.depths[1].size) == (6, 18)


def test_norm_is_that_of_the_features() -> None:
    x, y = gaussians(20, 3, 1.0)
    found = quick(nn.Sequential(nn.Identity()), (x, y), layers="0")
    assert found.depths[1].norm == pytest.approx(x.norm(dim=1).mean().item())


def test_untrained_network_is_the_reset_one_with_settled_statistics() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
    x, y = torch.randn(60, 4), torch.arange(60) % 2
    found = depth_profile(net, (x, y), layers="1", seed=5, standardize=False)
    torch.manual_seed(5)
    other = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
    other.train()(x)
    other[1].running_mean.copy_(other[0](x).mean(0).detach())
    other[1].running_var.copy_(other[0](x).var(0).detach())
    own = quick(other, (x, y), layers="1", seed=5, standardize=False)
    assert found.untrained == "reset"
    assert found.depths[1].untrained == own.depths[1].trained
    assert found.depths[1].untrained_ratio == pytest.approx(own.depths[1].ratio, rel=1e-5)


def test_untrained_network_may_be_given() -> None:
    x, y = gaussians(40, 3, 1.0)
    net, before = Stack(nn.Linear(3, 4).double()), Stack(nn.Linear(3, 4).double())
    bits = [parameter.clone() for parameter in before.parameters()]
    given = depth_profile(net, (x, y), untrained=before)
    assert given.depths[1].untrained == quick(before, (x, y)).depths[1].trained
    assert all(map(torch.equal, bits, before.parameters()))
    made = depth_profile(net, (x, y), untrained=lambda: Stack(nn.Linear(3, 4)))  # float32: is brought to float64
    assert made.untrained == "given"
    with pytest.raises(ConfigError, match="no module '0'"):
        depth_profile(net, (x, y), untrained=lambda: nn.Linear(3, 4))


def test_networks_that_cannot_be_reset_say_so() -> None:
    x, y = gaussians(20, 3, 1.0)
    net = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4))).double()
    found = depth_profile(net, (x, y), layers="0")
    assert found.depths[1].untrained is None
    assert any("No untrained network" in finding.sentence for finding in found.findings)
    with pytest.raises(ConfigError, match=r"cannot be reset.*parametrised.*untrained=a function"):
        depth_profile(net, (x, y), layers="0", untrained="reset")
    assert obstacle(nn.MultiheadAttention(4, 2)) == ""


def test_a_wider_place_wins_only_before_the_projection() -> None:
    # The class is one of four pixels; the second layer repeats the first in 64 noisy copies.
    x, y = gaussians(400, 4, 1.5)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 64)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(2, 4))
    found = quick(net, (x, y), layers=["0", "1"])
    assert found.n_projected == 2
    assert found.depths[2].projected.svm.mean == pytest.approx(found.depths[1].trained.svm.mean, abs=0.03)


def test_findings_name_what_is_supported(images: DepthProfile) -> None:
    sentences = " ".join(finding.sentence for finding in images.findings)
    assert "Training shows nowhere" in sentences  # labels have nothing to do with the images
    x, y = gaussians(300, 8, 0.0)
    x[:, 0] = x[:, 0].sign() * (1 + x[:, 1].abs())
    x[:, 1] = x[:, 1].sign() * (1 + x[:, 2].abs())
    y = (x[:, 0] * x[:, 1] > 0).long()  # exclusive or: only after the ReLU can a line part it
    net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4)).double()
    with torch.no_grad():
        net[0].weight.zero_()[:, :2] = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
        net[0].bias.zero_()
        net[2].weight.copy_(torch.eye(4))
    found = quick(net, (x, y), layers=["0", "2"])
    rise = next(f for f in found.findings if f.sentence.startswith("A linear SVM separates classes better"))
    assert rise.row == 2
    assert found.depths[1].trained.svm.mean < 0.65 < 0.95 < found.depths[2].trained.svm.mean


def test_duplicates_among_the_examples_do_not_pass_for_knowledge() -> None:
    x, y = normal(40, 3).repeat(1, 1), torch.arange(40) % 2
    found = quick(nn.Sequential(nn.Identity()), (x, y), layers="0")
    assert found.depths[1].shuffled.nearest.low < found.chance


def test_json_table_curves_and_pictures(images: DepthProfile, tmp_path) -> None:
    images.save(tmp_path / "found.json")
    assert Result.load(tmp_path / "found.json") == images
    assert json.loads((tmp_path / "found.json").read_text())["kind"] == "DepthProfile"
    images.save_csv(tmp_path / "found.csv")
    assert len({tuple(row) for row in images.table}) == 1
    assert images.components[0] == {"place": "input", "n_components": 1} | {
        name: vars(images.depths[0].components[0])[name].mean for name in ("svm", "nearest")
    }
    axes = images.plot()
    assert len(axes.figure.axes) == 6
    assert axes.get_title() == "Separation of classes (figure 6)"
    assert images.plot(axes) is axes
    for curve in images.curves:
        images.compare(images, curve=curve, labels=["a", "b"])


def test_budget_spreads_over_the_depth() -> None:
    net = nn.Sequential(*(nn.Linear(3, 3) for _ in range(6)))
    x, y = torch.randn(40, 3), torch.arange(40) % 2
    found = quick(net, [(x, y), (x, y)], seconds=1e-4)
    assert [depth.name for depth in found.depths] == ["5"]
    assert found.is_partial
    assert any("stopped early" in finding.sentence for finding in found.findings)


def test_examples_are_limited() -> None:
    x, y = torch.randn(10, 3), torch.arange(10) % 2
    found = quick(nn.Sequential(nn.Linear(3, 3)), [(x, y)] * 5, n_examples=16)
    assert found.provenance.n_examples == 20
    assert len(found.depths[1].trained.svm.folds) == 5
    assert not found.is_partial


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        (torch.zeros(8, 3), {}, ConfigError, "needs labels"),
        ((torch.zeros(8, 3), torch.zeros(8, dtype=torch.long)), {}, ConfigError, "too few labels.*1 class"),
        ((torch.zeros(8, 3), torch.zeros(8)), {}, DtypeError, "labels are no classes.*argmax"),
        ((torch.zeros(8, 3), torch.eye(8, 3).long()), {}, DtypeError, "labels are no classes"),
        ((torch.zeros(8, 3), torch.arange(7)), {}, ConfigError, "needs labels.*one per example"),
        ((torch.zeros(8, 3), torch.arange(8) % 2), {"n_folds": 1}, ConfigError, "bad n_folds"),
        ((torch.zeros(8, 3), torch.arange(8) % 2), {"penalties": (-1.0,)}, ConfigError, "bad penalties"),
        ((torch.zeros(8, 3), torch.arange(8) % 2), {"untrained": "fresh"}, ConfigError, "unknown untrained"),
        ((torch.full((8, 3), 1e30), torch.arange(8) % 2), {}, NonFiniteError, "after Sequential computed it"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_said(data, options, error, message) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with torch.no_grad():
        net[0].weight.fill_(1e10)
    with pytest.raises(error, match=message):
        quick(net, data, **options)


def test_constant_features_are_an_error_among_the_findings() -> None:
    net = nn.Sequential(nn.Linear(3, 4))
    nn.init.zeros_(net[0].weight)
    found = quick(net, (torch.randn(20, 3), torch.arange(20) % 2), layers="0")
    assert found.findings[0].severity == "error"
    assert found.depths[1].cka_input is None
    assert math.isnan(found.depths[1].ratio)


def test_bfloat16_and_penalties() -> None:
    x, y = gaussians(60, 3, 6.0)
    found = quick(nn.Sequential(nn.Linear(3, 3)).bfloat16(), (x, y), layers="0", penalties=(0.01, 1.0), n_folds=2)
    assert found.depths[0].trained.svm.mean > 0.95

"""Weight spectra against closed forms: the Marchenko-Pastur law, planted spikes, a known exponent; the null's level."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import nn
from torch.nn.utils import prune

from invertible.errors import ConfigError, DtypeError
from invertible.instruments import INSTRUMENTS, Result, WeightSpectrum, weight_spectrum
from invertible.instruments._marchenko_pastur import mp_cdf, singular_density, split_bulk
from invertible.instruments._power_law import MIN_TAIL, fit_power_law
from invertible.instruments._weights import Weight, find_weights, frequencies
from measured_networks import NETWORKS


def linear(weight: torch.Tensor) -> nn.Module:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


@pytest.mark.parametrize("q", [0.1, 0.5, 0.9, 1.0])
def test_the_law_is_its_density_integrated(q: float) -> None:
    low, high = abs(1 - math.sqrt(q)), 1 + math.sqrt(q)
    for x in np.linspace(low + 0.01, high, 5):
        expected, _ = quad(lambda t: float(singular_density(np.array([t]), q)[0]), low, x)
        assert mp_cdf(np.array([x**2]), q)[0] == pytest.approx(expected, abs=1e-6)


def test_the_law_of_a_square_matrix_is_the_quarter_circle() -> None:
    x = np.linspace(0, 2, 9)
    circle = (x * np.sqrt(4 - x**2) / 2 + 2 * np.arcsin(x / 2)) / math.pi
    np.testing.assert_allclose(mp_cdf(x**2, 1.0), circle, atol=1e-12)
    assert mp_cdf(np.array([-1.0, 0.0, 5.0]), 0.3).tolist() == [0, 0, 1]


@pytest.mark.parametrize("shape", [(300, 300), (150, 600), (600, 150)])
def test_gaussian_matrices_follow_it(shape: tuple[int, int]) -> None:
    found = weight_spectrum(linear(0.1 * torch.randn(*shape, dtype=torch.float64)), n_permutations=0).layers[0]
    assert found.main is not None
    assert found.main.ks < 4 / min(shape)
    assert found.main.n_outliers == 0
    assert found.entry_ks < 1.5 * found.entry_ks_null
    assert abs(found.kurtosis) < 4 * found.kurtosis_error
    assert found.main.edge == pytest.approx(0.1 * (math.sqrt(shape[0]) + math.sqrt(shape[1])), rel=0.01)


@pytest.mark.parametrize("kernel", [3, 4, (2, 5)])
def test_frequencies_are_the_convolution_on_a_torus(kernel: int | tuple[int, int]) -> None:
    conv = nn.Conv2d(4, 6, kernel, groups=2, bias=False, dtype=torch.float64)
    height, width = conv.kernel_size
    matrices, times = frequencies(find_weights(conv)[0])  # pyright: ignore[reportGeneralTypeIssues]
    found = torch.linalg.svdvals(matrices).repeat_interleave(times, 0).flatten() * math.sqrt(height * width)
    basis = torch.eye(4 * height * width, dtype=torch.float64).view(-1, 4, height, width)
    wrapped = nn.functional.pad(basis, (0, width - 1, 0, height - 1), mode="circular")
    dense = conv(wrapped).flatten(1).detach()
    expected = torch.linalg.svdvals(dense)
    torch.testing.assert_close(found.sort().values, expected.sort().values)


def test_gaussian_kernels_follow_it_in_both_unfoldings() -> None:
    conv = nn.Conv2d(32, 64, 3)
    nn.init.normal_(conv.weight)
    filters, frequencies_ = weight_spectrum(conv, n_permutations=0).layers[0].spectra
    assert (filters.unfolding, filters.shorter, filters.longer, filters.n_values) == ("filters", 64, 288, 64)
    assert (frequencies_.shorter, frequencies_.longer, frequencies_.n_values) == (32, 64, 288)
    assert filters.ks < 0.06
    assert frequencies_.ks < 0.03
    assert filters.n_outliers == frequencies_.n_outliers == 0


@pytest.mark.parametrize("strength", [1.3, 2.0, 4.0])
def test_a_planted_spike_is_where_theory_puts_it(strength: float) -> None:
    """Baik, Ben Arous and Peche; the singular value: Benaych-Georges and Nadakuditi 2012."""
    p, n = 300, 600
    q, s = p / n, 0.05
    u, v = nn.functional.normalize(torch.randn(p), dim=0), nn.functional.normalize(torch.randn(n), dim=0)
    weight = s * (torch.randn(p, n) + strength * math.sqrt(n) * torch.outer(u, v))
    found = weight_spectrum(linear(weight.double()), n_permutations=0).layers[0].main
    assert found is not None
    expected = math.sqrt((1 + strength**2) * (q + strength**2)) / strength / (1 + math.sqrt(q))
    assert found.n_outliers == 1
    assert found.largest == pytest.approx(expected, rel=0.03)
    assert found.outliers == (found.largest,)
    share = (expected * (1 + math.sqrt(q))) ** 2 / (p + strength**2)
    assert found.outlier_energy == pytest.approx(share, rel=0.06)
    assert found.ks_bulk < 0.02


def test_a_spike_below_the_transition_is_not_seen() -> None:
    p, n = 300, 600
    u, v = nn.functional.normalize(torch.randn(p), dim=0), nn.functional.normalize(torch.randn(n), dim=0)
    weight = torch.randn(p, n) + 0.6 * (p / n) ** 0.25 * math.sqrt(n) * torch.outer(u, v)
    assert weight_spectrum(linear(weight), n_permutations=0).layers[0].main.n_outliers == 0  # pyright: ignore


def test_many_strong_spikes_do_not_hide_the_bulk() -> None:
    p, n, rank = 120, 200, 10
    spikes = 8 * math.sqrt(n) * torch.linalg.qr(torch.randn(p, rank))[0] @ torch.linalg.qr(torch.randn(n, rank))[0].T
    found = weight_spectrum(linear(torch.randn(p, n) + spikes)).layers[0].main
    assert found is not None
    assert found.n_outliers == rank
    assert found.edge == pytest.approx(math.sqrt(p - rank) + math.sqrt(n - rank), rel=0.02)
    assert found.ks > 5 * found.ks_bulk
    assert found.is_random_like is False


def test_outliers_are_rare_in_gaussian_matrices() -> None:
    rng = np.random.default_rng(0)
    matrices = rng.normal(size=(1500, 20, 40))
    values = np.linalg.eigvalsh(matrices @ matrices.swapaxes(1, 2))
    n_false = sum(split_bulk(row, 20, 40).n_outliers > 0 for row in values)
    assert n_false / 1500 < 0.006


def test_the_null_is_calibrated() -> None:
    """p-values of random matrices with entries of any distribution are uniform: 40 seeds, Kolmogorov-Smirnov at 1 %."""
    p_values = []
    for seed in range(40):
        torch.manual_seed(seed)
        weight = torch.randn(12, 16) if seed % 2 else torch.rand(12, 16) - 0.5
        permuted = weight_spectrum(linear(weight), seed=seed).layers[0].main.permuted  # pyright: ignore
        assert permuted is not None
        p_values.append(permuted.p_value)
    steps = np.arange(1, 41) / 40
    assert np.abs(np.sort(p_values) - steps).max() < 1.63 / math.sqrt(40) + 0.05  # steps of 1 / 20
    assert np.mean(np.array(p_values) <= 0.05) < 0.15


def test_large_entries_are_told_from_structure() -> None:
    weight = torch.randn(60, 80)
    weight.view(-1)[torch.randperm(4800)[:8]] = 60.0
    found = weight_spectrum(linear(weight))
    spectrum = found.layers[0].main
    assert spectrum is not None
    assert spectrum.n_outliers >= 5
    assert spectrum.is_random_like
    assert any("random order keeps them" in f.sentence for f in found.findings)


def test_an_exponent_is_the_maximum_likelihood_one() -> None:
    alpha, x_min = 2.7, 0.3
    sample = x_min * (1 - np.random.default_rng(1).random(4000)) ** (-1 / (alpha - 1))
    found = fit_power_law(sample, x_min)
    assert found is not None
    assert found.alpha == pytest.approx(1 + len(sample) / sum(math.log(x / x_min) for x in sample), rel=1e-12)
    assert found.low < alpha < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * (found.alpha - 1) / math.sqrt(4000), rel=0.02)


def test_the_tail_starts_where_the_distance_is_smallest() -> None:
    rng = np.random.default_rng(2)
    tail = 1.0 * (1 - rng.random(100)) ** (-1 / 1.5)
    sample = np.concatenate([rng.uniform(0.1, 1.0, 60), tail])
    x = np.sort(sample)
    distances = []
    for start in range(len(x) - MIN_TAIL + 1):
        part = x[start:]
        alpha = 1 + len(part) / np.log(part / part[0]).sum()
        cdf = 1 - (part / part[0]) ** (1 - alpha)
        n = len(part)
        distances.append(max(max((i + 1) / n - c, c - i / n) for i, c in enumerate(cdf)))
    found = fit_power_law(sample)
    assert found is not None
    assert found.ks == pytest.approx(min(distances), rel=1e-9)
    assert found.x_min == x[int(np.argmin(distances))]
    assert found.low < 2.5 < found.high


def test_the_interval_covers() -> None:
    rng = np.random.default_rng(3)
    fits = [fit_power_law((1 - rng.random(30)) ** -1.0, 1.0) for _ in range(400)]
    share = np.mean([fit is not None and fit.low < 2.0 < fit.high for fit in fits])
    assert 0.92 < share < 0.98


def test_too_few_values_have_no_exponent() -> None:
    assert fit_power_law(np.arange(1.0, MIN_TAIL)) is None
    assert fit_power_law(np.ones(50)) is None
    assert fit_power_law(np.zeros(50)) is None


def test_an_untrained_network_is_random_like_and_uniform() -> None:
    found = weight_spectrum(nn.Sequential(*(nn.Linear(64, 48) for _ in range(6))))
    sentences = " ".join(f.sentence for f in found.findings)
    assert "Random-like: " in sentences
    assert "default initialization" in sentences
    assert "say nothing here" in sentences
    assert all(f.severity == "note" for f in found.findings)


def test_what_is_found_in_many_networks() -> None:
    attention = nn.TransformerEncoderLayer(16, 2, 32)
    names = [weight.name for weight in find_weights(attention)]
    assert names[:4] == ["self_attn query", "self_attn key", "self_attn value", "self_attn.out_proj"]
    assert len(names) == 6
    assert [w.name for w in find_weights(nn.LSTM(8, 8))] == [
        "the network"[:0] + n for n in ("weight_ih_l0", "weight_hh_l0")
    ]
    tied = nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9))
    tied[1].weight = tied[0].weight
    assert len(find_weights(tied)) == 1
    assert [
        w.name for w in find_weights(nn.Sequential(nn.Embedding(30, 8), nn.Linear(8, 8), nn.LayerNorm((8, 8))))
    ] == ["1"]
    pruned = prune.l1_unstructured(nn.Linear(20, 20), "weight", amount=0.5)
    assert weight_spectrum(pruned, n_permutations=0).layers[0].zeros == 0.5


def test_weights_as_they_are_computed_with() -> None:
    from invertible.layers import ScaledStdConv2d

    conv = ScaledStdConv2d(8, 16, 3)
    torch.testing.assert_close(find_weights(conv)[0].values, conv.standardized().detach())
    normed = nn.utils.parametrizations.spectral_norm(nn.Linear(40, 40)).eval()
    assert [weight.name for weight in find_weights(normed)] == [""]
    top = weight_spectrum(normed, n_permutations=0).layers[0].main
    assert top is not None
    assert top.largest * top.edge == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("name", NETWORKS)
def test_any_network(name: str) -> None:
    model, _ = NETWORKS[name]()
    found = weight_spectrum(model, n_permutations=2)
    assert {layer.name for layer in found.layers} >= {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    columns = [list(row) for row in found.table]
    assert all(row == columns[0] for row in columns)


def test_broken_weights_are_findings() -> None:
    net = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20), nn.Linear(20, 20), nn.Linear(20, 3))
    with torch.no_grad():
        net[0].weight[0, 0] = float("nan")
        net[1].weight.zero_()
        net[2].weight[10:] = net[2].weight[:10]
    found = weight_spectrum(net)
    severities = [(f.severity, f.sentence) for f in found.findings]
    assert severities[0][0] == "error"
    assert "0 holds NaN" in severities[0][1]
    warnings = " ".join(text for severity, text in severities if severity == "warning")
    assert "All entries of 1 are 0" in warnings
    assert "2: rank 10 of 20" in warnings
    assert any("Too small for a spectrum: 3" in text for _, text in severities)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    weight = torch.randn(40, 50, dtype=dtype)
    expected = np.linalg.svd(weight.double().numpy())[1].max()
    found = weight_spectrum(linear(weight), n_permutations=0).layers[0].main
    assert found is not None
    assert found.largest * found.edge == pytest.approx(expected, rel=1e-10)


def test_a_budget_ends_it() -> None:
    net = nn.Sequential(*(nn.Linear(30, 30) for _ in range(5)))
    found = weight_spectrum(net, seconds=1e-9)
    assert found.is_partial
    assert len(found.layers) == 1
    assert found.n_permutations == 0
    assert "seconds=1e-09, after 1 of 5 weights" in found.provenance.stopped  # pyright: ignore
    assert any("no telling" in f.sentence for f in found.findings)


def test_equal_seeds_give_equal_results_and_files(tmp_path) -> None:
    net = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Linear(12, 12))
    first, second = weight_spectrum(net, seed=3), weight_spectrum(net, seed=3)
    assert first == second
    assert first != weight_spectrum(net, seed=4)
    first.save(tmp_path / "a.json")
    assert WeightSpectrum.load(tmp_path / "a.json") == first == Result.load(tmp_path / "a.json")
    first.save_csv(tmp_path / "a.csv")
    first.save_plot(tmp_path / "a.png", dpi=40)


def test_pictures() -> None:
    import matplotlib.pyplot as plt

    net = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Linear(12, 12), nn.Linear(3, 3))
    early, late = weight_spectrum(net, n_permutations=2), weight_spectrum(net, n_permutations=0)
    axes = early.compare(late, labels=["before", "after"])
    assert axes.get_ylabel().startswith("KS distance")
    assert {*early.curves} == {"ks", "largest", "outlier energy", "kurtosis"}
    assert len(early.plot_layers().axes) == 9
    assert len(early.plot_layers(["0"]).axes) == 3
    given = plt.subplots()[1]
    assert late.plot(given) is given
    with pytest.raises(ConfigError, match=r"no such weight.*expected 0 or 2 or 3, got conv"):
        early.plot_layers(["conv"])
    plt.close("all")


@pytest.mark.usefixtures("unchecked")
def test_mistakes_are_said() -> None:
    with pytest.raises(ConfigError, match=r"no weight of a linear map.*got ReLU"):
        weight_spectrum(nn.ReLU())
    with pytest.raises(ConfigError, match=r"cannot permute so often.*got -1"):
        weight_spectrum(nn.Linear(9, 9), n_permutations=-1)
    with pytest.raises(ConfigError, match=r"seconds > 0, got 0"):
        weight_spectrum(nn.Linear(9, 9), seconds=0)
    with pytest.raises(ConfigError, match=r"no module 'conv'"):
        weight_spectrum(nn.Linear(9, 9), layers="conv")
    with pytest.raises(ConfigError, match=r"no values \(meta\)"):
        weight_spectrum(nn.Linear(9, 9, device="meta"))
    with pytest.raises(DtypeError, match="instruments measure modules"):
        weight_spectrum(torch.zeros(3, 3))  # pyright: ignore[reportArgumentType]


def test_the_registry_knows_it() -> None:
    assert isinstance(INSTRUMENTS["weight_spectrum"].measure(nn.Linear(9, 9)), WeightSpectrum)
    assert not INSTRUMENTS["weight_spectrum"].refusal(nn.Linear(9, 9), has_data=False)
    assert frequencies(Weight("", "Linear", torch.zeros(3, 3))) is None

"""The information plane against closed forms, counts by hand, and what its findings may say."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from invertible import layers
from invertible.chain import Chain
from invertible.errors import ConfigError, DataError, DtypeError, NonFiniteError, RangeError, ShapeError
from invertible.instruments import (
    InformationLog,
    InformationPlane,
    InformationPlaneRecorder,
    InformationTrajectory,
    Result,
    Sweep,
    binned_gaussian_information,
    binned_information,
    information_plane,
    kde_information,
    linear_gaussian_information,
    log_schedule,
)
from invertible.instruments._information_gradients import GradientMoments, phases_of
from invertible.instruments._information_rows import LayerGradient
from measured_networks import NETWORKS

FUNCTIONS = {"tanh": torch.tanh, "relu": torch.relu, "sigmoid": torch.sigmoid, "identity": lambda x: x}
SMALL = {"n_bins": (4,), "sigma2": (0.01,), "n_shuffles": 2}


def cube(n_bits: int) -> Tensor:
    return torch.tensor(list(itertools.product((-1.0, 1.0), repeat=n_bits)))


def tanh_net(*widths: int) -> nn.Sequential:
    pairs = [(nn.Linear(n, m), nn.Tanh()) for n, m in itertools.pairwise(widths)]
    return nn.Sequential(*itertools.chain(*pairs))


# Closed forms


def test_one_tanh_unit_peaks_and_falls_and_relu_only_rises() -> None:
    weights = [0.1 * 1000 ** (i / 60) for i in range(61)]
    tanh = [binned_gaussian_information("tanh", w) for w in weights]
    relu = [binned_gaussian_information("relu", w) for w in weights]
    assert binned_gaussian_information("tanh", 0.871) == pytest.approx(4.900, abs=5e-4)
    assert max(tanh) < 4.9005
    assert tanh[-1] == pytest.approx(1.15, abs=5e-3)
    assert (relu[0], relu[-1]) == pytest.approx((1.14, 6.80), abs=6e-3)
    assert all(a < b for a, b in itertools.pairwise(relu))


@pytest.mark.parametrize("weight", [0.3, 3.0])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_bins_come_out_at_the_closed_form(name: str, weight: float) -> None:
    # Quantiles instead of draws: X ~ N(0, 1) without noise of sampling.
    x = torch.special.ndtri((torch.arange(50_000, dtype=torch.float64) + 0.5) / 50_000).unsqueeze(1)
    found = binned_information(FUNCTIONS[name](weight * x))
    assert float(found.inputs) == pytest.approx(binned_gaussian_information(name, weight), abs=2e-3)


def test_kernels_bracket_a_linear_network_with_noise() -> None:
    weight = torch.randn(3, 4, dtype=torch.float64)
    x = torch.randn(1500, 4, dtype=torch.float64) / 2
    upper, lower = kde_information(x @ weight.T, sigma2=0.5)
    assert float(lower.inputs) < linear_gaussian_information(weight, sigma2=0.5) < float(upper.inputs)


def test_deep_linear_closed_form_is_the_two_log_determinants() -> None:
    weight = torch.randn(5, 8, dtype=torch.float64)
    inside = weight @ weight.T / 8 + 0.1 * torch.eye(5, dtype=torch.float64)
    expected = (torch.logdet(inside).item() - 5 * math.log(0.1)) / (2 * math.log(2))
    assert linear_gaussian_information(weight, sigma2=0.1) == pytest.approx(expected, rel=1e-12)
    assert linear_gaussian_information(weight, torch.eye(8) / 8, sigma2=0.1) == pytest.approx(expected, rel=1e-6)


# Estimators


def by_hand(h: Tensor, y: Tensor, n_bins: int) -> tuple[float, float]:
    keys = [tuple(math.floor((v + 1) * n_bins / 2) for v in row) for row in h.tolist()]

    def entropy(items: list) -> float:
        return -sum(c / len(items) * math.log2(c / len(items)) for c in Counter(items).values())

    labels = y.tolist()
    conditional = sum(
        labels.count(c) / len(labels) * entropy([k for k, label in zip(keys, labels, strict=True) if label == c])
        for c in set(labels)
    )
    return entropy(keys), entropy(keys) - conditional


def test_joint_patterns_are_counted_right() -> None:
    h, y = torch.randn(3, 400, 2).tanh() * 0.99, torch.randint(3, (400,))
    found = binned_information(h, y, n_bins=5)
    for i in range(3):
        assert (float(found.inputs[i]), float(found.labels[i])) == pytest.approx(by_hand(h[i], y, 5), abs=1e-12)


def test_kernels_are_the_formula() -> None:
    h, y = torch.randn(2, 60, 3, dtype=torch.float64), torch.randint(2, (60,))
    found = kde_information(h, y, sigma2=0.3)

    def one(x: Tensor, scale: float) -> float:
        squares = (x[:, None] - x[None]).square().sum(2)
        return float(-(torch.logsumexp(-squares / (2 * scale), 1) - math.log(len(x))).mean() / math.log(2))

    for bits, scale in zip(found, (0.3, 1.2), strict=True):
        for i in range(2):
            parts = sum(float((y == c).double().mean()) * one(h[i, y == c], scale) for c in (0, 1))
            assert float(bits.inputs[i]) == pytest.approx(one(h[i], scale), abs=1e-5)
            assert float(bits.labels[i]) == pytest.approx(one(h[i], scale) - parts, abs=1e-5)


def test_ends_of_the_span_and_beyond() -> None:
    saturated = torch.tensor([[-1.0], [1.0], [0.9999], [-0.9999]])
    assert float(binned_information(saturated).inputs) == 1.0
    far = torch.tensor([[0.0], [10.0], [10.01], [1e6]])  # a fixed grid goes on; an adaptive one sees the outlier only
    assert float(binned_information(far).inputs) == pytest.approx(1.5)
    assert float(binned_information(far, span="adaptive").inputs) == pytest.approx(2 - 0.75 * math.log2(3))
    scaled = torch.randn(500, 2)
    wide, narrow = (binned_information(x, span="adaptive").inputs for x in (scaled, scaled * 1000))
    assert float(wide) == pytest.approx(float(narrow), abs=0.05)


def test_constant_and_different_activations() -> None:
    y = torch.arange(64) % 2
    for span in ((-1.0, 1.0), "adaptive"):
        assert [float(v) for v in binned_information(torch.full((64, 3), 0.2), y, span=span)] == [0.0, 0.0]
    far_apart = 10 * torch.arange(64.0).unsqueeze(1)
    upper, lower = kde_information(far_apart, y)
    assert (float(binned_information(far_apart).inputs), float(lower.inputs)) == pytest.approx((6.0, 6.0), abs=1e-9)
    assert float(upper.labels) == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_any_precision_and_layout(dtype: torch.dtype) -> None:
    h = cube(4).to(dtype).T.contiguous().T  # not contiguous
    assert not h.is_contiguous()
    assert float(binned_information(h.requires_grad_(), n_bins=2).inputs) == 4.0
    assert float(kde_information(h)[1].inputs) == pytest.approx(4.0, abs=1e-5)
    assert h.grad is None


def test_estimators_refuse() -> None:
    h, y = torch.randn(8, 2), torch.arange(8) % 2
    with pytest.raises(NonFiniteError, match="activations"):
        binned_information(torch.full((4, 1), math.nan))
    with pytest.raises(ShapeError, match=r"h.unsqueeze\(1\)"):
        binned_information(torch.randn(8))
    with pytest.raises(ShapeError, match="not empty"):
        kde_information(torch.randn(0, 3))
    with pytest.raises(DtypeError, match="real numbers"):
        binned_information(torch.ones(4, 2, dtype=torch.int64))
    with pytest.raises(RangeError, match="1 below 0, the least -1"):
        binned_information(h, torch.tensor([-1, 0, 0, 0, 1, 1, 1, 1]))
    with pytest.raises(RangeError, match="whole numbers"):
        kde_information(h, y.float())
    with pytest.raises(ShapeError, match="one-hot"):
        binned_information(h, nn.functional.one_hot(y))
    with pytest.raises(RangeError, match="too far away"):
        binned_information(torch.tensor([[0.0], [1e30]]))
    with pytest.raises(ConfigError, match="low < high"):
        binned_information(h, span=(1.0, 1.0))
    with pytest.raises(ConfigError, match="variances above 0"):
        kde_information(h, sigma2=0.0)
    with pytest.raises(ConfigError, match="weight > 0"):
        binned_gaussian_information("tanh", 0.0)


# The instrument


def two_bits_of_three() -> tuple[nn.Sequential, Tensor, Tensor]:
    """Tells the first two bits, sharply; the label is the first."""
    network = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Tanh(), nn.Linear(2, 2), nn.Softmax(1))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]]))
    return network, cube(3), (cube(3)[:, 0] > 0).long()


def test_a_network_that_tells_two_bits_of_three() -> None:
    network, x, y = two_bits_of_three()
    found = information_plane(network, (x, y))
    hidden, out = found.places
    assert (hidden.place, out.place) == ("1", "3")
    assert all(bits == pytest.approx(2.0, abs=1e-3) for bits in hidden.inputs)
    assert all(bits == pytest.approx(1.0, abs=1e-3) for bits in hidden.labels)
    assert (hidden.unmeasured, hidden.duplicates) == (2.0, 0.5)
    assert (found.about.ceiling, found.about.input_bits, found.about.label_bits) == (3.0, 3.0, 1.0)
    assert hidden.within < hidden.between
    assert len(found.table) == 2 * 12
    assert found.curves["I(X;T)"].y[0] == 2.0


def test_shuffled_labels_and_the_ceiling_are_said() -> None:
    x, y = torch.randn(200, 5), torch.arange(200) % 2
    found = information_plane(tanh_net(5, 20), (x, y))
    place = found.places[0]
    assert place.labels[0] == pytest.approx(1.0)  # random labels, and 1 bit: each example has a pattern of its own
    assert place.shuffled[0] == pytest.approx(1.0)
    text = " ".join(f.sentence for f in found.findings)
    assert "a pattern of its own" in text
    assert "not above that of shuffled labels" in text


def test_what_is_heard() -> None:
    x, y = torch.randn(40, 3), torch.arange(40) % 2
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    found = information_plane(network, (x, y), **SMALL)
    assert [place.place for place in found.places] == ["1", "3", "4"]
    assert found.about.linear == ()  # but for the logits
    own = information_plane(network, (x, y), layers=["0"], **SMALL)
    assert "heard before any nonlinearity" in " ".join(f.sentence for f in own.findings)
    with pytest.raises(ConfigError, match="no module 'fc'"):
        information_plane(network, (x, y), layers="fc")


@pytest.mark.parametrize("name", ["returns a dict", "returns a tuple", "blocks return tuples", "float64", "RevNet"])
def test_networks_of_all_kinds(name: str) -> None:
    model, shape = NETWORKS[name]()
    data = [(torch.randn(8, *shape), torch.arange(8) % 2) for _ in range(2)]
    found = information_plane(model, data, **SMALL)
    assert all(0 <= bits <= 4 + 1e-9 for place in found.places for bits in place.inputs)
    assert found.provenance is not None
    assert found.provenance.n_examples == 16


def test_an_invertible_network_keeps_all_by_construction() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Chain(*(layers.AdditiveCoupling(nn.Linear(2, 2)) for _ in range(2)))
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x))

    x, y = torch.randn(64, 4), torch.arange(64) % 2
    found = information_plane(Net(), (x, y), layers=["body", "head"], **SMALL)
    assert found.about.invertible == ("body",)
    assert found.about.keeps_input
    text = " ".join(f.sentence for f in found.findings)
    assert "I(X; T) = H(X) by construction, 6.000 bits" in text
    assert found.places[0].unmeasured == found.about.input_bits == 6.0
    network = information_plane(Net(), (x, y), layers="body*", **SMALL)  # members are, a coupling's own network is not
    assert {"body"} < set(network.about.invertible)
    assert all(name.count(".") <= 1 for name in network.about.invertible)


def test_bad_input() -> None:
    network, x, y = two_bits_of_three()
    with pytest.raises(ConfigError, match="needs labels"):
        information_plane(network, x)
    with pytest.raises(ConfigError, match=r"two or more, got class 1 only"):
        information_plane(network, (x, torch.ones(8, dtype=torch.int64)))
    with pytest.raises(RangeError, match="labels out of range"):
        information_plane(network, (x, y - 1))
    with pytest.raises(RangeError, match=r"0 to 1, got up to 2"):
        information_plane(network, (x, y + 1), n_classes=2)
    with pytest.raises(RangeError, match="whole numbers"):
        information_plane(network, (x, y.float()))
    with pytest.raises(DataError, match="got no data"):
        information_plane(network, [])
    with pytest.raises(NonFiniteError, match="the data"):
        information_plane(network, (torch.full((8, 3), math.nan), y))
    with pytest.raises(ConfigError, match="bad n_bins"):
        information_plane(network, (x, y), n_bins=())
    with pytest.raises(ConfigError, match="bad n_examples"):
        information_plane(network, (x, y), n_examples=1)
    used_up = iter([(x, y)])
    list(used_up)
    with pytest.raises(DataError, match="got no data"):
        information_plane(network, used_up)
    with torch.no_grad():
        network[0].weight.fill_(math.nan)
    with pytest.raises(NonFiniteError, match="1, after Sequential computed it"):
        information_plane(network, (x, y))


def test_saved_drawn_compared(tmp_path) -> None:
    network, x, y = two_bits_of_three()
    found = information_plane(network, [(x, y)] * 3, **SMALL)
    found.save(tmp_path / "plane.json")
    assert InformationPlane.load(tmp_path / "plane.json") == found
    assert "16 of 24 inputs come twice" in " ".join(f.sentence for f in found.findings)
    assert "4 bins, fixed" in found.plot().get_xlabel()
    assert len(found.compare(found, curve="I(T;Y), KDE lower").lines) == 2


# Over a training


def trained(recorder_options: dict | None) -> tuple[nn.Module, InformationTrajectory | None]:
    torch.manual_seed(0)
    network, x = tanh_net(6, 5, 2), cube(6)
    y = (x[:, :3].sum(1) > 0).long()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    recorder = None if recorder_options is None else InformationPlaneRecorder(network, (x, y), **recorder_options)

    def train() -> None:
        for epoch in range(6):
            for rows in torch.randperm(64).split(16):
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
                optimizer.step()
            if recorder is not None:
                recorder(epoch + 1)

    if recorder is None:
        train()
        return network, None
    recorder(0)
    with recorder.following(optimizer):
        train()
    assert not optimizer._optimizer_step_pre_hooks
    return network, recorder.result


def test_a_training_goes_on_as_if_nobody_looked(tmp_path) -> None:
    alone, _ = trained(None)
    watched, found = trained({"schedule": lambda epoch: epoch % 2 == 0, **SMALL})
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), watched.parameters(), strict=True))
    assert found is not None
    assert found.epochs == (0, 2, 4, 6)
    assert [layer.layer for layer in found.snapshots[0].gradients] == ["0", "2"]
    assert found.snapshots[-1].gradients == ()
    found.save(tmp_path / "trajectory.json")
    assert Result.load(tmp_path / "trajectory.json") == found
    assert len(found.table) == 4 * 2 * 4
    assert "I(X;T) 3" in found.curves
    assert found.plot().get_ylabel() == "I(T; Y), bits"
    assert set(found.pictures) == {"kde_upper", "sweep", "gradients"}
    found.plot_gradients()
    found.plot_sweep(place="1")


def test_the_schedule_is_the_papers() -> None:
    wanted = [*range(20), *range(20, 100, 5), *range(100, 2000, 20), *range(2000, 10_001, 100)]
    assert [epoch for epoch in range(10_001) if log_schedule(epoch)] == wanted


def sharpened(factors: list[float], labels: Tensor, **sweep) -> InformationTrajectory:
    """A layer of two tanh units whose weights grow: activations cluster, and the bit of the label stays."""
    h = torch.linspace(-1, 1, 256).unsqueeze(1) * torch.tensor([[1.0, 0.7]]) + 1e-3
    log = InformationLog(labels, h, sweep=Sweep((30,), sigma2=(1e-3,), n_kernel=256, n_shuffles=5, **sweep))
    for epoch, factor in enumerate(factors):
        log.record(epoch, {"layer": (factor * h).tanh()})
    return log.result()


def sentences(found: InformationTrajectory) -> str:
    return " ".join(finding.sentence for finding in found.findings)


def test_a_fall_under_all_measurements_is_said_in_those_words() -> None:
    labels = (torch.arange(256) >= 128).long()
    found = sharpened([1.0, 2.0, 4.0, 16.0, 200.0], labels)
    assert all(fall.is_clear for fall in found.falls)
    assert "At layer the discretised entropy under measurement M falls for every M of the sweep" in sentences(found)


def test_nothing_is_said_where_measurements_disagree_or_labels_do_not_count() -> None:
    labels = (torch.arange(256) >= 128).long()
    # Growing without saturating: the adaptive grid stays, the fixed one and kernels see more and more.
    h = torch.linspace(-1, 1, 256).unsqueeze(1)
    log = InformationLog(labels, h, sweep=Sweep((30,), sigma2=(1e-3,), n_shuffles=5))
    for epoch, outlier in enumerate((1.0, 1.0, 30.0)):
        places = h.clone()
        places[-1] = outlier
        log.record(epoch, {"layer": places})
    assert "the measurements disagree" in sentences(log.result())
    assert "for every M" not in sentences(log.result())
    by_chance = sharpened([1.0, 2.0, 4.0, 16.0, 200.0], torch.arange(256) % 2)
    assert "nothing is said about classes" in sentences(by_chance)
    rising = sharpened([0.01, 0.1, 0.5], labels)
    assert "falls under none" in sentences(rising)
    for found in (by_chance, rising, log.result()):
        assert "compress" not in sentences(found)


def test_many_networks_have_intervals() -> None:
    x = cube(8)
    log = InformationLog(torch.arange(256) % 2, x, sweep=Sweep((30,), sigma2=(1e-3,), n_shuffles=1), n_networks=3)
    weights = torch.randn(3, 8, 2)
    log.record(0, {"layer": (0.3 * (x @ weights)).tanh()})
    log.record(5, {"layer": (30 * (x @ weights)).tanh()})
    fall = log.result().falls[0]
    each = [
        float(binned_information((0.3 * (x @ w)).tanh()).inputs - binned_information((30 * (x @ w)).tanh()).inputs)
        for w in weights
    ]
    assert fall.fall == pytest.approx(sum(each) / 3, abs=1e-9)
    assert fall.interval == pytest.approx(4.302653 * torch.tensor(each).std().item() / math.sqrt(3), rel=1e-4)


def test_recorders_refuse() -> None:
    network, x, y = two_bits_of_three()
    with pytest.raises(ConfigError, match=r"no such option.*bins"):
        InformationPlaneRecorder(network, (x, y), bins=3)
    recorder = InformationPlaneRecorder(network, iter([(x, y)]), **SMALL)  # kept, so that once is enough
    with pytest.raises(ConfigError, match="nothing was recorded"):
        _ = recorder.result
    recorder(3)
    with pytest.raises(ConfigError, match="have to ascend"):
        recorder(3)
    with torch.no_grad():
        network[0].weight.fill_(math.nan)
    with pytest.raises(NonFiniteError, match="1, after Sequential"):
        recorder(4)
    log = InformationLog(y)
    with pytest.raises(ShapeError, match="other examples"):
        log.record(0, {"layer": torch.zeros(7, 2)})
    with pytest.raises(NonFiniteError, match="layer") as caught:
        log.record(2, {"layer": torch.full((8, 2), math.inf)})
    assert "This was epoch 2." in caught.value.__notes__


# Gradients


def test_mean_and_deviation_over_batches_for_one_and_many() -> None:
    gradients = torch.randn(7, 2, 5)
    moments = GradientMoments(n_networks=2)
    for gradient in gradients:
        moments.add({"layer": [gradient]})
    found = moments.layers({"layer": 1.0})[0]
    means = gradients.mean(0).norm(dim=1)
    deviations = gradients.var(0, correction=0).sum(1).sqrt()
    assert found.mean == pytest.approx(means.mean().item(), rel=1e-5)
    assert found.deviation == pytest.approx(deviations.mean().item(), rel=1e-5)
    assert found.ratio == pytest.approx((means / deviations).log().mean().exp().item(), rel=1e-5)
    with pytest.raises(NonFiniteError, match="gradient of layer"):
        moments.add({"layer": [torch.full((2, 5), math.nan)]})


def test_the_turn_from_drift_to_diffusion() -> None:
    def at(*ratios: float) -> tuple:
        return tuple((LayerGradient("0", 1.0, 1.0, ratio, 1.0),) for ratio in ratios)

    assert phases_of([0, 1, 5, 9], at(3, 0.5, 2, 0.9))[0].turn == 9
    assert phases_of([0, 1, 5, 9], at(3, 0.5, 0.2, 0.9))[0].turn == 1
    assert phases_of([0, 1], at(3, 2))[0].turn == -1
    assert phases_of([0, 1], at(math.inf, math.inf)) == ()  # full batch: no deviation

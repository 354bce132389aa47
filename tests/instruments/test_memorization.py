"""The memorisation battery: draws against their definition, times to fit by hand, nothing of the caller's touched."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from invertible.errors import ConfigError, DataError, DtypeError, NonFiniteError, RangeError, ShapeError
from invertible.instruments import Memorization, Result, SGDFit, memorization
from invertible.instruments._estimates import newcombe, over_seeds, share_of, wilson
from invertible.instruments._memorization_conditions import NAMED, Draws, corrupted, normalised
from invertible.instruments.memorization import joined

TRUE_AND_RANDOM = {"conditions": ("true labels", "random labels"), "corruptions": (), "quiet": True}


def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 128), nn.ReLU(), nn.Linear(128, 3))


def images(n: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (n,), generator=generator)
    x = torch.randn(n, 1, 4, 4, generator=generator)
    return (x + 4 * torch.eye(3)[y].repeat(1, 6)[:, :16].reshape(n, 1, 4, 4)).to(dtype), y


def as_set(x: torch.Tensor, y: torch.Tensor) -> TensorDataset:
    return TensorDataset(x, y)


DATA = (images(60), images(90, 1))
FIT = SGDFit(epochs=150, batch_size=15, lr=0.05, decay=1.0)


# Conditions -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.25, 0.5, 1.0])
def test_a_share_p_of_c_minus_1_over_c_of_the_labels_changes(p):
    n, n_classes = 20_000, 5
    y = torch.arange(n) % n_classes
    draws = Draws(as_set(torch.zeros(n, 1), y), as_set(torch.zeros(1, 1), y[:1]), n_classes, seed=3)
    found = draws.labels(p)
    expected = p * (n_classes - 1) / n_classes
    error = math.sqrt(expected * (1 - expected) / n)
    assert abs(float((found != y).double().mean()) - expected) < 4 * error
    others = torch.bincount((found - y)[found != y] % n_classes, minlength=n_classes)[1:]
    assert (others / others.sum() - 1 / (n_classes - 1)).abs().max() < 5 * math.sqrt(0.2 / (n * expected))


def test_draws_are_fixed_nested_and_their_own():
    (x, y), (x_test, y_test) = DATA
    draws = Draws(as_set(x, y), as_set(x_test, y_test), 3, seed=0)
    again = Draws(as_set(x, y), as_set(x_test, y_test), 3, seed=0)
    other = Draws(as_set(x, y), as_set(x_test, y_test), 3, seed=1)
    few, many = draws.labels(0.3), draws.labels(0.8)
    assert torch.equal(few, again.labels(0.3))
    assert not torch.equal(few, other.labels(0.3))
    assert torch.equal(many[few != y], few[few != y])
    for condition in NAMED.values():
        first, second = draws.spoilt(condition, "none"), again.spoilt(condition, "none")
        assert all(torch.equal(a, b) for i in (0, 1) for a, b in zip(first[i].tensors, second[i].tensors, strict=True))
        assert torch.equal(first[1].tensors[1], y_test)


def test_one_permutation_for_training_and_test_and_all_channels():
    marked = torch.arange(16.0).reshape(1, 1, 4, 4).repeat(5, 2, 1, 1)
    draws = Draws(as_set(marked, torch.zeros(5).long()), as_set(marked[:3], torch.zeros(3).long()), 2, seed=0)
    train, test = (part.tensors[0] for part in draws.spoilt(NAMED["shuffled pixels"], "none"))
    order = train[0, 0].flatten()
    assert sorted(order.tolist()) == list(range(16))
    assert order.tolist() != list(range(16))
    assert (train.flatten(2) == order).all()
    assert (test.flatten(2) == order).all()


def test_a_fresh_permutation_for_each_image():
    marked = torch.arange(16.0).reshape(1, 1, 4, 4).repeat(5, 2, 1, 1)
    draws = Draws(as_set(marked, torch.zeros(5).long()), as_set(marked[:3], torch.zeros(3).long()), 2, seed=0)
    train, test = (part.tensors[0].flatten(2) for part in draws.spoilt(NAMED["random pixels"], "none"))
    orders = torch.cat([train[:, 0], test[:, 0]])
    assert len(orders.unique(dim=0)) == 8
    assert torch.equal(orders.sort().values, torch.arange(16.0).expand(8, 16))
    assert torch.equal(train[:, 0], train[:, 1])


def test_gaussian_pixels_have_the_mean_and_variance_of_each_channel():
    x = torch.rand(400, 2, 8, 8) * torch.tensor([1.0, 3.0])[:, None, None] + torch.tensor([0.0, 5.0])[:, None, None]
    draws = Draws(as_set(x, torch.zeros(400).long()), as_set(x, torch.zeros(400).long()), 2, seed=0)
    for part in draws.spoilt(NAMED["gaussian pixels"], "none"):
        noise = part.tensors[0]
        torch.testing.assert_close(noise.mean((0, 2, 3)), x.mean((0, 2, 3)), atol=0.04, rtol=0)
        torch.testing.assert_close(noise.std((0, 2, 3)), x.std((0, 2, 3)), rtol=0.02, atol=0)


@pytest.mark.parametrize("how", ["global", "pixel", "image"])
def test_normalisation_comes_after_corruption(how):
    """The pitfall: statistics of the clean images would not give the spoilt ones mean 0 and variance 1."""
    (x, y), (x_test, y_test) = DATA
    draws = Draws(as_set(x, y), as_set(x_test, y_test), 3, seed=0)
    found = draws.spoilt(NAMED["random pixels"], how)[0].tensors[0]
    dims = {"global": (0, 1, 2, 3), "pixel": (0,), "image": (1, 2, 3)}[how]
    torch.testing.assert_close(found.mean(dims), torch.zeros_like(found.mean(dims)), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std(dims, correction=0), torch.ones_like(found.mean(dims)), atol=1e-4, rtol=0)


def test_pixels_that_never_change_stay_finite():
    x = torch.zeros(4, 3)
    x[:, 0] = torch.arange(4.0)
    for how in ("global", "pixel", "image"):
        assert torch.isfinite(torch.cat(normalised(x, x, how))).all()


@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan")])
def test_no_such_share(p):
    with pytest.raises(ConfigError, match="probabilities"):
        corrupted(p)


# The battery ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found() -> Memorization:
    return memorization(net, FIT, DATA, corruptions=(0.5,), seeds=(0, 1), quiet=True)


def test_random_labels_are_memorised_and_only_true_ones_generalise(found):
    assert [row["condition"] for row in found.table] == [
        *("true labels", "corrupt(0.5)", "random labels", "shuffled pixels", "random pixels", "gaussian pixels")
    ]
    assert found.of("true labels").is_fitted
    assert found.of("true labels").test.mean > 0.9
    random_labels = found.of("random labels")
    assert random_labels.is_fitted
    assert random_labels.train.mean == 1
    assert random_labels.test.low < 1 / 3 + 0.15
    assert random_labels.epochs_to_fit.mean > 2 * found.of("true labels").epochs_to_fit.mean
    assert found.of("shuffled pixels").test.mean > 0.9
    assert found.of("corrupt(0.5)").wrong_given.mean == 1
    assert found.of("corrupt(0.5)").wrong_true.mean == 0
    assert found.of("corrupt(0.5)").wrong_true_at_best.mean > 0.5
    assert any("fits random labels" in finding.sentence for finding in found.findings)


def test_it_is_the_same_again_and_survives_its_file(found, tmp_path):
    again = memorization(net, FIT, DATA, corruptions=(), conditions=("random labels",), seeds=(1,), quiet=True)
    ours, theirs = again.of("random labels").trainings[0], found.of("random labels").trainings[1]
    assert ours.moments == theirs.moments
    found.save(tmp_path / "found.json")
    assert Result.load(tmp_path / "found.json") == found


def test_parts_are_joined(found):
    parts = [
        memorization(net, FIT, DATA, corruptions=(), conditions=(name,), seeds=(seed,), quiet=True)
        for seed in (0, 1)
        for name in ("random labels", "true labels")
    ]
    whole = joined(parts)
    assert [trained.condition.name for trained in whole.conditions] == ["true labels", "random labels"]
    assert whole.of("random labels").test == found.of("random labels").test
    with pytest.raises(ConfigError, match="belong together"):
        joined([parts[0], memorization(net, FIT, (DATA[1], DATA[0]), **TRUE_AND_RANDOM)])


def test_pictures(found):
    panels = found.plot().figure.axes
    assert len(panels) == 4
    assert len(panels[0].lines) == 12
    assert found.compare(found, curve="test error").get_xlabel() == "share of corrupted labels"
    import matplotlib.pyplot as plt

    ax = plt.figure().add_subplot()
    assert found.plot(ax) is ax


def test_time_to_fit_by_hand():
    """A fit function that sets the weights: right from its third epoch on, 4 steps each."""
    x, y = torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1])

    def fit(model, train, report):
        for epoch in range(1, 6):
            with torch.no_grad():
                model.weight.copy_(torch.tensor([[-1.0], [1.0]]) * (1 if epoch >= 3 else -1))
            if report(steps=4):
                break
        assert epoch == 3

    found = memorization(
        lambda: nn.Linear(1, 2, bias=False),
        fit,
        ((x, y), (x, y)),
        corruptions=(),
        conditions=("true labels",),
        quiet=True,
    )
    training = found.of("true labels").trainings[0]
    assert (training.epochs_to_fit, training.steps_to_fit) == (3, 12)
    assert [moment.train for moment in training.moments] == [0, 0, 1]
    assert training.chance == 0.5
    scale = 1 / float(x.std(correction=0))
    assert training.last.loss == pytest.approx(math.log(1 + math.exp(-2 * scale)), rel=1e-6)


def test_steps_of_optimizers_are_counted():
    once = SGDFit(epochs=2, batch_size=16)
    found = memorization(net, once, DATA, **TRUE_AND_RANDOM)
    assert [moment.steps for moment in found.of("random labels").trainings[0].moments] == [4, 8]


def test_what_does_not_fit_is_said():
    found = memorization(net, SGDFit(epochs=1), DATA, **TRUE_AND_RANDOM)
    training = found.of("random labels").trainings[0]
    assert training.epochs_to_fit is None
    assert found.table[1]["epochs_to_fit"] is None
    assert any("did not reach 1 within 1 epochs" in f.sentence for f in found.findings if f.severity == "warning")
    found.plot()


@pytest.mark.usefixtures("unchecked")
def test_all_conditions_of_a_seed_begin_alike_and_seeds_differ():
    began = []

    def fit(model, train, report):
        began.append((model[1].weight.sum().item(), torch.rand(1).item(), random.random(), np.random.rand()))
        report()

    memorization(net, fit, DATA, **TRUE_AND_RANDOM, seeds=(0, 1))
    assert began[0] == began[1] != began[2] == began[3]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_nothing_of_the_caller_s_is_touched(mode):
    torch.rand(3), random.random(), np.random.rand()
    x, y = images(20)
    x.requires_grad_()
    kept = x.detach().clone(), y.clone()
    states = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    with mode():
        memorization(net, SGDFit(epochs=1), ((x, y), (x, y)), **TRUE_AND_RANDOM)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert str(np.random.get_state()) == states[2]
    assert torch.equal(x, kept[0])
    assert torch.equal(y, kept[1])
    assert x.grad is None
    assert x._version == y._version == 0


def test_random_states_come_back_after_an_exception():
    state = torch.get_rng_state()

    def fit(model, train, report):
        raise KeyError("stop")

    with pytest.raises(KeyError, match="stop") as error:
        memorization(net, fit, DATA, **TRUE_AND_RANDOM)
    assert "true labels, seed 0" in error.value.__notes__[0]
    assert torch.equal(torch.get_rng_state(), state)


def test_a_budget_cuts_off_seeds():
    found = memorization(net, SGDFit(epochs=1), DATA, **TRUE_AND_RANDOM, seeds=(0, 1), seconds=1e-9)
    assert [len(trained.trainings) for trained in found.conditions] == [1]
    assert found.is_partial
    assert any("Stopped early" in finding.sentence for finding in found.findings)


# Users' data, networks and losses -------------------------------------------------------------------------------------


def quick(make=net, fit=None, data=DATA, **options):
    return memorization(make, fit or SGDFit(epochs=2), data, **{**TRUE_AND_RANDOM, **options})


class InDict(nn.Module):
    def __init__(self, **more):
        super().__init__()
        self.inner, self.more = net(), more

    def forward(self, x):
        return {"hidden": torch.zeros(len(x), 7), "logits": self.inner(x)} if self.more else {"out": self.inner(x)}


@pytest.mark.parametrize("make", [InDict, lambda: InDict(more=True), lambda: net().double()])
def test_any_network(make):
    plain, other = quick(), quick(make)
    assert other.of("true labels").test.mean == pytest.approx(plain.of("true labels").test.mean, abs=0.05)


@pytest.mark.parametrize(
    "make",
    [
        lambda x, y: as_set(x, y),
        lambda x, y: DataLoader(as_set(x, y), batch_size=7),
        lambda x, y: [(a, b) for a, b in zip(x.split(9), y.split(9), strict=True)],
        lambda x, y: [{"x": x, "labels": y}],
        lambda x, y: (x.double(), y.int()),
        lambda x, y: (x.transpose(2, 3).contiguous().transpose(2, 3), y),
    ],
)
def test_any_kind_of_set(make):
    plain, other = quick(), quick(data=(make(*DATA[0]), make(*DATA[1])))
    ours, theirs = (found.conditions[0].trainings[0].last for found in (plain, other))
    assert theirs.loss == pytest.approx(ours.loss, rel=1e-4)  # float64 is normalised in float64
    assert theirs.test == ours.test
    assert other.provenance.n_examples == 60


def test_8_bit_images_become_0_to_1():
    from invertible.instruments._memorization_sets import collect

    x, _ = collect((torch.full((2, 1, 2, 2), 255, dtype=torch.uint8), torch.tensor([0, 1])), "it").tensors
    assert torch.equal(x, torch.ones(2, 1, 2, 2))


X, Y = images(20)
OK = (X, Y)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        ((OK, (X, Y - 1)), RangeError, "-1"),
        (((X, torch.zeros(20).long()), OK), ConfigError, "class 0 only"),
        (((X, Y.float()), OK), DtypeError, "labels"),
        (((X, torch.eye(3)[Y]), OK), ShapeError, "argmax"),
        (((X, Y[:5]), OK), ConfigError, "one per example"),
        ((OK, (X[:, :, :2], Y)), ShapeError, "another shape"),
        ((OK, (X[:0], Y[:0])), DataError, "empty"),
        ((iter([]), OK), DataError, "runs once"),
        ((DataLoader(as_set(X[:0], Y[:0]), batch_size=2), OK), DataError, "empty"),
        (((X * float("nan"), Y), OK), NonFiniteError, "training set"),
        (OK, ConfigError, "two sets"),
        ((OK,), ConfigError, "two sets"),
        ((X, X), ConfigError, "two sets"),
        (("train", "test"), DtypeError, "unknown kind"),
        (([X], OK), ConfigError, "labels"),
    ],
)
def test_bad_data(data, error, says):
    with pytest.raises(error, match=says):
        quick(data=data)


def test_labels_beyond_the_classes_that_were_told():
    with pytest.raises(RangeError, match="0 to 1"):
        quick(n_classes=2)


SHARED = net()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "fit", "error", "says"),
    [
        (lambda: SHARED, None, ConfigError, "same network again"),
        (SHARED, None, DtypeError, "factory"),
        (lambda: "net", None, ConfigError, "no network"),
        (nn.Flatten, None, ConfigError, "nothing to train"),
        (net, SHARED, DtypeError, "fit function"),
        (net, lambda *_: None, ConfigError, "never called report"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), None, ShapeError, "does not fit the labels"),
        (net, SGDFit(loss=lambda z, y: nn.functional.cross_entropy(z, y, reduction="none")), ShapeError, "scalar"),
        (net, SGDFit(loss=lambda z, y: torch.tensor(0.1)), ConfigError, "no gradient"),
    ],
)
def test_bad_networks_and_fits(make, fit, error, says):
    with pytest.raises(error, match=says):
        quick(make, fit)


def test_divergence_is_told_or_raised():
    with pytest.raises(NonFiniteError, match="every training diverged"):
        quick(fit=SGDFit(lr=1e30, epochs=3))

    def fit(model, train, report):
        SGDFit(lr=1e30 if (train.tensors[1] != DATA[0][1]).any() else 0.1, epochs=3)(model, train, report)

    found = quick(fit=fit)
    assert found.findings[0].severity == "error"
    assert "random labels, seed 0" in found.findings[0].sentence
    assert found.of("random labels").trainings[0].last is None
    found.plot()


@pytest.mark.parametrize(
    "options",
    [
        {"conditions": ("corrupt(0.5)",)},
        {"conditions": ()},
        {"seeds": ()},
        {"seeds": (0, 0)},
        {"seeds": (-1,)},
        {"fitted_at": 0.0},
        {"every": 0},
        {"corruptions": (2.0,)},
        {"seconds": 0.0},
    ],
)
def test_bad_options(options):
    with pytest.raises(ConfigError):
        quick(**options)


@pytest.mark.parametrize("options", [{"lr": 0.0}, {"epochs": 0}, {"momentum": 1.0}, {"decay": float("nan")}])
def test_bad_training(options):
    with pytest.raises(ConfigError, match="out of range"):
        SGDFit(**options)


# Intervals ------------------------------------------------------------------------------------------------------------


def test_intervals_against_published_figures():
    assert newcombe(9, 10, 3, 10) == pytest.approx((0.1705, 0.8090), abs=1e-4)  # Newcombe 1998, table II (c), method 10
    assert newcombe(10, 10, 0, 20) == pytest.approx((0.6791, 1.0), abs=1e-4)  # (f)
    assert wilson(0, 10)[0] == 0
    assert wilson(10, 10)[1] == 1
    assert share_of([0.5], 10).over == "examples"
    assert over_seeds([0.1, 0.3]).over == "seeds"
    assert math.isnan(over_seeds([]).mean)


def test_coverage_of_the_interval_of_a_difference():
    generator = np.random.default_rng(0)
    draws = (generator.binomial(n, p, 1000).tolist() for n, p in ((35, 0.9), (15, 0.6)))
    inside = [low <= 0.3 <= high for low, high in (newcombe(a, 35, b, 15) for a, b in zip(*draws, strict=True))]
    assert 0.925 < np.mean(inside) < 0.97

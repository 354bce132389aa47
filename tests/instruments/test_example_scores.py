"""Forgetting events by hand; memorisation of single examples against an enumeration and sequential training."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from invertible.errors import ConfigError, DataError, DtypeError, NonFiniteError, RangeError, ShapeError
from invertible.instruments import ForgettingRecorder, Result, SGDFit, example_memorization
from invertible.instruments._estimates import newcombe
from invertible.instruments._many_networks import Together

SEQUENCES = {  # what was predicted at each presentation: events, first right at
    "1111": (0, 1),
    "0000": (0, 0),
    "0111": (0, 2),
    "1010": (2, 1),
    "0101": (1, 2),
    "1001": (1, 1),
    "0100": (1, 2),
}


def recorded(order=lambda i: torch.arange(len(SEQUENCES))) -> ForgettingRecorder:
    recorder = ForgettingRecorder(len(SEQUENCES))
    for i in range(4):
        indices = order(i)
        correct = torch.tensor([sequence[i] == "1" for sequence in SEQUENCES])
        for few in indices.split(3):
            recorder.record(few, correct[few])
    return recorder


@pytest.mark.parametrize("order", [lambda i: torch.arange(7), lambda i: torch.arange(7).roll(i)])
def test_forgetting_events_by_hand(order):
    found = recorded(order).result()
    assert found.events == tuple(events for events, _ in SEQUENCES.values())
    assert found.learned_at == tuple(first for _, first in SEQUENCES.values())
    assert found.presented == (4,) * 7
    assert found.unforgettable == (0, 2)
    assert found.never_learned == (1,)
    assert [row["events"] for row in found.table] == list(found.events)
    assert "2 of 7 examples" in found.findings[-1].sentence


def test_one_example_several_times_in_a_batch():
    recorder = ForgettingRecorder(2)
    recorder.record(torch.tensor([0, 1, 0, 0]), torch.tensor([True, True, False, True]))
    found = recorder.result()
    assert found.events == (1, 0)
    assert found.presented == (3, 1)
    assert any("came 1 times only" in finding.sentence for finding in found.findings)


def test_pictures_of_the_extremes(tmp_path):
    x = torch.rand(7, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    found = recorded().result(x, torch.arange(7), n_shown=2)
    assert [shown.example for shown in found.most] == [1, 3]
    assert [shown.example for shown in found.least] == [0, 2]
    assert torch.equal(found.most[0].picture.tensor, x[1])
    found.save(tmp_path / "found.json")
    assert Result.load(tmp_path / "found.json") == found
    assert len(found.plot().figure.axes) == 5
    for inputs in (x[:, 0, 0], x.expand(7, 3, 4, 4)):
        recorded().result(inputs, torch.arange(7), n_shown=2).plot()


@pytest.mark.usefixtures("unchecked")
def test_bad_batches():
    recorder = ForgettingRecorder(3)
    with pytest.raises(DataError, match="nothing was recorded"):
        recorder.result()
    with pytest.raises(DtypeError, match="argmax"):
        recorder.record(torch.arange(3), torch.zeros(3))
    with pytest.raises(ShapeError):
        recorder.record(torch.arange(3), torch.zeros(2, dtype=torch.bool))
    with pytest.raises(RangeError, match="0 to 2"):
        recorder.record(torch.tensor([3]), torch.ones(1, dtype=torch.bool))
    recorder.record(torch.arange(0), torch.ones(0, dtype=torch.bool))
    recorder.record(torch.arange(2), torch.ones(2, dtype=torch.bool))
    with pytest.raises(ShapeError, match="3 examples"):
        recorder.result(labels=torch.zeros(2).long())
    assert any("1 examples were never presented" in finding.sentence for finding in recorder.result().findings)
    with pytest.raises(ConfigError):
        ForgettingRecorder(0)


# Memorisation of single examples --------------------------------------------------------------------------------------


def data(n: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(n, 12, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    y[3] = 1 - y[3]
    return x, y


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 2))


FIT = SGDFit(epochs=6, batch_size=8, lr=0.1, weight_decay=1e-3)


class NearestNeighbour(nn.Module):
    """Memorises what it is given: no training needed."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.x, self.y = torch.zeros(1, 12), torch.zeros(1).long()

    def forward(self, x):
        return self.scale * nn.functional.one_hot(self.y[torch.cdist(x, self.x).argmin(1)], 2)


def remember(model, train, report):
    model.x, model.y = train.tensors
    assert report() is False


def test_scores_of_a_nearest_neighbour_by_counting():
    x, y = data(20)
    found = example_memorization(NearestNeighbour, remember, (x, y), n_models=60, normalise="none", quiet=True)
    generator = torch.Generator().manual_seed(0)
    subsets = [torch.randperm(20, generator=generator)[:14] for _ in range(60)]
    for i in range(20):
        without = [s for s in subsets if i not in s]
        right = [int(y[s[torch.cdist(x[i : i + 1], x[s]).argmin()]]) == int(y[i]) for s in without]
        assert found.seen[i] == 1
        assert found.unseen[i] == pytest.approx(sum(right) / len(right))
        assert found.scores[i] == pytest.approx(1 - sum(right) / len(right))
        n = 60 - len(without)
        assert (found.low[i], found.high[i]) == pytest.approx(newcombe(n, n, sum(right), len(right)))
    assert found.mean == pytest.approx(sum(found.scores) / 20)


def test_together_is_what_one_after_the_other_is():
    alone = example_memorization(net, FIT, data(), n_models=6, quiet=True)
    both = example_memorization(net, FIT, data(), n_models=6, together=4, quiet=True)
    assert alone.scores == both.scores
    assert alone.seen == both.seen


def test_together_in_float64_against_torch_s_sgd():
    x, y = data()
    train, models = TensorDataset(x.double(), y), []
    for seed in range(3):
        torch.manual_seed(seed)
        models.append(net().double())
    subsets = torch.stack([torch.arange(40).roll(i)[:30] for i in range(3)])
    networks = Together(models, FIT, 2)
    networks.train(train, subsets, [0, 1, 2])
    for i, model in enumerate(models):
        torch.manual_seed(i)
        FIT(model, TensorDataset(x.double()[subsets[i]], y[subsets[i]]), lambda steps=None: False)
        for name, weight in model.named_parameters():
            torch.testing.assert_close(networks.weights[name][i], weight.detach(), atol=1e-12, rtol=1e-12)
        assert torch.equal(networks.predictions(train)[i], model(x.double()).argmax(1))


def test_the_wrong_label_is_the_most_memorised(tmp_path):
    state = torch.get_rng_state()
    fit = SGDFit(epochs=40, batch_size=8, lr=0.1, decay=1.0)
    found = example_memorization(net, fit, data(), n_models=40, together=40, n_shown=3, quiet=True)
    assert found.most[0].example == 3
    assert found.low[3] > 0.25
    assert torch.equal(torch.get_rng_state(), state)
    found.save(tmp_path / "found.json")
    assert Result.load(tmp_path / "found.json") == found
    assert len(found.plot().figure.axes) == 7
    assert len(found.table) == 40


def test_few_networks_and_budgets_are_said():
    found = example_memorization(net, FIT, data(), n_models=4, seconds=1e-9, quiet=True)
    assert found.n_models == 1
    assert found.is_partial
    words = " ".join(finding.sentence for finding in found.findings)
    assert "Stopped early" in words
    assert "0 networks only" in words
    assert set(found.scores) == {0.0}
    assert set(found.low) == {-1.0}


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"n_models": 1}, ConfigError, "n_models"),
        ({"share": 1.0}, ConfigError, "share"),
        ({"share": 0.01}, ConfigError, "all or nothing"),
        ({"fit": remember, "together": 2}, ConfigError, "one network at a time"),
        (
            {"make_model": lambda: nn.Sequential(nn.BatchNorm1d(12), nn.Linear(12, 2)), "together": 2},
            ConfigError,
            "buffers",
        ),
        ({"make_model": lambda: nn.Linear(12, 1)}, ShapeError, "does not fit"),
        ({"data": (torch.zeros(4, 12), torch.zeros(4).long())}, ConfigError, "class 0 only"),
        ({"fit": SGDFit(lr=1e30), "together": 2}, NonFiniteError, "diverged"),
        ({"fit": SGDFit(lr=1e30)}, NonFiniteError, "diverged"),
    ],
)
def test_bad_input(change, error, says):
    with pytest.raises(error, match=says):
        example_memorization(**{"make_model": net, "fit": FIT, "data": data(), "n_models": 4, "quiet": True, **change})


def test_a_loss_per_example_is_refused_together_too():
    fit = SGDFit(loss=lambda z, y: nn.functional.cross_entropy(z[None].flatten(0, 1), y, reduction="none"))
    with pytest.raises(ShapeError, match="scalar"):
        example_memorization(net, fit, data(), n_models=2, together=2, quiet=True)

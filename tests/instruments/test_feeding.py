"""Data for instruments: every kind that is taken, every kind that is refused, and budgets."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from invertible.data import ImageSet, load
from invertible.errors import ConfigError, DataError, DtypeError
from invertible.instruments import Batch, signal_propagation
from invertible.instruments.feeding import Feed
from invertible.instruments.result import Result

X, Y = torch.randn(10, 3), torch.arange(10) % 2


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


def feed(data: object, **options: object) -> Feed:
    return Feed("a test", nn.Linear(3, 2), data, **options)


KINDS = {
    "tensor": (X, [10], False),
    "shape of noise": ((4, 3), [4], False),
    "size of a tensor": (torch.Size([4, 3]), [4], False),
    "pair": ((X, Y), [10], True),
    "named pair": (Pair(X, Y), [10], True),
    "dict": ({"input": X, "labels": Y}, [10], True),
    "batch": (Batch((X,), labels=Y), [10], True),
    "list of tensors": ([X, X], [10, 10], False),
    "list of pairs": ([(X, Y), [X, Y]], [10, 10], True),
    "generator": ((x for x in (X, X)), [10, 10], False),
    "function": (lambda: iter([X, X]), [10, 10], False),
    "loader": (DataLoader(TensorDataset(X, Y), batch_size=4), [4, 4, 2], True),
    "data set": (TensorDataset(X, Y), [10], True),
    "pairs of dicts": ([({"input": X}, Y)], [10], True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data(kind: str) -> None:
    data, sizes, has_labels = KINDS[kind]
    found = list(feed(data))
    assert [batch.n_examples for batch in found] == sizes
    assert all((batch.labels is not None) == has_labels for batch in found)
    assert all(batch.run(nn.Linear(3, 2)).shape == (batch.n_examples, 2) for batch in found)


def test_sets_of_ours_are_shuffled_and_scaled() -> None:
    images = torch.arange(200, dtype=torch.uint8).view(200, 1, 1, 1).expand(200, 1, 8, 8).contiguous()
    data = ImageSet(images, torch.arange(200) // 100, ("a", "b"), "ramp", max_value=200)
    found = list(Feed("a test", nn.Identity(), data, seed=1))
    assert [batch.n_examples for batch in found] == [64, 64, 64, 8]
    values = torch.cat([batch.args[0][:, 0, 0, 0] for batch in found])
    labels = torch.cat([batch.labels for batch in found])
    assert torch.equal(values.sort().values, torch.arange(200) / 200)
    assert not torch.equal(values, values.sort().values)
    assert torch.equal(labels, (values * 200).round().long() // 100)
    again = torch.cat([batch.args[0][:, 0, 0, 0] for batch in Feed("a test", nn.Identity(), data, seed=1)])
    assert torch.equal(values, again)
    assert Feed("a test", nn.Identity(), load("digits", "test")).first.tensors[0].max() <= 1


def test_batch_fn_for_exotic_batches() -> None:
    exotic = [{"picture": X, "caption": ["a"] * 10, "class": Y}]
    (batch,) = feed(exotic, batch_fn=lambda b: Batch((b["picture"],), labels=b["class"]))
    assert torch.equal(batch.needed_labels("a test"), Y)
    (batch,) = feed([[X, X, X]], batch_fn=lambda b: b[1])
    assert torch.equal(batch.args[0], X)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        ([], DataError, "got no data.*a batch or more"),
        (iter([]), DataError, "a generator runs once"),
        (np.zeros((3, 3)), DtypeError, "data of an unknown kind.*as_tensor"),
        ("digits", DtypeError, "data of an unknown kind"),
        (3, DtypeError, "data of an unknown kind"),
        ([X.numpy()], DtypeError, "a batch of an unknown kind.*batch_fn"),
        ([(X, X, Y)], DtypeError, "a batch of an unknown kind: .* got a tuple of 3"),
        ((0, 3), ConfigError, "noise of this shape"),
        (nn.Linear(1, 1), DtypeError, "data of an unknown kind"),
    ],
)
def test_what_is_no_data_is_refused(data: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        feed(data)


def test_labels_where_they_are_needed() -> None:
    with pytest.raises(ConfigError, match=r"probe needs labels.*got none"):
        feed(X).first.needed_labels("probe")
    with pytest.raises(ConfigError, match=r"probe needs labels.*3.* for 10"):
        feed((X, Y[:3])).first.needed_labels("probe")


def test_a_generator_is_gone_after_one_pass() -> None:
    source = feed(x for x in (X, X))
    assert len(list(source)) == 2
    with pytest.raises(DataError, match=r"goes over the data again.*used up"):
        list(source)
    twice = feed([X, X])
    assert len(list(twice)) == len(list(twice)) == 2


def test_budgets_end_early_and_say_so() -> None:
    data = [X] * 5
    by_count = signal_propagation(nn.Linear(3, 2), data, batches=2)
    assert by_count.is_partial
    assert by_count.provenance.stopped == "batches=2 of 5"
    assert by_count.provenance.n_batches == 2
    assert "note: Measured on part of the data: batches=2 of 5." in [
        f"{f.severity}: {f.sentence}" for f in by_count.findings
    ]
    by_time = signal_propagation(nn.Linear(3, 2), data, seconds=1e-9)
    assert by_time.provenance.stopped == "seconds=1e-09, after 1 batch of 5"
    whole = signal_propagation(nn.Linear(3, 2), data, batches=5, seconds=1e6)
    assert not whole.is_partial
    assert whole.provenance.n_batches == 5


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("budget", [{"batches": 0}, {"batches": 1.5}, {"seconds": 0}, {"seconds": math.nan}])
def test_budgets_that_are_none(budget: dict) -> None:
    with pytest.raises(ConfigError, match="a test has a bad budget"):
        feed(X, **budget)


def test_data_go_where_the_network_is_and_stay_the_callers() -> None:
    x = X.clone().requires_grad_()
    source = Feed("a test", nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2).double()), x)
    assert source.first.args[0].dtype == torch.float64
    with torch.no_grad():
        source.first.run(source.model)
    assert torch.equal(x, X)
    ids = Feed("a test", nn.Linear(3, 2).double(), {"ids": torch.arange(4)}).first
    assert ids.kwargs["ids"].dtype == torch.int64


def test_provenance_tells_data_apart() -> None:
    net = nn.Linear(3, 2)
    prints = [signal_propagation(net, d).provenance.data for d in (X, [X], [X[:5], X[5:]], X + 1)]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3
    about = signal_propagation(net, (4, 3), seed=7).provenance
    assert (about.seed, about.mode, about.device, about.torch) == (7, "train", "cpu", torch.__version__)
    assert about.seconds >= 0


def test_results_from_before_there_was_provenance_can_be_read(tmp_path) -> None:
    import json

    found = signal_propagation(nn.Linear(3, 2), X)
    found.save(tmp_path / "a.json")
    content = json.loads((tmp_path / "a.json").read_text())
    del content["fields"]["provenance"]
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert Result.load(tmp_path / "a.json").provenance is None


def test_comparisons_that_make_no_sense() -> None:
    found = signal_propagation(nn.Linear(3, 2), X)
    with pytest.raises(ConfigError, match="the labels do not fit"):
        found.compare(found, labels=["one"])
    with pytest.raises(ConfigError, match=r"no such curve.*'variance' or 'squared mean'"):
        found.compare(found, curve="kurtosis")


def test_the_bar_comes_late_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import contextmanager

    from invertible.instruments import feeding

    log: list[object] = []

    class Display:
        def add_task(self, name: str, total: float | None) -> int:
            log.append((name, total))
            return 0

        def update(self, task: int, completed: float) -> None:
            log.append(completed)

    @contextmanager
    def shown():
        yield Display()
        log.append("gone")

    monkeypatch.setattr(feeding, "progress", shown)
    list(feed([X] * 4))
    assert log == []
    monkeypatch.setattr(feeding, "SECONDS_UNSEEN", 0.0)
    list(feed([X] * 4, quiet=True))
    assert log == []
    list(feed([X] * 4))
    assert log == [("a test", 1.0), 0.25, 0.5, 0.75, 1.0, "gone"]


def test_a_function_may_return_one_batch():
    network, x = nn.Linear(3, 2), torch.randn(5, 3)
    for make in (lambda: x, lambda: (x, torch.arange(5))):
        (batch,) = Feed("test", network, make, quiet=True)
        assert torch.equal(batch.args[0], x)

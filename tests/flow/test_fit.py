"""`fit`: the entropy of a Gaussian, the same twice, best weights, hard data, contexts, what is refused."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flow._make import Affine, Two, conditional, plane
from invertible import Chain, Flow
from invertible.errors import ConfigError, DtypeError, NonFiniteError, RangeError, ShapeError
from invertible.flow import ClassNormal, FitOptions, FitReport, InterruptedFit, UniformDequantization
from invertible.flow._training import Training
from invertible.layers import ActNorm, AffineCoupling
from invertible.models.spline_flow import spline_flow

QUIET: dict[str, Any] = {"quiet": True}
GAUSS = np.random.default_rng(0).multivariate_normal([1.0, -2.0], [[2.0, 0.9], [0.9, 1.0]], 2000)
ENTROPY = 0.5 * math.log((2 * math.pi * math.e) ** 2 * (2.0 - 0.81))


def linear() -> Flow:
    """Affine maps: the Gaussian is among its densities."""
    torch.manual_seed(0)
    couplings = [AffineCoupling(nn.Linear(1, 2), ("second", "first")[i]) for i in range(2)]
    return Flow(Chain(Affine([0.0, 0.0], [1.0, 1.0]), *couplings), 2)


@pytest.fixture(scope="module")
def fitted() -> Flow:
    return linear().fit(GAUSS, lr=0.02, max_steps=400, quiet=True)


def test_a_gaussian_reaches_its_entropy_on_fresh_data(fitted: Flow) -> None:
    fresh = np.random.default_rng(1).multivariate_normal([1.0, -2.0], [[2.0, 0.9], [0.9, 1.0]], 4000)
    nats = fitted.log_prob(fresh)
    standard = nats.std().item() / math.sqrt(len(nats))
    assert -nats.mean().item() == pytest.approx(ENTROPY, abs=0.05 + 3 * standard)


def test_the_report_is_about_the_weights_that_are_returned(fitted: Flow) -> None:
    report = fitted.fitted
    assert report is not None
    assert (report.n_train, report.n_validation) == (1800, 200)
    assert not fitted.training
    order = torch.randperm(2000, generator=torch.Generator().manual_seed(0))
    held = fitted.log_prob(torch.from_numpy(GAUSS).float()[order[:200]])
    assert held.mean().item() == pytest.approx(report.validation_nats, abs=1e-5)
    assert report.standard_error == pytest.approx(held.std().item() / math.sqrt(200), rel=1e-4)
    assert max(report.validation) == report.validation_nats
    assert report.steps[report.validation.index(report.validation_nats)] == report.best_step
    assert FitReport.from_dict(report.to_dict()) == report
    assert report.plot().get_ylabel() == "mean log-density (nats)"


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_state() -> None:
    before = torch.get_rng_state()
    flows = [spline_flow((2,), 2, (8,)) for _ in range(2)]
    torch.set_rng_state(before)
    flows[1].load_state_dict(flows[0].state_dict())
    for flow in flows:
        flow.fit(GAUSS[:300], max_steps=3, **QUIET)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(flows[0].parameters(), flows[1].parameters(), strict=True))
    other = flows[0].fit(GAUSS[:300], max_steps=3, seed=1, **QUIET)
    assert not all(torch.equal(a, b) for a, b in zip(other.parameters(), flows[1].parameters(), strict=True))


def test_on_the_class_a_flow_is_made() -> None:
    before = torch.get_rng_state()
    flows = [Flow.fit(GAUSS[:400], max_steps=2, **QUIET) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(flows[0].parameters(), flows[1].parameters(), strict=True))
    assert flows[0].config is not None
    assert flows[0].sample(3).shape == (3, 2)
    assert -flows[0].log_prob(GAUSS).mean().item() < ENTROPY + 0.5  # standardised, it starts near the answer


def test_it_stops_when_nothing_improves_and_puts_the_best_weights_back() -> None:
    """A learning rate far too high: the best weights are early ones."""
    report = linear().fit(GAUSS[:200], lr=0.5, patience=1, batch_size=50, max_steps=5000, **QUIET).fitted
    assert report is not None
    assert report.stopped == "no improvement"
    assert report.n_steps < 5000
    assert report.best_step < report.n_steps


def test_time_and_steps_are_bounded() -> None:
    began = time.monotonic()
    report = linear().fit(GAUSS, max_seconds=0.2, max_steps=10**6, **QUIET).fitted
    assert report is not None
    assert report.stopped == "max_seconds"
    assert time.monotonic() - began < 10
    report = linear().fit(GAUSS, max_steps=3, **QUIET).fitted
    assert report is not None
    assert (report.stopped, report.n_steps) == ("max_steps", 3)


class Interrupts(Affine):
    """Raises at the 70th training step."""

    n_steps = 0

    def _forward_with_logdet(self, x: Tensor, context: Any) -> tuple[Tensor, Tensor]:
        self.n_steps += self.training
        if self.n_steps >= 70:
            raise KeyboardInterrupt
        return super()._forward_with_logdet(x, context)


def test_an_interrupt_leaves_the_best_weights() -> None:
    flow = Flow(Interrupts([0.0, 0.0], [1.0, 1.0]), 2)
    same = Flow(Affine([0.0, 0.0], [1.0, 1.0]), 2).fit(GAUSS, max_steps=50, **QUIET)
    with pytest.raises(KeyboardInterrupt, match="interrupted at step 70") as stopped:
        flow.fit(GAUSS, max_steps=100, **QUIET)
    assert isinstance(stopped.value, InterruptedFit)
    assert stopped.value.flow is flow
    assert not flow.training
    assert flow.fitted is not None
    assert (flow.fitted.stopped, flow.fitted.best_step) == ("interrupted", 50)
    for a, b in zip(flow.parameters(), same.parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_interrupt_of_a_fit_on_the_class_hands_the_flow_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(training: Training, rows: Tensor) -> None:
        if training.step == 60:
            raise KeyboardInterrupt
        learn(training, rows)

    learn = Training._learn
    monkeypatch.setattr(Training, "_learn", stop)
    with pytest.raises(InterruptedFit) as stopped:
        Flow.fit(GAUSS, **QUIET)
    monkeypatch.undo()
    same = Flow.fit(GAUSS, max_steps=50, **QUIET)
    assert torch.equal(stopped.value.flow.log_prob(GAUSS), same.log_prob(GAUSS))


@pytest.mark.parametrize("fit", [Flow.fit, Flow(Affine([0.0, 0.0], [1.0, 1.0]), 2).fit], ids=["class", "flow"])
def test_values_beyond_float32_are_named_as_such(fit: Any) -> None:
    x = GAUSS.copy()
    x[3, 1] = 1e300
    with pytest.raises(RangeError, match=r"out of the range of float32: .*1e\+300 in column 1, row 3"):
        fit(x, max_steps=1, **QUIET)


class Explodes(Affine):
    """Weights that make NaN once they have moved too far, as with a learning rate that is too high."""

    def _forward_with_logdet(self, x: Tensor, context: Any) -> tuple[Tensor, Tensor]:
        y, logdet = super()._forward_with_logdet(x, context)
        return torch.where((self.mean.abs() > 3).any(), torch.nan, y), logdet


def test_steps_that_lead_to_nan_are_taken_back_and_made_smaller() -> None:
    report = Flow(Explodes([0.0, 0.0], [1.0, 1.0]), 2).fit(GAUSS, lr=0.3, max_steps=200, **QUIET).fitted
    assert report is not None
    assert all(math.isfinite(nats) for nats in (*report.train, *report.validation))
    with pytest.raises(NonFiniteError, match="Explodes"):
        Flow(Explodes([9.0, 0.0], [1.0, 1.0]), 2).fit(GAUSS, max_steps=200, **QUIET)


@pytest.mark.parametrize(
    ("option", "value"),
    [("validation", 0.0), ("validation", 1.0), ("batch_size", 0), ("lr", 0.0), ("lr", math.inf), ("patience", 0),
     ("max_steps", 0), ("max_seconds", 0.0)],
)  # fmt: skip
def test_options_out_of_range(option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=option):
        FitOptions(**{option: value})


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no such option.*got epochs"):
        Flow.fit(GAUSS, epochs=3)
    with pytest.raises(ShapeError, match="table"):
        Flow.fit(np.zeros((5, 2, 2)))
    with pytest.raises(ShapeError, match="too few rows"):
        Flow.fit(GAUSS[:1])
    with pytest.raises(ShapeError, match="too few rows"):
        linear().fit(GAUSS[:0])
    with pytest.raises(ShapeError, match=r"\(batch, 2\)"):
        linear().fit(GAUSS[:, :1])
    with pytest.raises(ShapeError, match="one context per row"):
        Flow.fit(GAUSS, np.zeros(3, dtype=int))
    with pytest.raises(ShapeError, match=r"context\[:, None\]"):
        Flow.fit(GAUSS, GAUSS[:, 0])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_are_named(bad: float) -> None:
    x = GAUSS.copy()
    x[[7, 9], 1] = bad
    for fit in (Flow.fit, linear().fit):
        with pytest.raises(NonFiniteError, match=r"column 1, row 7 \(2 such rows\)"):
            fit(x)
        with pytest.raises(NonFiniteError, match="context must be finite"):
            fit(GAUSS, x)


def test_columns_that_float32_cannot_hold_are_named() -> None:
    stamps = np.stack([GAUSS[:, 0], 1.7e9 + GAUSS[:, 1]], 1)
    with pytest.raises(RangeError, match=r"column 1, around 1\.7e\+09"):
        Flow.fit(stamps)


def outliers() -> np.ndarray:
    x = GAUSS[:300].copy()
    x[[5, 50], [0, 1]] = 1e6
    return x


HARD = {
    "outliers": outliers(),
    "duplicated": np.repeat(GAUSS[:5], 40, 0),
    "two rows": GAUSS[:2],
    "one column": GAUSS[:300, :1],
    "a vector": GAUSS[:300, 0],
    "whole numbers": np.random.default_rng(0).integers(0, 4, (300, 2)),
    "tiny": 1e-20 * GAUSS[:300],
    "huge": 1e20 * GAUSS[:300],
}


@pytest.mark.filterwarnings("ignore:constant columns")  # the one training row of two
@pytest.mark.parametrize("x", HARD.values(), ids=HARD)
def test_hard_data_stay_finite(x: np.ndarray) -> None:
    flow = Flow.fit(x, max_steps=6, batch_size=64, **QUIET)
    assert flow.fitted is not None
    assert math.isfinite(flow.fitted.validation_nats)
    rows = x if x.ndim == 2 else x[:, None]
    assert bool(flow.log_prob(rows.astype(np.float32)).isfinite().all())
    flow(rows.astype(np.float32)).backward()
    assert all(bool(p.grad.isfinite().all()) for p in flow.parameters() if p.grad is not None)
    assert bool(flow.sample(20).isfinite().all())


def test_constant_columns_are_named_and_stay_finite() -> None:
    x = np.stack([GAUSS[:200, 0], np.full(200, 3.0)], 1)
    with pytest.warns(UserWarning, match=r"constant columns \(1\)"):
        flow = Flow.fit(x, max_steps=4, **QUIET)
    assert bool(flow.log_prob(x).isfinite().all())


def test_labels_and_vectors_condition() -> None:
    labels = np.arange(300) % 3
    x = GAUSS[:300] + 10 * labels[:, None]
    by_label = Flow.fit(x, labels.astype(np.int32), max_steps=3, **QUIET)
    assert by_label.sample(2, labels[:4]).shape == (2, 4, 2)
    by_vector = Flow.fit(x, GAUSS[:300], max_steps=3, **QUIET)
    assert by_vector.log_prob(x, GAUSS[:300]).shape == (300,)
    classes = Flow(Affine([0.0, 0.0], [1.0, 1.0]), ClassNormal(3, 2)).fit(x, labels, lr=0.1, max_steps=200, **QUIET)
    means = classes.sample(200, torch.arange(3)).mean((0, 2))
    assert means.diff().numpy() == pytest.approx([10, 10], abs=3)
    own = conditional(3, embed=nn.Embedding(3, 3)).fit(x, labels, max_steps=3, **QUIET)
    assert own.fitted is not None


def test_layers_that_the_first_batch_sets_and_pixels() -> None:
    flow = Flow(Chain(ActNorm(2)), 2).fit(GAUSS, max_steps=3, **QUIET)
    assert bool(flow.bijection[0].initialised)
    pixels = torch.randint(4, (50, 2), dtype=torch.uint8)
    report = plane(dequantization=UniformDequantization(4)).fit(pixels, max_steps=3, **QUIET).fitted
    assert report is not None
    assert report.validation_nats < 0


def test_only_parameters_that_learn_are_changed() -> None:
    flow = linear()
    frozen = flow.bijection[0].requires_grad_(False)
    before = [p.clone() for p in frozen.parameters()]
    flow.fit(GAUSS, max_steps=3, **QUIET)
    assert all(torch.equal(a, b) for a, b in zip(before, frozen.parameters(), strict=True))


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    linear().fit(GAUSS, max_steps=2, **QUIET)
    linear().fit(GAUSS, max_steps=2)  # no terminal
    assert capfd.readouterr() == ("", "")


def test_one_held_out_row_has_no_standard_error() -> None:
    report = linear().fit(GAUSS[:5], max_steps=2, **QUIET).fitted
    assert report is not None
    assert math.isnan(report.standard_error)
    assert report.to_dict()["standard_error"] is None
    assert math.isnan(FitReport.from_dict(report.to_dict()).standard_error)


def test_networks_of_context_are_called_with_rows_of_it() -> None:
    flow = Flow(AffineCoupling(Two(1, 2, 2), takes_context=True), 2)
    assert flow.fit(GAUSS, GAUSS, max_steps=2, **QUIET) is flow


def test_numbers_of_other_machines_are_taken_and_complex_ones_refused():
    flow = plane()
    points = np.random.default_rng(0).normal(size=(32, 2)).astype(">f4")
    flow.fit(points, max_steps=1, quiet=True)
    with pytest.raises(DtypeError, match=r"real numbers.*view_as_real"):
        flow.fit(points + 1j * points)

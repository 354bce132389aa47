"""Optimisers, schedules and the objective against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from invertible.chain import Chain
from invertible.errors import NonFiniteError, RangeError, ShapeError
from invertible.models import Classifier
from invertible.train import Classification
from invertible.train.optimizer import learning_rate, make_optimizer, set_learning_rate
from invertible.train.recipe import OptimizerConfig, ScheduleConfig

STEPS, EPOCHS, PEAK = 7, 10, 0.3


def rates(config: ScheduleConfig) -> list[float]:
    return [learning_rate(step, STEPS, EPOCHS, PEAK, config) for step in range(STEPS * EPOCHS)]


def test_constant() -> None:
    assert set(rates(ScheduleConfig("constant"))) == {PEAK}


def test_cosine_is_half_a_period_that_would_reach_zero_after_the_last_step() -> None:
    n = STEPS * EPOCHS
    expected = [PEAK * (1 + math.cos(math.pi * step / n)) / 2 for step in range(n)]
    assert rates(ScheduleConfig("cosine")) == pytest.approx(expected, abs=1e-12)
    assert learning_rate(n, STEPS, EPOCHS, PEAK, ScheduleConfig("cosine")) == pytest.approx(0, abs=1e-12)


def test_step_drops_after_each_milestone() -> None:
    config = ScheduleConfig("step", milestones=[3, 8], gamma=0.2)
    expected = [PEAK] * (3 * STEPS) + [PEAK * 0.2] * (5 * STEPS) + [PEAK * 0.04] * (2 * STEPS)
    assert rates(config) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["constant", "cosine", "step"])
@pytest.mark.parametrize("warmup", [1.0, 2.5])
def test_warm_up_rises_in_equal_steps_to_the_schedule(name: str, warmup: float) -> None:
    found = rates(ScheduleConfig(name, warmup_epochs=warmup, milestones=[9]))
    n = math.ceil(warmup * STEPS)
    increments = [b - a for a, b in zip([0.0, *found], found[:n], strict=False)]
    assert increments == pytest.approx([increments[0]] * n, abs=1e-12)
    assert 0 < found[0] < found[n - 1] < PEAK
    if float(warmup).is_integer():
        assert found[n] == pytest.approx(PEAK, abs=1e-12), "then the peak, without a jump or a repeated value"


def test_cosine_after_warm_up() -> None:
    found = rates(ScheduleConfig("cosine", warmup_epochs=2))
    n = STEPS * (EPOCHS - 2)
    expected = [PEAK * (1 + math.cos(math.pi * step / n)) / 2 for step in range(n)]
    assert found[2 * STEPS :] == pytest.approx(expected, abs=1e-12)


@given(
    st.sampled_from(["constant", "cosine", "step"]), st.floats(0, 20), st.integers(1, 50), st.integers(1, 20), st.data()
)
def test_rates_stay_between_zero_and_the_peak(name: str, warmup: float, steps: int, epochs: int, data: st.DataObject):
    config = ScheduleConfig(name, warmup_epochs=warmup, milestones=[1, 5])
    step = data.draw(st.integers(0, steps * epochs - 1))
    assert 0 <= learning_rate(step, steps, epochs, 1.0, config) <= 1


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


def decays(config: OptimizerConfig, model: nn.Module) -> dict[str, float]:
    names = {id(p): name for name, p in model.named_parameters()}
    groups = make_optimizer(model, config).param_groups
    return {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}


def test_everything_decays_as_in_the_papers_code() -> None:
    model = network()
    assert decays(OptimizerConfig(weight_decay=0.1), model) == {name: 0.1 for name, _ in model.named_parameters()}


def test_norms_and_biases_can_be_spared() -> None:
    expected = {"0.weight": 0.1, "3.weight": 0.1, "0.bias": 0, "1.weight": 0, "1.bias": 0, "3.bias": 0}
    assert decays(OptimizerConfig(weight_decay=0.1, decay_norms=False), network()) == expected


def test_frozen_parameters_are_left_out() -> None:
    model = network()
    model[0].requires_grad_(False)
    assert set(decays(OptimizerConfig(), model)) == {"1.weight", "1.bias", "3.weight", "3.bias"}


def test_the_numbers_arrive() -> None:
    sgd = make_optimizer(network(), OptimizerConfig("sgd", 0.2, 0.7, nesterov=True))
    assert isinstance(sgd, torch.optim.SGD)
    assert {(g["lr"], g["momentum"], g["nesterov"]) for g in sgd.param_groups} == {(0.2, 0.7, True)}
    adamw = make_optimizer(network(), OptimizerConfig("adamw", 0.2, 0.7, decay_norms=False))
    assert isinstance(adamw, torch.optim.AdamW)
    assert {(g["lr"], g["betas"]) for g in adamw.param_groups} == {(0.2, (0.7, 0.999))}
    set_learning_rate(adamw, 0.5)
    assert [g["lr"] for g in adamw.param_groups] == [0.5, 0.5]


@pytest.mark.parametrize(("name", "kind"), [("adam", "Adam"), ("adamw", "AdamW"), ("adamax", "Adamax")])
def test_both_betas_arrive(name: str, kind: str) -> None:
    optimizer = make_optimizer(network(), OptimizerConfig(name, 0.2, 0.7, beta2=0.99, decay_norms=False))
    assert type(optimizer).__name__ == kind
    assert {(g["lr"], g["betas"]) for g in optimizer.param_groups} == {(0.2, (0.7, 0.99))}


def first_steps(config: OptimizerConfig, gradients: list[float], start: float) -> list[float]:
    model = nn.Linear(1, 1, bias=False).double()
    model.weight.data.fill_(start)
    optimizer, found = make_optimizer(model, config), []
    for gradient in gradients:
        model.weight.grad = torch.full_like(model.weight, gradient)
        optimizer.step()
        found.append(model.weight.item())
    return found


def test_adam_by_hand() -> None:
    # Kingma and Ba 2015, algorithm 1, with an L2 penalty; beta2 as in Residual Flow.
    lr, b1, b2, decay, w, m, v, expected = 0.1, 0.9, 0.99, 0.5, 2.0, 0.0, 0.0, []
    for t, gradient in enumerate([1.0, -3.0, 0.5], start=1):
        g = gradient + decay * w
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        w -= lr * (m / (1 - b1**t)) / (math.sqrt(v / (1 - b2**t)) + 1e-8)
        expected.append(w)
    config = OptimizerConfig("adam", lr, b1, weight_decay=decay, beta2=b2)
    assert first_steps(config, [1.0, -3.0, 0.5], 2.0) == pytest.approx(expected, rel=1e-12)


def test_adamax_by_hand() -> None:
    # Kingma and Ba 2015, algorithm 2, with an L2 penalty.
    lr, b1, b2, decay, w, m, u, expected = 0.003, 0.9, 0.95, 0.5, 2.0, 0.0, 0.0, []
    for t, gradient in enumerate([1.0, -3.0, 0.1], start=1):
        g = gradient + decay * w
        m, u = b1 * m + (1 - b1) * g, max(b2 * u, abs(g) + 1e-8)
        w -= lr / (1 - b1**t) * m / u
        expected.append(w)
    config = OptimizerConfig("adamax", lr, b1, weight_decay=decay, beta2=b2)
    assert first_steps(config, [1.0, -3.0, 0.1], 2.0) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_by_hand(smoothing: float) -> None:
    logits, y = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]]), torch.tensor([0, 1])
    loss, metrics = Classification(nn.Identity(), smoothing)(logits, y)
    expected = 0.0
    for row, label in zip(logits.tolist(), y.tolist(), strict=True):
        total = sum(math.exp(v) for v in row)
        target = [smoothing / 3 + (1 - smoothing) * (k == label) for k in range(3)]
        expected -= sum(t * (v - math.log(total)) for t, v in zip(target, row, strict=True)) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert metrics["accuracy"].item() == 0.5
    assert not metrics["accuracy"].requires_grad


@pytest.mark.parametrize(("label", "got"), [(3, "0 to 3"), (-1, "-1 to 0")])
def test_labels_out_of_range(label: int, got: str) -> None:
    words = rf"labels are out of range: expected labels 0 to 2, got {got}\. Try: build the model with n_classes"
    with pytest.raises(RangeError, match=words):
        Classification(nn.Identity())(torch.zeros(2, 3), torch.tensor([0, label]))


@pytest.mark.parametrize("shape", [(2,), (3, 5), (2, 5, 1)])
def test_no_logits(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"a classifier returns logits: expected \(2, n_classes\), got \("):
        Classification(nn.Identity())(torch.zeros(shape), torch.tensor([0, 1]))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_classifier_refuses_pixels_that_are_no_numbers(value: float) -> None:
    classifier, x = Classifier(Chain(), nn.Linear(4, 2), in_shape=(4,)), torch.zeros(3, 4)
    x[1, 2] = value
    with pytest.raises(NonFiniteError, match="Classifier's input"):
        Classification(classifier)(x, torch.zeros(3, dtype=torch.int64))

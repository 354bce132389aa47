"""The loop in one process: exact resume, NaN, averages, accumulation, clipping, the best epoch, precisions."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from invertible.data import Batches, ImageSet, RandomCrop, load
from invertible.errors import CheckpointError, ConfigError, NonFiniteError
from invertible.train import Classification, FitOptions, InterruptedRun, Trainer
from invertible.train.checkpoint import load_checkpoint, save_checkpoint
from invertible.train.interrupt import StopRequest
from invertible.train.loop import make_accelerator
from invertible.train.optimizer import learning_rate
from invertible.train.recipe import OptimizerConfig, ScheduleConfig, TrainingConfig

N_STEPS = 3  # per epoch


@cache
def digits(n: int = 96) -> ImageSet:
    return load("digits").subset(list(range(n)))


def plain_model() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))


def hard_model() -> nn.Module:
    torch.manual_seed(7)
    first = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3)]
    return nn.Sequential(*first, nn.Flatten(), nn.Linear(144, 10))


class Broken(nn.Module):
    """An objective whose loss is multiplied by `factor` in its n-th call."""

    def __init__(self, model: nn.Module, factor: float, n: int) -> None:
        super().__init__()
        self.model, self.factor, self.left = model, factor, n

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        self.left -= 1
        loss = nn.functional.cross_entropy(self.model(x), y)
        return loss * (self.factor if self.left == 0 else 1.0), {}


def make_trainer(
    folder: Path | None = None,
    model: nn.Module | None = None,
    objective: nn.Module | None = None,
    optimizer: OptimizerConfig | None = None,
    schedule: ScheduleConfig | None = None,
    monitor: str | None = None,
    **training: Any,
) -> Trainer:
    numbers = TrainingConfig(**({"epochs": 2, "batch_size": 32, "threads": 1, "checkpoint_seconds": 1e9} | training))
    batches = Batches(digits(), numbers.batch_size, seed=5, augment=(RandomCrop(padding=1),))
    options = FitOptions(
        optimizer or OptimizerConfig(), schedule or ScheduleConfig(), numbers, folder, monitor, quiet=True
    )
    return Trainer(objective or Classification(model or plain_model()), batches, options)


def fit(trainer: Trainer, evaluate: Callable[[nn.Module], dict[str, float]] = lambda _: {}) -> list[dict[str, float]]:
    return trainer.fit(evaluate, lambda model, row, is_best: None).history


def stop_before(trainer: Trainer, call: int, action: Callable[[], None]) -> None:
    """Do something at the start of the objective's n-th call, from 1."""
    calls = iter(range(1, 10**6))
    trainer.objective.register_forward_pre_hook(lambda *_: action() if next(calls) == call else None)


def crash() -> None:
    raise RuntimeError("power cut")


def states(trainer: Trainer) -> dict[str, Tensor]:
    moments = trainer.raw_optimizer.state_dict()["state"]
    tensors = {f"optimizer/{i}/{k}": v for i, entry in moments.items() for k, v in entry.items() if torch.is_tensor(v)}
    for name, module in trainer._modules().items():
        tensors |= {f"{name}/{key}": value for key, value in module.state_dict().items()}
    return tensors


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


# Exact resume -------------------------------------------------------------------------------------------------------

HARD = {
    "sgd": {"optimizer": OptimizerConfig(nesterov=True), "ema": 0.9},
    "adamw": {"optimizer": OptimizerConfig("adamw", lr=1e-2), "schedule": ScheduleConfig("step", milestones=[1])},
    "adam": {"optimizer": OptimizerConfig("adam", lr=1e-2, beta2=0.99), "ema": 0.9},
    "adamax": {"optimizer": OptimizerConfig("adamax", lr=3e-3, clip_norm=1.0)},
    "adaptive clipping": {"optimizer": OptimizerConfig(adaptive_clip=0.01), "micro_batches": 2},
    "micro batches": {"micro_batches": 3, "ema": 0.5},
    "no momentum": {"optimizer": OptimizerConfig(momentum=0.0)},
    "bfloat16": {"precision": "bfloat16"},
}


@pytest.mark.parametrize("options", HARD.values(), ids=HARD)
@pytest.mark.parametrize("steps", [1, 3, 4], ids=lambda k: f"after step {k}")
def test_resumed_after_a_crash_is_as_if_it_never_crashed(tmp_path: Path, options: dict, steps: int) -> None:
    options = {**options, "epochs": 3}
    whole = make_trainer(None, hard_model(), **options)
    expected = fit(whole)
    crashed = make_trainer(tmp_path, hard_model(), **options, checkpoint_seconds=0)
    stop_before(crashed, steps * options.get("micro_batches", 1) + 1, crash)
    with pytest.raises(RuntimeError, match="power cut"):
        fit(crashed)
    torch.manual_seed(99)  # nothing of the global random state may matter
    resumed = make_trainer(tmp_path, hard_model(), **options)
    resumed.resume()
    assert resumed.progress.step == steps
    history = fit(resumed)
    assert_same(states(resumed), states(whole))
    assert [{**row, "seconds": 0} for row in history] == [{**row, "seconds": 0} for row in expected]


@pytest.fixture
def ctrl_c_interrupts() -> Iterator[None]:
    """As at a terminal: what a script starts in the background ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_signal_ends_the_run_after_the_step_and_the_handlers_come_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    trainer = make_trainer(tmp_path, hard_model())
    stop_before(trainer, 2, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(InterruptedRun):
        fit(trainer)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    resumed = make_trainer(tmp_path, hard_model())
    resumed.resume()
    assert resumed.progress.step == 2, "the step under way was finished and saved"
    fit(resumed)
    whole = make_trainer(None, hard_model())
    fit(whole)
    assert_same(states(resumed), states(whole))


@pytest.mark.usefixtures("ctrl_c_interrupts")
def test_a_second_signal_acts_as_usual() -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.usefixtures("ctrl_c_interrupts")
def test_an_inactive_stop_request_leaves_signals_alone() -> None:
    with StopRequest(active=False) as stop, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert not stop.requested


def test_a_crash_between_the_two_writes_of_a_checkpoint_leaves_the_old_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path, hard_model(), checkpoint_seconds=0, ema=0.9)
    stop_before(trainer, 3, crash)
    with pytest.raises(RuntimeError, match="power cut"):
        fit(trainer)
    good = load_file(tmp_path / "checkpoint" / "state-000000002.safetensors")
    trainer.progress.step = 9
    monkeypatch.setattr("invertible.train.checkpoint.write_json", lambda *_: crash())
    with pytest.raises(RuntimeError, match="power cut"):
        save_checkpoint(tmp_path, trainer.progress, trainer._modules(), trainer.raw_optimizer)
    assert (tmp_path / "checkpoint" / "state-000000009.safetensors").is_file(), "the first write was done"
    monkeypatch.undo()
    again = make_trainer(tmp_path, hard_model(), ema=0.9)
    again.resume()
    assert again.progress.step == 2
    assert_same(states(again), good)
    save_checkpoint(tmp_path, again.progress, again._modules(), again.raw_optimizer)
    assert sorted(path.name for path in (tmp_path / "checkpoint").iterdir()) == [
        "state-000000002.safetensors",
        "state.json",
    ]


def test_the_next_checkpoint_removes_what_a_killed_process_left_half_written(tmp_path: Path) -> None:
    half = tmp_path / "checkpoint" / ".12345.state-000000007.safetensors"
    half.parent.mkdir()
    half.write_bytes(b"half")
    fit(make_trainer(tmp_path, epochs=1))
    assert not half.exists()


def test_a_resumed_run_keeps_its_number_of_threads(tmp_path: Path) -> None:
    fit(make_trainer(tmp_path, epochs=1))
    state = tmp_path / "checkpoint" / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"threads": 2}))
    before = torch.get_num_threads()
    try:
        make_trainer(tmp_path, epochs=1).resume()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# What a checkpoint refuses ------------------------------------------------------------------------------------------


def saved(folder: Path) -> Trainer:
    trainer = make_trainer(folder, epochs=1)
    fit(trainer)
    return trainer


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"cannot read .*state\.json: got No such file.* Try: the folder of a run"
    ):
        make_trainer(tmp_path).resume()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", r"state\.json is corrupt: expected JSON, got"),
        ("[1]", r"state\.json is corrupt: expected a JSON object, got list"),
        ("{}", r"no weights: expected the file .*checkpoint, got nothing there"),
        ('{"tensors": "gone.safetensors"}', r"no weights: expected the file .*gone\.safetensors, got nothing there"),
        ('{"tensors": "state-000000003.safetensors", "stepp": 3}', r"state\.json does not fit: got .*stepp"),
    ],
)
def test_broken_state_file(tmp_path: Path, text: str, words: str) -> None:
    trainer = saved(tmp_path)
    (tmp_path / "checkpoint" / "state.json").write_text(text)
    with pytest.raises(CheckpointError, match=words):
        trainer.resume()


@pytest.mark.parametrize("keep", [0, 5, 100, -8], ids=["empty", "no header", "half a header", "truncated"])
def test_broken_tensors(tmp_path: Path, keep: int) -> None:
    trainer = saved(tmp_path)
    path = tmp_path / "checkpoint" / "state-000000003.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=rf"{path} is corrupt: expected a safetensors file, got \w+"):
        trainer.resume()


def test_a_checkpoint_of_another_model(tmp_path: Path) -> None:
    saved(tmp_path)
    words = rf"the weights in {tmp_path} do not fit the model: got .*size mismatch.*Try: was the model's recipe changed"
    wider = nn.Sequential(nn.Flatten(), nn.Linear(64, 17), nn.Tanh(), nn.Linear(17, 10))
    with pytest.raises(CheckpointError, match=f"(?s){words}"):
        make_trainer(tmp_path, wider).resume()
    with pytest.raises(CheckpointError, match=r"(?s)do not fit the model: got .*Missing key"):
        make_trainer(tmp_path, hard_model()).resume()


def test_a_checkpoint_without_the_average(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(CheckpointError, match="do not fit the model"):
        make_trainer(tmp_path, ema=0.9).resume()


# NaN ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [math.nan, math.inf, -math.inf])
def test_a_broken_loss_names_its_step_and_keeps_the_last_good_state(tmp_path: Path, factor: float) -> None:
    trainer = make_trainer(tmp_path, objective=Broken(plain_model(), factor, 5))
    words = (
        rf"the loss broke at step 5: expected a finite loss, got -?(nan|inf)\. Try: .*learning rate.*kept in {tmp_path}"
    )
    with pytest.raises(NonFiniteError, match=words):
        fit(trainer)
    again = make_trainer(tmp_path, objective=Broken(plain_model(), 1.0, 1))
    again.resume()
    assert again.progress.step == N_STEPS
    assert all(torch.isfinite(tensor).all() for tensor in states(again).values())


def test_a_broken_loss_without_a_checkpoint_promises_none(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="the loss broke at step 1") as caught:
        fit(make_trainer(tmp_path, objective=Broken(plain_model(), math.nan, 1)))
    assert "kept" not in str(caught.value)


def test_an_absurd_learning_rate(tmp_path: Path) -> None:
    optimizer = OptimizerConfig(lr=1e38)
    with pytest.raises(NonFiniteError, match=r"(broke at|broke by) step \d"):
        fit(make_trainer(tmp_path, optimizer=optimizer, schedule=ScheduleConfig("constant")))
    assert not (tmp_path / "checkpoint" / "state.json").exists(), "nothing broken was saved"


def test_weights_that_break_in_the_last_step_of_an_epoch_are_named_before_they_are_evaluated(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, epochs=3)

    def poison() -> None:
        hook = trainer.raw_optimizer.register_step_post_hook(lambda *_: trainer.model[1].weight.data.fill_(math.nan))
        trainer.raw_optimizer.register_step_post_hook(lambda *_: hook.remove())

    stop_before(trainer, 2 * N_STEPS, poison)
    evaluated: list[bool] = []

    def evaluate(model: nn.Module) -> dict[str, float]:
        evaluated.append(all(bool(torch.isfinite(p).all()) for p in model.parameters()))
        return {}

    words = r"the weights broke by step 6: got NaN or infinity in 1\.weight\. Try: .*the last good checkpoint is kept"
    with pytest.raises(NonFiniteError, match=words):
        fit(trainer, evaluate)
    assert evaluated == [True]
    again = make_trainer(tmp_path, epochs=3)
    again.resume()
    assert again.progress.step == N_STEPS


def test_a_broken_checkpoint_is_never_written(tmp_path: Path) -> None:
    trainer = saved(tmp_path)
    good = load_file(tmp_path / "checkpoint" / "state-000000003.safetensors")
    trainer.model[1].bias.data[0] = math.inf
    with pytest.raises(
        NonFiniteError, match=r"the weights broke by step 3: got NaN or infinity in objective/model\.1\.b"
    ):
        save_checkpoint(tmp_path, trainer.progress, trainer._modules(), trainer.raw_optimizer)
    load_checkpoint(tmp_path, trainer._modules(), trainer.raw_optimizer)
    assert_same(states(trainer), good)


# The arithmetic of a step -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loop_is_the_loop_anyone_would_write(smoothing: float) -> None:
    optimizer, schedule = OptimizerConfig(lr=0.2, nesterov=True, weight_decay=1e-2), ScheduleConfig(warmup_epochs=1)
    objective = Classification(plain_model(), smoothing)
    trainer = make_trainer(objective=objective, optimizer=optimizer, schedule=schedule, epochs=3)
    history = fit(trainer)

    model, losses, n = plain_model(), [], 0
    sgd = torch.optim.SGD(model.parameters(), 0.2, 0.9, nesterov=True, weight_decay=1e-2)
    for epoch in range(3):
        for x, y in trainer.batches.epoch(epoch):
            sgd.param_groups[0]["lr"] = learning_rate(n, N_STEPS, 3, 0.2, schedule)
            loss = nn.functional.cross_entropy(model(x), y, label_smoothing=smoothing)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            n += 1
            losses.append(loss.item())
    assert_same(trainer.model.state_dict(), model.state_dict())
    assert history[-1]["train_loss"] == pytest.approx(sum(losses[-N_STEPS:]) / N_STEPS, abs=1e-12)
    assert history[-1]["step"] == n
    assert [row["epoch"] for row in history] == [1, 2, 3]


def test_the_average_is_an_exponential_moving_average_of_weights_and_batch_statistics() -> None:
    trainer = make_trainer(None, hard_model(), epochs=4, batch_size=96, ema=0.8)  # one step per epoch
    weights: list[dict[str, Tensor]] = []
    averages: list[dict[str, Tensor]] = []

    def keep(model: nn.Module, row: dict[str, float], is_best: bool) -> None:
        weights.append({k: v.clone() for k, v in trainer.model.state_dict().items()})
        averages.append({k: v.clone() for k, v in model.state_dict().items()})

    trainer.fit(lambda _: {}, keep)
    for name in ("0.weight", "1.weight", "1.running_mean", "1.running_var", "5.bias"):
        mean = weights[0][name]
        for step in range(4):
            mean = 0.8 * mean + 0.2 * weights[step][name] if step else mean
            torch.testing.assert_close(averages[step][name], mean, rtol=1e-6, atol=1e-7)
    assert not torch.equal(averages[-1]["0.weight"], weights[-1]["0.weight"])


def test_without_an_average_the_model_itself_is_kept() -> None:
    trainer = make_trainer()
    assert trainer.kept_model is trainer.model
    assert make_trainer(ema=0.5).kept_model is not make_trainer().model


@pytest.mark.parametrize(("limit", "is_clipped"), [(1e-3, True), (1e3, False)])
def test_clipping_bounds_the_step(limit: float, is_clipped: bool) -> None:
    optimizer = OptimizerConfig(lr=1.0, momentum=0.0, weight_decay=0.0, clip_norm=limit)
    trainer = make_trainer(optimizer=optimizer, schedule=ScheduleConfig("constant"), epochs=1, batch_size=96)
    fit(trainer)
    moved = [
        after - before for after, before in zip(trainer.model.parameters(), plain_model().parameters(), strict=True)
    ]
    length = torch.cat([part.flatten() for part in moved]).norm().item()
    assert (length == pytest.approx(limit, rel=1e-3)) if is_clipped else 1e-2 < length < limit


@pytest.mark.parametrize("batch_size", [32, 30, 7])
def test_micro_batches_add_up_to_the_batch(batch_size: int) -> None:
    one, four = (make_trainer(micro_batches=n, batch_size=batch_size) for n in (1, 4))
    rows = [fit(one), fit(four)]
    for name, weight in one.model.state_dict().items():
        torch.testing.assert_close(four.model.state_dict()[name], weight, rtol=0, atol=1e-6)
    for key in ("train_loss", "train_accuracy"):
        assert rows[1][-1][key] == pytest.approx(rows[0][-1][key], abs=1e-6)


def test_the_seed_decides_dropout() -> None:
    same = [make_trainer(None, hard_model(), seed=seed) for seed in (1, 1, 2)]
    losses = [fit(trainer)[-1]["train_loss"] for trainer in same]
    assert losses[0] == losses[1] != losses[2]


def test_the_model_is_evaluated_in_eval_mode_and_trained_in_training_mode() -> None:
    modes, trainer = [], make_trainer(None, hard_model())
    trainer.objective.register_forward_pre_hook(lambda *_: modes.append(("train", trainer.model.training)))
    fit(trainer, lambda model: modes.append(("evaluate", model.training)) or {})
    assert modes == ([("train", True)] * N_STEPS + [("evaluate", False)]) * 2


# The best epoch, precision, compilation -----------------------------------------------------------------------------


def test_the_best_epoch_is_the_first_with_the_largest_value() -> None:
    trainer, values, kept = make_trainer(monitor="accuracy", epochs=5), iter([0.1, 0.7, 0.7, 0.3, 0.8]), []
    progress = trainer.fit(
        lambda _: {"accuracy": next(values)}, lambda model, row, is_best: kept.append((row["epoch"], is_best))
    )
    assert kept == [(1, True), (2, True), (3, False), (4, False), (5, True)]
    assert (progress.best, progress.best_epoch) == (0.8, 5)


def test_without_a_monitor_the_last_epoch_counts() -> None:
    kept: list[bool] = []
    make_trainer(epochs=3).fit(lambda _: {"accuracy": 0.5}, lambda model, row, is_best: kept.append(is_best))
    assert kept == [True] * 3


def test_a_resumed_run_remembers_the_best_epoch(tmp_path: Path) -> None:
    kept: list[tuple[float, bool]] = []

    def sitting(values: list[float], epochs: int) -> None:
        trainer, given = make_trainer(tmp_path, monitor="accuracy", epochs=epochs), iter(values)
        if kept:
            trainer.resume()
        trainer.fit(lambda _: {"accuracy": next(given)}, lambda _, row, is_best: kept.append((row["epoch"], is_best)))

    sitting([0.2, 0.9], 2)
    sitting([0.5, 0.95], 4)
    assert kept == [(1, True), (2, True), (3, False), (4, True)]


def test_bfloat16_computes_in_bfloat16_and_keeps_weights_in_float32() -> None:
    seen, trainer = set(), make_trainer(None, hard_model(), precision="bfloat16")
    trainer.model[5].register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    history = fit(trainer)
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    assert math.isfinite(history[-1]["train_loss"])
    assert fit(make_trainer(None, hard_model()))[-1]["train_loss"] != history[-1]["train_loss"]


def test_float16_on_a_cpu_is_refused_instead_of_ignored() -> None:
    words = r"training\.precision does not fit the CPU: expected float32 or bfloat16, got float16"
    with pytest.raises(ConfigError, match=words):
        make_accelerator(TrainingConfig(precision="float16", device="cpu"))


@pytest.mark.compile_all
@pytest.mark.usefixtures("unchecked")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # of inductor's own import
def test_a_compiled_model_trains_alike() -> None:
    compiled = plain_model()
    compiled.compile()
    histories = [fit(make_trainer(model=model, ema=0.9)) for model in (plain_model(), compiled)]
    assert histories[1][-1]["train_loss"] == pytest.approx(histories[0][-1]["train_loss"], abs=1e-4)

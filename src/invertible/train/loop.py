"""The training loop: any objective, any batches; resumable to the bit; one process or many, through accelerate."""

from __future__ import annotations

import atexit
import gc
import importlib
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from invertible.data.steps import seeded_generator
from invertible.errors import ConfigError, NonFiniteError, RangeError
from invertible.train.checkpoint import (
    Progress,
    check_weights,
    has_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from invertible.train.feed import Feed
from invertible.train.interrupt import StopRequest
from invertible.train.log import RunLog
from invertible.train.optimizer import learning_rate, make_optimizer, set_learning_rate
from invertible.train.recipe import OptimizerConfig, ScheduleConfig, TrainingConfig

Evaluate = Callable[[nn.Module], dict[str, float]]
PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


class InterruptedRun(KeyboardInterrupt):
    """The run was stopped by a signal, after its state was saved."""


class KeepBest(Protocol):
    """Called with the model to keep, the epoch's row and whether it is the best so far."""

    def __call__(self, model: nn.Module, row: dict[str, float], is_best: bool) -> None:
        """Keep the model."""
        ...


def no_metrics(model: nn.Module) -> dict[str, float]:
    """Evaluate nothing.

    Args:
        model: Not looked at.

    Returns:
        No metrics.
    """
    return {}


def keep_nothing(model: nn.Module, row: dict[str, float], is_best: bool) -> None:
    """Save nothing.

    Args:
        model: Not looked at.
        row: Likewise.
        is_best: Likewise.
    """


@dataclass
class FitOptions:
    """What `Trainer` needs beside objective and batches.

    Args:
        optimizer: How weights move.
        schedule: How the learning rate changes.
        training: How long, precision, seed.
        folder: Where state and history go; None writes nothing.
        monitor: Name of the evaluated metric that decides the best epoch, larger is better; None: the last counts.
        quiet: Show nothing.
    """

    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    training: TrainingConfig
    folder: Path | None = None
    monitor: str | None = None
    quiet: bool = False


def make_accelerator(training: TrainingConfig) -> Accelerator:
    """The engine for a recipe's device and precision.

    Args:
        training: The recipe's training section.

    Returns:
        A fresh accelerator; DDP is set up if torchrun or `accelerate launch` started the process.

    Raises:
        ConfigError: If float16 is asked for on a CPU.
    """
    # Unless it is told `cpu`, accelerate lets every process of a CPU-only machine train on its own.
    on_cpu = training.device == "cpu" or not torch.accelerator.is_available()
    if on_cpu and training.precision == "float16":
        raise ConfigError("training.precision does not fit the CPU", expected="float32 or bfloat16", got="float16")
    _import_before_the_group()
    AcceleratorState._reset_state()  # accelerate refuses a second precision in one process otherwise
    accelerator = Accelerator(cpu=on_cpu, mixed_precision=PRECISIONS[training.precision])
    if accelerator.num_processes > 1:
        atexit.register(_leave_group, accelerator)
    return accelerator


def _import_before_the_group() -> None:
    # Functions of this module have the default process group as default argument, made when it is imported (which the
    # first optimizer or DDP model does): imported later, it would keep the group alive for ever.
    if torch.distributed.is_available():
        importlib.import_module("torch.distributed.nn.functional")


def _leave_group(accelerator: Accelerator) -> None:
    # A process group that outlives Python can abort the exit: its threads drop tensors, for which they need Python. A
    # DDP model that is still referenced keeps it alive.
    accelerator.free_memory()
    accelerator.end_training()
    gc.collect()


class Trainer:
    """Fits an objective.

    Every random number of step k depends on (seed, k, rank) alone and the schedule on k alone, so a run that was
    killed and resumed takes exactly the steps that an uninterrupted one takes.

    Args:
        objective: Module that maps (x, y) to (loss, metrics); its `model` attribute, or else itself, is what is
            evaluated and kept.
        batches: Of this process, for training.
        options: The numbers.
        accelerator: The engine; None makes one.

    Raises:
        NonFiniteError: In `fit`: if the loss or a weight is NaN or infinite, or a flow's density.
        RangeError: In `fit`: if an exact network's sums leave its lattice's range.
        InterruptedRun: In `fit`: after SIGINT or SIGTERM.
    """

    def __init__(
        self,
        objective: nn.Module,
        batches: Feed,
        options: FitOptions,
        accelerator: Accelerator | None = None,
    ) -> None:
        self.accelerator = accelerator or make_accelerator(options.training)
        self.batches, self.options = batches, options
        self.objective = objective.to(self.accelerator.device)
        self.model = objective.get_submodule("model") if "model" in objective._modules else objective
        self.average = _average(self.model, options.training.ema)
        self.raw_optimizer = make_optimizer(self.objective, options.optimizer)
        self.progress = Progress(threads=torch.get_num_threads())
        self._flush_every = 1 if self.accelerator.device.type == "cpu" else 20
        self._pending: list[tuple[int, Tensor, dict[str, Tensor], int]] = []
        self._saved_at = time.monotonic()

    @property
    def kept_model(self) -> nn.Module:
        """What is evaluated and saved: the averaged weights if there are any, else the model's own."""
        return self.average.module if self.average is not None else self.model

    def resume(self) -> None:
        """Go on from the folder's checkpoint."""
        if self.options.folder is not None:
            self.progress = load_checkpoint(self.options.folder, self._modules(), self.raw_optimizer)
            torch.set_num_threads(self.progress.threads)
            if self.accelerator.scaler is not None and self.progress.scaler:
                self.accelerator.scaler.load_state_dict(self.progress.scaler)
            if not self.accelerator.is_main_process:
                self.progress.sums = {}  # those saved are the main process's own

    def fit(self, evaluate: Evaluate = no_metrics, keep: KeepBest = keep_nothing) -> Progress:
        """Train to the end.

        Args:
            evaluate: Called after each epoch with the model in eval mode; its metrics join the history.
            keep: Called after each epoch on the main process, to save the model; by default only the checkpoint
                in the run's folder holds the weights, and the trained model is `kept_model`.

        Returns:
            The history and what it took.
        """
        wrapped, optimizer = self.accelerator.prepare(self.objective, self.raw_optimizer)
        n_steps = self.options.training.epochs * len(self.batches)
        folder = self.options.folder if self.accelerator.is_main_process else None
        quiet = self.options.quiet or not self.accelerator.is_main_process
        alone = self.accelerator.num_processes == 1
        with StopRequest(alone) as stop, RunLog(folder, n_steps, self.progress.step, quiet) as log:
            for epoch in range(len(self.progress.history), self.options.training.epochs):
                self._train_epoch(epoch, wrapped, optimizer, log, stop)
                self._close_epoch(epoch, evaluate, keep, log)
        self.accelerator.wait_for_everyone()  # who leaves first would break the others' connections
        return self.progress

    def _train_epoch(
        self, epoch: int, wrapped: nn.Module, optimizer: torch.optim.Optimizer, log: RunLog, stop: StopRequest
    ) -> None:
        wrapped.train()
        start, began = self.progress.step - epoch * len(self.batches), time.monotonic()
        for x, y in self.batches.epoch(epoch, start):
            self._step(wrapped, optimizer, x, y)
            self.progress.step += 1
            now = time.monotonic()
            self.progress.seconds, began = self.progress.seconds + now - began, now
            if self.progress.step % self._flush_every == 0:
                self._flush()
                log.step(self.progress.step, epoch + 1, self._means())
            if stop.requested or now - self._saved_at > self.options.training.checkpoint_seconds:
                self._save()
            if stop.requested:
                raise InterruptedRun
        self._flush()

    def _step(self, wrapped: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
        step, training = self.progress.step, self.options.training
        key = (
            training.seed,
            step,
            self.accelerator.process_index,
            0,
        )  # four numbers: unlike the data's draws
        torch.manual_seed(seeded_generator(*key).initial_seed())
        set_learning_rate(optimizer, self._rate(step))
        parts = list(zip(x.chunk(training.micro_batches), y.chunk(training.micro_batches), strict=True))
        for i, (part, labels) in enumerate(parts):
            with nullcontext() if i == len(parts) - 1 else self.accelerator.no_sync(wrapped):
                try:
                    loss, metrics = wrapped(part, labels)
                    self.accelerator.backward(loss * (len(part) / len(x)))
                except (NonFiniteError, RangeError) as error:
                    raise self._with_advice(error) from error
            self._pending.append((step + 1, loss.detach(), metrics, len(part)))
        if self.options.optimizer.clip_norm is not None:
            self.accelerator.clip_grad_norm_(wrapped.parameters(), self.options.optimizer.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.model)

    def _rate(self, step: int) -> float:
        options, n_steps = self.options, len(self.batches)
        return learning_rate(step, n_steps, options.training.epochs, options.optimizer.lr, options.schedule)

    def _flush(self) -> None:
        """Look at the losses since the last time; on a GPU this waits for it, so it is not done at every step."""
        for step, loss, metrics, n in self._pending:
            self._check_loss(loss.item(), step)
            for name, value in {"loss": loss, **metrics}.items():
                self.progress.sums[name] = self.progress.sums.get(name, 0.0) + value.item() * n
            self.progress.sums["n"] = self.progress.sums.get("n", 0) + n
        self._pending.clear()

    def _check_loss(self, loss: float, step: int) -> None:
        if math.isfinite(loss):
            return
        problem = f"the loss broke at step {step}"
        raise NonFiniteError(problem, expected="a finite loss", got=loss, hint=self._advice())

    def _with_advice(self, error: NonFiniteError | RangeError) -> NonFiniteError | RangeError:
        if isinstance(error, RangeError) and "sums are exact" not in error.problem:
            return error
        problem, hint = f"{error.problem}, at step {self.progress.step + 1}", f"{self._advice()}; or {error.hint}"
        return type(error)(problem, expected=error.expected, got=error.got, hint=hint)

    def _advice(self) -> str:
        folder = self.options.folder
        saved = f"; the last good checkpoint is kept in {folder}" if folder and has_checkpoint(folder) else ""
        return f"a smaller learning rate, warm-up, or optimizer.clip_norm{saved}"

    def _means(self) -> dict[str, float]:
        n = max(self.progress.sums.get("n", 0), 1)
        return {name: value / n for name, value in self.progress.sums.items() if name != "n"}

    def _close_epoch(self, epoch: int, evaluate: Evaluate, keep: KeepBest, log: RunLog) -> None:
        began = time.monotonic()
        row = {"epoch": epoch + 1, "step": self.progress.step, "lr": self._rate(self.progress.step - 1)}
        row |= {f"train_{name}": value for name, value in self._global_means().items()}
        model = self.kept_model.eval()
        if self.accelerator.num_processes > 1:  # DDP leaves each process with batch statistics of its own
            broadcast(dict(model.named_buffers()))
        check_weights(dict(model.state_dict()), self.progress.step)
        row |= evaluate(model)
        self.progress.seconds += time.monotonic() - began
        row["seconds"] = round(self.progress.seconds, 3)
        self.progress.history.append(row)
        self.progress.sums = {}
        is_best = self._is_best(row)
        if self.accelerator.is_main_process:
            keep(model, row, is_best)
            log.epoch(self.progress.history)
        self._save()

    def _global_means(self) -> dict[str, float]:
        names = sorted(self.progress.sums)
        sums = torch.tensor([self.progress.sums[name] for name in names], dtype=torch.float64)
        total = self.accelerator.reduce(sums.to(self.accelerator.device), "sum")
        values = dict(zip(names, torch.as_tensor(total).tolist(), strict=True))
        return {name: value / values["n"] for name, value in values.items() if name != "n"}

    def _is_best(self, row: dict[str, float]) -> bool:
        if self.options.monitor is None:
            return True
        value = row[self.options.monitor]
        if self.progress.best is not None and value <= self.progress.best:
            return False
        self.progress.best, self.progress.best_epoch = value, int(row["epoch"])
        return True

    def _save(self) -> None:
        self._flush()
        self._saved_at = time.monotonic()
        if self.options.folder is not None and self.accelerator.is_main_process:
            if self.accelerator.scaler is not None:
                self.progress.scaler = self.accelerator.scaler.state_dict()
            save_checkpoint(self.options.folder, self.progress, self._modules(), self.raw_optimizer)

    def _modules(self) -> dict[str, nn.Module]:
        own = {"objective": self.objective}
        return own if self.average is None else own | {"average": self.average}


def _average(model: nn.Module, decay: float | None) -> AveragedModel | None:
    if decay is None:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)

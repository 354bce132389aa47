"""One task of `flows.py`, in a process of its own: all trained on the same batches, then timed in turn."""

from __future__ import annotations

import gc
import math
import random
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import _flows_images
import _flows_vectors
from _flows_subjects import Subject, missing

ACTIONS = ("log_prob", "step", "sample")


class Task(NamedTuple):
    """What is measured: sizes of the network and of the batch."""

    arguments: tuple[Any, ...]  # of the builders
    batch: int
    is_image: bool = False
    rounds: int = 300
    warm: int = 2  # calls before the timed one

    @property
    def builders(self) -> dict[str, Callable[..., Subject]]:
        """By implementation."""
        return _flows_images.BUILDERS if self.is_image else _flows_vectors.BUILDERS


TASKS = {
    "toy-2d": Task((2, 8, 64), 256),
    "digits-64d": Task((64, 8, 64), 256),
    "fashion-glow": Task(((1, 28, 28), 2, 4, 64), 32, is_image=True, rounds=30, warm=0),
}


class Job(NamedTuple):
    """What a worker shall do."""

    task: str
    threads: int
    steps: int  # of training
    rounds: float  # as a fraction of the task's own
    names: list[str]


def data(task: str) -> tuple[Tensor, Tensor]:
    """Training and test points, real numbers of a size of about 1; the noise of dequantisation is fixed."""
    from invertible import data as sets
    from invertible.data.toys import toy

    if task == "toy-2d":
        return toy("moons", 20_000, seed=0).float(), toy("moons", 4096, seed=1).float()
    name, levels = ("digits", 17) if task == "digits-64d" else ("fashion-mnist", 256)
    found = []
    for split in ("train", "test"):
        pixels: Any = sets.load(name, split)
        images = pixels.images[:2048].float()
        noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(len(found)))
        found.append(4 * ((images + noise) / levels - 0.5))
    return (found[0], found[1]) if task == "fashion-glow" else (found[0].flatten(1), found[1].flatten(1))


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def work(job: Job) -> dict[str, dict[str, float]]:
    """Metrics of each implementation that can do the task."""
    torch.set_num_threads(job.threads)
    task, (train_set, test_set) = TASKS[job.task], data(job.task)
    subjects: dict[str, Subject] = {}
    metrics: dict[str, dict[str, float]] = {}
    for name in [name for name in job.names if name in task.builders and not missing(name)]:
        torch.manual_seed(0)
        start = time.perf_counter()
        try:
            subject = task.builders[name](*task.arguments)
            check_size(subject, subjects, name)
            metrics[name] = train(subject, task, train_set, test_set, job.steps)
            subjects[name] = subject
        except Exception as error:  # a peer may fail in any way, and the others shall be measured
            note(f"{job.task}, {name} left out: {type(error).__name__}: {str(error).splitlines()[:1]}")
            metrics.pop(name, None)
            continue
        nats = metrics[name]["test_nats"]
        note(f"{job.task}, {name}: trained in {time.perf_counter() - start:.1f} s, {nats:.2f} nats")
    clock(subjects, metrics, train_set[: task.batch], max(5, round(job.rounds * task.rounds)), task.warm)
    return metrics


def check_size(subject: Subject, others: dict[str, Subject], name: str) -> None:
    """Refuse a comparison of networks of unlike size; masked entries of triangular factors count for some (1 %)."""
    n = others["plain"].n_parameters if others else subject.n_parameters
    if abs(subject.n_parameters - n) > 0.01 * n:
        raise SystemExit(f"{name} has {subject.n_parameters} parameters, not {n}: the comparison would be void")


def train(subject: Subject, task: Task, train_set: Tensor, test_set: Tensor, n_steps: int) -> dict[str, float]:
    """Adam on the same batches for everyone, then the test set's mean log-likelihood and the inverse's error."""
    order, batch = torch.Generator().manual_seed(0), train_set[: task.batch]
    with torch.no_grad():
        subject.decode(subject.encode(batch))  # initialises what depends on data
    optimizer = torch.optim.Adam(subject.model.parameters(), lr=1e-3)
    for _ in range(n_steps):
        optimizer.zero_grad()
        subject.loss(train_set[torch.randint(len(train_set), (task.batch,), generator=order)]).backward()
        optimizer.step()
    optimizer.zero_grad()
    subject.model.eval()
    with torch.no_grad():
        parts = [x for x in test_set.split(task.batch) if len(x) == task.batch]
        nats = statistics.mean(float(subject.log_prob(x).double().mean()) for x in parts)
        errors = [float((subject.decode(subject.encode(x)) - x).abs().max()) for x in parts[:4]]
    subject.model.train()
    return {"test_nats": nats, "inverse_error": max(errors), "parameters": float(subject.n_parameters)}


def clock(
    subjects: dict[str, Subject], metrics: dict[str, dict[str, float]], x: Tensor, rounds: int, warm: int
) -> None:
    """Seconds of each action: in each round everyone once, in random order, compared with that round's plain."""
    seconds = {action: {name: [] for name in subjects} for action in ACTIONS}
    shuffler = random.Random(0)
    gc.collect()
    gc.disable()
    for i in range(rounds + 3):
        for action in ACTIONS:
            for name in shuffler.sample(list(subjects), len(subjects)):
                for _ in range(warm):  # as in a loop of one's own: the caches hold this implementation
                    act(subjects[name], action, x)
                elapsed = act(subjects[name], action, x)
                seconds[action][name] += [elapsed] * (i >= 3)  # the first rounds warm up
        gc.collect(0)
    gc.enable()
    for action, times in seconds.items():
        for name, mine in times.items():
            ratios = [a / b for a, b in zip(mine, times["plain"], strict=True)]
            quartiles = statistics.quantiles(ratios, n=4) if name != "plain" else [1.0, 1.0, 1.0]
            metrics[name] |= {
                f"{action}_ratio": quartiles[1], f"{action}_ms": 1e3 * statistics.median(mine),
                f"{action}_ratio_q25": quartiles[0], f"{action}_ratio_q75": quartiles[2],
            }  # fmt: skip


def act(subject: Subject, action: str, x: Tensor) -> float:
    """Seconds of one action: densities, a forward and backward pass, or samples, of one batch."""
    if action == "step":
        subject.model.zero_grad(set_to_none=True)
        start = time.perf_counter()
        subject.loss(x).backward()
        return time.perf_counter() - start
    with torch.no_grad():
        start = time.perf_counter()
        out = subject.log_prob(x) if action == "log_prob" else subject.sample(len(x))
        elapsed = time.perf_counter() - start
    if not math.isfinite(float(out.sum())):
        note(f"{action} gave values that are not finite")
    return elapsed

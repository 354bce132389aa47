"""Training and measuring for `residual_flows.py`: exact likelihoods, round trips, and times in paired rounds."""

from __future__ import annotations

import copy
import gc
import math
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from _flows_subjects import log_normal
from _flows_train import Data
from _residual_subjects import Subject

BATCH, RATE, CHUNK = 256, 2e-3, 90
ACTIONS = ("step", "score", "sample")


def prepare(seed: int) -> Data:
    """The digits between -2 and 2, as `flows.py` takes them; the noise of dequantisation is fixed for the test set."""
    from invertible.data import load

    sets: list[Any] = [load("digits", split) for split in ("train", "test")]
    train, test = (4 * (each.images.flatten(1).double() / 17 - 0.5) for each in sets)
    noise = torch.full((train.shape[1],), 4 / 17)
    test = test + noise * torch.rand(test.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Data(train.float(), train[:0].float(), test.float(), 0.0, noise)


class Training:
    """One implementation in training, on batches that are the same for all."""

    def __init__(self, subject: Subject, data: Data, seed: int) -> None:
        self.subject, self.data, self.seed, self.seconds = subject, data, seed, 0.0
        self.optimizer = torch.optim.Adam(subject.model.parameters(), lr=RATE)
        self.order = torch.Generator().manual_seed(seed)
        subject.model.train()

    def step(self) -> None:
        """One step of Adam, and what the implementation wants to be called after it; the batch costs no time."""
        x = batch(self.data, self.order)
        start = time.process_time()
        self.optimizer.zero_grad()
        self.subject.loss(x).backward()
        nn.utils.clip_grad_norm_(self.subject.model.parameters(), 5.0)
        self.optimizer.step()
        self.subject.constrain()
        self.seconds += time.process_time() - start

    def steps(self, n: int) -> None:
        """Several; the noise of probes is seeded too."""
        torch.manual_seed(self.seed)
        for _ in range(n):
            self.step()


def batch(data: Data, order: torch.Generator) -> Tensor:
    """Digits with new noise of dequantisation."""
    x = data.train[torch.randint(len(data.train), (BATCH,), generator=order)]
    return x if data.noise is None else x + data.noise * torch.rand(x.shape, generator=order)


def exact_log_prob(subject: Subject, build: Callable[[], Subject], x: Tensor) -> Tensor:
    """Log-densities from the determinant of the whole map's Jacobian in float64, which trusts no implementation.

    Args:
        subject: The trained one.
        build: Makes another one, into which the weights are copied.
        x: Shape (batch, n_dims).

    Returns:
        Nats, float64.
    """
    twin = build()
    twin.model.load_state_dict(copy.deepcopy(subject.model.state_dict()))
    twin.model.double().eval()
    return torch.cat([_exact(twin.encode, part) for part in x.double().split(CHUNK)])


def _exact(encode: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    z = encode(x)
    rows = [torch.autograd.grad(z[:, i].sum(), x, retain_graph=True)[0] for i in range(z.shape[1])]
    return log_normal(z.detach()) + torch.linalg.slogdet(torch.stack(rows, 1)).logabsdet


def assess(subject: Subject, build: Callable[[], Subject], x: Tensor) -> dict[str, float]:
    """Accuracy on test points: exact likelihood, the error of the implementation's own, and the round trip's.

    Args:
        subject: The trained one.
        build: As for `exact_log_prob`.
        x: Test points.

    Returns:
        Metrics; nats and the points' own scale.
    """
    subject.model.eval()
    exact = exact_log_prob(subject, build, x)
    with torch.no_grad():
        own = subject.log_prob(x.clone()).detach().double()
        back = subject.decode(subject.encode(x.clone()))
    found = {
        "test_nats": float(exact.mean()),
        "logdet_error": float((own - exact).square().mean().sqrt()),
        "inverse_error": float((back - x).abs().max()),
    }
    reports = [block.report for block in subject.blocks if block.report is not None]
    errors = [report.relative_error for report in reports if report.relative_error is not None]
    if errors:
        found["guaranteed_error"] = float(torch.stack(errors).max())
        found["lipschitz_bound"] = max(report.lipschitz or 0.0 for report in reports)
    subject.model.train()
    return found


def clock(trainings: dict[str, Training], x: Tensor, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each action: in each round everyone once, in random order, after one call to warm up.

    Args:
        trainings: Everyone.
        x: The points to score; as many are sampled.
        rounds: How many.

    Returns:
        Per implementation, medians over the rounds.
    """
    taken = {name: {action: [] for action in ACTIONS} for name in trainings}
    shuffler = random.Random(0)
    gc.collect()
    gc.disable()
    for _ in range(rounds):
        for action in ACTIONS:
            for name in shuffler.sample(list(trainings), len(trainings)):
                act(trainings[name], action, x)
                taken[name][action].append(act(trainings[name], action, x))
        gc.collect(0)
    gc.enable()
    return {
        name: {f"{action}_ms": 1e3 * statistics.median(times) for action, times in by_action.items()}
        for name, by_action in taken.items()
    }


def act(training: Training, action: str, x: Tensor) -> float:
    """Seconds of one action."""
    subject = training.subject
    if action == "step":
        before = training.seconds
        training.step()
        return training.seconds - before
    subject.model.eval()
    with torch.no_grad():
        start = time.process_time()
        out = subject.log_prob(x) if action == "score" else subject.sample(len(x))
        elapsed = time.process_time() - start
    subject.model.train()
    if not math.isfinite(float(out.sum())):
        raise SystemExit(f"{action} gave values that are not finite")
    return elapsed

"""Training for `flow_likelihood.py`: one loop for everyone, in turns, until each has used the same processor time."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from _flows_subjects import Subject

BATCH, RATE, SLICE = 256, 2e-3, 20
N_LOOKS = 20


@dataclass
class Data:
    """Standardised points; `offset` nats bring densities back to the original scale."""

    train: Tensor
    held_out: Tensor
    test: Tensor
    offset: float
    noise: Tensor | None = None  # standard deviations of the pixels' uniform noise, drawn anew for each batch


@dataclass
class Run:
    """One implementation in training: Adam, a rate that falls as a cosine of the time used, clipped gradients."""

    subject: Subject
    data: Data
    seconds: float
    seed: int
    n_steps: int = 0
    used: float = 0.0
    best: float = -math.inf
    weights: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.Adam(self.subject.model.parameters(), lr=RATE)
        self.generator, self.looks = torch.Generator().manual_seed(self.seed), 0
        self.subject.model.train()

    @property
    def is_done(self) -> bool:
        """Whether its time is up."""
        return self.used >= self.seconds

    def advance(self) -> None:
        """A few steps; now and then a look at the points held out (it costs no time) that keeps the best weights."""
        start = time.process_time()
        for _ in range(SLICE):
            share = min(1.0, (self.used + time.process_time() - start) / self.seconds)
            self.optimizer.param_groups[0]["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * share))
            self.step()
        self.used += time.process_time() - start
        if self.used >= self.seconds * (self.looks + 1) / N_LOOKS:
            self.looks += 1
            self.look()

    def step(self) -> None:
        data = self.data
        chosen = torch.randint(len(data.train), (BATCH,), generator=self.generator)
        x = data.train[chosen]
        if data.noise is not None:
            x = x + data.noise * torch.rand(x.shape, generator=self.generator)
        self.optimizer.zero_grad()
        loss = self.subject.loss(x)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.subject.model.parameters(), 5.0)
        if math.isfinite(float(loss)):
            self.optimizer.step()
        self.n_steps += 1

    def look(self) -> None:
        score = self.score(self.data.held_out)
        if score > self.best:
            self.best, self.weights = score, copy.deepcopy(self.subject.model.state_dict())

    def score(self, x: Tensor) -> float:
        """Mean log-likelihood, nats of the original scale."""
        self.subject.model.eval()
        with torch.no_grad():
            nats = torch.cat([self.subject.log_prob(part).double() for part in x.split(1024)]).mean()
        self.subject.model.train()
        return float(nats) + self.data.offset

    def finish(self) -> dict[str, float]:
        """Metrics, with the best weights."""
        if self.weights:
            self.subject.model.load_state_dict(self.weights)
        n = float(self.subject.n_parameters)
        return {"test_nats": self.score(self.data.test), "steps": float(self.n_steps), "parameters": n}


def prepare(task: str, seed: int) -> Data:
    """Points of a toy, or the digits with the noise of dequantisation fixed where likelihoods are taken."""
    if task == "digits":
        return digits(seed)
    from invertible.data.toys import toy

    train, test = toy(task, 20_000, seed=2 * seed), toy(task, 10_000, seed=2 * seed + 1)
    mean, std = train.mean(0), train.std(0)
    train, test = ((x - mean) / std for x in (train, test))
    return Data(train[2000:].float(), train[:2000].float(), test.float(), -float(std.log().sum()))


def digits(seed: int) -> Data:
    from invertible.data import load

    train, test = (load("digits", split).images.flatten(1).double() for split in ("train", "test"))  # type: ignore[union-attr]
    generator = torch.Generator().manual_seed(seed)
    train = train[torch.randperm(len(train), generator=generator)]
    noisy = train + torch.rand(train.shape, generator=generator, dtype=torch.float64)
    mean, std = noisy.mean(0), noisy.std(0)
    test = (test + torch.rand(test.shape, generator=generator, dtype=torch.float64) - mean) / std
    held_out = ((noisy - mean) / std)[:200]
    rest = ((train - mean) / std)[200:]
    return Data(rest.float(), held_out.float(), test.float(), -float(std.log().sum()), (1 / std).float())


def compare(runs: dict[str, Run]) -> dict[str, dict[str, float]]:
    """Train them in turns."""
    while any(not run.is_done for run in runs.values()):
        for run in runs.values():
            if not run.is_done:
                run.advance()
    return {name: run.finish() for name, run in runs.items()}

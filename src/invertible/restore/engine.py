"""One run: an untrained network is fitted to a damaged picture, from coarse to fine, until the rule says stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from invertible.errors import ConfigError, NonFiniteError
from invertible.restore._evidence import Evidence
from invertible.restore._noise import NoiseBank
from invertible.restore.prior import Prior
from invertible.restore.settings import Settings
from invertible.restore.stopping import Sight, StoppingRule
from invertible.restore.trajectory import Moment, Run

EVERY = 10
"""So often a step is looked at."""
JUMP = 10**0.5
"""A loss that grows so much (5 dB) since the last snapshot is taken back. Source: the paper's released code."""
SNAPSHOT = 50
RAMP = 500
"""Steps over which the input's noise grows, at full size."""
LEARNT = 1.03
"""A coarse scale ends where the error left is so many times the noise's variance."""
INTERRUPTED = "interrupted"
COARSE_SHARE = 0.3
"""Of a time limit, at most, goes to the coarse scales."""


@dataclass(frozen=True)
class Progress:
    """Where a restoration is.

    Args:
        seed: Of the run.
        step: From 1, over all scales.
        max_steps: At most.
        seconds: So far, in this run.
        loss: Mean squared error now.
        statistic: Of the stopping rule; NaN: not known yet.
        psnr: Against the truth, dB; None: unknown.
    """

    seed: int
    step: int
    max_steps: int
    seconds: float
    loss: float
    statistic: float
    psnr: float | None


@dataclass
class Fit:
    """A run in progress.

    Args:
        prior: The untrained network; it is trained in place.
        evidence: What is known of the picture.
        settings: How to fit.
        rule: When to stop.
        seed: Of the input and its noise.
        seconds: At most; None: as long as it takes.
        on_step: Called every `EVERY` steps.
    """

    prior: Prior
    evidence: Evidence
    settings: Settings
    rule: StoppingRule
    seed: int = 0
    seconds: float | None = None
    on_step: Callable[[Progress], None] | None = None
    moments: list[Moment] = field(default_factory=list)
    kept: Tensor | None = None
    kept_step: int = 0
    kept_psnr: float | None = None
    peak_psnr: float | None = None
    n_reverts: int = 0
    _step: int = 0
    _n_full: int = 0
    _took: float = 0.0
    _reason: str = ""
    _average: Tensor | None = None
    _average_age: int = 0
    _is_learnt: bool = False
    _snapshot: dict[str, Tensor] | None = None
    _snapshot_loss: float = math.inf
    _optimizer: Any = None

    def run(self) -> Tensor:
        """Fit until something ends it.

        Returns:
            The kept picture, shape (1, channels, height, width), in [0, 1].

        Raises:
            KeyboardInterrupt: If it comes before the first step is done.
            ConfigError: If the time was over before there was a picture.
        """
        self._began = time.perf_counter()
        inputs = self._draw()
        factors = [f for f in self.prior.factors if f == 1 or self.settings.coarse_steps]
        self._max_steps = self.settings.steps + self.settings.coarse_steps * (len(factors) - 1)
        self._renew_optimizer()
        try:
            for factor in factors:
                self._scale(factor, self.prior.coarser(inputs, factor))
        except KeyboardInterrupt:
            self._reason = INTERRUPTED
        if self._n_full < EVERY and self._reason and self._reason != INTERRUPTED:
            self._refuse()
        if self.kept is None:
            self._keep()
        self._took = time.perf_counter() - self._began
        if self.kept is None:  # interrupted before the first step was done
            raise KeyboardInterrupt
        return self.kept

    @property
    def summary(self) -> Run:
        """How it ended."""
        reason = self._reason or self.rule.reason or "all steps done"
        psnrs = self.kept_psnr, self.peak_psnr
        return Run(self.seed, self.kept_step, self._step, reason, self._took, *psnrs, self.n_reverts)

    def _draw(self) -> tuple[Tensor, ...]:
        device = self.evidence.measured.device
        self._generator = torch.Generator(device).manual_seed(self.seed)
        inputs = self.prior.draw(self.evidence.size, self._generator)
        self._spread = max(float(inputs[-1].std()) if inputs[-1].numel() > 1 else 1.0, 1e-6)
        self._noise = NoiseBank(self._generator)
        return inputs

    def _renew_optimizer(self) -> None:
        parameters = [p for p in self.prior.parameters() if p.requires_grad]
        self._optimizer = torch.optim.Adam(parameters, lr=self.settings.learning_rate, betas=(0.9, 0.99), foreach=True)

    def _scale(self, factor: int, inputs: tuple[Tensor, ...]) -> None:
        steps = self.settings.steps if factor == 1 else self.settings.coarse_steps
        self._average_age = 0  # the coarser average stays until there is a finer one
        self._snapshot, self._snapshot_loss = None, math.inf
        for i in range(steps):
            if self._is_late(factor):
                return
            start, end = self.settings.input_noise
            level = start + (end - start) * min(1.0, i / RAMP) if factor == 1 else start
            if factor == 1 and self.settings.decay:
                self._slow_down((steps - i) / steps)
            picture, loss = self._descend(tuple(x + level * self._spread * self._noise.like(x) for x in inputs))
            self._step += 1
            self._n_full += factor == 1
            self._add(picture)
            if not i % SNAPSHOT:
                self._look_back(float(loss))
            self._look(factor, float(loss) if not i % EVERY else None)
            if self.rule.reason or self._is_learnt:
                return

    def _slow_down(self, left: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * min(1.0, left / self.settings.decay)

    def _descend(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        with self.evidence.autocast():
            picture = self.prior(inputs)
        loss = self.evidence.loss(picture)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        return picture.detach(), loss.detach()

    def _add(self, picture: Tensor) -> None:
        self._average_age += 1
        weight = max(1 - self.settings.average, 1 / self._average_age)
        if self._average is None or self._average_age == 1:
            self._average = picture.clone()
        else:
            self._average.lerp_(picture, weight)
        self._picture = picture

    def _look_back(self, loss: float) -> None:
        # A loss that jumps is undone, and the optimiser forgets what led there.
        if not math.isfinite(loss) and self._snapshot is None:
            hint = "a smaller learning_rate, or precision='float32'"
            raise NonFiniteError("the fit diverged at its first steps", got=f"a loss of {loss}", hint=hint)
        if self._snapshot is not None and not loss <= JUMP * self._snapshot_loss:
            self.prior.load_state_dict(self._snapshot)
            self._renew_optimizer()
            self._average_age = 0
            self.n_reverts += 1
            return
        self._snapshot = {name: value.clone() for name, value in self.prior.state_dict().items()}
        self._snapshot_loss = loss

    def _look(self, factor: int, loss: float | None) -> None:
        average = self._average
        if average is None:
            return
        is_full = factor == 1
        discrepancy = None if loss is None else self.evidence.discrepancy(average)
        # A small picture that already explains all but the noise would go on to learn the noise's coarse part.
        self._is_learnt = not is_full and discrepancy is not None and discrepancy < LEARNT
        is_seen = is_full and (loss is not None or self.rule.sees_every_step)
        if is_seen and self.rule.see(Sight(self._step, self._picture, average, discrepancy)):
            self._keep()
        if loss is not None:
            self._record(factor, loss, discrepancy)

    def _record(self, factor: int, loss: float, discrepancy: float | None) -> None:
        psnr = self._psnr()
        if psnr is not None:
            self.peak_psnr = max(psnr, self.peak_psnr or -math.inf)
        statistic = None if math.isnan(self.rule.statistic) else self.rule.statistic
        self.moments.append(Moment(self.seed, self._step, factor, loss, discrepancy, statistic, psnr))
        if self.on_step is not None:
            seconds = time.perf_counter() - self._began
            self.on_step(Progress(self.seed, self._step, self._max_steps, seconds, loss, self.rule.statistic, psnr))

    def _keep(self) -> None:
        if self._average is None:
            return
        picture = self.evidence.full_size(self._average)
        self.kept = picture.clone() if self.kept is None else self.kept.copy_(picture)
        self.kept_step, self.kept_psnr = self._step, self._psnr()
        if self.kept_psnr is not None:
            self.peak_psnr = max(self.kept_psnr, self.peak_psnr or -math.inf)

    def _psnr(self) -> float | None:
        return None if self._average is None else self.evidence.psnr(self._average)

    def _is_late(self, factor: int) -> bool:
        passed = time.perf_counter() - self._began
        if self.seconds is None or not self._step:
            return False
        if factor > 1:
            return passed > COARSE_SHARE * self.seconds / factor
        if passed > self.seconds:
            self._reason = f"the time limit of {self.seconds:.3g} s"
        return bool(self._reason)

    def _refuse(self) -> None:
        # What a few steps leave is no picture, and nobody should take it for one.
        passed, pixels = time.perf_counter() - self._began, math.prod(self.evidence.size)
        needed = passed / max(self._step, 1) * self._max_steps
        expected = f"about {needed:.0f} s for {pixels:,} pixels, a tenth of it at the least"
        hint = "no time limit, or a smaller picture"
        raise ConfigError(
            "too little time to restore anything", expected=expected, got=f"{self.seconds:.3g} s", hint=hint
        )

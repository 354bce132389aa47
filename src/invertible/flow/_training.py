"""The loop behind `Flow.fit`: Adam, a learning rate that falls when the held-out rows stop improving, best weights."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from invertible._console import progress
from invertible.errors import NonFiniteError

if TYPE_CHECKING:
    from invertible.flow.fit import FitOptions
    from invertible.flow.flow import Flow

EVALUATION_ROWS = 4096
N_DECAYS = 2
DECAY = 0.25
LARGEST_NORM = 5.0
"""Of the gradient; beyond, it is scaled down."""


class Training:
    """A flow on its way to the weights that suit the held-out rows best.

    Args:
        flow: The flow; its weights change.
        x: Data, shape (n, *event_shape).
        context: One per row, or None.
        rows: Which rows to train on, and which to hold out.
        options: How.

    Attributes:
        step: Steps taken.
        best: The weights that suited the held-out rows best.
        stopped: Why it ended.
        history: (step, mean log-density of the rows trained on, of those held out) at each evaluation.
        seconds: How long it took.
    """

    def __init__(
        self, flow: Flow, x: Tensor, context: Tensor | None, rows: tuple[Tensor, Tensor], options: FitOptions
    ) -> None:
        self.flow, self.x, self.context, self.options = flow, x, context, options
        self.train, self.held = rows
        self.optimizer = torch.optim.Adam([p for p in flow.parameters() if p.requires_grad], lr=options.lr)
        self.best, self.history, self.stopped, self.seconds = _Best(flow), [], "", 0.0
        self.step, self._waited, self._decays = 0, 0, 0
        self._total, self._n_summed = torch.zeros((), device=x.device), 0

    def run(self) -> None:
        """Train until an end is reached; the best weights are put back, after an interrupt too.

        Raises:
            KeyboardInterrupt: After Ctrl-C.
        """
        began, every, batches = time.monotonic(), self._interval(), _batches(self.train, self.options.batch_size)
        with progress() as display:
            task = display.add_task("fitting", total=self.options.max_steps, visible=not self.options.quiet)
            try:
                while not self.stopped:
                    self._advance(next(batches), began, every)
                    text = f"fitting: {self.best.nats:.3f} nats held out"
                    display.update(task, completed=self.step, description=text)
            except KeyboardInterrupt:
                self.stopped = "interrupted"
                raise
            finally:
                self.best.restore()
                self.flow.eval()
                self.seconds = time.monotonic() - began

    def _interval(self) -> int:
        # Evaluate once per pass over the data, but neither after a few steps nor after thousands.
        return max(50, min(500, math.ceil(len(self.train) / self.options.batch_size)))

    def _advance(self, rows: Tensor, began: float, every: int) -> None:
        limit, n = self.options.max_seconds, self.options.max_steps
        try:
            self._learn(rows)
            late = limit is not None and time.monotonic() - began > limit
            if self.step % every == 0 or self.step == n or late:
                self._assess()
        except NonFiniteError:
            # Steps that were too long: smaller ones from the best weights, whose moments of the gradient are gone.
            if self._decays == N_DECAYS or (self.step >= n and not self.history):
                raise
            self._slow_down()
            self.optimizer.state.clear()
            late = False
        if not self.stopped and (late or self.step >= n):
            self.stopped = "max_seconds" if late else "max_steps"

    def _learn(self, rows: Tensor) -> None:
        self.step += 1
        self.flow.train()
        loss = self.flow(self.x[rows], None if self.context is None else self.context[rows])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.flow.parameters(), LARGEST_NORM)
        self.optimizer.step()
        self._total, self._n_summed = self._total + loss.detach(), self._n_summed + 1

    def _assess(self) -> None:
        nats, error = self._evaluate()
        self.history.append((self.step, -self._total.item() / self._n_summed, nats))
        self._total, self._n_summed = torch.zeros_like(self._total), 0
        self._waited = 0 if self.best.offer(self.step, nats, error) else self._waited + 1
        if self._waited < self.options.patience:
            return
        if self._decays == N_DECAYS:
            self.stopped = "no improvement"
        else:
            self._slow_down()

    def _slow_down(self) -> None:
        self._decays, self._waited = self._decays + 1, 0
        self._total, self._n_summed = torch.zeros_like(self._total), 0
        self.best.restore()
        for group in self.optimizer.param_groups:
            group["lr"] *= DECAY

    @torch.no_grad()
    def _evaluate(self) -> tuple[float, float]:
        # Mean log-density of the held-out rows, and its standard error.
        self.flow.eval()
        contexts = None if self.context is None else [self.context[part] for part in self.held.split(EVALUATION_ROWS)]
        parts = [
            self.flow.log_prob(self.x[part], None if contexts is None else contexts[i])
            for i, part in enumerate(self.held.split(EVALUATION_ROWS))
        ]
        nats = torch.cat(parts).double()
        error = nats.std().item() / math.sqrt(len(nats)) if len(nats) > 1 else math.nan
        return nats.mean().item(), error


class _Best:
    """The weights that suited the held-out rows best."""

    def __init__(self, flow: Flow) -> None:
        self.flow, self.nats, self.error, self.step = flow, -math.inf, math.nan, 0
        self.weights = copy.deepcopy(flow.state_dict())

    def offer(self, step: int, nats: float, error: float) -> bool:
        if not nats > self.nats:
            return False
        self.step, self.nats, self.error = step, nats, error
        self.weights = copy.deepcopy(self.flow.state_dict())
        return True

    def restore(self) -> None:
        self.flow.load_state_dict(self.weights)


def _batches(rows: Tensor, size: int) -> Iterator[Tensor]:
    while True:
        order = rows[torch.randperm(len(rows), device=rows.device)]
        last = len(order) - len(order) % size if len(order) >= size else len(order)
        yield from order[:last].split(size)

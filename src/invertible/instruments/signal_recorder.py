"""Signal propagation over training: measured every so many steps, without changing a step."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from invertible.errors import ConfigError
from invertible.instruments._compare_plot import Curve
from invertible.instruments._signal_plot import draw_history
from invertible.instruments.result import Finding, Result, Row
from invertible.instruments.signal_propagation import SignalPropagation, signal_propagation

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class SignalHistory(Result):
    """Signal propagation at several steps of a training.

    Args:
        findings: What the last measurement found, and where the first error came.
        steps: Number of optimizer steps done at each measurement.
        snapshots: The measurements.
    """

    steps: tuple[int, ...]
    snapshots: tuple[SignalPropagation, ...]

    @property
    def table(self) -> list[Row]:
        """The rows of each snapshot, with the step before them."""
        pairs = zip(self.steps, self.snapshots, strict=True)
        return [{"step": step} | row for step, snapshot in pairs for row in snapshot.table]

    @property
    def curves(self) -> dict[str, Curve]:
        """Variance and squared mean of the last block against the step, under these names."""
        last, steps = [snapshot.blocks[-1] for snapshot in self.snapshots], tuple(map(float, self.steps))
        variance, mean = tuple(block.variance for block in last), tuple(block.squared_mean for block in last)
        return {
            "variance": Curve(steps, variance, "step", "variance of the last block", log=True),
            "squared mean": Curve(steps, mean, "step", "squared mean of the last block", log=True),
        }

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the variance of each block against the step, deeper blocks darker.

        Args:
            ax: Where; None: on a new figure.

        Returns:
            The axes.
        """
        return draw_history(ax, self.steps, [snapshot.blocks for snapshot in self.snapshots])


class SignalPropagationRecorder:
    """Measures a network every N optimizer steps. The training goes on as if nobody had looked, to the bit.

    In a loop of your own call it with the step; or let it follow an optimizer, which works inside any loop (ours:
    `trainer.raw_optimizer`).

    Args:
        model: The network.
        data: As in `signal_propagation`; the same at each step, so no generator.
        every: Measure at steps 0, every, 2 every, ...
        **options: Of `signal_propagation`.

    Raises:
        ConfigError: If `every` is no whole number from 1, or the data can be gone over only once.

    Example:
        >>> network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        >>> recorder = SignalPropagationRecorder(network, (16, 3), every=2)
        >>> with recorder.following(optimizer):
        ...     for _ in range(5):
        ...         network(torch.randn(8, 3)).square().mean().backward()
        ...         optimizer.step()
        >>> recorder.result.steps
        (0, 2, 4)
    """

    def __init__(self, model: nn.Module, data: Any, *, every: int = 100, **options: Any) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ConfigError("a recorder has a bad interval", expected="every >= 1, a whole number", got=repr(every))
        if isinstance(data, Iterator):
            hint = "list(data), or a function that makes the generator anew"
            raise ConfigError("a recorder needs its data again and again", got="a generator", hint=hint)
        self.model, self.data, self.every = model, data, every
        unknown = sorted(set(options) - set(inspect.signature(signal_propagation).parameters))
        if unknown:
            expected = "options of signal_propagation"
            raise ConfigError("a recorder has no such option", expected=expected, got=", ".join(unknown))
        self._options: dict[str, Any] = {"quiet": True} | options
        self._steps: list[int] = []
        self._snapshots: list[SignalPropagation] = []

    def __call__(self, step: int) -> None:
        """Measure, if it is time.

        Args:
            step: How many optimizer steps have been done.
        """
        if step % self.every == 0:
            self._steps.append(step)
            self._snapshots.append(signal_propagation(self.model, self.data, **self._options))

    @contextmanager
    def following(self, optimizer: torch.optim.Optimizer, step: int = 0) -> Iterator[None]:
        """Measure now, and then after each `every`-th step of an optimizer.

        Args:
            optimizer: The one that trains the network.
            step: How many steps have been done already.

        Yields:
            Nothing; at the end the optimizer is left alone again.
        """
        done = step
        self(done)

        def after(*_: Any) -> None:
            nonlocal done
            done += 1
            self(done)

        handle = optimizer.register_step_post_hook(after)
        try:
            yield
        finally:
            handle.remove()

    @property
    def result(self) -> SignalHistory:
        """What was recorded so far.

        Raises:
            ConfigError: If nothing was.
        """
        if not self._snapshots:
            hint = "recorder(step) in the loop, or `with recorder.following(optimizer)` around it"
            raise ConfigError("nothing was recorded", got="no measurement", hint=hint)
        last = self._snapshots[-1]
        findings = [Finding(f.severity, f"Step {self._steps[-1]}: {f.sentence}") for f in last.findings]
        for step, snapshot in zip(self._steps[:-1], self._snapshots[:-1], strict=True):
            first = next((f for f in snapshot.findings if f.severity == "error"), None)
            if first is not None:
                findings.append(Finding("error", f"First at step {step}: {first.sentence}"))
                break
        return SignalHistory(
            tuple(findings), tuple(self._steps), tuple(self._snapshots), provenance=last.provenance
        )  # fmt: skip

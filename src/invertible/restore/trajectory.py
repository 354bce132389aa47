"""The record of a restoration: loss, stopping statistic and, where the truth is known, PSNR, step by step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from invertible.instruments import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Moment:
    """One step of a run.

    Args:
        seed: Of the run.
        step: From 1, over all scales.
        factor: 1: at full size; 2: at half of it, and so on.
        loss: Mean squared error of the network's picture against what was measured.
        discrepancy: Mean squared error of the averaged picture divided by the noise's variance; None: noise unknown.
        statistic: Of the stopping rule; None: not known yet.
        psnr: Of the averaged picture against the truth, dB; None: truth unknown.
    """

    seed: int
    step: int
    factor: int
    loss: float
    discrepancy: float | None
    statistic: float | None
    psnr: float | None


@dataclass(frozen=True)
class Run:
    """How one run ended.

    Args:
        seed: Of the run.
        stop_step: The step whose picture was kept.
        last_step: The last step taken.
        reason: Why it ended.
        seconds: It took.
        psnr: Of the kept picture, dB; None: truth unknown.
        peak_psnr: The best that was seen, dB.
        n_reverts: How often it went back because the loss jumped.
    """

    seed: int
    stop_step: int
    last_step: int
    reason: str
    seconds: float
    psnr: float | None
    peak_psnr: float | None
    n_reverts: int


@dataclass(frozen=True)
class Trajectory(Result):
    """What happened on the way to the restored picture.

    Args:
        moments: Every tenth step or so, run after run.
        runs: How each ended.
        rule: The stopping rule's name.
    """

    moments: tuple[Moment, ...] = field(default=(), repr=False)
    runs: tuple[Run, ...] = ()
    rule: str = ""

    @property
    def table(self) -> list[dict[str, str | int | float | bool | None]]:
        """A row a moment."""
        return [
            {
                "seed": m.seed,
                "step": m.step,
                "factor": m.factor,
                "loss": m.loss,
                "discrepancy": m.discrepancy,
                "statistic": m.statistic,
                "psnr": m.psnr,
            }
            for m in self.moments
        ]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the loss against the step and, on a second axis, the PSNR or the stopping statistic.

        Args:
            ax: Where; None: on a new figure.

        Returns:
            The axes of the loss.
        """
        import matplotlib.pyplot as plt

        ax = plt.subplots(figsize=(7, 4), layout="constrained")[1] if ax is None else ax
        has_truth = any(m.psnr is not None for m in self.moments)
        other = ax.twinx()
        for k, run in enumerate(self.runs):
            mine = [m for m in self.moments if m.seed == run.seed]
            steps = [m.step for m in mine]
            ax.semilogy(steps, [m.loss for m in mine], color="C0", alpha=0.7, label="loss" if not k else None)
            second = [(m.step, m.psnr if has_truth else m.statistic) for m in mine]
            points = [(step, value) for step, value in second if value is not None]
            name = "PSNR (dB)" if has_truth else self.rule
            other.plot(*zip(*points, strict=True) if points else ([], []), color="C1", label=name if not k else None)
            ax.axvline(run.stop_step, color="k", linestyle=":", label="kept" if not k else None)
        ax.set(xlabel="step", ylabel="loss (mean squared error)")
        other.set_ylabel("PSNR (dB)" if has_truth else self.rule)
        handles = [*ax.get_legend_handles_labels()[0], *other.get_legend_handles_labels()[0]]
        if handles:
            ax.legend(handles=handles, loc="center right")
        return ax

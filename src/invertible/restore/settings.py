"""What a restoration does without being told: one set of settings for each kind of damage, none for each picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from invertible.errors import ConfigError
from invertible.restore.jpeg import Jpeg
from invertible.restore.mask import Mask
from invertible.restore.operator import Operator
from invertible.restore.stopping import Discrepancy, MovingVariance, Never, StoppingRule, WindowedVariance

Stop = Literal["auto", "windowed-variance", "moving-variance", "discrepancy", "never"]
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class Settings:
    """How a network is fitted to a picture.

    Args:
        steps: At full size, at most.
        coarse_steps: At every coarser scale that the network offers, first.
        learning_rate: Of Adam.
        input_noise: Standard deviation of the noise that is added to the network's input at every step, in units of the
            input's own: at the first step of the full size, and at the last.
        average: Weight of the past in the average of the outputs.
        stop: The stopping rule; "auto": the discrepancy where the noise is known, the moving variance otherwise.
        precision: Of the convolutions; "auto": bfloat16 where the processor computes it faster.
        ratio: At which the discrepancy stops.
        decay: The learning rate falls to 0 during this share of the steps at full size, the last ones.

    Raises:
        ConfigError: If a number is out of its range.

    Example:
        >>> Settings(steps=500).input_noise
        (0.2, 1.0)
    """

    steps: int = 900
    coarse_steps: int = 250
    learning_rate: float = 0.02
    input_noise: tuple[float, float] = (0.2, 1.0)
    average: float = 0.99
    stop: Stop = "auto"
    precision: Precision = "auto"
    ratio: float = 0.97
    decay: float = 0.0

    def __post_init__(self) -> None:
        if self.stop not in get_args(Stop) or self.precision not in get_args(Precision):
            expected = f"stop of {', '.join(get_args(Stop))}; precision of {', '.join(get_args(Precision))}"
            got = f"stop={self.stop!r}, precision={self.precision!r}"
            raise ConfigError("a restoration cannot run so", expected=expected, got=got)
        if not isinstance(self.steps, int) or not isinstance(self.coarse_steps, int):
            got = f"steps={self.steps!r}, coarse_steps={self.coarse_steps!r}"
            raise ConfigError("a restoration cannot run so", expected="whole numbers of steps", got=got)
        checks = {
            "steps >= 1": self.steps >= 1,
            "coarse_steps >= 0": self.coarse_steps >= 0,
            "learning_rate > 0": 0 < self.learning_rate < math.inf,
            "input_noise >= 0": all(0 <= noise < math.inf for noise in self.input_noise),
            "0 <= average < 1": 0 <= self.average < 1,
            "0 <= decay <= 1": 0 <= self.decay <= 1,
            "ratio > 0": 0 < self.ratio < math.inf,
        }
        for expected, is_fine in checks.items():
            if not is_fine:
                name = next(word for word in expected.split() if word.isidentifier())
                raise ConfigError("a restoration cannot run so", expected=expected, got=getattr(self, name))

    def rule(self, knows_noise: bool) -> StoppingRule:
        """Make the stopping rule of a run.

        Args:
            knows_noise: Whether the noise level is known.

        Returns:
            A fresh one.

        Raises:
            ConfigError: If the discrepancy is asked for without a noise level.
        """
        if self.stop == "discrepancy" and not knows_noise:
            raise ConfigError("the discrepancy needs a noise level", got="none", hint="sigma=..., or stop='auto'")
        if self.stop == "discrepancy" or (self.stop == "auto" and knows_noise):
            return Discrepancy(self.ratio)
        if self.stop == "windowed-variance":
            return WindowedVariance()
        return Never() if self.stop == "never" else MovingVariance()

    @classmethod
    def for_damage(cls, operator: Operator, sigma: float | None) -> Settings:
        """The settings for a kind of damage.

        Args:
            operator: What happened to the picture.
            sigma: Of the noise, in units of the pixel range; None: unknown, or there is none.

        Returns:
            Settings, measured on photographs (docs/restore.md).
        """
        if sigma:
            # More noise in the picture needs more in the input, or the coarse scales learn it. Both lines were drawn
            # through what did well at sigma = 25 and 50 of 255.
            return cls(steps=1300, input_noise=(0.1 + 2 * sigma, 0.5 + 5 * sigma))
        if isinstance(operator, Jpeg):
            return cls(stop="never", input_noise=(0.5, 1.0), steps=1000)
        if isinstance(operator, Mask):
            return cls(stop="never", input_noise=(0.1, 0.3), steps=1500)
        return cls(stop="never", input_noise=(0.2, 0.2), steps=1000)

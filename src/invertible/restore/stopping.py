"""When to stop: before the noise is learnt. Each rule watches the pictures of a run and says which step was best."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass

from torch import Tensor

from invertible.errors import ConfigError


@dataclass(frozen=True)
class Sight:
    """What a rule sees of one step.

    Args:
        step: Which, from 1.
        picture: The network's output, shape (1, channels, height, width), detached.
        average: The averaged output so far, same shape; changed in place by later steps.
        discrepancy: Mean squared error of what the average predicts, divided by the noise's variance; None: unknown.
    """

    step: int
    picture: Tensor
    average: Tensor
    discrepancy: float | None = None


class StoppingRule(ABC):
    """Watches a run. Abstract: say how good a step looks, small is good, and what ends the run.

    Attributes:
        best_step: The step that looked best; 0: none yet.
        statistic: The last value; NaN: not known yet.
        reason: Why the run should stop; "": it should go on.
    """

    name = "rule"
    sees_every_step = True

    def __init__(self, patience: int) -> None:
        if patience < 1:
            raise ConfigError("a rule that never waits", expected="patience >= 1 step", got=patience)
        self.patience = patience
        self.best_step, self.statistic, self.reason = 0, math.nan, ""
        self._best = math.inf

    def see(self, sight: Sight) -> bool:
        """Look at a step.

        Args:
            sight: The step.

        Returns:
            Whether it is the best so far: then its average is worth keeping.
        """
        self.statistic = self._judge(sight)
        if not self.reason and self.best_step and sight.step - self.best_step >= self.patience:
            self.reason = f"{self.name}: no better for {self.patience} steps"
        if math.isnan(self.statistic) or self.statistic >= self._best:
            return False
        self._best, self.best_step = self.statistic, sight.step
        return True

    @abstractmethod
    def _judge(self, sight: Sight) -> float:
        """Return the statistic, or NaN."""


class WindowedVariance(StoppingRule):
    """ES-WMV: the pictures of a window vary least where the image is learnt and the noise is not yet.

    Args:
        window: Steps.
        patience: Stop after so many steps without a smaller variance.

    Raises:
        ConfigError: If the window is below 2.

    Source: Wang et al. 2021, Early Stopping for Deep Image Prior, equation 6.
    """

    name = "windowed variance"

    def __init__(self, window: int = 100, patience: int = 1000) -> None:
        super().__init__(patience)
        if window < 2:
            raise ConfigError("no variance", expected="a window of 2 steps or more", got=window)
        self._pictures: deque[Tensor] = deque(maxlen=window)
        self._sum: Tensor | None = None
        self._squares = 0.0

    def _judge(self, sight: Sight) -> float:
        # mean |x_i - m|^2 = mean |x_i|^2 - |m|^2, both updated as the window moves; in float64, so nothing drifts.
        picture = sight.picture.double()
        self._sum = picture.clone() if self._sum is None else self._sum.add_(picture)
        self._squares += float(picture.square().mean())
        if len(self._pictures) == self._pictures.maxlen:
            oldest = self._pictures.popleft().double()
            self._sum.sub_(oldest)
            self._squares -= float(oldest.square().mean())
        self._pictures.append(sight.picture.clone())
        n = len(self._pictures)
        if n < (self._pictures.maxlen or n):
            return math.nan
        return max(self._squares / n - float((self._sum / n).square().mean()), 0.0)


class MovingVariance(StoppingRule):
    """ES-EMV: the same with an exponential window, in the memory of two pictures.

    Args:
        rate: Weight of the newest picture.
        patience: Stop after so many steps without a smaller variance.

    Raises:
        ConfigError: If the rate is not between 0 and 1.

    Source: Wang et al. 2021, Early Stopping for Deep Image Prior, algorithm 2.
    """

    name = "moving variance"

    def __init__(self, rate: float = 0.1, patience: int = 1000) -> None:
        super().__init__(patience)
        if not 0 < rate < 1:
            raise ConfigError("no average", expected="0 < rate < 1", got=rate)
        self.rate = rate
        self._mean: Tensor | None = None
        self._variance, self._n = 0.0, 0

    def _judge(self, sight: Sight) -> float:
        if self._mean is None:
            self._mean = sight.picture.clone()
            return math.nan
        deviation = sight.picture - self._mean
        self._mean.add_(deviation, alpha=self.rate)
        square = float(deviation.square().mean())
        self._variance = (1 - self.rate) * (self._variance + self.rate * square)
        self._n += 1
        return self._variance if self._n >= 2 / self.rate else math.nan


class Discrepancy(StoppingRule):
    """Morozov's principle: stop where the picture leaves an error as large as the noise.

    Args:
        ratio: Of the error left over to the noise's variance, at which to stop. The averaged picture is less noisy than
            the one Morozov had in mind, and best a little below 1.
        patience: Stop after so many steps in which less was not left over.

    Raises:
        ConfigError: If the ratio is not above 0.

    Source: Morozov 1966.
    """

    name = "discrepancy"
    sees_every_step = False

    def __init__(self, ratio: float = 0.95, patience: int = 1000) -> None:
        super().__init__(patience)
        if not ratio > 0:
            raise ConfigError("no discrepancy", expected="ratio > 0", got=ratio)
        self.ratio = ratio

    def _judge(self, sight: Sight) -> float:
        if sight.discrepancy is None:
            raise ConfigError("the discrepancy needs a noise level", got="none", hint="sigma=..., or another rule")
        if sight.discrepancy <= self.ratio:
            self.reason = f"{self.name}: what is left is {sight.discrepancy:.2f} of the noise"
        return max(sight.discrepancy, self.ratio)


class Never(StoppingRule):
    """All steps, and the last picture: for damage without noise, which cannot be learnt too well.

    Args:
        patience: Not waited for.
    """

    name = "1 / step"
    sees_every_step = False

    def __init__(self, patience: int = 1000) -> None:
        super().__init__(patience)

    def _judge(self, sight: Sight) -> float:
        return 1 / sight.step

"""How often single examples were right, in networks that saw them and in others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from invertible.instruments._estimates import newcombe


@dataclass(frozen=True)
class Scores:
    """Per example.

    Args:
        scores: Accuracy of networks that saw it, less that of others.
        low: Lower ends of 95 % intervals.
        high: Upper ends.
        seen: Accuracy of networks that saw it.
        unseen: Of others.
    """

    scores: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    seen: tuple[float, ...]
    unseen: tuple[float, ...]

    def caption(self, i: int) -> str:
        """The score of an example in words.

        Args:
            i: Which.

        Returns:
            With its interval.
        """
        return f"{self.scores[i]:.2f} ({self.low[i]:.2f}, {self.high[i]:.2f})"


class Counts:
    """Counts over networks.

    Args:
        n: How many examples there are.

    Attributes:
        hits: How often right; first row: in networks that saw the example.
        trials: How many networks that is.
        n_models: All of them.
    """

    def __init__(self, n: int) -> None:
        self.hits, self.trials = torch.zeros(2, n, dtype=torch.int64), torch.zeros(2, n, dtype=torch.int64)
        self.n_models = 0

    def add(self, subset: Tensor, is_right: Tensor) -> None:
        """Take in a network.

        Args:
            subset: Which examples it saw.
            is_right: On which of all it is right, bool, shape (n,).
        """
        was_seen = torch.zeros(self.hits.shape[1], dtype=torch.bool)
        was_seen[subset] = True
        for i, mask in enumerate((was_seen, ~was_seen)):
            self.hits[i] += mask & is_right.cpu()
            self.trials[i] += mask
        self.n_models += 1

    def estimates(self) -> Scores:
        """What follows from the counts.

        Returns:
            Scores; 0, with all of -1 to 1 as interval, where an example was always, or never, seen.
        """
        rows = [_of_one(*numbers) for numbers in torch.cat([self.hits, self.trials]).T.tolist()]
        return Scores(*zip(*rows, strict=True))


def _of_one(hits: int, hits_unseen: int, n: int, n_unseen: int) -> tuple[float, float, float, float, float]:
    seen, unseen = hits / max(n, 1), hits_unseen / max(n_unseen, 1)
    if not n or not n_unseen:
        return 0.0, -1.0, 1.0, seen, unseen
    return seen - unseen, *newcombe(hits, n, hits_unseen, n_unseen), seen, unseen

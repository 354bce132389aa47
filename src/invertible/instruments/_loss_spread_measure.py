"""Training many networks of one width, part by part, on several threads; the Hessian's index where some of them end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from invertible.errors import ConfigError
from invertible.instruments._batch import Batch
from invertible.instruments._hessian import Hessian
from invertible.instruments._loss_on_data import LossOnData
from invertible.instruments._loss_spread_rows import Index
from invertible.instruments._many_mlps import Activation, ManyMlps
from invertible.instruments._many_mlps_train import Training, losses_of, train

T = TypeVar("T")

UNITS_AT_ONCE = 800
"""Hidden units of all networks of a part: more no longer stay in the cache (measured, 1 MB a core)."""
INPUTS_AT_ONCE = 1000


@dataclass(frozen=True)
class Examples:
    """Training and test data, ready for the networks.

    Args:
        x: Training inputs, shape (N, in).
        y: Their labels, shape (N).
        test_x: Test inputs, shape (M, in).
        test_y: Their labels, shape (M).
    """

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor

    @property
    def n_classes(self) -> int:
        """One more than the largest label."""
        return int(torch.cat([self.y, self.test_y]).max()) + 1


@dataclass(frozen=True)
class Plan:
    """What is trained.

    Args:
        n_networks: Per width.
        training: How.
        activation: Of the hidden layer.
        n_index: At how many networks per width the Hessian is built.
        index_up_to: Only for networks of at most so many parameters.
        zero: Eigenvalues within it count as zero.
        n_threads: Parts that train at the same time.
        seed: Of all networks.
    """

    n_networks: int
    training: Training
    activation: Activation
    n_index: int
    index_up_to: int
    zero: float
    n_threads: int
    seed: int

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            ConfigError: If an option is out of its range.
        """
        least = {"n_networks": 1, "n_index": 0, "index_up_to": 0, "zero": 0, "n_threads": 1, "seed": 0}
        for name, low in least.items():
            if vars(self)[name] < low:
                raise ConfigError(f"loss_spread has a bad {name}", expected=f"{low} or more", got=vars(self)[name])


def trained(
    width: int, examples: Examples, plan: Plan, after_part: Callable[[int], bool]
) -> tuple[NDArray[np.float64], list[Index]]:
    """Train the networks of one width and look where they ended.

    Args:
        width: Units of the hidden layer.
        examples: The data.
        plan: What is trained.
        after_part: Called with the number of networks done; false: stop.

    Returns:
        Train losses, test losses and test errors, shape (3, n), and indices of the first networks.
    """
    widths = (examples.x.shape[1], width, examples.n_classes)
    size = min(plan.n_networks, max(1, UNITS_AT_ONCE // width))
    starts = range(0, plan.n_networks, size)
    found: list[NDArray[np.float64]] = []
    indices: list[Index] = []

    def one_part(start: int) -> tuple[NDArray[np.float64], list[Index]]:
        n = min(size, plan.n_networks - start)
        nets = ManyMlps(widths, n, activation=plan.activation, seed=plan.seed, first=start)
        train(nets, examples.x, examples.y, plan.training)
        return _assessed(nets, examples), list(_indices(nets, examples, plan, start))

    for losses, few in _in_order(one_part, starts, plan.n_threads):
        found.append(losses)
        indices += few
        if not after_part(sum(part.shape[1] for part in found)):
            break
    return np.concatenate(found, axis=1), indices


def _in_order(work: Callable[[int], T], starts: Sequence[int], n_threads: int) -> Iterator[T]:
    with one_thread_each(), ThreadPoolExecutor(n_threads) as pool:
        waiting: list[Future[T]] = []
        for start in starts:  # few in advance, so that a budget ends it soon
            waiting.append(pool.submit(work, start))
            if len(waiting) > n_threads:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Let each product use one thread: small ones side by side are faster than one at a time on several.

    Yields:
        Nothing; afterwards PyTorch's setting is as it was.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def default_threads() -> int:
    """As many as PyTorch uses, but no more than there are cores.

    Returns:
        1 or more.
    """
    return max(1, min(torch.get_num_threads(), os.cpu_count() or 1))


@torch.no_grad()
def _assessed(nets: ManyMlps, examples: Examples) -> NDArray[np.float64]:
    losses, test_losses = torch.zeros(nets.n, dtype=torch.float64), torch.zeros(nets.n, dtype=torch.float64)
    n_wrong = torch.zeros(nets.n, dtype=torch.float64)
    for x, y in zip(examples.x.split(INPUTS_AT_ONCE), examples.y.split(INPUTS_AT_ONCE), strict=True):
        losses += losses_of(nets(x), y).double() * len(x)
    for x, y in zip(examples.test_x.split(INPUTS_AT_ONCE), examples.test_y.split(INPUTS_AT_ONCE), strict=True):
        outputs = nets(x)
        test_losses += losses_of(outputs, y).double() * len(x)
        n_wrong += (outputs.argmax(2) != y).sum(1)
    n_test = len(examples.test_x)
    return torch.stack([losses / len(examples.x), test_losses / n_test, n_wrong / n_test]).numpy()


def _indices(nets: ManyMlps, examples: Examples, plan: Plan, start: int) -> Iterator[Index]:
    n_parameters = sum(p.numel() for p in nets.parameters()) // nets.n
    if n_parameters > plan.index_up_to:
        return
    batch = Batch((examples.x,), labels=examples.y)
    for i in range(min(nets.n, plan.n_index - start)):
        view = LossOnData(nets.network(i), [batch])
        values = torch.linalg.eigvalsh(Hessian(view).dense())
        negative, positive = ((values < -plan.zero).double().mean(), (values > plan.zero).double().mean())
        yield Index(negative.item(), positive.item(), view.gradient().norm().item(), view.value())

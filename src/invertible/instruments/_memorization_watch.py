"""What happens round a fit function: a fresh network, seeded; measured after each epoch; nothing left behind."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import TensorDataset

from invertible.errors import ConfigError, DtypeError, NonFiniteError
from invertible.instruments._memorization_logits import predictions, run_in_batches
from invertible.instruments._memorization_rows import Moment, Training
from invertible.instruments._memorization_sets import inputs_of, labels_of
from invertible.instruments.fitting import Fit
from invertible.instruments.provenance import Stopwatch
from invertible.instruments.untouched import untouched


@contextmanager
def training_apart() -> Iterator[None]:
    """Train in here: gradients are on whatever the caller's mode, random states come back as they were.

    Yields:
        Nothing.
    """
    with torch.inference_mode(False), torch.enable_grad(), untouched(nn.Identity()):
        yield


def seed_all(seed: int) -> None:
    """Set the states of PyTorch, Python and, where it is loaded, NumPy. Inside `training_apart` only.

    Args:
        seed: From 0.
    """
    torch.manual_seed(seed)
    random.seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy:
        numpy.random.seed(seed % 2**32)


def fresh(make_model: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Make a network, in train mode.

    Args:
        make_model: The factory.
        seed: Of its weights; the states are seeded again afterwards, for the training.

    Returns:
        The network.

    Raises:
        ConfigError: If it makes something else.
    """
    seed_all(seed)
    model = make_model()
    if not isinstance(model, nn.Module):
        raise ConfigError("make_model makes no network", expected="a torch.nn.Module", got=type(model).__name__)
    seed_all(seed)
    return model.train()


def check_factory(make_model: Callable[[], nn.Module], fit: object, name: str) -> nn.Module:
    """Refuse what would train one network again and again, or the caller's own.

    Args:
        make_model: Called twice; nothing is trained.
        fit: The fit function.
        name: Who asks.

    Returns:
        A network, to look at.

    Raises:
        DtypeError: If one of both is no function.
        ConfigError: If two networks share weights, or there is nothing to train.
    """
    if isinstance(make_model, nn.Module) or not callable(make_model):
        hint = "lambda: mlp(...), a function that builds a network anew each time"
        raise DtypeError(f"{name} takes a factory", expected="a function without arguments", got=make_model, hint=hint)
    if isinstance(fit, nn.Module) or not callable(fit):
        hint = "SGDFit(epochs=50), or your fit(model, train, report)"
        raise DtypeError(f"{name} takes a fit function", expected="fit(model, train, report)", got=fit, hint=hint)
    one, other = fresh(make_model, 0), fresh(make_model, 0)
    shared = {id(p) for p in one.parameters()} & {id(p) for p in other.parameters()}
    if one is other or shared:
        hint = "a function that builds it, or lambda: copy.deepcopy(network)"
        raise ConfigError("make_model returns the same network again", expected="a fresh one at each call", hint=hint)
    if not any(p.requires_grad for p in one.parameters()):
        raise ConfigError("the network has nothing to train", expected="parameters that require gradients", got="none")
    return one


def placed(data: TensorDataset, model: nn.Module) -> TensorDataset:
    """The set where a network is.

    Args:
        data: Inputs and labels.
        model: Its first parameter of real numbers tells device and dtype.

    Returns:
        The set there.
    """
    own = next(p for p in model.parameters() if p.is_floating_point())
    return TensorDataset(inputs_of(data).to(own.device, own.dtype), labels_of(data).to(own.device))


def check_output(model: nn.Module, data: TensorDataset, n_classes: int) -> None:
    """Refuse, before anything is trained, a network whose output does not fit.

    Args:
        model: Fresh; left as it is.
        data: Where the network is.
        n_classes: Of the labels.
    """
    next(run_in_batches(model, TensorDataset(*(tensor[:2] for tensor in data.tensors)), n_classes))


class Watch:
    """The `report` of one training.

    Args:
        model: The network.
        train: What it is trained on.
        test: What it is tested on.
        true: True labels of the training set.
        n_classes: How many classes there are.
        fitted_at: Training accuracy at which it counts as fitted.
        every: Measure at every so manieth call only.
    """

    def __init__(
        self,
        model: nn.Module,
        train: TensorDataset,
        test: TensorDataset,
        true: Tensor,
        n_classes: int,
        fitted_at: float = 1.0,
        every: int = 1,
    ) -> None:
        self._model, self._train, self._test, self._n_classes = model, train, test, n_classes
        self._true, self._wrong = true, true != labels_of(train)
        self._fitted_at, self._every = fitted_at, every
        self.moments: list[Moment] = []
        self.epochs = self.steps = self._steps_seen = 0
        self.chance: float | None = None

    def __call__(self, *, steps: int | None = None) -> bool:
        """Measure after an epoch; see `fitting.Report`.

        Args:
            steps: Of the optimizer since the last call; None: those that were counted.

        Returns:
            Whether the training set is fitted.
        """
        self.epochs += 1
        self.steps += self._steps_seen if steps is None else steps
        self._steps_seen = 0
        if self.epochs % self._every:
            return False
        self.moments.append(self.measure())
        return self.moments[-1].train >= self._fitted_at

    def count(self, *_: Any) -> None:
        """Called after each step of any optimizer."""
        self._steps_seen += 1

    def measure(self) -> Moment:
        """Look at the network as it is now.

        Returns:
            What it does.
        """
        given = labels_of(self._train)
        found, loss = predictions(self._model, self._train, given, self._n_classes)
        tested, _ = predictions(self._model, self._test, labels_of(self._test), self._n_classes)
        self.chance = _agreement_by_chance(tested, labels_of(self._test))
        wrong = [(found == labels)[self._wrong] for labels in (given, self._true)]
        wrong = [_share(hits) if hits.numel() else None for hits in wrong]
        accuracies = _share(found == given), _share(tested == labels_of(self._test))
        return Moment(self.epochs, self.steps, loss, *accuracies, *wrong)

    def training(self, seed: int, seconds: float, error: str = "") -> Training:
        """What came of it.

        Args:
            seed: Of the training.
            seconds: How long it took.
            error: What ended it.

        Returns:
            The record.
        """
        fitted = next((moment for moment in self.moments if moment.train >= self._fitted_at), None)
        last = None if error else self.measure()
        when = (None, None) if fitted is None else (fitted.epoch, fitted.steps)
        n_changed = int(self._wrong.sum())
        chance = None if error else self.chance
        return Training(seed, n_changed, tuple(self.moments), last, *when, seconds, chance, error)


def train_once(model: nn.Module, fit: Fit, train: TensorDataset, watch: Watch, seed: int) -> Training:
    """Run a fit function.

    Args:
        model: Fresh.
        fit: The function.
        train: What it gets.
        watch: What it reports to.
        seed: For the record.

    Returns:
        What came of it; one that diverged says so.

    Raises:
        ConfigError: If it never reported.
    """
    clock, error = Stopwatch(), ""
    handle = register_optimizer_step_post_hook(watch.count)
    try:
        fit(model, train, watch)
    except NonFiniteError as found:
        error = str(found)
    finally:
        handle.remove()
    if not watch.epochs and not error:
        hint = "if report(): return, after each epoch"
        raise ConfigError("fit never called report, so nobody knows when it fitted", expected="calls", hint=hint)
    return watch.training(seed, clock.seconds, error)


def _share(hits: Tensor) -> float:
    return float(hits.double().mean())


def _agreement_by_chance(predicted: Tensor, true: Tensor) -> float:
    n = int(max(predicted.max(), true.max())) + 1
    shares = [torch.bincount(labels, minlength=n).double() / len(labels) for labels in (predicted, true)]
    return float(shares[0] @ shares[1])

"""What `measure` and `checkup` work on: a run or a module of the user's own, and the data for it."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from invertible.cli._show import check_data_dir
from invertible.errors import ConfigError, DataError, DtypeError
from invertible.flow import Flow
from invertible.instruments import Batch

if TYPE_CHECKING:
    from invertible.train.prepare import Data
    from invertible.train.run import Run

BATCH_SIZE = 64


@dataclass(frozen=True)
class Measured:
    """What is measured.

    Args:
        model: The network.
        data: As instruments take them; None: none were named.
        has_labels: Whether the data have labels.
        folder: Where results go, unless told otherwise.
    """

    model: nn.Module
    data: Any
    has_labels: bool
    folder: Path


class Encoder(nn.Module):
    """A flow as a network from data to latents, so that its layers are heard.

    Args:
        flow: The flow.
    """

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Latents.

        Args:
            x: Data.
            context: If the flow takes one.

        Returns:
            Latents.
        """
        return self.flow.encode(x, context)


class RunBatches:
    """A run's data as its model wants them, shuffled the same way each time.

    Args:
        run: The run.
        data: Its images or points.
    """

    def __init__(self, run: Run, data: Data) -> None:
        self._run, self._data = run, data
        self._is_conditional = isinstance(run.model, Flow) and run.model.takes_context

    def __len__(self) -> int:
        return -(-len(self._data) // BATCH_SIZE)

    def __iter__(self) -> Iterator[Batch]:
        order = torch.randperm(len(self._data), generator=torch.Generator().manual_seed(0))
        for indices in order.split(BATCH_SIZE):
            x = self._run.prepare(self._data.batch(indices))
            y = self._data.labels[indices.to(self._data.labels.device)]
            yield Batch((x, y) if self._is_conditional else (x,), labels=y)


def find_measured(target: str, data: str | None, data_dir: str | None) -> Measured:
    """Load what the command line names.

    Args:
        target: The folder of a run, or package.module:factory.
        data: `--data`.
        data_dir: `--data-dir`.

    Returns:
        Network and data.

    Raises:
        ConfigError: If there is no such thing.
        DtypeError: If it is no network.
    """
    check_data_dir(data_dir)
    if Path(target).is_dir():
        return _run(target, data, data_dir)
    if ":" not in target:
        hint = "`invertible train RECIPE --out FOLDER` makes a run"
        expected = "the folder of a run, or package.module:factory"
        raise ConfigError("nothing to measure", expected=expected, got=repr(target), hint=hint)
    found = _object(target)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the same weights each time
            model = found() if callable(found) and not isinstance(found, nn.Module) else found
    except TypeError as error:
        hint = "a function of yours without arguments that calls it"
        raise ConfigError(f"{target} cannot be called without arguments", got=str(error), hint=hint) from error
    if not isinstance(model, nn.Module):
        raise DtypeError(f"{target} makes no network", expected="a torch.nn.Module", got=type(model).__name__)
    batches, has_labels = (None, False) if data is None else _data(data, data_dir)
    folder = Path("measurements") / target.replace(":", "-").replace(".", "-")
    return Measured(Encoder(model) if isinstance(model, Flow) else model, batches, has_labels, folder)


def _run(target: str, data: str | None, data_dir: str | None) -> Measured:
    from invertible.train.run import load_run

    run = load_run(target)
    model = Encoder(run.model) if isinstance(run.model, Flow) else run.model
    folder = Path(target) / "measurements"
    if data is not None:
        return Measured(model, *_data(data, data_dir), folder)
    test = run.test_data(data_dir)
    return Measured(model, RunBatches(run, test), True, folder)


def _data(text: str, data_dir: str | None) -> tuple[Any, bool]:
    # Data for `--data`, and whether they have labels.
    from invertible.data import load, names

    if all(part.strip().isdigit() for part in text.split(",")):
        return tuple(int(part) for part in text.split(",")), False
    if text in names():
        return load(text, "test", data_dir), True
    if Path(text).suffix == ".npy":
        return list(_array(Path(text)).split(BATCH_SIZE)), False
    if ":" in text:
        found = _object(text)
        return found, True
    near = difflib.get_close_matches(text, names(), n=1)
    expected = "a shape for noise (16,3,32,32), FILE.npy, package.module:function, or a data set"
    raise ConfigError("unknown --data", expected=expected, got=repr(text), hint=near[0] if near else ", ".join(names()))


def _array(path: Path) -> Tensor:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"cannot read {path}", expected="an array of numbers, saved by numpy", got=error) from error
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        raise DataError(f"{path} holds no numbers", expected="numbers", got=array.dtype) from error


def _object(text: str) -> Any | Callable[..., Any]:
    module, _, name = text.partition(":")
    sys.path.insert(0, "")  # modules of the folder one works in
    try:
        found = importlib.import_module(module)
    except (ImportError, ValueError) as error:
        hint = "a module that `python -c 'import ...'` finds from here"
        raise ConfigError(f"cannot import {module!r}", got=str(error), hint=hint) from error
    finally:
        sys.path.remove("")
    if name not in vars(found):
        near = difflib.get_close_matches(name, vars(found), n=1)
        hint = f"{module}:{near[0]}" if near else ""
        raise ConfigError(f"{module} has no such name", expected="module:name", got=repr(name), hint=hint)
    return vars(found)[name]

"""A run's resumable state: one safetensors file with every tensor, one JSON file with the rest.

The JSON file names the safetensors file and is renamed into place last, so a process killed at any moment leaves
either the old pair or the new one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from invertible._files import read_json, read_tensors, write_json, write_tensors
from invertible.errors import CheckpointError, NonFiniteError

FOLDER = "checkpoint"


@dataclass
class Progress:
    """How far a run has got.

    Args:
        step: Optimiser steps done.
        history: One row per finished epoch.
        sums: Sums of the unfinished epoch's metrics over its images so far, and "n", their number.
        best: Best value of the monitored metric so far.
        best_epoch: The epoch that had it.
        seconds: Time spent, over all sittings.
        threads: CPU threads in use; a resumed run keeps them, since sums depend on them to the last bit.
        scaler: State of float16's loss scaling.
    """

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    best: float | None = None
    best_epoch: int | None = None
    seconds: float = 0.0
    threads: int = 1
    scaler: dict[str, float] = field(default_factory=dict)


def save_checkpoint(
    folder: Path, progress: Progress, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer
) -> None:
    """Write a resumable state.

    Args:
        folder: The run's folder.
        progress: How far it has got.
        modules: Whose state to keep, by name.
        optimizer: Whose state to keep.

    Raises:
        NonFiniteError: If a weight is NaN or infinite; the state saved before is kept.
    """
    tensors = {f"{name}/{key}": value for name, m in modules.items() for key, value in m.state_dict().items()}
    check_weights(tensors, progress.step)
    state = optimizer.state_dict()["state"]
    moments = {f"optimizer/{i}/{key}": v for i, values in state.items() for key, v in values.items()}
    tensors.update({key: value for key, value in moments.items() if isinstance(value, Tensor)})
    target = folder / FOLDER / f"state-{progress.step:09d}.safetensors"
    write_tensors(target, tensors)
    write_json(folder / FOLDER / "state.json", asdict(progress) | {"tensors": target.name})
    for old in target.parent.glob("*state-*.safetensors"):  # and what a killed process left half-written
        if old != target:
            old.unlink(missing_ok=True)


def check_weights(tensors: dict[str, Tensor], step: int) -> None:
    """Refuse to save NaN or infinite weights.

    Args:
        tensors: The weights.
        step: When this is, for the message.

    Raises:
        NonFiniteError: If one is not finite.
    """
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            hint = "a smaller learning rate, warm-up or clip_norm; the last good checkpoint is kept"
            raise NonFiniteError(f"the weights broke by step {step}", got=f"NaN or infinity in {name}", hint=hint)


def has_checkpoint(folder: Path) -> bool:
    """Whether a run can be resumed.

    Args:
        folder: The run's folder.

    Returns:
        True if it holds a resumable state.
    """
    return (folder / FOLDER / "state.json").is_file()


def load_checkpoint(folder: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer) -> Progress:
    """Read a resumable state into modules and optimiser.

    Args:
        folder: The run's folder.
        modules: As they were saved.
        optimizer: Likewise.

    Returns:
        How far the run had got.

    Raises:
        CheckpointError: If files are missing, corrupt or do not fit.
    """
    record = read_json(folder / FOLDER / "state.json")
    tensors, _ = read_tensors(folder / FOLDER / str(record.pop("tensors", "")))
    for name, module in modules.items():
        load_weights(module, _below(tensors, f"{name}/"), folder)
    _load_optimizer(optimizer, _below(tensors, "optimizer/"))
    try:
        return Progress(**record)
    except TypeError as error:
        raise CheckpointError(f"{folder}/{FOLDER}/state.json does not fit", got=str(error)) from error


def load_weights(module: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Load a state dict, with an error that says what does not fit.

    Args:
        module: Where to.
        tensors: The state dict.
        source: Where it came from, for the message.

    Raises:
        CheckpointError: If keys or shapes differ.
    """
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        hint = "was the model's recipe changed since these weights were saved?"
        raise CheckpointError(f"the weights in {source} do not fit the model", got=str(error), hint=hint) from error


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        index, name = key.split("/", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

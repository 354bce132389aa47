"""A flow on disk: weights as safetensors, what they belong to as JSON."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from invertible._files import read_json, read_tensors, write_json, write_tensors
from invertible.errors import CheckpointError

if TYPE_CHECKING:
    from invertible.flow.flow import Flow

FORMAT = 1


def save(flow: Flow, path: Path) -> None:
    """Write NAME.safetensors and NAME.json.

    Args:
        flow: The flow.
        path: NAME, with or without the suffix.
    """
    weights, description = _paths(path)
    tensors = _tensors(flow)
    about = _describe(flow) | {"sha256": _checksum(tensors)}
    write_tensors(weights, tensors, {"flow": json.dumps(about)})
    write_json(description, about)


def load(cls: type[Any], path: Path) -> Any:
    """Build the model that the file names, and give it its weights.

    Args:
        cls: The class that it must be.
        path: NAME, with or without the suffix.

    Returns:
        The flow, in eval mode.

    Raises:
        CheckpointError: If a file is missing or corrupt, they do not belong together, or the flow was made by hand.
    """
    from invertible.models.registry import build

    weights, description = _paths(path)
    tensors, about = _read(weights)
    if description.is_file() and json.dumps(read_json(description)) != json.dumps(about):
        hint = f"the {description.name} that was saved with it, or none: the weights' header says the same"
        raise CheckpointError(f"{description} does not belong to {weights.name}", hint=hint)
    config = about["config"]
    if config is None:
        hint = f"make the flow as before, then flow.load_weights('{path}')"
        raise CheckpointError(f"{weights} holds a flow made by hand", expected="one of invertible.models", hint=hint)
    flow: Any = build(config["name"], **config["arguments"])
    if not isinstance(flow, cls):
        raise CheckpointError(f"{weights} holds no flow", expected=cls.__name__, got=config["name"])
    _fill(flow, tensors, about, weights)
    return flow


def load_weights(flow: Flow, path: Path) -> None:
    """Give a flow its weights.

    Args:
        flow: Made as the one that was saved.
        path: NAME, with or without the suffix.
    """
    weights, _ = _paths(path)
    tensors, about = _read(weights)
    _fill(flow, tensors, about, weights)


def _paths(path: Path) -> tuple[Path, Path]:
    stem = path.name.removesuffix(".safetensors").removesuffix(".json")
    return path.with_name(f"{stem}.safetensors"), path.with_name(f"{stem}.json")


def _tensors(flow: Flow) -> dict[str, Tensor]:
    return dict(flow.state_dict())


def _describe(flow: Flow) -> dict[str, Any]:
    dtype = str(flow.base.here.dtype).removeprefix("torch.")
    return {
        "format": FORMAT,
        "config": flow.config,
        "dtype": dtype,
        "event_shape": list(flow.event_shape),
        "fit": None if flow.fitted is None else flow.fitted.to_dict(),
    }


def _read(weights: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not weights.is_file():
        hint = "the NAME that flow.save(NAME) was called with"
        raise CheckpointError("no saved flow", expected=f"the file {weights}", got="nothing there", hint=hint)
    tensors, header = read_tensors(weights)
    try:
        about = json.loads(header["flow"])
        _ = about["config"], about["dtype"]
        if about["format"] != FORMAT:
            got = f"format {about['format']}"
            raise CheckpointError(f"{weights} has another format", expected=f"format {FORMAT}", got=got)
    except (KeyError, ValueError, TypeError) as error:
        expected = "a file written by flow.save"
        raise CheckpointError(f"{weights} holds no flow", expected=expected, got=f"no {error}") from error
    known = about.get("sha256")  # files of earlier versions have none
    if known is not None and known != _checksum(tensors):
        problem, hint = f"{weights} was changed or damaged after it was saved", "copy it again, or save the flow again"
        raise CheckpointError(problem, expected=f"weights with SHA-256 {known[:12]}...", got="others", hint=hint)
    return tensors, about


def _checksum(tensors: dict[str, Tensor]) -> str:
    # Of names, dtypes, shapes and values: the same wherever in the file they are.
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _fill(flow: Flow, tensors: dict[str, Tensor], about: dict[str, Any], weights: Path) -> None:
    from invertible.flow.fit import FitReport

    own = flow.state_dict()
    wrong = [k for k in own.keys() | tensors.keys() if k not in own or k not in tensors
             or own[k].shape != tensors[k].shape]  # fmt: skip
    if wrong:
        got = f"{len(wrong)} that differ, e.g. {min(wrong)!r}"
        raise CheckpointError(f"{weights} does not fit this flow", expected=f"its {len(own)} tensors", got=got)
    flow.to(getattr(torch, about["dtype"]))
    for key, tensor in (*flow.named_parameters(), *flow.named_buffers()):
        if key in tensors:  # a fixed base may be more precise than the rest
            tensor.data = tensor.data.to(tensors[key].dtype)
    flow.load_state_dict(tensors)
    flow.fitted = None if about.get("fit") is None else FitReport.from_dict(about["fit"])
    flow.eval()

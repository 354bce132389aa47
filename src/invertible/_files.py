"""Files that are written whole or not at all, and tensors on disk without pickle."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from invertible.errors import CheckpointError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write to a temporary name beside the file, then rename.

    Args:
        path: The file.
        write: Writes to the path it is given (which keeps the file's suffix).

    Raises:
        CheckpointError: If the folder cannot be written to; nothing half-written is left.
    """
    temporary = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        temporary.replace(path)
        for abandoned in path.parent.glob(
            f".partial-*-{glob.escape(path.name)}"
        ):  # by a process that was killed while it wrote
            abandoned.unlink(missing_ok=True)
    except OSError as error:
        hint = "another output folder (--out), or its permissions and free space"
        raise CheckpointError(f"cannot write {path}", got=error.strerror or str(error), hint=hint) from error
    finally:
        temporary.unlink(missing_ok=True) if temporary.parent.is_dir() else None


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically.

    Args:
        path: The file.
        text: Its contents.
    """
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file atomically.

    Args:
        path: The file.
        value: Its contents.
    """
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file.

    Args:
        path: The file.

    Returns:
        Its contents.

    Raises:
        CheckpointError: If it is missing or no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        hint = "the folder of a run that has got as far as its first checkpoint"
        raise CheckpointError(f"cannot read {path}", got=error.strerror, hint=hint) from error
    except ValueError as error:
        raise CheckpointError(f"{path} is corrupt", expected="JSON", got=str(error)) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is corrupt", expected="a JSON object", got=type(value).__name__)
    return value


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically.

    Args:
        path: The file.
        tensors: What to write; shared memory is written once per name.
        metadata: Texts for the file's header.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}

    def write(temporary: Path) -> None:
        try:
            save_file(copies, temporary, dict(metadata or {}))
        except SafetensorError as error:  # what a full disk becomes
            raise OSError(str(error)) from error

    write_atomically(path, write)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file.

    Args:
        path: The file.

    Returns:
        Tensors on the CPU, and the header's texts.

    Raises:
        CheckpointError: If it is missing or corrupt.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        hint = f"`invertible resume {path.parent}` if the run was stopped before its first epoch ended"
        raise CheckpointError("no weights", expected=f"the file {path}", got="nothing there", hint=hint)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is corrupt", expected="a safetensors file", got=str(error)) from error

"""A picture as the representation in which an exact network holds it: the file, and what it says about itself."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_type_hints

import torch
from torch import Tensor

from invertible._files import read_tensors, write_tensors
from invertible.errors import CheckpointError, ConfigError
from invertible.train.lossless import MODES
from invertible.train.run import Run

_KEY, _TENSOR, _FORMAT = "invertible encoding", "representation", "1"
_RANGES = {"threads": (1, 4096), "k": (0, 40)}  # beyond them a changed file could stop the machine


@dataclass(frozen=True)
class Circumstances:
    """What floating-point results can depend on, beside weights and batch.

    Args:
        torch: Version.
        threads: Of the CPU.
        device: "cpu", "cuda", ...
        hardware: The CPU's vector instructions, or the name of the GPU.
    """

    torch: str
    threads: int
    device: str
    hardware: str

    @classmethod
    def now(cls, device: torch.device) -> Circumstances:
        """Those of this process.

        Args:
            device: Where the network is.

        Returns:
            The circumstances.
        """
        is_gpu = device.type == "cuda"
        hardware = torch.cuda.get_device_name(device) if is_gpu else torch.backends.cpu.get_cpu_capability()
        return cls(str(torch.__version__), torch.get_num_threads(), device.type, hardware)

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' * (self.threads != 1)}"
        return f"torch {self.torch}, {threads}, {self.device} ({self.hardware})"


@dataclass(frozen=True)
class Description:
    """What an encoding says about itself.

    Args:
        mode: Of the picture: "L", "LA", "RGB" or "RGBA".
        height: Of the picture, in pixels.
        width: Likewise.
        pixels: SHA-256 of mode, size and pixels.
        network: Fingerprint of the network, as `fingerprint` gives it.
        title: What the network's recipe calls itself.
        k: The lattice has the multiples of 2^-k.
        batch_size: Tiles that were computed together.
        torch: Version.
        threads: CPU threads.
        device: "cpu", "cuda", ...
        hardware: The CPU's vector instructions, or the name of the GPU.
    """

    mode: str
    height: int
    width: int
    pixels: str
    network: str
    title: str
    k: int
    batch_size: int
    torch: str
    threads: int
    device: str
    hardware: str

    @property
    def circumstances(self) -> Circumstances:
        """What floating-point results can depend on."""
        return Circumstances(self.torch, self.threads, self.device, self.hardware)


@dataclass(frozen=True)
class Encoding:
    """A picture as a network's representations of its tiles.

    Args:
        values: int32 multiples of 2^-k, shape (tiles, *representation of a tile).
        description: All that is needed to decode it, but the network.
    """

    values: Tensor
    description: Description

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all.

        Args:
            path: The file.
        """
        check_encoding_path(path)
        header = {_KEY: _FORMAT, "description": json.dumps(asdict(self.description))}
        write_tensors(path, {_TENSOR: self.values}, header)

    @classmethod
    def load(cls, path: Path) -> Encoding:
        """Read one.

        Args:
            path: The file.

        Returns:
            What was saved.

        Raises:
            CheckpointError: If the file is missing, corrupt or something else.
        """
        hint = "a file that `invertible encode` wrote"
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file", expected="an encoded picture", hint=hint)
        tensors, header = read_tensors(path)
        try:
            encoding = cls(_checked(tensors), _described(header))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is no encoded picture", got=f"a problem with {error}", hint=hint) from None
        return encoding


def _checked(tensors: dict[str, Tensor]) -> Tensor:
    if tensors[_TENSOR].dtype != torch.int32:
        raise TypeError(f"its numbers, {tensors[_TENSOR].dtype}")
    return tensors[_TENSOR]


def _described(header: dict[str, str]) -> Description:
    if header[_KEY] != _FORMAT:
        raise ValueError(f"its format {header[_KEY]}; this version knows {_FORMAT}")
    values = json.loads(header["description"])
    for name, kind in get_type_hints(Description).items():
        value = values[name]
        smallest, largest = _RANGES.get(name) or (1, 2**31)
        if type(value) is not kind or (isinstance(value, int) and not smallest <= value <= largest):
            raise ValueError(f"{name}={value!r}")
    if values["mode"] not in MODES:
        raise ValueError(f"mode={values['mode']!r}")
    return Description(**values)


def check_encoding_path(path: Path) -> None:
    """Refuse a place where no encoding should go: weights are safetensors files too.

    Args:
        path: Where an encoding shall go.

    Raises:
        ConfigError: If its suffix is wrong, or another kind of file is there.
    """
    if path.suffix != ".safetensors":
        hint = f"--out {path.stem or 'z'}.safetensors"
        raise ConfigError("bad file for an encoding", expected="NAME.safetensors", got=str(path), hint=hint)
    if path.exists():
        try:
            Encoding.load(path)
        except CheckpointError as error:
            raise ConfigError(f"{path} is there, and no encoded picture", hint="another --out") from error


def fingerprint(run: Run) -> str:
    """SHA-256 of all that decides what a network computes: weights, architecture, normalisation, lattice.

    Args:
        run: A trained network.

    Returns:
        64 hexadecimal digits.
    """
    model = {"name": run.recipe.model.name, "arguments": run.recipe.model.arguments, "exact": run.recipe.model.exact}
    digest = hashlib.sha256(json.dumps([model, run.normalize.to_dict()], sort_keys=True).encode())
    for name, tensor in sorted(run.model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def pixel_digest(pixels: Tensor, mode: str) -> str:
    """SHA-256 of a picture.

    Args:
        pixels: uint8 of shape (bands, height, width).
        mode: "L", "LA", "RGB" or "RGBA".

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256(f"{mode} {tuple(pixels.shape)}".encode())
    digest.update(pixels.contiguous().numpy().tobytes())
    return digest.hexdigest()

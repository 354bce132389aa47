"""Where a result comes from: enough to tell two results apart, and to make one again."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import version

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Provenance:
    """What a result was measured with.

    Args:
        invertible: Version of this library.
        torch: Version of PyTorch.
        python: Version of Python.
        device: Where it was measured, e.g. "cpu", "cuda: NVIDIA A100".
        mode: "train", "eval", or "mixed" where modules differed.
        seed: Of what the instrument drew at random.
        data: Fingerprint of the batches that were measured: equal data, in equal batches, have equal ones.
        n_batches: How many batches went in.
        n_examples: How many examples.
        seconds: How long it took; equal measurements may differ in it.
        stopped: Why it ended early; "": it did not.
    """

    invertible: str
    torch: str
    python: str
    device: str
    mode: str
    seed: int
    data: str
    n_batches: int
    n_examples: int
    seconds: float = field(compare=False)
    stopped: str = ""


class Fingerprint:
    """SHA-256 over tensors, as they come.

    Example:
        >>> one, other = Fingerprint(), Fingerprint()
        >>> one.add([torch.zeros(2)]), other.add([torch.zeros(1, 2)])
        (None, None)
        >>> one.digest() == other.digest()
        False
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Take in more.

        Args:
            tensors: In order; shapes, dtypes and all bits count.
        """
        for tensor in tensors:
            self._digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            self._digest.update(flat.view(torch.uint8).numpy().data)

    def digest(self) -> str:
        """Tell what came so far.

        Returns:
            16 hexadecimal digits.
        """
        return self._digest.hexdigest()[:16]


class Stopwatch:
    """Measures the wall-clock time since it was made."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return time.monotonic() - self._start


def mode_of(model: nn.Module) -> str:
    """The mode a network is in.

    Args:
        model: Any module.

    Returns:
        "train", "eval", or "mixed" where modules differ.

    Example:
        >>> mode_of(nn.Sequential(nn.ReLU()).eval())
        'eval'
    """
    modes = {module.training for module in model.modules()}
    return "mixed" if len(modes) > 1 else "train" if True in modes else "eval"


def provenance(
    model: nn.Module,
    watch: Stopwatch,
    *,
    seed: int = 0,
    data: str = "",
    n_batches: int = 1,
    n_examples: int = 0,
    stopped: str = "",
) -> Provenance:
    """Write down where a result comes from.

    Args:
        model: The network, in the mode it was measured in.
        watch: Started when the measurement began.
        seed: Of what was drawn at random.
        data: The data's fingerprint.
        n_batches: How many.
        n_examples: How many.
        stopped: Why it ended early.

    Returns:
        The record.

    Example:
        >>> provenance(nn.Linear(1, 1), Stopwatch(), n_examples=8).device
        'cpu'
    """
    tensor = next((t for t in [*model.parameters(), *model.buffers()]), torch.empty(0))
    is_cuda = tensor.device.type == "cuda"
    device = f"cuda: {torch.cuda.get_device_name(tensor.device)}" if is_cuda else tensor.device.type
    versions = version("invertible"), torch.__version__, platform.python_version()
    seconds = round(watch.seconds, 3)
    return Provenance(*versions, device, mode_of(model), seed, data, n_batches, n_examples, seconds, stopped)

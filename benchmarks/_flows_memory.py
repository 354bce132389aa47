"""One measurement of `flow_memory.py`, in a process of its own.

Peak memory is taken as in `reversible.py`: above a baseline that holds the model, its gradients and the input. A step
fits a cap if it succeeds while the process may allocate no more than that above the baseline (RLIMIT_DATA; on a GPU a
fraction of its memory): nothing is extrapolated.
"""

from __future__ import annotations

import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from _flows_images import BUILDERS, ours
from _flows_subjects import Subject
from _reversible_measure import MIB, peak_cuda, peak_resident

BATCH = 8

Build = Callable[[tuple[int, int, int], int, int, int], Subject]
IMPLEMENTATIONS: dict[str, Build] = {
    "plain": BUILDERS["plain"],
    "nflows": BUILDERS["nflows"],
    "normflows": BUILDERS["normflows"],
    "invertible-store": ours,
    "invertible-reconstruct": lambda *args: ours(*args, memory="reconstruct"),
}


class Job(NamedTuple):
    """What a worker shall do: "peak" memory of a step, or whether one "fits" a cap."""

    kind: str
    implementation: str
    side: int
    steps: int  # of each level
    scales: int
    hidden: int
    device: str
    cap_mib: float = 0.0


def work(job: Job) -> dict[str, Any]:
    """Do a job; what goes wrong in it is its result."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if job.device == "cuda":
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        subject = IMPLEMENTATIONS[job.implementation]((3, job.side, job.side), job.scales, job.steps, job.hidden)
        subject.model.to(job.device)
        x = torch.randn(BATCH, 3, job.side, job.side).to(job.device)
        step(subject, x[:1])  # sets the ActNorms and makes gradients; one image is a small part of a batch
        subject.model.zero_grad(set_to_none=False)
        return (peak if job.kind == "peak" else fits)(subject, x, job)
    except Exception as error:  # a peer may fail in any way, and the others shall be measured
        return {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}


def step(subject: Subject, x: Tensor) -> None:
    """A forward and a backward pass."""
    subject.loss(x).backward()
    if x.is_cuda:
        torch.cuda.synchronize()


def peak(subject: Subject, x: Tensor, job: Job) -> dict[str, Any]:
    """Memory above the baseline that a step needs; one before it pays for compiled kernels."""
    measure = peak_cuda if job.device == "cuda" else peak_resident
    step(subject, x)
    return {"peak_mib": measure(lambda x: step(subject, x), x) / MIB, "parameters": subject.n_parameters}


def fits(subject: Subject, x: Tensor, job: Job) -> dict[str, Any]:
    """Whether a step succeeds within the cap."""
    cap(job)
    try:
        step(subject, x)
    except (RuntimeError, MemoryError) as error:  # PyTorch's allocator raises either, torch.OutOfMemoryError too
        if not re.search(
            "memory|alloc|could not create a primitive", str(error)
        ):  # the last one is oneDNN's way to say it
            raise
        return {"fits": False}
    return {"fits": True}


def cap(job: Job) -> None:
    """Let the process allocate so much more, and no more."""
    limit = int(job.cap_mib * MIB)
    if job.device == "cuda":
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved() + limit) / total))
        return
    found = re.search(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    if found is None:
        raise OSError("no VmData in /proc/self/status: capping memory needs Linux or a GPU")
    resource.setrlimit(resource.RLIMIT_DATA, (1024 * int(found[1]) + limit, resource.RLIM_INFINITY))

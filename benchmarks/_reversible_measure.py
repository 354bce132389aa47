"""One measurement of `reversible.py`, in a process of its own.

Peak memory is what the operating system sees (oneDNN's scratch included): the resident set's high-water mark
(VmHWM), put back before the step by writing 5 to /proc/self/clear_refs, less the resident set before it. glibc would
keep freed memory and so hide what a second peak needs; `MALLOC` makes it map each tensor for itself and give it back
at once. That costs page faults, so that time is measured in other processes, with the allocator as users have it.
The baseline holds the model, its gradients, allocated and kept, and the input, so that these count for nobody;
`peak_fresh_mib` is the same with `.grad` None before, so that the gradients count. On a GPU:
`torch.cuda.max_memory_allocated`.
"""

from __future__ import annotations

import ctypes
import gc
import re
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from _reversible_networks import BATCH, CHANNELS, IMPLEMENTATIONS, SIZE, ByHand, counted, residuals, run_checkpoint

MIB = 2**20
PROC = Path("/proc/self")
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TRIM_THRESHOLD_": "16384", "MALLOC_ARENA_MAX": "1"}


class Job(NamedTuple):
    """What a worker shall do: "reference", "probe" (all but time), "time" or "fits" (the deepest network)."""

    kind: str
    implementation: str
    blocks: int
    threads: int
    device: str
    folder: str = ""  # of the references, which are probed against
    repeats: int = 1  # timed steps, measured peaks, or inputs whose gradients are compared


class Bench:
    """A network, its inputs and the gradients of its outputs."""

    def __init__(self, build: Callable[[list[nn.Sequential]], nn.Module], job: Job) -> None:
        self.networks = residuals(job.blocks, job.device)
        self.model, self.device, self.dtype = build(self.networks), job.device, torch.float32
        self.upstream = self.noise(0)
        self.upstream /= self.upstream.norm()

    def noise(self, seed: int) -> Tensor:
        values = torch.randn(BATCH, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
        return values.to(self.device, self.dtype)

    def input(self, seed: int = 1) -> Tensor:
        # A new one each time: memcnn overwrites it with its reconstruction. And one that needs a gradient: RevTorch
        # and revlib would lose some otherwise.
        return self.noise(seed).requires_grad_()

    def step(self, x: Tensor) -> None:
        self.model(x).backward(self.upstream)
        if self.device == "cuda":
            torch.cuda.synchronize()

    def gradient(self, seed: int) -> np.ndarray:
        self.model.zero_grad(set_to_none=True)
        self.step(self.input(seed))
        return self.collected()

    def collected(self) -> np.ndarray:
        grads = [p.grad for f in self.networks for p in f.parameters()]
        lost = sum(grad is None for grad in grads)
        if lost:
            raise RuntimeError(f"{lost} of {len(grads)} parameters got no gradient")
        return torch.cat([cast(Tensor, grad).flatten().double() for grad in grads]).cpu().numpy()

    def updates(self) -> float:
        """Updates of a BatchNorm so far, on average."""
        norms = [m for f in self.networks for m in f if isinstance(m, nn.BatchNorm2d)]
        return statistics.mean(int(cast(Tensor, norm.num_batches_tracked)) for norm in norms)


def work(job: Job) -> dict[str, Any]:
    """Do a job; what goes wrong in it is its result."""
    torch.set_num_threads(job.threads)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # gradients are compared
    jobs = {"reference": reference, "probe": probe, "time": clock, "fits": fits}
    try:
        return jobs[job.kind](job)
    except Exception as error:  # a peer may fail in any way, and the others shall be measured
        return {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}


def reference(job: Job) -> dict[str, Any]:
    """The plain network in float32 and float64, to files."""
    plain, folder = Bench(IMPLEMENTATIONS["plain"].build, job), Path(job.folder)
    with torch.no_grad():
        np.save(folder / "output.npy", plain.model(plain.input()).cpu().numpy())
    # Checkpointing changes no bit of a float64 gradient; without it 256 blocks would take 4 GiB.
    double = Bench(lambda networks: ByHand(networks, run_checkpoint), job)
    double.model, double.upstream, double.dtype = double.model.double(), double.upstream.double(), torch.float64
    for name, bench in (("float32", plain), ("float64", double)):
        for seed in range(1, 1 + job.repeats):
            np.save(folder / f"{name}-{seed}.npy", bench.gradient(seed))
    return {}


def load(job: Job, name: str) -> np.ndarray:
    return np.load(Path(job.folder) / f"{name}.npy", allow_pickle=False)


def distance(found: np.ndarray, wanted: np.ndarray) -> float:
    """Relative L2 distance."""
    return float(np.linalg.norm((found - wanted).ravel()) / np.linalg.norm(wanted.ravel()))


def probe(job: Job) -> dict[str, Any]:
    """Everything but time, after checking that the network computes what the plain one does."""
    bench = Bench(IMPLEMENTATIONS[job.implementation].build, job)
    with counted(bench.networks) as evaluations:
        output = bench.model(bench.input())
        gap = distance(output.detach().cpu().numpy(), load(job, "output"))
        if not gap < (1e-3 if job.implementation == "invertible-exact" else 1e-5):
            raise RuntimeError(f"its output is not the plain network's: relative distance {gap:.2g}")
        output.backward(bench.upstream)
    del output
    metrics = {"output_error": gap, "batchnorm_updates": bench.updates()}
    metrics["residual_evaluations"] = evaluations[0] / len(bench.networks)
    metrics |= peaks(bench, job.repeats)  # leaves the first input's gradient
    return metrics | errors(bench, job)


def errors(bench: Bench, job: Job) -> dict[str, float]:
    """Of the gradient: against float64, and against plain autograd through the same float32 function."""
    seeds = range(1, 1 + job.repeats)
    found = {1: bench.collected()} | {seed: bench.gradient(seed) for seed in seeds[1:]}
    if job.implementation == "invertible-exact":
        # The lattice rounds, so that the plain network is another function.
        cast(Any, bench.model).memory = "store"
        same = {seed: bench.gradient(seed) for seed in seeds}
    else:
        same = {seed: load(job, f"float32-{seed}") for seed in seeds}
    gradient = [distance(found[seed], load(job, f"float64-{seed}")) for seed in seeds]
    backward = [distance(found[seed], same[seed]) for seed in seeds]
    return {
        "grad_error": statistics.median(gradient),
        "grad_error_max": max(gradient),
        "backward_error": statistics.median(backward),
    }


def peaks(bench: Bench, repeats: int) -> dict[str, float]:
    """Peak memory above baseline of a training step, in MiB, with kept and with fresh gradients."""
    peak = peak_cuda if bench.device == "cuda" else peak_resident
    kept = []
    for _ in range(repeats):
        bench.model.zero_grad(set_to_none=False)
        kept.append(peak(bench.step, bench.input()))
    bench.model.zero_grad(set_to_none=True)
    return {"peak_mib": statistics.median(kept) / MIB, "peak_fresh_mib": peak(bench.step, bench.input()) / MIB}


def peak_cuda(step: Callable[[Tensor], None], x: Tensor) -> int:
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(x)
    return torch.cuda.max_memory_allocated() - before


def peak_resident(step: Callable[[Tensor], None], x: Tensor) -> int:
    gc.collect()
    with suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)
    try:
        (PROC / "clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return peak_sampled(step, x)
    before = resident("VmRSS")
    step(x)
    return resident("VmHWM") - before


def peak_sampled(step: Callable[[Tensor], None], x: Tensor) -> int:
    """Where the mark cannot be put back (some containers): look often. Misses short peaks."""
    done, seen, before = threading.Event(), [0], resident("VmRSS")

    def watch() -> None:
        while not done.wait(2e-4):
            seen[0] = max(seen[0], resident("VmRSS"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        step(x)
    finally:
        done.set()
        watcher.join()
    return seen[0] - before


def resident(field: str) -> int:
    """VmRSS or VmHWM, in bytes."""
    found = re.search(rf"{field}:\s+(\d+) kB", (PROC / "status").read_text(encoding="ascii"))
    if found is None:
        raise OSError(f"no {field} in {PROC / 'status'}: peak memory needs Linux or a GPU")
    return 1024 * int(found[1])


def clock(job: Job) -> dict[str, Any]:
    """Seconds of training steps, each paired with one of the plain network: in turn, after one each to warm up.

    Two processes minutes apart would differ by what else the machine does; two neighbouring steps hardly do.
    """
    names = dict.fromkeys(("plain", job.implementation))
    benches = {name: Bench(IMPLEMENTATIONS[name].build, job) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(1 + job.repeats):
        for name in list(names) if turn % 2 else list(names)[::-1]:
            seconds[name].append(timed(benches[name], job.device))
    plain, mine = seconds["plain"][1:], seconds[job.implementation][1:]
    return {"step_seconds": statistics.median(mine), "ratios": [b / a for a, b in zip(plain, mine, strict=True)]}


def timed(bench: Bench, device: str) -> float:
    bench.model.zero_grad(set_to_none=True)
    x = bench.input()
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    bench.step(x)
    return time.perf_counter() - start


def fits(job: Job) -> dict[str, Any]:
    """Whether two training steps fit the GPU's memory."""
    try:
        bench = Bench(IMPLEMENTATIONS[job.implementation].build, job)
        bench.step(bench.input())
        start = time.perf_counter()
        bench.step(bench.input())
    except torch.cuda.OutOfMemoryError:
        return {"fits": False}
    seconds, used = time.perf_counter() - start, torch.cuda.max_memory_allocated() / MIB
    return {"fits": True, "step_seconds": seconds, "allocated_mib": used, "gpu": torch.cuda.get_device_name()}

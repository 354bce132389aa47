"""Programs that run as two gloo processes: `run_two` starts them from a test, `as_rank` is their main function."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist


def run_two(program: str, folder: Path, timeout: float = 200) -> list[tuple[int, str]]:
    """Run a program twice, as rank 0 and rank 1, to its end.

    Args:
        program: Python code that calls `as_rank`.
        folder: An empty folder, for the program and what it writes.
        timeout: Seconds.

    Returns:
        Exit code and output of each rank.
    """
    (folder / "program.py").write_text(program)
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    commands = [[sys.executable, str(folder / "program.py"), str(folder), str(rank)] for rank in range(2)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    processes = [subprocess.Popen(c, text=True, env=environment, **pipes) for c in commands]
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]


def as_rank(work: Callable[[str, int], None]) -> None:
    """Join the other process, work, and leave. It does not return.

    Args:
        work: Called with the folder and the rank; writes its results itself.
    """
    folder, rank, code = sys.argv[1], int(sys.argv[2]), 1
    torch.set_num_threads(1)
    store, timeout = f"file://{folder}/store", datetime.timedelta(seconds=100)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timeout)
    try:
        work(folder, rank)
        dist.barrier()  # who leaves first would break the other's connections
        code = 0
    except Exception:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not through Python's own exit: parts of PyTorch (FSDP, for one) hold on to the process group, and a thread of
    # gloo that drops a tensor while the interpreter goes down aborts the process after its work is done.
    os._exit(code)

"""DDP over two gloo processes: a flow's gradients are those of one process with the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from flow._make import couplings
from invertible import Flow
from invertible.flow import DiagonalNormal

SCRIPT = """
import datetime, sys
import torch, torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

def main(folder, rank):
    store, timeout = f"file://{folder}/store", datetime.timedelta(seconds=100)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timeout)
    found = {}
    for name, (flow, x) in torch.load(f"{folder}/flows.pt", weights_only=False).items():
        wrapped = DDP(flow)
        wrapped(x[3 * rank : 3 * rank + 3]).backward()
        found[name] = {name: p.grad for name, p in flow.named_parameters()}
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()

if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.path.insert(0, sys.argv[3])
    main(sys.argv[1], int(sys.argv[2]))
"""


def test_ddp_gives_the_gradients_of_one_process(tmp_path: Path) -> None:
    """Also with float64 data and float32 weights, and in constant memory."""
    flows: dict[str, tuple[Flow, torch.Tensor]] = {}
    for memory, dtype in (("store", torch.float32), ("store", torch.float64), ("reconstruct", torch.float32)):
        flow, x = Flow(couplings(memory), DiagonalNormal(2)), torch.randn(6, 2, dtype=dtype)
        flows[f"{memory} {dtype}"] = flow, x
    torch.save(flows, tmp_path / "flows.pt")
    for flow, x in flows.values():
        flow(x).backward()
    for rank, found in enumerate(gradients(tmp_path)):
        for case, (flow, _) in flows.items():
            for name, parameter in flow.named_parameters():
                message = f"rank {rank}, {case}, {name}"
                torch.testing.assert_close(found[case][name], parameter.grad, atol=1e-5, rtol=1e-5, msg=message)


def gradients(folder: Path) -> list[dict[str, dict[str, torch.Tensor]]]:
    (folder / "program.py").write_text(SCRIPT)
    environment, tests = {**os.environ, "OMP_NUM_THREADS": "1"}, str(Path(__file__).parents[1])
    commands = [[sys.executable, str(folder / "program.py"), str(folder), str(rank), tests] for rank in range(2)]
    processes = [subprocess.Popen(c, stderr=subprocess.PIPE, text=True, env=environment) for c in commands]
    try:
        errors = [process.communicate(timeout=200)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]

"""DDP over two gloo processes: a flow's gradients are those of one process with the whole batch."""

from __future__ import annotations

from pathlib import Path

import torch

from flow._make import couplings
from invertible import Flow
from invertible.flow import DiagonalNormal
from two_processes import run_two

SCRIPT = """
import torch
from torch.nn.parallel import DistributedDataParallel as DDP
from two_processes import as_rank

def work(folder, rank):
    found = {}
    for name, (flow, x) in torch.load(f"{folder}/flows.pt", weights_only=False).items():
        wrapped = DDP(flow)
        wrapped(x[3 * rank : 3 * rank + 3]).backward()
        found[name] = {name: p.grad for name, p in flow.named_parameters()}
    torch.save(found, f"{folder}/rank{rank}.pt")

if __name__ == "__main__":
    as_rank(work)
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
    done = run_two(SCRIPT, folder)
    assert [code for code, _ in done] == [0, 0], done
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]

"""What a step costs: how often each network runs, and what stays in memory between the passes."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from invertible import Bijection, Chain, Inverse
from invertible.layers import AdditiveCoupling, AffineCoupling, Permute
from invertible.models.irevnet import IRevNetBlock
from reversible._nets import SAVING, Counted, additive, conv_net, mlp, target


def additive_block(i: int, net: nn.Module) -> Bijection:
    return AdditiveCoupling(net, target(i))


def affine_block(i: int, net: nn.Module) -> Bijection:
    return AffineCoupling(nn.Sequential(net, nn.Linear(3, 6)), target(i))


def irevnet_block(i: int, net: nn.Module) -> Bijection:
    return IRevNetBlock(net)


def inverse_block(i: int, net: nn.Module) -> Bijection:
    return Inverse(AffineCoupling(nn.Sequential(net, nn.Linear(3, 6)), target(i)))


BLOCKS = [additive_block, affine_block, irevnet_block, inverse_block]


def forward(chain: Chain, x: Tensor) -> Tensor:
    return chain(x).square().sum()


def inverse(chain: Chain, x: Tensor) -> Tensor:
    return chain.inverse(x).square().sum()


def forward_with_logdet(chain: Chain, x: Tensor) -> Tensor:
    y, logdet = chain.forward_with_logdet(x)
    return y.square().sum() - logdet.sum()


def inverse_with_logdet(chain: Chain, x: Tensor) -> Tensor:
    y, logdet = chain.inverse_with_logdet(x)
    return y.square().sum() - logdet.sum()


METHODS = [forward, inverse, forward_with_logdet, inverse_with_logdet]


def make(block: Callable[[int, nn.Module], Bijection], memory: Any) -> tuple[Chain, list[Counted]]:
    nets = [Counted(mlp()) for _ in range(3)]
    return Chain(*(block(i, net) for i, net in enumerate(nets)), memory=memory), nets


@pytest.mark.parametrize("memory", SAVING)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("block", BLOCKS)
def test_each_network_runs_twice_per_step(block: Callable, method: Callable, memory: str) -> None:
    chain, nets = make(block, memory)
    for step in range(1, 4):
        method(chain, torch.randn(4, 6)).backward()
        assert [net.calls for net in nets] == [2 * step] * 3


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("method", METHODS)
def test_each_network_runs_once_without_gradients(block: Callable, method: Callable) -> None:
    chain, nets = make(block, "reconstruct")
    with torch.no_grad():
        method(chain, torch.randn(4, 6))
    assert [net.calls for net in nets] == [1, 1, 1]
    chain.eval().requires_grad_(False)
    method(chain, torch.randn(4, 6))
    assert [net.calls for net in nets] == [2, 2, 2]
    with torch.inference_mode():
        method(chain, torch.randn(4, 6))
    assert [net.calls for net in nets] == [3, 3, 3]


def test_a_forward_pass_alone_runs_each_network_once() -> None:
    chain, nets = make(additive_block, "reconstruct")
    chain(torch.randn(4, 6))
    assert [net.calls for net in nets] == [1, 1, 1]


def test_blocks_before_the_first_wanted_gradient_do_not_run_again() -> None:
    chain, nets = make(additive_block, "reconstruct")
    torch.autograd.grad(forward(chain, torch.randn(4, 6)), list(chain[1].parameters()))
    assert [net.calls for net in nets] == [1, 2, 2]


def test_exact_costs_no_further_run() -> None:
    nets = [Counted(mlp()) for _ in range(3)]
    chain = Chain(*(AdditiveCoupling(net, target(i)) for i, net in enumerate(nets)), memory="reconstruct", exact=True)
    forward(chain, torch.randn(4, 6)).backward()
    assert [net.calls for net in nets] == [2, 2, 2]


class Live(TorchDispatchMode):
    """Follows every storage made inside: bytes alive now, and the most at any moment."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for t in tree_leaves(out):
            if isinstance(t, Tensor) and t.untyped_storage()._cdata not in given:
                storage = t.untyped_storage()
                self.storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, self.bytes())
        return out

    def bytes(self) -> int:
        self.storages = {key: row for key, row in self.storages.items() if not row[0].expired()}
        return sum(size for _, size in self.storages.values())


SHAPE = (16, 8, 8, 8)
STATE = 4 * 16 * 8 * 8 * 8  # bytes


def quiet_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 4, 1))


def kept(chain: Chain, x: Tensor, method: Callable = forward) -> int:
    """Bytes between the passes, beyond what the loss itself keeps."""
    with Live() as live:
        loss = method(chain, x)
        count = live.bytes()
    assert loss.requires_grad
    return count


@pytest.mark.parametrize("method", METHODS)
def test_what_is_kept_does_not_grow_with_depth(method: Callable) -> None:
    def at(n_blocks: int, memory: Any) -> int:
        chain = additive(n_blocks, quiet_net, memory=memory, check_every=None)
        return kept(chain, torch.randn(SHAPE), method)

    assert at(24, "reconstruct") == at(4, "reconstruct") <= 5 * STATE
    assert at(24, "store") > 4 * at(4, "store"), "the measurement sees what autograd keeps"
    # A member's input: of its two streams one is new.
    assert at(24, "checkpoint") - at(4, "checkpoint") <= 20 * STATE
    assert at(24, "checkpoint") < 0.6 * at(24, "store")


def test_affine_couplings_and_permutations_keep_nothing_either() -> None:
    def at(n_blocks: int) -> int:
        couplings = [AffineCoupling(mlp(32, 64)) for _ in range(n_blocks)]
        members = [m for c in couplings for m in (c, Permute.reverse(64))]
        chain = Chain(*members, memory="reconstruct", check_every=None)
        return kept(chain, torch.randn(32, 64), forward_with_logdet)

    assert at(12) == at(2)


def test_batch_norm_keeps_its_statistics_only() -> None:
    def at(n_blocks: int) -> int:
        chain = additive(n_blocks, lambda: conv_net(dropout=0.0), memory="reconstruct", check_every=None)
        return kept(chain, torch.randn(SHAPE))

    at(2)
    statistics = 4 * 2 * (4 + 5)  # bytes of mean and deviation of 4 and of 5 channels
    assert at(22) - at(2) == 20 * statistics


def test_the_backward_pass_does_not_grow_with_depth() -> None:
    """All blocks share one network, so that gradients of parameters do not add up either."""

    def peak(n_blocks: int, memory: Any) -> int:
        net = quiet_net()
        chain = additive(n_blocks, lambda: net, memory=memory, check_every=None)
        x = torch.randn(SHAPE)
        forward(chain, x).backward()
        with Live() as live:
            forward(chain, x).backward()
        return live.peak

    assert peak(24, "reconstruct") <= peak(4, "reconstruct") + STATE // 10
    assert peak(24, "store") > 3 * peak(4, "store")


def test_samples_of_the_check_are_small() -> None:
    def at(check_every: int | None) -> int:
        chain = additive(10, quiet_net, memory="reconstruct", check_every=check_every)
        return kept(chain, torch.randn(SHAPE))

    assert 0 < at(1) - at(None) <= 10 * 2 * 4 * 600


@pytest.mark.parametrize("memory", ["store", *SAVING])
def test_a_dropped_output_frees_everything_at_once(memory: Any) -> None:
    """Without waiting for Python's cycle collector: on a GPU nothing would call it in time."""
    chain = additive(4, quiet_net, memory=memory)
    x = torch.randn(SHAPE)
    forward(chain, x).backward()
    gc.collect()
    gc.disable()
    try:
        with Live() as live:
            loss = forward(chain, x)
            assert live.bytes() > STATE
            del loss
            left = live.bytes()
    finally:
        gc.enable()
    assert left == 0


@pytest.mark.parametrize("memory", SAVING)
def test_a_step_leaves_no_cycle_that_holds_tensors(memory: Any) -> None:
    chain = additive(4, quiet_net, memory=memory)
    x = torch.randn(SHAPE)
    forward(chain, x).backward()
    chain.zero_grad(set_to_none=False)
    gc.collect()
    gc.disable()
    try:
        with Live() as live:
            forward(chain, x).backward()
            left = live.bytes()
    finally:
        gc.enable()
    assert left <= 2000  # bytes: the generator's state and the like

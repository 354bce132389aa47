"""The probes that other libraries fail (a step of training each), against a loop written by hand in plain PyTorch.

All of them run with BatchNorm and dropout, in float64 and float32, with memory "checkpoint" and "reconstruct", and on
the lattice. Each also compares every buffer and the random state to the bit: BatchNorm is updated once per step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from invertible import Chain
from reversible._nets import SAVING, additive, assert_same, by_hand, conv_net, names_of_graph, outcome, tapped

Run = Callable[..., Tensor]


def loss_of(y: Tensor) -> Tensor:
    return (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum() + y.square().mean()


def ordinary(forward: Run, chain: Chain, x: Tensor) -> list[Tensor]:
    y = forward(x)
    loss_of(y).backward()
    return [y, *([x.grad] if x.grad is not None else [])]


def two_forwards_first(forward: Run, chain: Chain, x: Tensor) -> list[Tensor]:
    first, second = forward(x), forward(2 * x)
    loss_of(first).backward()
    loss_of(second).backward()
    return [first, second, x.grad]


def the_later_one_first(forward: Run, chain: Chain, x: Tensor) -> list[Tensor]:
    first, second = forward(x), forward(2 * x)
    loss_of(second).backward()
    loss_of(first).backward()
    return [first, second, x.grad]


def both_in_one_loss(forward: Run, chain: Chain, x: Tensor) -> list[Tensor]:
    y = forward(x) * forward(x.flip(0))
    loss_of(y).backward()
    return [y, x.grad]


def twice_in_a_row(forward: Run, chain: Chain, x: Tensor) -> list[Tensor]:
    y = forward(forward(x))
    loss_of(y).backward()
    return [y, x.grad]


def input_without_grad(forward: Run, chain: Chain, x: Tensor) -> list[Tensor]:
    return ordinary(forward, chain, x.detach())


def autograd_grad(forward: Run, chain: Chain, x: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss_of(forward(x)), [x, *chain.parameters()]))


def grad_of_a_few(forward: Run, chain: Chain, x: Tensor) -> list[Tensor]:
    some = list(chain[2].parameters())[:2]
    return list(torch.autograd.grad(loss_of(forward(x)), some))


def backward_to_a_few(forward: Run, chain: Chain, x: Tensor) -> list[Tensor]:
    y = forward(x)
    loss_of(y).backward(inputs=list(chain[1].parameters()))
    return [y]


def double_backward(forward: Run, chain: Chain, x: Tensor) -> list[Tensor]:
    y = forward(x)
    (grad,) = torch.autograd.grad(loss_of(y), x, create_graph=True)
    (grad.square().sum() + y.sum()).backward()
    return [grad, x.grad]


def penalty_on_weights(forward: Run, chain: Chain, x: Tensor) -> list[Tensor]:
    grads = torch.autograd.grad(loss_of(forward(x)), list(chain.parameters()), create_graph=True)
    sum(g.square().sum() for g in grads).backward()
    return [*grads, x.grad]


def retain_graph_twice(forward: Run, chain: Chain, x: Tensor) -> list[Tensor]:
    y = forward(x)
    loss_of(y).backward(retain_graph=True)
    y.sum().backward(retain_graph=True)
    y.square().sum().backward()
    return [y, x.grad]


def retain_then_a_few(forward: Run, chain: Chain, x: Tensor) -> list[Tensor]:
    loss = loss_of(forward(x))
    first = torch.autograd.grad(loss, list(chain[3].parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(chain[0].parameters()), retain_graph=True)
    loss.backward()
    return [*first, *second, x.grad]


def skip_with_loss_on_middle(forward: Run, chain: Chain, x: Tensor) -> list[Tensor]:
    taps: list[Any] = []
    y = forward(x, taps) + x
    a, b = taps[1]
    (loss_of(y) + (a * b).sum()).backward()
    return [y, a, b, x.grad]


def only_the_middle(forward: Run, chain: Chain, x: Tensor) -> list[Tensor]:
    taps: list[Any] = []
    forward(x, taps)
    a, b = taps[1]
    (a.exp() + b.square()).sum().backward()
    return [a, b, x.grad]


def one_stream_of_the_middle(forward: Run, chain: Chain, x: Tensor) -> list[Tensor]:
    taps: list[Any] = []
    y = forward(x, taps)
    taps[2][1].square().sum().backward()
    return [y, x.grad]


def two_middles_one_after_the_other(forward: Run, chain: Chain, x: Tensor) -> list[Tensor]:
    taps: list[Any] = []
    y = forward(x, taps)
    taps[2][0].square().sum().backward(retain_graph=True)
    taps[0][1].square().sum().backward(retain_graph=True)
    loss_of(y).backward()
    return [y, x.grad]


def hooks_on_the_middle_tensor(forward: Run, chain: Chain, x: Tensor) -> list[Tensor]:
    taps: list[Any] = []
    y = forward(x, taps)
    seen: list[Tensor] = []
    a, b = taps[1]  # b is the stream that was handed through: which uses of it a hook sees is nobody's promise
    a.retain_grad()
    a.register_hook(lambda grad: seen.append(grad.clone()))
    a.register_hook(lambda grad: 2 * grad)
    (loss_of(y) + (a * b).sum()).backward()
    return [*seen, a.grad, x.grad]


def relu_before(forward: Run, chain: Chain, x: Tensor) -> list[Tensor]:
    y = forward(torch.relu(x))
    loss_of(y).backward()
    return [y, x.grad]


def relu_in_place_before(forward: Run, chain: Chain, x: Tensor) -> list[Tensor]:
    y = forward(nn.functional.relu(3 * x, inplace=True))
    loss_of(y).backward()
    return [y, x.grad]


def relu_in_place_after(forward: Run, chain: Chain, x: Tensor) -> list[Tensor]:
    y = nn.functional.relu(forward(x), inplace=True)
    loss_of(y).backward()
    return [y, x.grad]


def output_changed_in_place(forward: Run, chain: Chain, x: Tensor) -> list[Tensor]:
    y = forward(x)
    y.mul_(2).add_(1)
    y[:, :2] = 0.5
    loss_of(y).backward()
    return [y, x.grad]


def output_overwritten_after_its_use(forward: Run, chain: Chain, x: Tensor) -> list[Tensor]:
    y = forward(x)
    loss = y.sum()
    with torch.no_grad():
        y.zero_()
    loss.backward()
    return [x.grad]


def retained_grad_of_the_output(forward: Run, chain: Chain, x: Tensor) -> list[Tensor]:
    y = forward(x)
    y.retain_grad()
    loss_of(y).backward()
    return [y, y.grad, x.grad]


def hooks_fire(forward: Run, chain: Chain, x: Tensor) -> list[Tensor]:
    seen: dict[str, list[Tensor]] = {"backward": [], "tensor": [], "after": []}
    network = chain[1].network
    conv, last = network[2], network[6]
    forwards, pres = [], []
    handles = [
        conv.register_forward_hook(lambda m, args, out: forwards.append(out.detach().clone())),
        last.register_forward_pre_hook(lambda m, args: pres.append(args[0].detach().clone())),
        last.register_full_backward_hook(lambda m, grads, outs: seen["backward"].extend([grads[0], outs[0]])),
        network.register_full_backward_hook(lambda m, grads, outs: seen["backward"].append(outs[0])),
        conv.weight.register_hook(lambda grad: seen["tensor"].append(grad.clone())),
        conv.weight.register_post_accumulate_grad_hook(lambda p: seen["after"].append(p.grad.clone())),
    ]
    y = forward(x)
    loss_of(y).backward()
    for handle in handles:
        handle.remove()
    assert [len(v) for v in seen.values()] == [3, 1, 1]
    return [forwards[0], pres[0], forwards[-1], pres[-1], *seen["backward"], *seen["tensor"], *seen["after"], x.grad]


def hooks_that_change(forward: Run, chain: Chain, x: Tensor) -> list[Tensor]:
    """Forward hooks that replace an output, backward hooks that replace a gradient: both are part of the network."""
    network = chain[1].network
    handles = [
        network[2].register_forward_hook(lambda m, args, out: out * 0.5),
        network.register_forward_pre_hook(lambda m, args: (args[0] + 1,)),
        network[6].register_full_backward_hook(lambda m, grads, outs: (grads[0] * 3,)),
        network[6].weight.register_hook(lambda grad: grad * 2),
    ]
    y = forward(x)
    loss_of(y).backward()
    for handle in handles:
        handle.remove()
    return [y, x.grad]


def accumulation_and_clipping(forward: Run, chain: Chain, x: Tensor) -> list[Tensor]:
    for part in x.chunk(2):
        loss_of(forward(part)).backward()
    norm = nn.utils.clip_grad_norm_(chain.parameters(), 0.01)
    return [norm, x.grad]


def optimizer_steps(forward: Run, chain: Chain, x: Tensor) -> list[Tensor]:
    optimizer = torch.optim.SGD(chain.parameters(), lr=1e-3, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(forward(x)).backward()
        optimizer.step()
    return [*chain.parameters(), x.grad]


def optimizer_in_backward(forward: Run, chain: Chain, x: Tensor) -> list[Tensor]:
    """Weights are updated as soon as their gradient is there, while the backward pass goes on."""

    def update(parameter: Tensor) -> None:
        with torch.no_grad():
            parameter -= 1e-3 * parameter.grad

    handles = [p.register_post_accumulate_grad_hook(update) for p in chain.parameters()]
    for _ in range(2):
        loss_of(forward(x)).backward()
    for handle in handles:
        handle.remove()
    return [*chain.parameters(), x.grad]


def frozen_weights(forward: Run, chain: Chain, x: Tensor) -> list[Tensor]:
    for i in (0, 2):
        chain[i].requires_grad_(False)
    chain[1].network[2].weight.requires_grad_(False)
    return ordinary(forward, chain, x)


def frozen_beginning(forward: Run, chain: Chain, x: Tensor) -> list[Tensor]:
    chain[0].requires_grad_(False)
    chain[1].requires_grad_(False)
    return ordinary(forward, chain, x.detach())


def all_frozen(forward: Run, chain: Chain, x: Tensor) -> list[Tensor]:
    chain.requires_grad_(False)
    return ordinary(forward, chain, x)


def evaluation_with_grad(forward: Run, chain: Chain, x: Tensor) -> list[Tensor]:
    forward(x.detach())
    chain.eval()
    return ordinary(forward, chain, x)


def under_checkpoint(forward: Run, chain: Chain, x: Tensor) -> list[Tensor]:
    for norm in (m for m in chain.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.eval()  # torch's checkpoint runs the whole forward twice, averages included
    y = torch.utils.checkpoint.checkpoint(forward, x, use_reentrant=False)
    loss_of(y).backward()
    return [y, x.grad]


def channels_last(forward: Run, chain: Chain, x: Tensor) -> list[Tensor]:
    return ordinary(forward, chain, x.detach().to(memory_format=torch.channels_last).requires_grad_())


def anomaly_mode(forward: Run, chain: Chain, x: Tensor) -> list[Tensor]:
    with pytest.warns(UserWarning, match="Anomaly"), torch.autograd.detect_anomaly():
        return ordinary(forward, chain, x)


def without_grad(forward: Run, chain: Chain, x: Tensor) -> list[Tensor]:
    before, version = x.detach().clone(), x._version
    with torch.no_grad():
        y = forward(x)
    assert torch.equal(x, before)
    assert x._version == version
    assert not y.requires_grad
    return [y]


PROBES = [
    ordinary, two_forwards_first, the_later_one_first, both_in_one_loss, twice_in_a_row, input_without_grad,
    autograd_grad, grad_of_a_few, backward_to_a_few, double_backward, penalty_on_weights, retain_graph_twice,
    retain_then_a_few, skip_with_loss_on_middle, only_the_middle, one_stream_of_the_middle,
    two_middles_one_after_the_other, hooks_on_the_middle_tensor, relu_before, relu_in_place_before,
    relu_in_place_after, output_changed_in_place, output_overwritten_after_its_use, retained_grad_of_the_output,
    hooks_fire, hooks_that_change, accumulation_and_clipping, optimizer_steps, optimizer_in_backward, frozen_weights,
    frozen_beginning, all_frozen, evaluation_with_grad, under_checkpoint, channels_last, anomaly_mode, without_grad,
]  # fmt: skip
SECOND_DERIVATIVES = [double_backward, penalty_on_weights]
SEVERAL_STEPS = [optimizer_steps, optimizer_in_backward]  # the second step's weights have rounding of their own
BATCH, N_BLOCKS = 6, 4


def measure(probe: Callable, memory: str, dtype: torch.dtype, exact: bool = False) -> Any:
    torch.manual_seed(0)
    chain = additive(N_BLOCKS, conv_net, exact=exact).to(dtype)
    x = torch.randn(BATCH, 8, 3, 3, dtype=torch.float64).to(dtype).requires_grad_()

    def through(x: Tensor, taps: list[Any] | None = None) -> Tensor:
        with tapped(chain) as seen:
            y = chain(x)
        (taps if taps is not None else []).extend(seen)
        return y

    if memory != "by hand":
        chain.memory = memory
    before = x.detach().clone()
    result = outcome(chain, lambda: probe(partial(by_hand, chain) if memory == "by hand" else through, chain, x))
    assert torch.equal(x, before), "the caller's input was changed"
    return result


@pytest.mark.parametrize("memory", SAVING)
@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.__name__)
def test_float64(probe: Callable, memory: str) -> None:
    expected = measure(probe, "by hand", torch.float64)
    assert_same(measure(probe, memory, torch.float64), expected, 1e-9, 1e-9 if probe in SEVERAL_STEPS else 0.0)


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.__name__)
def test_float32(probe: Callable) -> None:
    expected = measure(probe, "by hand", torch.float32)
    actual = measure(probe, "reconstruct", torch.float32)
    assert_same(actual, expected, 2e-3, 1e-5 if probe in SEVERAL_STEPS else 0.0)


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.__name__)
def test_exact(probe: Callable) -> None:
    expected = measure(probe, "store", torch.float32, exact=True)
    actual = measure(probe, "reconstruct", torch.float32, exact=True)
    tolerance = 1e-5 if probe in SECOND_DERIVATIVES else 1e-6  # there BatchNorm is differentiated by other formulas
    assert_same(actual, expected, tolerance, 1e-6 if probe in SEVERAL_STEPS else 0.0)
    if probe is ordinary:
        assert torch.equal(actual.found[0], expected.found[0])


def test_the_networks_of_these_probes_are_saved_by_nodes() -> None:
    """Otherwise all of this would compare plain autograd with itself."""
    chain = additive(2, conv_net)
    x = torch.randn(BATCH, 8, 3, 3)
    assert "_NodeBackward" not in names_of_graph(chain(x))
    for memory in SAVING:
        chain.memory = memory
        assert "_NodeBackward" in names_of_graph(chain(x))


def test_float32_gradients_are_as_good_as_plain_ones() -> None:
    """Against float64 weights and inputs of the same values: a few times plain float32's own error."""

    def grads(memory: str, dtype: torch.dtype, exact: bool = False) -> Tensor:
        torch.manual_seed(0)
        chain = additive(16, lambda: nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 4, 1)))
        chain = Chain(*chain, exact=exact).to(dtype)
        x = torch.randn(4, 8, 4, 4).to(dtype)
        if memory == "by hand":
            loss_of(by_hand(chain, x)).backward()
        else:
            chain.memory = memory
            loss_of(chain(x)).backward()
        return torch.cat([p.grad.flatten().double() for p in chain.parameters()])

    true = grads("by hand", torch.float64)
    plain = (grads("by hand", torch.float32) - true).norm()
    assert plain > 0
    for memory in SAVING:
        assert (grads(memory, torch.float32) - true).norm() <= 4 * plain
    # Quantising moves the forward values, so the lattice is compared with the lattice.
    exact = grads("store", torch.float32, exact=True)
    assert (grads("reconstruct", torch.float32, exact=True) - exact).norm() <= 1e-7 * exact.norm()


def test_streams_changed_in_place_by_the_caller() -> None:
    """An output of streams is the caller's own, too: also the one that the last coupling handed through."""

    def run(memory: str) -> list[Tensor]:
        torch.manual_seed(0)
        chain = additive(3).double()
        chain.memory = memory
        x = tuple(torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
        a, b = chain(tuple(t * 2 for t in x))
        a, b = (a * 3, b.exp()) if memory == "store" else (a.mul_(3), b.exp_())
        (a * b).sum().backward()
        return [a.detach(), b.detach(), *(t.grad for t in x), *(p.grad for p in chain.parameters())]

    expected = run("store")
    for memory in SAVING:
        for actual, other in zip(run(memory), expected, strict=True):
            torch.testing.assert_close(actual, other, rtol=1e-9, atol=1e-9)


def test_streams_of_the_caller_are_left_alone() -> None:
    chain = additive(3, memory="reconstruct")
    x = tuple(torch.randn(4, 3) for _ in range(2))
    kept = [t.clone() for t in x]
    y = chain(x)
    for stream in y:
        stream.detach().zero_()
    sum(stream.sum() for stream in y).backward()
    assert all(torch.equal(a, b) for a, b in zip(x, kept, strict=True))
    assert [t._version for t in x] == [0, 0]


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("memory", SAVING)
def test_autocast(memory: str, exact: bool) -> None:
    def grads(mode: str, dtype: torch.dtype, autocast: bool) -> Tensor:
        torch.manual_seed(0)
        chain = additive(6, conv_net, exact=exact).to(dtype)
        chain.memory = mode
        x = torch.randn(8, 8, 4, 4).to(dtype).requires_grad_()
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = chain(x)
            assert y.dtype == dtype, "streams stay in the input's precision"
        y.square().mean().backward()
        assert {p.grad.dtype for p in chain.parameters()} == {dtype}
        return torch.cat([x.grad.flatten(), *(p.grad.flatten() for p in chain.parameters())]).double()

    true = grads("store", torch.float32, autocast=False)
    plain = grads("store", torch.float32, autocast=True)
    saved = grads(memory, torch.float32, autocast=True)
    noise = (plain - true).norm() / true.norm()
    assert noise > 1e-3, "autocast did not reach the networks"
    tolerance = 1e-6 if exact or memory == "checkpoint" else 4 * noise
    assert (saved - plain).norm() / plain.norm() <= tolerance


@pytest.mark.parametrize("memory", SAVING)
def test_an_odd_number_of_channels(memory: str) -> None:
    def grads(mode: str) -> list[Tensor]:
        torch.manual_seed(0)
        nets = [nn.Linear(2, 3), nn.Linear(3, 2)] * 2
        from invertible.layers import AdditiveCoupling

        couplings = [AdditiveCoupling(net, ("second", "first")[i % 2]) for i, net in enumerate(nets)]
        chain = Chain(*couplings, memory="store" if mode == "by hand" else mode).double()
        x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
        y = by_hand(chain, x) if mode == "by hand" else chain(x)
        loss_of(y).backward()
        return [y.detach(), x.grad, *(p.grad for p in chain.parameters())]

    for actual, expected in zip(grads(memory), grads("by hand"), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("memory", SAVING)
def test_gradcheck_and_gradgradcheck(memory: str) -> None:
    chain = additive(2, lambda: nn.Sequential(nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 1))).double()
    chain.memory, chain.check_every = memory, None
    names, values = zip(*chain.named_parameters(), strict=True)
    values = [v.detach().clone().requires_grad_() for v in values]

    def f(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(chain, dict(zip(names, parameters, strict=True)), (x,))

    x = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    assert "_NodeBackward" in names_of_graph(f(x, *values))
    assert torch.autograd.gradcheck(f, (x, *values))
    assert torch.autograd.gradgradcheck(f, (x, *values))

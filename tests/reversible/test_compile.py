"""`torch.compile` around a chain that saves memory, and inside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from invertible import Chain
from invertible.layers import AdditiveCoupling, Permute
from reversible._nets import SAVING, Counted, additive, affine, conv_net, mlp, names_of_graph, target

pytestmark = [
    pytest.mark.usefixtures("unchecked", "_fresh_compiler"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning"),
    # Dynamo looks at the .grad of every input, be it a leaf or not.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def step(f: Any, module: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    module.zero_grad()
    y = f(x)
    y.square().sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    return [y.detach().clone(), x.grad, *(p.grad.clone() for p in module.parameters())]


def assert_close(actual: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("memory", SAVING)
def test_a_full_graph(memory: Any) -> None:
    chain = Chain(*affine(2), Permute.reverse(6), *additive(2)).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    expected = step(chain, chain, x)
    chain.memory = memory
    compiled = torch.compile(chain, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        assert_close(step(compiled, chain, x), expected)


def test_a_full_graph_with_batch_norm_updates_it_once() -> None:
    torch.manual_seed(0)
    chain = additive(2, lambda: conv_net(dropout=0.0)).double()
    state = {k: v.clone() for k, v in chain.state_dict().items()}
    x = torch.randn(4, 8, 3, 3, dtype=torch.float64)
    expected = step(chain, chain, x)
    buffers = [b.clone() for b in chain.buffers()]
    chain.load_state_dict(state)
    chain.memory = "reconstruct"
    assert_close(step(torch.compile(chain, fullgraph=True, backend="aot_eager"), chain, x), expected)
    assert_close(list(chain.buffers()), buffers)


@pytest.mark.compile_all
def test_a_full_graph_by_inductor() -> None:
    chain = additive(2).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    expected = step(chain, chain, x)
    chain.memory = "reconstruct"
    assert_close(step(torch.compile(chain, fullgraph=True), chain, x), expected)


@pytest.mark.parametrize("exact", [False, True])
def test_compiled_networks_inside(exact: bool) -> None:
    """Twice per step, BatchNorm updated once, all of it in a node of the chain."""
    torch.manual_seed(0)
    counted = [Counted(conv_net(dropout=0.0)) for _ in range(2)]
    plain = Chain(*(AdditiveCoupling(net, target(i)) for i, net in enumerate(counted)), exact=exact).double()
    state = {k: v.clone() for k, v in plain.state_dict().items()}
    x = torch.randn(4, 8, 3, 3, dtype=torch.float64)
    expected = step(plain, plain, x)
    buffers = [b.clone() for b in plain.buffers()]
    plain.load_state_dict(state)
    for member in plain:
        member.network.network = torch.compile(member.network.network, backend="aot_eager")  # type: ignore[union-attr]
    plain.memory = "reconstruct"
    assert "_NodeBackward" in names_of_graph(plain(x))
    plain.load_state_dict({k.replace("network.network.", "network.network._orig_mod."): v for k, v in state.items()})
    for net in counted:
        net.calls = 0
    actual = step(plain, plain, x)
    assert_close(actual, expected)
    assert [net.calls for net in counted] == [2, 2]
    assert_close(list(plain.buffers()), buffers)


def test_a_loss_compiled_around_graph_breaks() -> None:
    chain = additive(3).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    eager = step(lambda x: torch.tanh(chain(x) * 2), chain, x)
    chain.memory = "reconstruct"

    @torch.compile(backend="aot_eager")
    def f(x: Tensor) -> Tensor:
        x = x * 1.0
        torch._dynamo.graph_break()
        return torch.tanh(chain(x) * 2)

    assert_close(step(f, chain, x), eager)


def test_compiled_dropout_is_replayed() -> None:
    """Compiled code may draw other numbers than eager code, but the same ones in both of its runs."""
    chain = Chain(*(AdditiveCoupling(mlp_with_dropout(), target(i)) for i in range(2))).double()
    chain.memory = "reconstruct"
    chain.check_every = 1
    x = torch.randn(64, 6, dtype=torch.float64)
    compiled = torch.compile(chain, fullgraph=True, backend="aot_eager")

    def grads() -> list[Tensor]:
        torch.manual_seed(3)
        return step(compiled, chain, x)

    first = grads()
    assert_close(grads(), first)
    y, grad, direction = first[0], first[1], torch.randn_like(x)
    loss = []
    for sign in (1, -1):
        torch.manual_seed(3)
        with torch.enable_grad():
            loss.append(compiled((x + sign * 1e-6 * direction).requires_grad_()).square().sum().item())
    assert y.square().sum().item() == pytest.approx(sum(loss) / 2, rel=1e-6)
    assert (loss[0] - loss[1]) / 2e-6 == pytest.approx((grad * direction).sum().item(), rel=1e-5)


def mlp_with_dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.3), nn.Tanh(), mlp(8, 3))

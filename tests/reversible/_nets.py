"""Small networks, a hand-written loop to compare with, and what two runs of a training step must have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from invertible import Chain
from invertible.errors import InvertibleError
from invertible.layers import AdditiveCoupling, AffineCoupling

SAVING = ["checkpoint", "reconstruct"]
Forward = Callable[[Tensor], Tensor]


def conv_net(n_in: int = 4, n_out: int = 4, dropout: float = 0.2) -> nn.Module:
    """F of the papers: BN-ReLU-conv, dropout, BN-ReLU-conv."""
    return nn.Sequential(
        nn.BatchNorm2d(n_in),
        nn.ReLU(),
        nn.Conv2d(n_in, 5, 3, padding=1, bias=False),
        nn.Dropout(dropout),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Conv2d(5, n_out, 3, padding=1),
    )


def mlp(n_in: int = 3, n_out: int = 3, width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Linear(n_in, width), nn.Tanh(), nn.Linear(width, n_out))


def target(i: int) -> Any:
    return ("second", "first")[i % 2]


def additive(n_blocks: int = 4, net: Callable[[], nn.Module] = mlp, **options: Any) -> Chain:
    return Chain(*(AdditiveCoupling(net(), target(i)) for i in range(n_blocks)), **options)


def affine(n_blocks: int = 4, n: int = 3, **options: Any) -> Chain:
    return Chain(*(AffineCoupling(mlp(n, 2 * n), target(i)) for i in range(n_blocks)), **options)


def by_hand(chain: Chain, x: Tensor, taps: list[Any] | None = None) -> Tensor:
    """What a chain of additive couplings computes, in plain PyTorch."""
    a, b = x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]
    for i, member in enumerate(chain):
        network = getattr(member, "network")  # noqa: B009
        a, b = (a, b + network(a)) if i % 2 == 0 else (a + network(b), b)
        if taps is not None:
            taps.append((a, b))
    return torch.cat([a, b], dim=1)


@contextmanager
def tapped(chain: Chain) -> Iterator[list[Any]]:
    """The members' outputs, as forward hooks see them."""
    taps: list[Any] = []
    handles = [member.register_forward_hook(lambda module, args, out: taps.append(out)) for member in chain]
    try:
        yield taps
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class Outcome:
    """All that one run leaves: what it found, buffers, random state, gradients."""

    found: list[Tensor]
    buffers: dict[str, Tensor] = field(default_factory=dict)
    grads: dict[str, Tensor | None] = field(default_factory=dict)
    rng: Tensor = field(default_factory=torch.get_rng_state)


def outcome(module: nn.Module, run: Callable[[], list[Tensor]]) -> Outcome:
    torch.manual_seed(1)
    found = [t.detach().clone() for t in run()]
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    grads = {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}
    return Outcome(found, buffers, grads)


def difference(a: Tensor, b: Tensor, scale: float = 1e-12) -> float:
    """Relative to the norm of b, or to `scale` if that is larger; infinity if they cannot be compared."""
    if a.shape != b.shape or a.dtype != b.dtype or not torch.isfinite(a).all():
        return float("inf")
    return (a.double() - b.double()).norm().item() / max(b.double().norm().item(), scale, 1e-12)


def assert_same(actual: Outcome, expected: Outcome, tolerance: float, buffers: float = 0.0) -> None:
    assert actual.found, "a run that finds nothing tests nothing"
    assert len(actual.found) == len(expected.found)
    worst = [difference(a, b) for a, b in zip(actual.found, expected.found, strict=True)]
    assert max(worst) <= tolerance, f"values differ: {worst}"
    assert actual.grads.keys() == expected.grads.keys()
    # A bias before a BatchNorm has gradient zero, up to rounding.
    scale = 1e-3 * max([g.norm().item() for g in expected.grads.values() if g is not None], default=1.0)
    for name, grad in expected.grads.items():
        own = actual.grads[name]
        assert (own is None) == (grad is None), f"gradient of {name}: {own is not None}, expected {grad is not None}"
        if own is not None and grad is not None:
            assert difference(own, grad, scale) <= tolerance, f"gradient of {name} differs"
    changed = [name for name, b in expected.buffers.items() if difference(actual.buffers[name], b) > buffers]
    assert not changed, f"buffers that differ: {changed}"
    assert torch.equal(actual.rng, expected.rng), "the random state is another"


def against_store(
    build: Callable[[], Any],
    run: Callable[[Any], list[Tensor]],
    memory: str,
    tolerance: float = 1e-9,
    dtype: torch.dtype = torch.float64,
) -> Outcome:
    """Run twice, with memory="store" and with another, and hold the second against the first."""
    results = []
    for mode in ("store", memory):
        torch.manual_seed(0)
        module = build().to(dtype)
        chains = [part for part in module.modules() if isinstance(part, Chain)]
        assert chains
        for chain in chains:
            chain.memory = mode
        results.append(outcome(module, lambda module=module: run(module)))
    assert_same(results[1], results[0], tolerance)
    return results[1]


def assert_right_or_refused(check: Callable[[], Any], words: str) -> None:
    """Anything but silently wrong."""
    try:
        check()
    except (RuntimeError, InvertibleError) as error:
        refusal = str(error)
    else:
        return
    assert words in refusal


def names_of_graph(y: Tensor) -> set[str]:
    """The kinds of nodes that `y` was made by."""
    names, todo, seen = set(), [y.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            names.add(node.name())
            todo += [parent for parent, _ in node.next_functions]
    return names


def gradients(module: nn.Module) -> list[Tensor]:
    return [p.grad for p in module.parameters() if p.grad is not None]


class Counted(nn.Module):
    """Counts its calls."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.calls = network, 0

    def forward(self, *args: Any) -> Any:
        self.calls += 1
        return self.network(*args)

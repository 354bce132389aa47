"""The paper's own network: its first CIFAR stage, where reversible gradients come out 390-fold wrong elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from invertible.errors import ReconstructionError
from invertible.models import irevnet
from invertible.models.classifier import Classifier


def step(
    channels: tuple[int, int, int],
    memory: Any,
    exact: bool,
    dtype: torch.dtype = torch.float32,
    check_every: int | None = 1,
) -> tuple[Classifier, Tensor]:
    """Loss and gradients of one training step; channels: of the image, of each stream, hidden."""
    torch.manual_seed(0)
    n, stream, hidden = channels
    net = irevnet((n, 8, 8), 10, (18,), (1,), (stream,), (hidden,), dropout=0.1, memory=memory, exact=exact).to(dtype)
    net.body.check_every = check_every  # type: ignore[assignment]
    x, labels = torch.rand(8, n, 8, 8).to(dtype).requires_grad_(), torch.arange(8)
    torch.manual_seed(1)
    loss = torch.nn.functional.cross_entropy(net(x), labels)
    loss.backward()
    return net, torch.cat([x.grad.flatten(), *(p.grad.flatten() for p in net.parameters())]).detach()


PADDED = (3, 16, 4)
"""3 channels become 2 x 16; the whole second stream is zero."""


@pytest.mark.parametrize("memory", ["checkpoint", "reconstruct"])
def test_the_padded_stage_on_the_lattice_has_the_gradients_of_autograd(memory: str) -> None:
    (stored, expected), (saved, actual) = step(PADDED, "store", exact=True), step(PADDED, memory, exact=True)
    assert torch.equal(actual, expected)
    for (name, a), (_, b) in zip(saved.named_buffers(), stored.named_buffers(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_padded_stage_without_lattice_raises(dtype: torch.dtype) -> None:
    with pytest.raises(ReconstructionError, match="gradients can no longer be trusted"):
        step(PADDED, "reconstruct", exact=False, dtype=dtype)


def test_the_first_step_of_a_default_chain_is_checked() -> None:
    with pytest.raises(ReconstructionError, match="exact=True"):
        step(PADDED, "reconstruct", exact=False, check_every=100)


@pytest.mark.parametrize("channels", [(6, 4, 3), (5, 4, 3), (24, 16, 4), (31, 16, 4), (2, 2, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_less_padding_is_right_or_raises(channels: tuple[int, int, int], dtype: torch.dtype) -> None:
    """Zero channels among others do the same harm: BatchNorm amplifies what rounding leaves in them."""
    _, expected = step(channels, "store", exact=False, dtype=dtype)
    try:
        _, actual = step(channels, "reconstruct", exact=False, dtype=dtype)
    except ReconstructionError:
        return
    assert (actual - expected).norm() <= 0.02 * expected.norm(), "silently wrong"


def padded_by_hand(memory: Any, check_every: int | None, create_graph: bool = False) -> Tensor:
    """Without `InjectivePad`, whose inverse looks at its zeros and raises by itself."""
    torch.manual_seed(0)
    net = irevnet((3, 8, 8), 10, (18,), (1,), (16,), (4,), dropout=0.0)
    blocks = net.body[1:]  # type: ignore[index]
    blocks.memory, blocks.check_every = memory, check_every
    x = torch.cat([torch.rand(8, 3, 8, 8), torch.zeros(8, 29, 8, 8)], dim=1).requires_grad_()
    loss = (blocks(x) * torch.linspace(-1, 1, 64).view(8, 8)).sum()
    grads = torch.autograd.grad(loss, list(blocks.parameters()), create_graph=create_graph)
    return torch.cat([g.flatten() for g in grads]).detach()


def test_without_check_it_is_wrong() -> None:
    """Were it right, there would be nothing to guard against, and the tests here would prove little."""
    expected = padded_by_hand("store", None)
    assert not (padded_by_hand("reconstruct", None) - expected).norm() < 0.5 * expected.norm()
    assert (padded_by_hand("checkpoint", None) - expected).norm() < 1e-5 * expected.norm()
    with pytest.raises(ReconstructionError):
        padded_by_hand("reconstruct", 1)


def test_second_derivatives_are_guarded_too() -> None:
    with pytest.raises(ReconstructionError):
        padded_by_hand("reconstruct", 1, create_graph=True)


def test_the_bijective_form_needs_no_lattice() -> None:
    def grads(memory: Any) -> Tensor:
        torch.manual_seed(0)
        net = irevnet((2, 8, 8), 10, (3, 3), (1, 2), None, (4, 4), dropout=0.1, memory=memory).double()
        x = torch.rand(8, 2, 8, 8, dtype=torch.float64)
        torch.manual_seed(1)
        torch.nn.functional.cross_entropy(net(x), torch.arange(8)).backward()
        return torch.cat([p.grad.flatten() for p in net.parameters()])

    expected = grads("store")
    for memory in ("checkpoint", "reconstruct"):
        assert (grads(memory) - expected).norm() <= 1e-8 * expected.norm()

"""The gradient of a solution: right, cheap in memory, whatever g closes over, and never silently wrong."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import FileStore  # pyright: ignore[reportPrivateImportUsage]
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from invertible import FixedPointSolver, solve_residual
from invertible.errors import ConfigError


class Block(nn.Module):
    """x + c net(x) / bound, with its inverse."""

    def __init__(self, size: int = 4, c: float = 0.9) -> None:
        super().__init__()
        self.first, self.last, self.c = nn.Linear(size, 2 * size), nn.Linear(2 * size, size), c
        self.n_calls = 0
        self.double()

    def g(self, x: Tensor) -> Tensor:
        self.n_calls += 1
        bound = torch.linalg.matrix_norm(self.first.weight, 2) * torch.linalg.matrix_norm(self.last.weight, 2)
        return self.c / bound * self.last(nn.functional.elu(self.first(x)))

    def forward(self, y: Tensor) -> Tensor:
        return solve_residual(self.g, y, self.c)[0]


def unrolled(block: Block, y: Tensor, n: int = 400) -> Tensor:
    x = y
    for _ in range(n):
        x = y - block.g(x)
    return x


@pytest.fixture
def block() -> Block:
    torch.manual_seed(0)
    return Block()


def batch(n: int = 5) -> Tensor:
    return torch.randn(n, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_gradcheck_of_input_parameters_and_a_closed_over_tensor(block: Block) -> None:
    scale = torch.rand(4, dtype=torch.float64, requires_grad=True)
    y = batch(3).requires_grad_()

    def solve(y: Tensor, scale: Tensor, *_: Tensor) -> Tensor:
        return solve_residual(lambda x: block.g(x) * scale.sigmoid(), y, 0.9)[0]

    assert torch.autograd.gradcheck(solve, (y, scale, *block.parameters()))


@pytest.mark.parametrize("method", ["anderson", "broyden", "plain"])
def test_gradient_is_that_of_the_unrolled_iteration(block: Block, method: str) -> None:
    y = batch().requires_grad_()
    wanted = torch.autograd.grad(unrolled(block, y).sin().sum(), [y, *block.parameters()])
    solver = FixedPointSolver(method)  # pyright: ignore[reportArgumentType]
    x, _ = solve_residual(block.g, y, 0.9, solver)
    for own, other in zip(torch.autograd.grad(x.sin().sum(), [y, *block.parameters()]), wanted, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-10, atol=1e-10)


def test_samples_that_finish_early_and_zero_gradients(block: Block) -> None:
    y = batch(32).requires_grad_()
    weight = torch.logspace(-30, 3, 32, dtype=torch.float64).unsqueeze(1) * (torch.arange(32) % 2).unsqueeze(1)
    (own,) = torch.autograd.grad((block(y) * weight).sum(), y)
    (wanted,) = torch.autograd.grad((unrolled(block, y) * weight).sum(), y)
    torch.testing.assert_close(own, wanted, rtol=1e-9, atol=0)


def test_context_of_rows(block: Block) -> None:
    context, y = torch.rand(16, 1, dtype=torch.float64, requires_grad=True), batch(16)
    g = lambda x, c: block.g(x) * c  # noqa: E731
    x, _ = solve_residual(lambda x: g(x, context), y, 0.9, select=lambda rows: lambda x: g(x, context[rows]))
    (own,) = torch.autograd.grad(x.square().sum(), context)
    other = y
    for _ in range(400):
        other = y - g(other, context)
    (wanted,) = torch.autograd.grad(other.square().sum(), context)
    torch.testing.assert_close(own, wanted, rtol=1e-10, atol=1e-10)


def test_graph_holds_one_evaluation_however_many_there_were(block: Block) -> None:
    sizes = []
    for tolerance in (1e-1, 1e-12):
        kept = []
        pack = lambda t: (kept.append(t.numel()), t)[1]  # noqa: B023, E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            solve_residual(block.g, batch(), 0.9, FixedPointSolver(tolerance=tolerance))
        sizes.append(sum(kept))
        assert len(kept) < 60  # two evaluations: one to see whether there is a graph, one that keeps it
    assert sizes[0] == sizes[1]


def test_backward_twice_and_accumulation(block: Block) -> None:
    y = batch().requires_grad_()
    x = block(y)
    first = torch.autograd.grad(x.sum(), y, retain_graph=True)[0]
    again = torch.autograd.grad(x.sum(), y, retain_graph=True)[0]
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    x.sum().backward(retain_graph=True)
    x.sum().backward()
    torch.testing.assert_close(y.grad, 2 * first, rtol=1e-12, atol=1e-12)


def test_callers_tensors_are_left_alone(block: Block) -> None:
    y = batch()
    x = block(y)
    assert not y.requires_grad
    assert x.requires_grad
    x.sum().backward()
    assert y.grad is None
    frozen = Block().requires_grad_(False)
    frozen.n_calls = 0
    x, report = solve_residual(frozen.g, y, 0.9)
    assert not x.requires_grad
    assert frozen.n_calls == report.evaluations.max()


def test_second_derivatives_are_an_error(block: Block) -> None:
    y = batch().requires_grad_()
    inputs = [y, *block.parameters()]
    grads = torch.autograd.grad(block(y).sum(), inputs, create_graph=True)
    for grad in grads:
        for source in inputs:
            with pytest.raises(ConfigError, match="differentiated once"):
                torch.autograd.grad(grad.sum(), source, retain_graph=True)
    with pytest.raises(ConfigError, match="differentiated once"):
        sum(grad.square().sum() for grad in grads).backward()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing(block: Block, use_reentrant: bool) -> None:
    y = batch().requires_grad_()
    wanted = torch.autograd.grad(block(y).sin().sum(), [*block.parameters()])
    x = checkpoint(block, y, use_reentrant=use_reentrant)
    assert isinstance(x, Tensor)
    x.sin().sum().backward()
    for parameter, other in zip(block.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, other, rtol=1e-12, atol=1e-12)


def test_data_parallel(block: Block, tmp_path_factory: pytest.TempPathFactory) -> None:
    store = FileStore(str(tmp_path_factory.mktemp("store") / "file"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wanted = torch.autograd.grad(block(batch()).sin().sum(), [*block.parameters()])
        DistributedDataParallel(block)(batch()).sin().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    for parameter, other in zip(block.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, other, rtol=1e-12, atol=1e-12)


def test_a_chain_of_inverses(block: Block) -> None:
    other, y = Block(), batch().requires_grad_()
    (own,) = torch.autograd.grad(block(other(y)).sin().sum(), y)
    (wanted,) = torch.autograd.grad(unrolled(block, unrolled(other, y)).sin().sum(), y)
    torch.testing.assert_close(own, wanted, rtol=1e-10, atol=1e-10)


def test_a_constant_g_and_a_g_without_parameters() -> None:
    shift, y = torch.ones(4, dtype=torch.float64, requires_grad=True), batch().requires_grad_()
    x, _ = solve_residual(lambda x: shift.expand_as(x), y, 0.0)
    grads = torch.autograd.grad(x.sum(), [y, shift])
    torch.testing.assert_close(grads[0], torch.ones_like(y))
    torch.testing.assert_close(grads[1], -5 * torch.ones_like(shift))
    x, _ = solve_residual(lambda x: x / 2, y, 0.5)
    torch.testing.assert_close(torch.autograd.grad(x.sum(), y)[0], torch.full_like(y, 2 / 3))


def test_low_precision_and_inference_tensors() -> None:
    y = batch().bfloat16().requires_grad_()
    x, _ = solve_residual(lambda x: x / 2, y, 0.5)
    (grad,) = torch.autograd.grad(x.sum(), y)
    assert grad.dtype == torch.bfloat16
    torch.testing.assert_close(grad, torch.full_like(y, 2 / 3))
    with torch.inference_mode():
        made = batch()
    weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    x, _ = solve_residual(lambda x: weight * x, made, 0.5)
    torch.testing.assert_close(torch.autograd.grad(x.sum(), weight)[0], -(batch() / 1.5**2).sum())

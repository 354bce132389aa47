"""Residual blocks: refused without a bound, undone with a guarantee, log-determinants right in value and gradient."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from invertible import Chain, FixedPointSolver, Flow
from invertible.errors import ConfigError, ConvergenceError, ShapeError
from invertible.layers import Residual, certificate, constrain, estimator_error, lipschitz_bound
from invertible.logdet import ExactLogDet, Krylov, RussianRoulette


def mlp(n: int = 3, hidden: int = 8, c: float = 0.9) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(n, hidden), nn.ELU(), nn.Linear(hidden, n)).double()
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(5)
    return constrain(network, c)


def x_of(n: int = 3, batch: int = 5, seed: int = 1) -> Tensor:
    return torch.randn(batch, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def dense_logdet(block: Residual, x: Tensor) -> Tensor:
    jacobians = [torch.autograd.functional.jacobian(lambda row: block.network(row[None])[0], row) for row in x]
    eye = torch.eye(x.shape[1], dtype=x.dtype)
    return torch.stack([torch.linalg.slogdet(eye + j)[1] for j in jacobians])


def test_a_network_without_a_bound_below_1_is_refused():
    network = nn.Linear(3, 3)
    with torch.no_grad():
        network.weight.copy_(2 * torch.eye(3))
    with pytest.raises(ConfigError, match="below 1, got 2"):
        Residual(network)
    with pytest.raises(ConfigError, match="below 1"):
        Residual(nn.Linear(3, 3), 1.0)


def test_a_bound_that_is_lost_later_is_noticed():
    network = nn.Linear(3, 3, dtype=torch.float64)
    with torch.no_grad():
        network.weight.copy_(0.5 * torch.eye(3))
    block, x = Residual(network), x_of()
    torch.testing.assert_close(block.inverse(block(x)), x)
    with torch.no_grad():
        network.weight.mul_(4)
    with pytest.raises(ConfigError, match="got 2"):
        block.inverse(x)


def test_the_inverse_tells_how_far_off_it_may_be():
    block, x = Residual(mlp()), x_of()
    back = block.inverse(block(x))
    report = block.report
    assert report is not None
    assert bool(report.converged.all())
    assert report.evaluations.shape == (5,)
    assert report.guaranteed_error is not None
    assert bool(((back - x).norm(dim=1) <= report.guaranteed_error).all())


def test_without_a_bound_a_block_that_folds_raises():
    block, y = Residual(Folding(), "unknown"), torch.zeros(3, 2, dtype=torch.float64)
    assert block.lipschitz_bound() is None
    assert bool((block(y) < 0).all())
    with pytest.raises(ConvergenceError):
        Residual(Folding(), "unknown").inverse(y)


class Folding(nn.Module):
    """x + g(x) = -x^2 - 1 is never 0."""

    def forward(self, x: Tensor) -> Tensor:
        return -x.square() - x - 1


def test_a_bound_of_the_callers_own_is_used():
    block = Residual(Half(), 0.5)
    x = x_of()
    assert block.lipschitz_bound() == 0.5
    torch.testing.assert_close(block.inverse(block(x)), x)


class Half(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sin() / 2


class Shifted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = mlp(3)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.network(x) + context


def test_contexts_reach_the_network_sample_by_sample():
    block, x = Residual(Shifted(), 0.9**2, takes_context=True, logdet=ExactLogDet()).eval(), x_of()
    context = 10 ** torch.linspace(-3, 3, 5, dtype=torch.float64)[:, None] * torch.ones(5, 3, dtype=torch.float64)
    y, logdet = block.forward_with_logdet(x, context)
    back, inverse_logdet = block.inverse_with_logdet(y, context)
    torch.testing.assert_close(back, x, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(inverse_logdet, -logdet, atol=1e-8, rtol=1e-8)


def test_the_output_must_keep_the_shape():
    with pytest.raises(ShapeError, match="keeps its input's shape"):
        Residual(constrain(nn.Linear(3, 2), 0.5))(torch.zeros(1, 3))


@pytest.mark.parametrize("estimator", [ExactLogDet(), Krylov(n_steps=6, n_probes=2)], ids=["exact", "krylov"])
@pytest.mark.parametrize("is_training", [False, True])
def test_the_log_determinant_has_the_right_gradient_in_either_mode(estimator, is_training):
    """With as many steps as dimensions Krylov is exact in each probe; its probes' mean is not the trace."""
    block = Residual(mlp(), logdet=estimator, training_logdet=estimator).train(is_training)
    x, parameters = x_of().requires_grad_(), list(block.parameters())
    parameters = [p for p in parameters if p is not list(block.network.children())[-1].bias]  # it shifts y, no more
    runs = 1 if isinstance(estimator, ExactLogDet) else 400
    torch.manual_seed(0)
    found = [torch.autograd.grad(block.forward_with_logdet(x)[1].sum(), [x, *parameters]) for _ in range(runs)]
    rows = x.detach().requires_grad_()
    eye = torch.eye(3, dtype=torch.float64)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: block.network(row[None])[0]))
    true = torch.autograd.grad(torch.linalg.slogdet(eye + jacobian(rows))[1].sum(), [rows, *parameters])
    for i, expected in enumerate(true):
        each = torch.stack([f[i] for f in found])
        slack = 1e-10 if runs == 1 else 5 * each.std(0) / runs**0.5 + 1e-9
        assert bool(((each.mean(0) - expected).abs() <= slack).all())


def test_sampling_never_pays_for_a_log_determinant(monkeypatch):
    """Fault 5 of the notes."""
    block = Residual(mlp().float()).eval()
    monkeypatch.setattr(Krylov, "__call__", lambda *_: pytest.fail("an estimate"))
    monkeypatch.setattr(ExactLogDet, "__call__", lambda *_: pytest.fail("an estimate"))
    Flow(block, 3).sample(4)


def test_the_callers_tensors_are_left_alone():
    """Fault 4 of the notes: others turn on requires_grad of the input."""
    block, x = Residual(mlp()).eval(), x_of()
    before = x.clone()
    with torch.no_grad():
        block.forward_with_logdet(x)
        block.inverse(x)
    assert not x.requires_grad
    assert torch.equal(x, before)


@pytest.mark.filterwarnings("ignore:Residual has no exact inverse")
@pytest.mark.parametrize("memory", ["checkpoint", "reconstruct"])
def test_a_chain_that_saves_memory_has_the_same_gradients(memory):
    gradients = []
    for mode in ("store", memory):
        estimator = RussianRoulette()
        chain = Chain(*(Residual(mlp(), training_logdet=estimator) for _ in range(3)), memory=mode)
        torch.manual_seed(0)
        y, logdet = chain.forward_with_logdet(x_of().requires_grad_())
        gradients.append(torch.autograd.grad((y.square().sum(1) - logdet).sum(), list(chain.parameters())))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


def test_the_errors_of_several_blocks_add_up():
    chain = Chain(*(Residual(mlp(), logdet=Krylov(n_steps=2, n_probes=4)) for _ in range(2))).eval()
    assert estimator_error(chain) is None
    chain.forward_with_logdet(x_of())
    total = estimator_error(chain)
    assert total is not None
    each = [block.estimate.standard_error for block in chain if isinstance(block, Residual) and block.estimate]
    torch.testing.assert_close(total, torch.stack(each).square().sum(0).sqrt())


def test_values_agree_with_the_dense_jacobian():
    block, x = Residual(mlp(5, 16)).eval(), x_of(5)
    torch.testing.assert_close(block.forward_with_logdet(x)[1], dense_logdet(block, x), atol=1e-10, rtol=1e-10)


def test_copies_and_reloads_give_the_same_bits():
    block, x = Residual(mlp()).eval(), x_of()
    twin = copy.deepcopy(block)
    other = Residual(mlp()).eval()
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1)
    other.load_state_dict(block.state_dict())
    assert torch.equal(twin(x), block(x))
    assert torch.equal(other(x), block(x))


@pytest.mark.parametrize("batch", [0, 1])
def test_empty_batches_and_single_samples(batch):
    block = Residual(mlp()).eval()
    x = x_of(batch=batch)
    y, logdet = block.forward_with_logdet(x)
    assert logdet.shape == (batch,)
    torch.testing.assert_close(block.inverse(y), x)


@pytest.mark.parametrize("p", [1.0, 1.5, math.inf])
def test_a_bound_in_another_norm_is_carried_over(p):
    """L_p contraction does not bound the Euclidean norm; the report's guarantee must hold all the same."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 12), nn.ELU(), nn.Linear(12, 6)).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(8)
    block = Residual(constrain(network, 0.95, norms=[p, p, p]), solver=FixedPointSolver(tolerance=1e-3)).eval()
    x = x_of(6, 20)
    back = block.inverse(block(x))
    report = block.report
    assert report is not None
    assert report.guaranteed_error is not None
    error = (back - x).norm(dim=1)
    assert error.max() > 1e-9  # it did stop early
    assert bool((error <= report.guaranteed_error).all())
    assert block.forward_with_logdet(x)[1].isfinite().all()


def test_a_batch_dimension_is_asked_for():
    block = Residual(mlp(), logdet=ExactLogDet())
    for method in (block, block.inverse, block.forward_with_logdet):
        with pytest.raises(ShapeError, match="2 dimensions"):
            method(torch.zeros(3, dtype=torch.float64))
    images = Residual(constrain(nn.Sequential(nn.ELU(), nn.Conv2d(2, 2, 3, padding=1)), 0.9))
    with pytest.raises(ShapeError, match="4 dimensions"):
        images(torch.zeros(2, 4, 4))


def test_a_module_that_is_used_twice_counts_twice():
    half, steep = nn.Linear(4, 4, bias=False), nn.GELU()
    with torch.no_grad():
        half.weight.copy_(0.95 * torch.eye(4))
    assert lipschitz_bound(nn.Sequential(half, half)) == pytest.approx(0.95**2, rel=1e-3)
    shared = nn.Sequential(constrain(nn.Linear(4, 4), 0.93), steep, constrain(nn.Linear(4, 4), 0.93), steep)
    apart = nn.Sequential(shared[0], nn.GELU(), shared[2], nn.GELU())
    assert lipschitz_bound(shared) == lipschitz_bound(apart)
    assert len(certificate(shared).links) == 4
    stretch = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        stretch.weight.fill_(1.3)
    with pytest.raises(ConfigError, match="below 1"):
        Residual(nn.Sequential(stretch, constrain(nn.Linear(1, 1), 0.7), stretch))

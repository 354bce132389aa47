"""Adaptive gradient clipping against its equation, and as an optimiser among optimisers."""

import copy
import io
import math

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F

from invertible.errors import ConfigError, DtypeError
from invertible.models import nf_resnet
from invertible.train import AdaptiveClipping, clip_adaptively
from invertible.train.adaptive_clipping import last_linear, unit_norms
from invertible.train.optimizer import make_optimizer
from invertible.train.recipe import OptimizerConfig


def by_hand(weight, gradient, clipping, eps=1e-3):
    """Unit by unit, in plain Python."""
    units = [(weight, gradient)] if weight.ndim < 2 else list(zip(weight, gradient, strict=True))
    rows = []
    for w, g in units:
        w_norm = math.sqrt(math.fsum(v * v for v in w.flatten().tolist()))
        g_norm = math.sqrt(math.fsum(v * v for v in g.flatten().tolist()))
        limit = clipping * max(w_norm, eps)
        rows.append(g * (limit / g_norm) if g_norm > limit else g.clone())
    return rows[0] if weight.ndim < 2 else torch.stack(rows)


SHAPES = [(), (5,), (4, 3), (1, 6), (6, 1), (4, 3, 2), (4, 2, 3, 3), (3, 2, 2, 2, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("clipping", [0.01, 1.0])
def test_each_unit_by_hand(shape, clipping):
    weight = nn.Parameter(torch.randn(shape, dtype=torch.float64))
    weight.grad = torch.randn(shape, dtype=torch.float64) * (10 ** torch.randn(shape, dtype=torch.float64))
    expected = by_hand(weight.detach(), weight.grad, clipping)
    clip_adaptively([weight], clipping)
    torch.testing.assert_close(weight.grad, expected, rtol=1e-13, atol=0)


def test_short_gradients_stay_to_the_bit_and_zero_weights_count_as_eps():
    weight = nn.Parameter(torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-4, 0.0]]))
    short = torch.tensor([[0.03, 0.0399], [6e-6, 7.9e-6], [0.0, 0.0]])
    weight.grad = short.clone()
    clip_adaptively([weight], 0.01)
    assert torch.equal(weight.grad, short)
    weight.grad = torch.ones(3, 2)
    clip_adaptively([weight], 0.01)
    torch.testing.assert_close(unit_norms(weight.grad).flatten(), torch.tensor([0.05, 1e-5, 1e-5]))


def test_what_is_missing_or_broken():
    idle, weight = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.tensor([[math.nan, 1.0], [100.0, 0.0]])
    clip_adaptively([idle, weight], 0.1)
    assert idle.grad is None
    assert weight.grad.isnan().tolist() == [[True, True], [False, False]]
    embedding = nn.Embedding(3, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ConfigError, match="dense"):
        clip_adaptively(embedding.parameters())
    half = nn.Parameter(torch.full((2, 4), 300.0, dtype=torch.float16))
    half.grad = torch.full((2, 4), 300.0, dtype=torch.float16)
    clip_adaptively([half], 0.5)
    assert half.grad.unique().item() == 150


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, foreach=True),
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def loss_of(net):
    x = torch.randn(8, 2, 6, generator=torch.Generator().manual_seed(1))
    return F.cross_entropy(5 * net(x), torch.arange(8) % 3)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_steps_as_the_optimiser_would_with_clipped_gradients(name):
    net, twin = network(), network()
    optimizer = AdaptiveClipping(OPTIMIZERS[name](net.parameters()), 0.02, exclude=net[3].parameters())
    plain = OPTIMIZERS[name](twin.parameters())
    for _ in range(4):
        optimizer.zero_grad()
        loss_of(net).backward()
        optimizer.step()
        plain.zero_grad()
        loss_of(twin).backward()
        for p in twin[0].parameters():
            p.grad = by_hand(p.detach(), p.grad, 0.02)
        plain.step()
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("make", [lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3), OPTIMIZERS["sgd"]])
def test_gradients_of_a_closure_are_clipped_at_each_call(make):
    net, seen = network(), []
    optimizer = AdaptiveClipping(make(net.parameters()), 1e-3)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(net)
        loss.backward()
        return loss

    inner = optimizer.clip

    def clip():
        inner()
        seen.append(max((unit_norms(p.grad) / unit_norms(p).clamp(min=1e-3)).max().item() for p in net.parameters()))

    optimizer.clip = clip
    assert optimizer.step(closure).item() > 0
    assert seen
    assert max(seen) <= 1e-3 * 1.001


def test_state_goes_on_in_a_plain_optimiser_and_back():
    net = network()
    optimizer = AdaptiveClipping(OPTIMIZERS["adam"](net.parameters()))
    loss_of(net).backward()
    optimizer.step()
    plain = OPTIMIZERS["adam"](net.parameters())
    plain.load_state_dict(optimizer.state_dict())
    again = AdaptiveClipping(OPTIMIZERS["adam"](net.parameters()))
    again.load_state_dict(plain.state_dict())
    assert torch.equal(again.state[net[0].weight]["exp_avg"], optimizer.state[net[0].weight]["exp_avg"])
    twin = copy.deepcopy(again)
    assert twin.clipping == again.clipping
    assert twin.param_groups[0]["lr"] == 0.01
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)


def test_schedulers_hooks_and_new_groups_reach_the_wrapped_optimiser():
    net, extra, called = network(), nn.Parameter(torch.ones(3)), []
    sgd = torch.optim.SGD(net.parameters(), lr=1.0)
    optimizer = AdaptiveClipping(sgd, 0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    optimizer.register_step_post_hook(lambda *_: called.append(1))
    optimizer.add_param_group({"params": [extra]})
    extra.grad = torch.full((3,), 100.0)
    optimizer.step()
    scheduler.step()
    assert sgd.param_groups[0]["lr"] == 0.5
    assert called == [1]
    torch.testing.assert_close((extra - 1).norm().item(), 0.1 * math.sqrt(3), rtol=1e-5, atol=0)
    assert "SGD" in repr(optimizer)


def test_accelerate_takes_it():
    net = network()
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(net, AdaptiveClipping(OPTIMIZERS["sgd"](net.parameters())))
    before = loss_of(model).item()
    for _ in range(5):
        accelerator.backward(loss_of(model))
        optimizer.step()
        optimizer.zero_grad()
    assert loss_of(model).item() < before


def test_recipes_clip_all_but_the_last_linear_layer():
    net = nf_resnet((1, 8, 8), 3, (1,), (4,), (1,))
    optimizer = make_optimizer(net, OptimizerConfig(adaptive_clip=0.05))
    assert isinstance(optimizer, AdaptiveClipping)
    assert optimizer.clipping == 0.05
    assert {id(p) for p in optimizer.excluded} == {id(p) for p in net.head[-1].parameters()}
    assert last_linear(net) is net.head[-1]
    assert not isinstance(make_optimizer(net, OptimizerConfig()), AdaptiveClipping)


@pytest.mark.usefixtures("unchecked")
def test_refusals():
    net = network()
    sgd = OPTIMIZERS["sgd"](net.parameters())
    for numbers in [{"clipping": 0.0}, {"clipping": math.nan}, {"eps": -1.0}]:
        with pytest.raises(ConfigError, match="positive numbers"):
            AdaptiveClipping(sgd, **numbers)
    with pytest.raises(ConfigError, match="excluded parameters are unknown"):
        AdaptiveClipping(sgd, exclude=[nn.Parameter(torch.ones(1))])
    with pytest.raises(DtypeError, match=r"AdaptiveClipping\(torch.optim.SGD"):
        AdaptiveClipping(net.parameters())
    with pytest.raises(ConfigError, match="no linear layer"):
        last_linear(nn.ReLU())

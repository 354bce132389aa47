"""No instrument changes what it measures: everything is compared bit by bit, also after an exception."""

from __future__ import annotations

import random
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from invertible.errors import ConfigError, DtypeError
from invertible.instruments import INSTRUMENTS, measuring, untouched
from invertible.instruments._tensors import tensors_in
from invertible.instruments.untouched import same_bits
from measured_networks import NETWORKS, Net, with_gradients

# The type checker that tests run under draws from Python's random state.
pytestmark = pytest.mark.usefixtures("unchecked")


def state_of(model: nn.Module) -> dict[str, object]:
    """Everything that must not change, as bytes and plain values."""
    state: dict[str, object] = {}
    for name, module in model.named_modules():
        own = {key: value for key, value in vars(module).items() if isinstance(value, int | float | str)}
        hooks = {key: [id(x) for x in value.values()] for key, value in vars(module).items() if key.endswith("hooks")}
        lists = {key: list(value) for key, value in vars(module).items() if isinstance(value, list)}
        state[name] = (module.training, own, hooks, lists, type(module))
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        gradient = None if tensor.grad is None else (id(tensor.grad), tensor.grad.numpy().tobytes())
        bits = tensor.detach().clone().numpy().tobytes()
        state[f"tensor {name}"] = (id(tensor), bits, tensor._version, tensor.requires_grad, gradient)
    state["random"] = (torch.get_rng_state().numpy().tobytes(), random.getstate(), str(np.random.get_state()))
    return state


class Stop(Exception):
    pass


def size(output: object, y: torch.Tensor) -> torch.Tensor:
    return next(tensors_in(output)).square().mean()


OPTIONS = {
    "reversibility": {"n_examples": 2, "n_iterations": 10, "dtypes": ("float32",)},
    "curvature": {"loss": size, "dense_up_to": 0, "n_steps": 3, "n_trace": 2},
    "loss_slice": {"loss": size, "n_points": 3},
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("instrument", INSTRUMENTS)
def test_an_instrument_leaves_no_trace(instrument: str, name: str) -> None:
    model, shape = NETWORKS[name]()
    with_gradients(model)
    known = INSTRUMENTS[instrument]
    if known.refusal(model):
        pytest.skip(known.refusal(model))
    data = [(torch.randn(4, *shape), torch.arange(4) % 2) for _ in range(2)]
    kept = [x.clone() for x, _ in data]
    before = state_of(model)
    known.measure(model, data, **OPTIONS.get(instrument, {}))
    assert state_of(model) == before
    assert all(same_bits(x, y) and x._version == 0 for (x, _), y in zip(data, kept, strict=True))


@pytest.mark.parametrize("name", ["BatchNorm, train mode", "RevNet"])
@pytest.mark.parametrize("instrument", [name for name, known in INSTRUMENTS.items() if "data" in known.needs])
def test_nor_where_the_forward_pass_raises(instrument: str, name: str) -> None:
    model, shape = NETWORKS[name]()
    with_gradients(model)
    known = INSTRUMENTS[instrument]
    if known.refusal(model):
        pytest.skip(known.refusal(model))

    def stop(*_: object) -> None:
        torch.rand(1)
        raise Stop

    model.head.register_forward_pre_hook(stop)
    x = torch.randn(4, *shape)
    before = state_of(model)
    with pytest.raises(Stop):
        known.measure(model, x)
    assert state_of(model) == before


@pytest.mark.parametrize("caller", [torch.no_grad, torch.inference_mode, torch.enable_grad, nullcontext])
def test_under_any_grad_mode_of_the_caller(caller) -> None:
    model, shape = NETWORKS["BatchNorm, train mode"]()
    x = torch.randn(4, *shape, requires_grad=True)
    before = state_of(model)
    with caller():
        mode = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        INSTRUMENTS["signal_propagation"].measure(model, x)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == mode
    assert state_of(model) == before
    assert x.grad is None
    assert x.requires_grad


def test_a_pending_backward_pass_still_works() -> None:
    model = Net()
    loss = model(torch.randn(4, 3, 6, 6)).square().mean()
    INSTRUMENTS["signal_propagation"].measure(model, torch.randn(4, 3, 6, 6), mode="train")
    loss.backward()


def meddle(model: nn.Module) -> None:
    with untouched(model) as inside:
        inside.eval()
        assert inside.stem.weight.grad is None
        inside(torch.randn(2, 3, 6, 6)).sum().backward()
        with torch.no_grad():
            inside.stem.weight.mul_(2)
            inside.stem.bias.data = torch.zeros(4)
            inside.blocks[0].norm.running_mean.add_(1)
        inside.head.weight = nn.Parameter(torch.zeros(2, 4))
        inside.stem.requires_grad_(False)
        inside.blocks[0].extra, inside.blocks[1].calls = "new", 7
        inside.register_forward_hook(lambda *_: None)
        inside.blocks.append(nn.ReLU())
        inside.stem.register_buffer("more", torch.zeros(1))
        random.random(), np.random.rand(), torch.rand(1)
        raise Stop


def test_the_guard_undoes_everything() -> None:
    model = with_gradients(NETWORKS["BatchNorm, mixed modes"]()[0])
    before = state_of(model)
    with pytest.raises(Stop):
        meddle(model)
    assert state_of(model) == before
    assert "extra" not in vars(model.blocks[0])


def test_nan_and_minus_zero_are_bits_too() -> None:
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[float("nan"), -0.0]]))
    before = state_of(model)
    with untouched(model):
        model.weight.data.zero_()  # no version tells
    assert state_of(model) == before


def test_measuring_sets_the_mode_and_takes_no_gradients() -> None:
    model = Net()
    model.blocks[1].eval()
    with measuring(model, "eval") as inside:
        assert not any(module.training for module in inside.modules())
        assert not inside(torch.randn(2, 3, 6, 6)).requires_grad
    assert [block.training for block in model.blocks] == [True, False, True]


def test_what_cannot_be_measured_is_said() -> None:
    with pytest.raises(DtypeError, match=r"instruments measure modules.*got a function"), untouched(lambda x: x):
        pass
    with pytest.raises(ConfigError, match=r"lazy parameters.*call it once"), untouched(nn.LazyLinear(3)):
        pass
    with pytest.raises(ConfigError, match=r"unknown mode.*'as is' or 'train' or 'eval'"), measuring(Net(), "test"):
        pass


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused() -> None:
    traced = torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2))
    with pytest.raises(ConfigError, match="inside TorchScript"), untouched(traced):
        pass

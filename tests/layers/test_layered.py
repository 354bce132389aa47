"""Networks that are known layer by layer: values, products and gradients as autograd's, or left to autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from invertible.layers import LipSwish, MaxMin, Residual, constrain
from invertible.layers._layered import layered
from invertible.layers._slopes import swish
from invertible.logdet import AutoLogDet, ExactLogDet, Krylov, LogDetEstimator, PowerSeries, RussianRoulette
from invertible.logdet._linearised import Linearised
from invertible.logdet.layered import linearised


def net(activation: Callable[[], nn.Module] = LipSwish, n: int = 6, width: int = 9) -> nn.Sequential:
    torch.manual_seed(0)
    inner = nn.Sequential(activation(), nn.Linear(width, width, bias=False))
    parts = (activation(), nn.Linear(n, width), inner, activation(), nn.Linear(width, n))
    return constrain(nn.Sequential(*parts), 0.9).double()


def points(n: int = 6, batch: int = 5) -> Tensor:
    return torch.randn(batch, n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


ACTIVATIONS = [LipSwish, nn.ELU, nn.CELU, nn.Softplus, nn.Tanh, nn.Sigmoid, nn.SiLU]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: a.__name__)
def test_values_and_products_are_those_of_autograd(activation: Callable[[], nn.Module]):
    network, x = net(activation), points()
    g = layered(network, x)
    assert g is not None
    ours, theirs, v = linearised(g, x), Linearised(network, x), torch.randn(40, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(ours.value, theirs.value)
    torch.testing.assert_close(ours.pull(v), theirs.pull(v))
    torch.testing.assert_close(ours.jacobian(), theirs.jacobian())
    assert (ours.has_graph, ours.n_products) == (theirs.has_graph, theirs.n_products)


ESTIMATORS = [ExactLogDet(), Krylov(3, 4), Krylov(3, 4, gradient="backprop"), PowerSeries(),
              PowerSeries(gradient="backprop"), RussianRoulette(), AutoLogDet(4)]  # fmt: skip


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
@pytest.mark.parametrize("activation", [LipSwish, nn.ELU])
def test_estimates_and_gradients_are_those_of_autograd(estimator: LogDetEstimator, activation: Callable[[], nn.Module]):
    network, found = net(activation), []
    block = Residual(network, training_logdet=estimator)
    for is_hooked in (False, True):
        x = points().requires_grad_()
        handles = [part.register_forward_hook(lambda *_: None) for part in network.modules()] if is_hooked else []
        assert (layered(network, x) is None) == is_hooked
        torch.manual_seed(3)
        y, logdet = block.forward_with_logdet(x)
        loss = (logdet * torch.arange(5)).sum() + y.square().sum()
        found.append((y, logdet, *torch.autograd.grad(loss, [x, *network.parameters()], allow_unused=True)))
        for handle in handles:
            handle.remove()
    torch.testing.assert_close(*found)


def test_a_lipswish_and_its_slopes_have_derivatives_of_all_orders():
    activation, x = LipSwish().double(), points(3, 4).requires_grad_()

    def both(x: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        value, slopes = torch.func.functional_call(Apart(activation), {"activation.beta": beta}, x)
        return value, slopes.slopes

    inputs = (x, torch.tensor(0.3, dtype=torch.float64, requires_grad=True))
    assert torch.autograd.gradcheck(both, inputs)
    assert torch.autograd.gradgradcheck(both, inputs)
    value, slopes = both(*inputs)
    torch.testing.assert_close(value, x * torch.sigmoid(x * nn.functional.softplus(inputs[1])) / 1.1)
    torch.testing.assert_close(slopes, torch.autograd.grad(value.sum(), x)[0])


class Apart(nn.Module):
    def __init__(self, activation: LipSwish) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> object:
        return swish(self.activation, x)


def _hooked(network: nn.Sequential) -> nn.Sequential:
    network[1].register_forward_hook(lambda *_: None)
    return network


def _watched(network: nn.Sequential) -> nn.Sequential:
    network[0].register_full_backward_hook(lambda *_: None)
    return network


def _replaced(network: nn.Sequential) -> nn.Sequential:
    network[0].forward = lambda input: 0.5 * input
    return network


class Scaled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 0.5 * super().forward(input)


def _spectral(network: nn.Sequential) -> nn.Sequential:
    torch.nn.utils.parametrizations.spectral_norm(network[1])  # after the constraint
    return network


LEFT = {
    "hook": lambda: _hooked(net()),
    "backward hook": lambda: _watched(net()),
    "own forward": lambda: _replaced(net()),
    "pairs": lambda: net(MaxMin),
    "subclass": lambda: nn.Sequential(Scaled(6, 6).double()),
    "constrained subclass": lambda: constrain(nn.Sequential(Scaled(6, 6).double()), 0.5),
    "more on the weight": lambda: _spectral(net()),
    "other dtype": lambda: net().float(),
    "in place": lambda: nn.Sequential(nn.ELU(inplace=True), nn.Linear(6, 6).double()),
    "dropout": lambda: nn.Sequential(nn.Dropout(), nn.Linear(6, 6).double()),
    "other width": lambda: net(n=5),
}


@pytest.mark.parametrize("make", LEFT.values(), ids=list(LEFT))
def test_whatever_is_not_known_is_left_to_autograd(make: Callable[[], nn.Sequential]):
    assert layered(make(), points()) is None


def test_a_hook_on_all_modules_is_called():
    seen, network = [], net()
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    Residual(network).eval().forward_with_logdet(points())
    handle.remove()
    assert set(network) <= set(seen)


@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_modes_and_sizes(mode: Callable[[], Any], batch: int):
    for activation in (LipSwish, nn.ELU):
        block, x = Residual(net(activation), logdet=Krylov()).eval(), points(batch=batch)
        with mode():
            y, logdet = block.forward_with_logdet(x + 0)
        assert (y.shape, logdet.shape, x.requires_grad) == (x.shape, (batch,), False)
        assert y.requires_grad == (mode is torch.enable_grad)

"""Multiplying networks against the product, and their errors against the Taylor series."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from invertible.errors import ConfigError
from invertible.instruments._product_networks import FUNCTIONS, Neuron, n_layers, n_neurons, one_layer, predicted, tree
from invertible.instruments.cheap_learning import CheapLearning, cheap_learning

KINDS = {"one layer": one_layer, "tree": tree}


def inputs(n: int, n_points: int = 20) -> Tensor:
    return torch.rand(n_points, n, dtype=torch.float64) + 0.5


@pytest.mark.parametrize("activation", FUNCTIONS)
@pytest.mark.parametrize("shift", [0.0, 0.7, -1.3])
def test_derivatives_are_those_of_autograd(activation: str, shift: float) -> None:
    t = torch.tensor(shift, dtype=torch.float64, requires_grad=True)
    value = FUNCTIONS[activation](t)
    for found in Neuron(activation, shift).derivatives(6):
        assert found == pytest.approx(value.item(), rel=1e-9, abs=1e-12)
        (value,) = torch.autograd.grad(value, t, create_graph=True, materialize_grads=True)


def test_the_gate_has_four_neurons_and_the_papers_formula() -> None:
    neuron, scale = Neuron("softplus", 1.0), 0.1
    net, (u, v) = tree(2, neuron, scale), inputs(2).T
    assert (n_neurons(net), n_layers(net)) == (4, 1)

    def sigma(t: Tensor) -> Tensor:
        return nn.functional.softplus(1 + scale * t)

    curvature = torch.sigmoid(torch.tensor(1.0, dtype=torch.float64))
    curvature = curvature * (1 - curvature)
    expected = (sigma(u + v) + sigma(-u - v) - sigma(u - v) - sigma(v - u)) / (4 * curvature * scale**2)
    torch.testing.assert_close(net(torch.stack([u, v], dim=1)).squeeze(1), expected)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 7, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_the_error_is_that_of_the_series(kind: str, n: int) -> None:
    neuron, x = Neuron("softplus", 1.0), inputs(n)
    scale = 0.05 if kind == "one layer" else 0.01  # rounding is over scale^n, and over scale^2
    net = KINDS[kind](n, neuron, scale)
    error = net(x).squeeze(1) / x.prod(1) - 1
    torch.testing.assert_close(error, predicted(kind, x, neuron, scale), rtol=0.05, atol=1e-4 if n > 6 else 1e-6)


@pytest.mark.parametrize(("n", "neurons", "layers"), [(2, 4, 1), (3, 10, 2), (4, 12, 2), (5, 20, 3), (8, 28, 3)])
def test_sizes(n: int, neurons: int, layers: int) -> None:
    net = tree(n, Neuron("softplus", 1.0), 1e-3)
    assert (n_neurons(net), n_layers(net)) == (neurons, layers)
    if n in (2, 4, 8):
        assert neurons == 4 * (n - 1)
    wide = one_layer(n, Neuron("softplus", 1.0), 1e-1)
    assert (n_neurons(wide), n_layers(wide)) == (2**n, 1)


@pytest.fixture(scope="module")
def found() -> CheapLearning:
    return cheap_learning((2, 4, 6))


def test_error_falls_with_the_square_until_rounding(found: CheapLearning) -> None:
    for multiplier in found.multipliers:
        if multiplier.n < 6 or multiplier.kind == "tree":  # six in one layer: rounding leaves no range of scales
            assert multiplier.slope == pytest.approx(2.0, abs=0.05)
        power = 2 if multiplier.kind == "tree" else multiplier.n
        # Rounding grows as eps / scale^power: it meets the falling error at eps^(2 / (power + 2)).
        expected = np.finfo(float).eps ** (2 / (power + 2))
        assert expected / 100 < multiplier.floor < expected * 100
        assert multiplier.errors[0] > 30 * multiplier.floor
    gate = found.multipliers[1]
    assert gate.floor < 1e-7
    assert found.multipliers[4].floor > 1e-6


def test_result_is_saved_drawn_and_spoken(found: CheapLearning, tmp_path) -> None:
    found.save(tmp_path / "a.json")
    assert CheapLearning.load(tmp_path / "a.json") == found
    assert len(found.plot().figure.axes) == 3
    text = " ".join(finding.sentence for finding in found.findings)
    assert "4 variables: 16 neurons in one layer, 12 in 2" in text
    assert "the theory has 2" in text
    assert list(found.curves) == ["one layer", "tree"]


def test_what_cannot_multiply_is_said() -> None:
    with pytest.raises(ConfigError, match=r"curvature.*derivative 2 of tanh at 0 is"):
        cheap_learning((2,), activation="tanh", shift=0.0)
    with pytest.raises(ConfigError, match=r"derivative 3 of softplus at 0.*another shift"):
        cheap_learning((3,), shift=0.0)
    with pytest.raises(ConfigError, match="numbers from 2 to 12"):
        cheap_learning((1,))
    with pytest.raises(ConfigError, match="numbers above 0"):
        cheap_learning((2,), scales=(0.1, 0.0))
    with pytest.raises(ConfigError, match="bad n_points"):
        cheap_learning((2,), n_points=0)
    with pytest.raises(ConfigError, match="bad shift"):
        cheap_learning((2,), shift=math.nan)
    few = cheap_learning((2,), scales=(0.1,))
    assert few.findings[0].severity == "warning"
    assert math.isnan(few.multipliers[0].slope)

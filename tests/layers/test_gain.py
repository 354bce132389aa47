"""gamma of activations against closed forms, and what is no activation."""

import math
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from invertible.errors import ConfigError, DtypeError, NonFiniteError
from invertible.layers import ScaledActivation, gain
from invertible.layers.gain import ACTIVATIONS


def density(t):
    return math.exp(-t * t / 2) / math.sqrt(2 * math.pi)


def above(t):
    return math.erfc(t / math.sqrt(2)) / 2


def shifted_relu(t):
    """Var(max(z - t, 0)), from the truncated normal's moments."""
    mean = density(t) - t * above(t)
    second = (1 + t * t) * above(t) - t * density(t)
    return second - mean**2


def hardtanh():
    inside = 1 - 2 * above(1) - 2 * density(1)
    return inside + 2 * above(1)


CLOSED = {
    "relu": (F.relu, (1 - 1 / math.pi) / 2),
    "leaky relu": (nn.LeakyReLU(0.1), (1 + 0.01) / 2 - 0.81 / (2 * math.pi)),
    "identity": (lambda x: x, 1.0),
    "square": (torch.square, 2.0),
    "cube": (lambda x: x**3, 15.0),
    "exp": (torch.exp, math.e**2 - math.e),
    "sin": (torch.sin, (1 - math.exp(-2)) / 2),
    "fast sin": (lambda x: torch.sin(20 * x), (1 - math.exp(-800)) / 2),
    "erf": (torch.erf, 2 / math.pi * math.asin(2 / 3)),
    "step off the grid": (lambda x: (x > 0.123).double(), above(0.123) * (1 - above(0.123))),
    "relu with its kink off the grid": (lambda x: F.relu(x - 0.3), shifted_relu(0.3)),
    "relu far out": (lambda x: F.relu(x - 4.5), shifted_relu(4.5)),
    "hardtanh": (nn.Hardtanh(), hardtanh()),
    "with a large mean": (lambda x: 1000 + 0.5 * x, 0.25),
    "in place": (nn.ReLU(inplace=True), (1 - 1 / math.pi) / 2),
    "learned slope": (nn.PReLU(init=0.5), (1 + 0.25) / 2 - 0.25 / (2 * math.pi)),
}


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms_to_ten_digits(name):
    activation, variance = CLOSED[name]
    assert gain(activation) == pytest.approx(variance**-0.5, rel=1e-10)


# As computed for this project by independent quadrature, to the digits given.
KNOWN = {"silu": 1.787187, "gelu": 1.700926, "tanh": 1.592537, "elu": 1.270843, "softplus": 1.919126,
         "sigmoid": 4.801313, "selu": 1.0}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_known_constants(name):
    assert gain(name) == pytest.approx(KNOWN[name], abs=6e-7)


@pytest.mark.parametrize("name", ["hardswish", "mish", "silu", "softsign"])
def test_against_a_fine_trapezoid(name):
    # Smooth, or with kinks on the grid: the error of the rule is of second order in the kinks and its step 2e-5.
    z = torch.linspace(-12, 12, 1_200_001, dtype=torch.float64)
    weights = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    values = ACTIVATIONS[name]()(z)
    mean = torch.trapezoid(values * weights, z)
    variance = torch.trapezoid((values - mean) ** 2 * weights, z).item()
    assert gain(name) == pytest.approx(variance**-0.5, rel=1e-9)


def test_a_function_that_computes_in_single_precision_is_known_to_single_precision():
    assert gain(lambda x: F.relu(x.float())) == pytest.approx(gain("relu"), rel=1e-6)


def test_a_module_whose_slope_changed_is_not_looked_up():
    prelu = nn.PReLU(init=0.5)
    before = gain(prelu)
    nn.init.constant_(prelu.weight, 0.1)
    assert gain(prelu) != before
    slope = 0.5
    activation = lambda x: F.leaky_relu(x, slope)  # noqa: E731
    assert gain(activation) == pytest.approx(before, rel=1e-12)
    slope = 0.1
    assert gain(activation) == pytest.approx(gain(prelu), rel=1e-7)


def test_what_is_known_is_not_computed_again(monkeypatch):
    gain(nn.ELU(0.3))
    monkeypatch.setattr(sys.modules["invertible.layers.gain"], "_integrate", lambda _: pytest.fail("computed twice"))
    gain(nn.ELU(0.3))


def test_the_module_and_the_random_state_stay():
    module, state = nn.Sequential(nn.PReLU(), nn.Tanh()), torch.get_rng_state()
    with torch.device("meta"):
        gain(module)
    assert torch.equal(state, torch.get_rng_state())
    assert module[0].weight.dtype == torch.float32
    assert module[0].weight.grad is None


@pytest.mark.parametrize(
    ("activation", "error", "says"),
    [
        (nn.Softmax(1), ConfigError, "depend on their neighbours"),
        (lambda x: F.layer_norm(x, x.shape), ConfigError, "depend on their neighbours"),
        (lambda x: F.glu(x, 0), ConfigError, "no function of single numbers"),
        (nn.PReLU(7), ConfigError, "one parameter for all channels"),
        (nn.Dropout(), ConfigError, "random"),
        (nn.RReLU(), ConfigError, "eval"),
        (torch.zeros_like, ConfigError, "constant"),
        (lambda x: 1 + 1e-9 * torch.tanh(x), ConfigError, "all but constant"),
        (torch.sqrt, NonFiniteError, "negative numbers"),
        (lambda x: torch.exp(x**2), NonFiniteError, "no variance"),
        (lambda x: x > 0, ConfigError, "no function of single numbers"),
        (nn.Conv2d(3, 3, 1), ConfigError, "no activation"),
    ],
    ids=range(12),
)
def test_no_activations(activation, error, says):
    with pytest.raises(error, match=says):
        gain(activation)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("activation", "error", "says"),
    [("rlu", ConfigError, "relu6"), (3, DtypeError, "a int"), (nn.ReLU, DtypeError, r"ReLU\(\)"),
     (None, DtypeError, "'relu'")],
)  # fmt: skip
def test_no_functions(activation, error, says):
    with pytest.raises(error, match=says):
        gain(activation)


def test_scaled_activation_is_gamma_times_the_activation():
    x = torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(ScaledActivation("silu")(x), gain("silu") * F.silu(x), rtol=1e-15, atol=0)
    assert ScaledActivation(nn.ReLU(), 2.0)(x.bfloat16()).dtype == torch.bfloat16
    assert "gamma=1.71286" in repr(ScaledActivation("relu"))
    assert ScaledActivation("relu")(torch.zeros(0, 3)).shape == (0, 3)

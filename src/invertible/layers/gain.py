"""gamma: what an activation has to be multiplied by to keep the variance of standard normal input."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from invertible._checks import check_floating, describe
from invertible.errors import ConfigError, ConvergenceError, DtypeError, NonFiniteError

Activation = Callable[[Tensor], Tensor]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "celu": nn.CELU, "elu": nn.ELU, "gelu": nn.GELU, "hardswish": nn.Hardswish, "hardtanh": nn.Hardtanh,
    "identity": nn.Identity, "leaky_relu": nn.LeakyReLU, "mish": nn.Mish, "relu": nn.ReLU, "relu6": nn.ReLU6,
    "selu": nn.SELU, "sigmoid": nn.Sigmoid, "silu": nn.SiLU, "softplus": nn.Softplus, "softsign": nn.Softsign,
    "tanh": nn.Tanh,
}  # fmt: skip
"""Activations by name."""

_REACH = 38  # the normal density underflows beyond
_CACHE: dict[tuple[Any, ...], float] = {}


def gain(activation: Activation | str) -> float:
    """Gamma = 1 / sqrt(Var(act(z))) for a standard normal z, to 10 digits or better.

    By adaptive quadrature over panels of width one, in float64: kinks at whole numbers lie between panels, others are
    found by bisection. Kept for torch's own modules and for functions without state; others are integrated anew.

    Args:
        activation: A name of `ACTIVATIONS`, a module, or any function of a tensor that acts on each number alone. It
            is not changed, and the random state neither.

    Returns:
        gamma.

    Raises:
        ConfigError: If there is no such name, or the activation fails on a float64 tensor, is constant, random, or no
            function of single numbers.
        NonFiniteError: If it gives NaN or infinity, or grows so fast that the variance is infinite.
        DtypeError: If it is no function.
        ConvergenceError: If the integral cannot be found.

    Source: Brock, De and Smith 2021, section 4, equation 4 and appendix D.

    Example:
        >>> round(gain("relu"), 6), round((2 / (1 - 1 / math.pi)) ** 0.5, 6), round(gain(torch.tanh), 6)
        (1.712859, 1.712859, 1.592537)
    """
    activation = make_activation(activation)
    key = _key(activation)
    if key is not None and key in _CACHE:
        return _CACHE[key]
    found = _integrate(activation)
    if key is not None:
        _CACHE[key] = found
    return found


def make_activation(activation: Activation | str) -> Activation:
    """Turn a name into a module; a function or module stays.

    Args:
        activation: A name of `ACTIVATIONS`, a module or a function.

    Returns:
        The module or function.

    Raises:
        ConfigError: If there is no such name.
        DtypeError: If it is neither.

    Example:
        >>> make_activation("silu")
        SiLU()
    """
    if isinstance(activation, str):
        if activation not in ACTIVATIONS:
            expected = f"a function, a module, or one of {', '.join(ACTIVATIONS)}"
            raise ConfigError("unknown activation", expected=expected, got=repr(activation))
        return ACTIVATIONS[activation]()
    if not callable(activation):
        expected = "a function, a module or a name"
        hint = "nn.ReLU() or 'relu'" if activation is None else ""
        raise DtypeError("no activation", expected=expected, got=describe(activation), hint=hint)
    if isinstance(activation, type):
        hint = f"{activation.__name__}()"
        raise DtypeError("a class is no activation", expected="an instance", got=activation.__name__, hint=hint)
    return activation


class ScaledActivation(nn.Module):
    """y = gamma act(x): standard normal numbers in, variance one out. Any shape.

    Args:
        activation: As in `gain`. A module becomes a submodule: its parameters, if any, go on learning, and gamma stays.
        gamma: The factor; None: `gain(activation)`.

    Raises:
        ConfigError: As in `gain`.

    Source: Brock, De and Smith 2021, section 4.

    Example:
        >>> z = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
        >>> round(ScaledActivation("silu")(z).var().item(), 1)
        1.0
    """

    def __init__(self, activation: Activation | str, gamma: float | None = None) -> None:
        super().__init__()
        self.activation = make_activation(activation)
        self.gamma = gain(self.activation) if gamma is None else float(gamma)

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to each number.

        Args:
            x: Any shape.

        Returns:
            Shape of x.
        """
        check_floating(x, "ScaledActivation")
        return self.activation(x) * self.gamma

    def extra_repr(self) -> str:
        """What `print(module)` shows.

        Returns:
            gamma.
        """
        return f"gamma={self.gamma:.6g}"


def _key(activation: Activation) -> tuple[Any, ...] | None:
    # Only what cannot change: everything about torch's own activations stands in their text, unless they learn.
    if isinstance(activation, nn.Module):
        is_plain = type(activation).__module__ == "torch.nn.modules.activation"
        learns = next(activation.parameters(), None) is not None
        return (type(activation), repr(activation), activation.training) if is_plain and not learns else None
    if isinstance(activation, BuiltinFunctionType):
        return (activation,)
    is_free = isinstance(activation, FunctionType) and activation.__closure__ is None
    return (activation,) if is_free and (activation.__module__ or "").startswith("torch.") else None


def _integrate(activation: Activation) -> float:
    function = _Function(activation)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        precise = function.check()
        tolerance = 1e-13 if precise else 1e-7
        mean = _moment(lambda a: a, function, tolerance)
        variance = _moment(lambda a: (a - mean) ** 2, function, tolerance)
    if variance <= 1e-14 * max(1.0, mean**2):
        raise ConfigError("the activation is all but constant", expected="a variance", got=f"{variance:.3g}")
    return variance**-0.5


class _Function:
    """An activation on its own copy, in float64 on the CPU."""

    def __init__(self, activation: Activation) -> None:
        self.name = str(getattr(activation, "__name__", type(activation).__name__))
        self.activation = activation
        if isinstance(activation, nn.Module):
            if any(t.is_meta for t in [*activation.parameters(), *activation.buffers()]):
                raise ConfigError(f"{self.name} has no values", expected="parameters with values", got="meta tensors")
            self.activation = copy.deepcopy(activation).double().cpu()

    def __call__(self, x: Tensor) -> Tensor:
        try:
            with torch.autocast("cpu", enabled=False):
                out = self.activation(x.clone())
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            hint = "an activation with one parameter for all channels" if "channel" in str(error) else ""
            got = " ".join(str(error).split())[:120]
            expected = f"a function of float64 tensors of any shape ({tuple(x.shape)} here)"
            raise ConfigError(f"{self.name} is no activation", expected=expected, got=got, hint=hint) from error
        if not isinstance(out, Tensor) or out.shape != x.shape or not out.is_floating_point():
            expected = f"a tensor of shape {tuple(x.shape)}"
            raise ConfigError(f"{self.name} is no function of single numbers", expected=expected, got=describe(out))
        return out

    def check(self) -> bool:
        """Refuse what is random, constant or mixes numbers.

        Returns:
            Whether it keeps float64.

        Raises:
            ConfigError: If it is no activation.
            NonFiniteError: If it is not finite.
        """
        generator = torch.Generator("cpu").manual_seed(0)
        x = 3 * torch.randn(120, generator=generator, dtype=torch.float64, device="cpu")
        order = torch.randperm(120, generator=generator, device="cpu")
        shape = (2, 3, 4, 5)
        out = self(x.view(shape))
        again, moved = self(x.view(shape)), self(x[order].view(shape)).flatten()
        part = torch.cat([self(x[:30].view(1, 2, 3, 5)).flatten(), self(x[30:].view(3, 2, 3, 5)).flatten()])
        if not torch.isfinite(out).all():
            hint = "an activation that is defined for negative numbers too"
            raise NonFiniteError(f"{self.name} gives NaN or infinity", expected="finite values", hint=hint)
        if not torch.equal(out, again):
            hint = "module.eval(), or the activation without dropout"
            raise ConfigError(f"{self.name} is random", expected="the same numbers twice", got="others", hint=hint)
        flat, atol = out.flatten(), 1e-4 if out.dtype != torch.float64 else 1e-10
        if not (torch.allclose(moved, flat[order], 1e-4, atol) and torch.allclose(part, flat, 1e-4, atol)):
            expected, got = "each number on its own", "numbers that depend on their neighbours"
            raise ConfigError(f"{self.name} is no function of single numbers", expected=expected, got=got)
        if out.min() == out.max():
            raise ConfigError(f"{self.name} is constant", expected="an activation that varies", got=out.max().item())
        return out.dtype == torch.float64


def _moment(transform: Callable[[Tensor], Tensor], function: _Function, tolerance: float) -> float:
    from scipy.integrate import quad_vec

    left = torch.arange(-_REACH, _REACH, dtype=torch.float64, device="cpu")

    def integrand(t: float) -> Any:  # one value for each panel [k, k + 1]
        x = left + t
        values = transform(function(x).double()) * torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
        return values.numpy()

    ends = torch.from_numpy(integrand(0.0))
    if not bool(torch.isfinite(ends).all()) or ends[0].abs() + ends[-1].abs() > 1e-8:
        hint = "an activation that grows more slowly"
        raise NonFiniteError(f"{function.name} has no variance", expected="one that is finite", hint=hint)
    # Split in two where a kink at a half, or a peak in the middle, would fool the first comparison.
    parts, _, info = quad_vec(integrand, 0, 1, epsabs=tolerance, epsrel=0, norm="max", points=[0.37], full_output=True)
    total = float(parts.sum())
    if not math.isfinite(total) or info.status not in (0, 2):
        got = f"status {info.status}"
        raise ConvergenceError(f"the variance of {function.name} was not found", expected="an integral", got=got)
    return total

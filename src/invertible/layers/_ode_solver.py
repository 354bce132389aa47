"""How an ordinary differential equation is solved: the options."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from invertible.errors import ConfigError
from invertible.layers._ode_tableau import TABLEAUS, Tableau

Gradient = Literal["auto", "replay", "direct", "adjoint"]
OTHERS = ("dopri8", "fehlberg2", "adaptive_heun", "explicit_adams", "implicit_adams")
"""Methods of torchdiffeq that are not written here."""


@dataclass(frozen=True)
class Solver:
    """How an ordinary differential equation is solved, and differentiated.

    With an adaptive method each element of a batch obeys the tolerances by itself: what is compared with
    atol + rtol |z| is the root mean square over one element, and the worst element decides.

    Args:
        method: "dopri5" or "bosh3" (adaptive, or with `n_steps`), "rk4", "midpoint" or "euler" (with `n_steps`), or
            one of torchdiffeq's: "dopri8", "fehlberg2", "adaptive_heun", and with `n_steps` "explicit_adams" and
            "implicit_adams".
        rtol: Tolerance of a step's error relative to the state; at least 16 times the state's precision is used.
        atol: Tolerance of a step's error, absolute.
        n_steps: Number of equal steps; None: the method chooses them. Only equal steps can be compiled, exported and
            run under `torch.func.vmap`.
        gradient: "replay" keeps the state at each step and takes the steps again in the backward pass: the exact
            gradient of what was computed. "direct" keeps everything that autograd wants: less time, most memory, second
            derivatives. "adjoint" (torchdiffeq's) keeps the last state only and solves another equation backwards,
            whose error adds to the gradient's. "auto": replay, and adjoint for the methods of torchdiffeq.
        max_evaluations: Of the field, in one solve.

    Raises:
        ConfigError: If an argument does not fit.

    Source: Dormand and Prince 1980 ("dopri5"); Zhuang et al. 2020 ("replay"); Chen et al. 2018 ("adjoint").

    Example:
        >>> Solver("rk4", n_steps=20).n_steps
        20
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    n_steps: int | None = None
    gradient: Gradient = "auto"
    max_evaluations: int = 10_000

    def __post_init__(self) -> None:
        known = (*TABLEAUS, *OTHERS)
        if self.method not in known:
            raise ConfigError("unknown ODE method", expected=", ".join(known), got=repr(self.method))
        if not (0 < self.rtol < math.inf and 0 < self.atol < math.inf) or self.max_evaluations < 1:
            got = f"rtol={self.rtol}, atol={self.atol}, max_evaluations={self.max_evaluations}"
            raise ConfigError("a Solver is out of range", expected="positive numbers", got=got)
        self._check_steps()
        if self.gradient == "replay" and self.method in OTHERS:
            raise ConfigError(f"{self.method} cannot be replayed", expected="'adjoint' or 'direct'", got="'replay'")

    def _check_steps(self) -> None:
        needs = self.method.endswith("adams") or not (self.method in OTHERS or TABLEAUS[self.method].is_adaptive)
        if needs and (self.n_steps is None or self.n_steps < 1):
            raise ConfigError(f"{self.method} does not choose its steps", expected="n_steps >= 1", got=self.n_steps)
        if self.n_steps is not None and (self.n_steps < 1 or (self.method in OTHERS and not needs)):
            got = f"n_steps={self.n_steps} with {self.method}"
            raise ConfigError("n_steps does not fit", expected="None, or at least 1 for equal steps", got=got)

    @property
    def tableau(self) -> Tableau | None:
        """The method's numbers; None if it is one of torchdiffeq's."""
        return TABLEAUS.get(self.method)

    def tolerances(self, dtype: torch.dtype) -> tuple[float, float]:
        """What can be asked of a state in this precision.

        Args:
            dtype: Of the state.

        Returns:
            Relative and absolute tolerance.
        """
        least = 16 * torch.finfo(dtype).eps
        return max(self.rtol, least), max(self.atol, least)

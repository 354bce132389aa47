"""y = x + g(x) with Lip(g) < 1: a residual block that can be undone, whatever the network g is made of.

The inverse is the limit of x <- y - g(x), found with a bound on its own error (`solve`); the log-determinant is exact,
or an estimate that knows its standard error (`logdet`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from invertible._checks import can_look, check_n_dims, describe, explained
from invertible.bijection import Bijection
from invertible.errors import ConfigError, DtypeError, ShapeError
from invertible.layers._layered import layered
from invertible.layers.lipschitz import Certificate, certificate, promised_bound
from invertible.logdet import AutoLogDet, LogDet, LogDetEstimator, RussianRoulette
from invertible.solve import FixedPointSolver, SolveReport, solve_residual

_LOW = (torch.bfloat16, torch.float16)


class Residual(Bijection):
    """y = x + g(x), invertible because g contracts.

    Refused unless the bound on g's Lipschitz constant is below 1. `layers.constrain(network, c)` makes it so and keeps
    it so while the network learns. With a bound L the inverse stops on the guarantee |x - x*| <= L / (1 - L) |x - x'|,
    and raises if it does not get there. Under autocast the forward pass is rounded as autocast does it; the inverse and
    the log-determinant are computed without.

    Args:
        network: g, from (batch, ...) to the same shape; called as network(x, context) if `takes_context`.
        lipschitz: A bound on g's Lipschitz constant (l2, in x) that the caller knows; None: it is worked out from
            the layers, again whenever it is needed. "unknown": there is none; then nothing is refused, the inverse
            is tried without a guarantee, and raises where it does not converge.
        solver: How the inverse is found.
        logdet: How log|det(I + dg/dx)| is found in eval mode.
        training_logdet: Likewise in training mode.
        takes_context: Whether g depends on a context.

    Attributes:
        report: How the last inverse went, for each sample; None before.
        estimate: The last log-determinant with its standard error, without graph; None before.

    Raises:
        DtypeError: If the network is no module, or its dtype or device is not the input's.
        ConfigError: If the bound is not below 1.
        ShapeError: When called: if g's output does not have its input's shape.
        ConvergenceError: From the inverse, if it does not reach its tolerance.

    Source: Behrmann et al. 2019 (i-ResNet), theorem 1, algorithms 1 and 2; Chen et al. 2019 (Residual Flows).

    Example:
        >>> from invertible.layers import constrain
        >>> network = constrain(nn.Sequential(nn.Linear(3, 16), nn.ELU(), nn.Linear(16, 3)), 0.9)
        >>> block, x = Residual(network), torch.randn(5, 3)
        >>> torch.allclose(block.inverse(block(x)), x, atol=1e-5), block.report.converged.all().item()
        (True, True)
    """

    has_closed_inverse = False

    def __init__(
        self,
        network: nn.Module,
        lipschitz: float | Literal["unknown"] | None = None,
        *,
        solver: FixedPointSolver | None = None,
        logdet: LogDetEstimator | None = None,
        training_logdet: LogDetEstimator | None = None,
        takes_context: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise DtypeError("Residual wraps a network", expected="an nn.Module", got=describe(network))
        _check_options(lipschitz, solver, logdet, training_logdet)
        self.network, self.lipschitz, self.takes_context = network, lipschitz, takes_context
        self._n_dims = _n_dims(network)
        self.solver = solver or FixedPointSolver()
        self.logdet = logdet or AutoLogDet()
        self.training_logdet = training_logdet or RussianRoulette()
        self.report: SolveReport | None = None
        self.estimate: LogDet | None = None
        if lipschitz is None:
            _check_bound(promised_bound(network))
        else:
            self.lipschitz_bound()

    def lipschitz_bound(self, in_shape: tuple[int, ...] | None = None) -> float | None:
        """A bound on g's Lipschitz constant, in the Euclidean norm unless g was constrained in others (`norms`).

        Args:
            in_shape: Shape of one input, for a tighter bound of convolutions; None: for any.

        Returns:
            The bound, below 1; None if it is unknown.

        Raises:
            ConfigError: If it is 1 or more.
        """
        return self._bound_and_norm(in_shape)[0]

    def _bound_and_norm(self, in_shape: tuple[int, ...] | None) -> tuple[float | None, float]:
        # The bound, and the p of the norm it holds in.
        if self.lipschitz == "unknown":
            return None, 2.0
        if self.lipschitz is not None:
            found, p = float(self.lipschitz), 2.0
        else:
            chain = certificate(self.network, in_shape)
            found, p = chain.bound, chain.p
        _check_bound(found)
        return found, p

    def certificate(self, in_shape: tuple[int, ...] | None = None) -> Certificate:
        """The bound, layer by layer.

        Args:
            in_shape: As in `lipschitz_bound`.

        Returns:
            The certificate of g; print it.
        """
        return certificate(self.network, in_shape)

    def extra_repr(self) -> str:
        """What `print(module)` shows.

        Returns:
            The bound as given, and the solver.
        """
        return f"lipschitz={self.lipschitz}, solver={self.solver}"

    def _forward(self, x: Tensor, context: Any) -> Tensor:
        return x + self._function(context)(x).to(x.dtype)

    def _inverse(self, y: Tensor, context: Any) -> Tensor:
        bound, p = self._bound_and_norm(tuple(y.shape[1:]))
        select = None if context is None else lambda rows: self._function(_rows_of(context, rows, len(y)))
        euclidean = bound if p == 2 else None
        x, report = solve_residual(self._function(context), y, euclidean, self.solver, select)
        self.report = report if bound is None or p == 2 else _in_euclidean_norm(report, bound, p, x)
        return x

    def _forward_with_logdet(self, x: Tensor, context: Any) -> tuple[Tensor, Tensor]:
        g_x, logdet = self._estimate(x, context)
        return x + g_x.to(x.dtype), logdet

    def _inverse_with_logdet(self, y: Tensor, context: Any) -> tuple[Tensor, Tensor]:
        x = self._inverse(y, context)
        return x, -self._estimate(x, context)[1]

    def _estimate(self, x: Tensor, context: Any) -> tuple[Tensor, Tensor]:
        estimator = self.training_logdet if self.training else self.logdet
        bound, p = (None, 2.0) if self.training else self._bound_and_norm(tuple(x.shape[1:]))  # for the bias bound
        known = layered(self.network, x) if context is None else None
        g_x, estimate = estimator(known or self._function(context), x, bound if p == 2 else None)
        if can_look(x):
            self.estimate = dataclasses.replace(estimate, value=estimate.value.detach())
        return g_x, estimate.value

    def _function(self, context: Any) -> Callable[[Tensor], Tensor]:
        # Weights in half precision are read as float32: a rounded g is no contraction.
        weight = next((p for p in self.network.parameters() if p.is_floating_point()), None)
        if weight is None or weight.dtype not in _LOW:
            return lambda x: self._call(self.network, x, context)
        finer = {name: p.float() for name, p in self.network.named_parameters()}
        precise = tree_map(lambda c: c.float() if isinstance(c, Tensor) and c.dtype in _LOW else c, context)

        def network(*inputs: Any) -> Tensor:
            return torch.func.functional_call(self.network, finer, inputs)

        return lambda x: self._call(network, x.float(), precise)

    def _call(self, network: Callable[..., Tensor], x: Tensor, context: Any) -> Tensor:
        if x.ndim < 2 or self._n_dims not in (None, x.ndim):
            check_n_dims(x, self._n_dims or 2, "Residual")
        try:
            out = network(x) if context is None else network(x, context)
        except (RuntimeError, TypeError) as error:
            raise explained(error, x, self.network, "Residual") from error
        if out.shape != x.shape:
            raise ShapeError("a residual network keeps its input's shape", expected=tuple(x.shape), got=describe(out))
        return out


def _n_dims(network: nn.Module) -> int | None:
    # How many dimensions a batch has, where the first layer tells.
    if isinstance(network, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return 2 + len(network.kernel_size)
    for part in network.children() if isinstance(network, nn.Sequential) else ():
        if list(part.parameters()) or isinstance(part, nn.Unflatten | nn.Flatten):
            return _n_dims(part)
    return None


def _check_options(lipschitz: Any, solver: Any, *estimators: Any) -> None:
    if isinstance(lipschitz, str) and lipschitz != "unknown":
        raise ConfigError("a bad Lipschitz bound", expected="a number below 1, 'unknown' or None", got=repr(lipschitz))
    if solver is not None and not isinstance(solver, FixedPointSolver):
        raise DtypeError("a bad solver", expected="a FixedPointSolver", got=describe(solver),
                         hint="FixedPointSolver('broyden')")  # fmt: skip
    for estimator in estimators:
        if estimator is not None and not isinstance(estimator, LogDetEstimator):
            hint = "ExactLogDet(), Krylov.within(20), ... of invertible.logdet"
            raise DtypeError("a bad log-determinant", expected="an estimator", got=describe(estimator), hint=hint)


def _check_bound(bound: float) -> None:
    if not 0 <= bound < 1:
        hint = "layers.constrain(network, 0.9), or lipschitz=... if you know a smaller bound"
        raise ConfigError("x + g(x) may not be invertible", expected="a Lipschitz bound of g from 0 to below 1",
                          got=f"{bound:.4g}", hint=hint)  # fmt: skip


def _in_euclidean_norm(report: SolveReport, bound: float, p: float, x: Tensor) -> SolveReport:
    # g contracts in L_p, the residual is Euclidean: the two norms differ by a power of the dimension at most. The last
    # evaluations are rounded, by some units of what they add up.
    ratio = math.prod(x.shape[1:]) ** abs(0.5 - 1 / p)
    rounding = 4 * torch.finfo(x.dtype).eps * report.scale
    error = ratio / (1 - bound) * (bound * report.residual + rounding)
    return dataclasses.replace(report, guaranteed_error=error, lipschitz=bound)


def _rows_of(context: Any, rows: Tensor, n: int) -> Any:
    # A tensor with one entry per sample is cut down with them; anything else is for all.
    return tree_map(lambda c: c[rows] if isinstance(c, Tensor) and c.ndim and len(c) == n else c, context)


def estimator_error(module: nn.Module) -> Tensor | None:
    """The standard error of the log-determinants that a model estimated last, all of its blocks together.

    Args:
        module: The model, after a call with log-determinant.

    Returns:
        Nats, shape (batch,); None if nothing was estimated.
    """
    found = [b.estimate.standard_error for b in module.modules() if isinstance(b, Residual) and b.estimate is not None]
    errors = [e for e in found if e is not None]
    return torch.stack(errors).square().sum(0).sqrt() if errors else None

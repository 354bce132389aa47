"""`Flow.fit`: a trained density of a table in one call."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from invertible._checks import check_event_shape, describe
from invertible.errors import ConfigError, NonFiniteError, RangeError, ShapeError
from invertible.flow._inputs import as_context, as_tensor
from invertible.flow._training import Training

if TYPE_CHECKING:
    from invertible.flow.flow import Flow


SPREAD = 1e-3
"""Standard deviation of the noise that constant columns get, relative to their value (or to 1)."""


@dataclass(frozen=True)
class FitOptions:
    """How a flow is fitted.

    Args:
        validation: Share of the rows held out to stop by.
        batch_size: Rows per step.
        lr: Adam's learning rate; it falls to a quarter, twice, when the held-out rows stop improving.
        patience: Evaluations without improvement before that.
        max_steps: Steps at most.
        max_seconds: Seconds at most; None: no bound.
        seed: Decides weights, the held-out rows and their order; the global random state is left alone.
        quiet: Show no progress.

    Raises:
        ConfigError: If a number is out of range.
    """

    validation: float = 0.1
    batch_size: int = 256
    lr: float = 2e-3
    patience: int = 10
    max_steps: int = 20_000
    max_seconds: float | None = None
    seed: int = 0
    quiet: bool = False

    def __post_init__(self) -> None:
        rules = {
            "validation": (0 < self.validation < 1, "above 0 and below 1"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "lr": (0 < self.lr < math.inf, "above 0"),
            "patience": (self.patience >= 1, "at least 1"),
            "max_steps": (self.max_steps >= 1, "at least 1"),
            "max_seconds": (self.max_seconds is None or self.max_seconds > 0, "above 0, or None"),
        }
        for name, (is_fine, expected) in rules.items():
            if not is_fine:
                raise ConfigError(f"fit: {name} is out of range", expected=expected, got=getattr(self, name))


class InterruptedFit(KeyboardInterrupt):
    """Ctrl-C ended a fit; `flow` is what it had so far.

    Args:
        flow: With the weights that suited the held-out rows best, in eval mode.
        step: Steps taken.

    Example:
        >>> try:
        ...     raise InterruptedFit("a flow", 70)
        ... except KeyboardInterrupt as stopped:
        ...     print(stopped.flow)
        a flow
    """

    def __init__(self, flow: Any, step: int) -> None:
        hint = "`except KeyboardInterrupt as error: flow = error.flow`; at a prompt, flow = sys.last_value.flow"
        super().__init__(f"the fit was interrupted at step {step}; the flow with its best weights is kept: {hint}")
        self.flow, self.step = flow, step


@dataclass(frozen=True)
class FitReport:
    """What a fit did.

    Args:
        n_train: Rows fitted.
        n_validation: Rows held out.
        n_steps: Steps taken.
        best_step: The step whose weights were kept.
        validation_nats: Mean log-density of the held-out rows with these.
        standard_error: Of that mean; NaN if one row was held out.
        seconds: It took.
        stopped: Why: "no improvement", "max_steps", "max_seconds" or "interrupted".
        steps: At which steps it was evaluated.
        train: Mean log-density of the rows fitted since the last evaluation, nats.
        validation: Of the held-out rows.
    """

    n_train: int
    n_validation: int
    n_steps: int
    best_step: int
    validation_nats: float
    standard_error: float
    seconds: float
    stopped: str
    steps: tuple[int, ...]
    train: tuple[float, ...]
    validation: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Turn it into what JSON can hold.

        Returns:
            One entry per field.
        """
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return plain | {"standard_error": None if math.isnan(self.standard_error) else self.standard_error}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> FitReport:
        """Undo `to_dict`.

        Args:
            content: What it returned.

        Returns:
            An equal report.
        """
        known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
        if known["standard_error"] is None:
            known["standard_error"] = math.nan
        return cls(**known)

    def plot(self, ax: Any = None) -> Any:
        """Draw the training curves.

        Args:
            ax: Matplotlib axes; None makes some.

        Returns:
            The axes.
        """
        from matplotlib import pyplot

        ax = ax or pyplot.subplots(layout="constrained")[1]
        ax.plot(self.steps, self.train, color="0.6", label="training rows")
        ax.plot(self.steps, self.validation, color="C0", label="held-out rows")
        ax.axvline(self.best_step, color="C1", linestyle=":", label="weights kept")
        ax.set(xlabel="step", ylabel="mean log-density (nats)")
        ax.legend()
        return ax


class Fit:
    """`Flow.fit(x)` makes a spline flow for x and fits it; `flow.fit(x)` fits that flow. Both return the flow."""

    def __get__(self, flow: Flow | None, owner: type[Flow]) -> _Fitter:
        return _Fitter(flow)


class _Fitter:
    def __init__(self, flow: Flow | None) -> None:
        self.flow = flow

    def __call__(self, x: Any, context: Any = None, **options: Any) -> Flow:
        """Fit.

        Called on the class, it standardises the columns (buffers of the flow), tames outliers, and takes
        `models.spline_flow`; on a flow, it takes that flow and the data as they are. Rows are held out, and the weights
        that suit them best are kept. The flow is returned in eval mode; `flow.fitted` tells how it went.

        Args:
            x: Data, a NumPy array or tensor, shape (n, n_columns); (n,) counts as one column. For a flow of its own
                shape (n, *event_shape).
            context: Labels, shape (n,), or vectors, shape (n, n_context), to condition on.
            **options: Of `FitOptions`: validation, batch_size, lr, patience, max_steps, max_seconds, seed, quiet.

        Returns:
            The fitted flow.

        Raises:
            ConfigError: If an option is unknown or out of range.
            InterruptedFit: After Ctrl-C: a KeyboardInterrupt whose `flow` has the best weights so far.

        Example:
            >>> from invertible import Flow
            >>> angle = 6.28 * torch.rand(500, generator=torch.Generator().manual_seed(0))
            >>> x = torch.stack([angle.cos(), angle.sin()], dim=1)
            >>> flow = Flow.fit(x.numpy(), max_steps=20)
            >>> flow.sample(3).shape
            torch.Size([3, 2])
        """
        unknown = sorted(options.keys() - FitOptions.__dataclass_fields__.keys())
        if unknown:
            expected = ", ".join(FitOptions.__dataclass_fields__)
            raise ConfigError("fit has no such option", expected=expected, got=", ".join(unknown))
        return _fit(self.flow, x, context, FitOptions(**options))


@contextmanager
def _own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    # Not torch.manual_seed, which seeds every GPU.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _fit(flow: Flow | None, x: Any, context: Any, options: FitOptions) -> Flow:
    x = _as_data(x, flow)
    context = _as_contexts(context, x, flow)
    n_held = max(1, round(len(x) * options.validation))
    if len(x) - n_held < 1:
        raise ShapeError("fit: too few rows", expected="at least 2, of which some are held out", got=describe(x))
    with _own_randomness(options.seed, x.device):
        order = torch.randperm(len(x), device=x.device)
        rows = order[n_held:], order[:n_held]
        if flow is None:
            x = _spread(x)
            flow = _default_flow(x, context).to(x.device)  # an outlier counts wherever it fell
        training = Training(flow, x, context, rows, options)
        try:
            training.run()
        except KeyboardInterrupt as error:
            flow.fitted = _report(training) if training.history else None
            raise InterruptedFit(flow, training.step) from error
    flow.fitted = _report(training)
    return flow


def _report(training: Training) -> FitReport:
    best, history = training.best, zip(*training.history, strict=True)
    return FitReport(
        len(training.train), len(training.held), training.step, best.step, best.nats, best.error, training.seconds,
        training.stopped, *history,
    )  # fmt: skip


def _as_data(x: Any, flow: Flow | None) -> Tensor:
    x = as_tensor(x, torch.device("cpu") if flow is None else flow.base.here.device)
    if flow is not None:
        if x.ndim < 1 or tuple(x.shape[1:]) != flow.event_shape:
            check_event_shape(x, flow.event_shape, "fit")
        _check_finite(x, "data")
        return x if flow.dequantization is not None else _converted(x, flow.base.here.dtype).to(flow.base.here)
    if x.ndim == 1:
        x = x[:, None]
    if x.ndim != 2 or not x.shape[1]:
        hint = "for images a flow of your own: models.glow(in_shape=...).fit(x)"
        raise ShapeError("Flow.fit takes a table", expected="shape (n, n_columns)", got=describe(x), hint=hint)
    _check_finite(x, "data")
    return _rounded(x, torch.get_default_dtype())


def _converted(x: Tensor, dtype: torch.dtype) -> Tensor:
    out, limit = x.to(dtype), torch.finfo(dtype).max
    beyond = ~out.isfinite()
    if not bool(beyond.any()):
        return out
    row, *rest = (int(i) for i in beyond.nonzero()[0])
    place = f"column {rest[0]}" if len(rest) == 1 else f"element {tuple(rest)}"
    name = str(dtype).removeprefix("torch.")
    raise RangeError(f"fit: the data are out of the range of {name}", expected=f"at most {limit:.2g} in size",
                     got=f"{x[row, *rest].item():.6g} in {place}, row {row}",
                     hint="other units, the logarithm, or a flow in float64")  # fmt: skip


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    # A time stamp's seconds, for example, are lost in float32.
    rounded = _converted(x, dtype)
    if len(x) < 2 or x.dtype == dtype:
        return rounded
    precise = x.double()
    lost = ((rounded.double() - precise).abs().amax(0) > 0.01 * precise.std(0)) & (precise != precise[0]).any(0)
    if not bool(lost.any()):
        return rounded
    column = int(lost.nonzero()[0])
    got = (
        f"column {column}, around {precise[0, column].item():.6g} with deviation {precise[:, column].std().item():.3g}"
    )
    hint = "x - x.mean(0), or torch.set_default_dtype(torch.float64)"
    raise RangeError(f"fit: {str(dtype).removeprefix('torch.')} cannot tell a column's values apart",
                     expected="deviations that are not lost beside the mean", got=got, hint=hint)  # fmt: skip


def _spread(x: Tensor) -> Tensor:
    is_constant = (x == x[0]).all(dim=0)
    if not bool(is_constant.any()):
        return x
    columns = ", ".join(map(str, is_constant.nonzero().flatten().tolist()[:10]))
    text = f"constant columns ({columns}) get a little noise: the density of a single value would grow without bound"
    warnings.warn(text, UserWarning, stacklevel=4)
    return torch.where(is_constant, x + SPREAD * x[0].abs().clamp_min(1) * torch.randn_like(x), x)


def _as_contexts(context: Any, x: Tensor, flow: Flow | None) -> Tensor | None:
    context = as_context(context, x.device)
    if context is None:
        return None
    if context.ndim < 1 or len(context) != len(x):
        raise ShapeError("fit: one context per row", expected=f"{len(x)} contexts", got=describe(context))
    if flow is None and context.ndim != (2 if context.is_floating_point() else 1):
        expected, hint = "labels, shape (n,), or vectors, shape (n, n_context)", "context[:, None], or context.long()"
        raise ShapeError("fit: contexts have the wrong shape", expected=expected, got=describe(context), hint=hint)
    _check_finite(context, "context")
    dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
    return context.to(x.device, dtype if context.is_floating_point() else None)


def _check_finite(x: Tensor, name: str) -> None:
    bad = ~torch.isfinite(x)
    if not bool(bad.any()):
        return
    row, *rest = (int(i) for i in bad.nonzero()[0])
    place = f"column {rest[0]}" if len(rest) == 1 else f"element {tuple(rest)}"
    n_rows = int(bad.flatten(1).any(1).sum())
    got = f"{x[row, *rest].item()} in {place}, row {row} ({n_rows} such rows)"
    hint = "drop these rows or fill them in"
    raise NonFiniteError(f"fit: the {name} must be finite", expected="only finite values", got=got, hint=hint)


def _default_flow(x: Tensor, context: Tensor | None) -> Flow:
    from invertible.models.spline_flow import fitted_to

    return fitted_to(x, context)

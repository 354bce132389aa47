"""`Flow.fit`: a trained density of a table in one call."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from invertible._checks import describe
from invertible._console import progress
from invertible.errors import ConfigError, NonFiniteError, ShapeError

if TYPE_CHECKING:
    from invertible.flow.flow import Flow

EVALUATION_ROWS = 4096
N_DECAYS = 2
DECAY = 0.25


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


@dataclass(frozen=True)
class FitReport:
    """What a fit did.

    Args:
        n_train: Rows fitted.
        n_validation: Rows held out.
        n_steps: Steps taken.
        best_step: The step whose weights were kept.
        validation_nats: Mean log-density of the held-out rows with these.
        standard_error: Of that mean.
        seconds: It took.
        stopped: Why: "no improvement", "max_steps" or "max_seconds".
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
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> FitReport:
        """Undo `to_dict`.

        Args:
            content: What it returned.

        Returns:
            An equal report.
        """
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in content.items()})

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
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _fit(flow: Flow | None, x: Any, context: Any, options: FitOptions) -> Flow:
    x = _as_data(x, flow)
    context = None if context is None else torch.as_tensor(context, device=x.device)
    if context is not None and context.is_floating_point():
        context = context.to(x.dtype if x.is_floating_point() else torch.float32)
    if context is not None and len(context) != len(x):
        raise ShapeError("fit: one context per row", expected=f"{len(x)} contexts", got=describe(context))
    n_held = max(1, round(len(x) * options.validation))
    if len(x) - n_held < 1:
        raise ShapeError("fit: too few rows", expected="at least 2", got=describe(x))
    with _own_randomness(options.seed, x.device):
        order = torch.randperm(len(x), device=x.device)
        if flow is None:
            flow = _default_flow(x[order[n_held:]], context).to(x.device)
        _train(flow, x, context, (order[n_held:], order[:n_held]), options)
    return flow


def _as_data(x: Any, flow: Flow | None) -> Tensor:
    x = torch.as_tensor(x)
    if flow is not None:
        x = x.to(flow.base.here.device)
        return x if flow.dequantization is not None else x.to(flow.base.here.dtype)
    if x.ndim == 1:
        x = x[:, None]
    if x.ndim != 2:
        hint = "for images a flow of your own: models.glow(in_shape=...).fit(x)"
        raise ShapeError("Flow.fit takes a table", expected="shape (n, n_columns)", got=describe(x), hint=hint)
    _check_finite_rows(x)
    return x.to(torch.get_default_dtype())


def _check_finite_rows(x: Tensor) -> None:
    bad = ~torch.isfinite(x)
    if bool(bad.any()):
        row, column = (int(i) for i in bad.nonzero()[0])
        got = f"{x[row, column].item()} in column {column}, row {row} ({int(bad.sum())} such values)"
        hint = "drop these rows or fill them in"
        raise NonFiniteError("fit: the data must be finite", expected="only finite values", got=got, hint=hint)


def _default_flow(x: Tensor, context: Tensor | None) -> Flow:
    from invertible.models.spline_flow import fitted_to

    return fitted_to(x, context)


class _Best:
    """The weights that suited the held-out rows best."""

    def __init__(self, flow: Flow) -> None:
        self.flow, self.nats, self.error, self.step = flow, -math.inf, math.nan, 0
        self.weights = copy.deepcopy(flow.state_dict())

    def offer(self, step: int, nats: float, error: float) -> bool:
        if not nats > self.nats:
            return False
        self.step, self.nats, self.error = step, nats, error
        self.weights = copy.deepcopy(self.flow.state_dict())
        return True

    def restore(self) -> None:
        self.flow.load_state_dict(self.weights)


def _train(flow: Flow, x: Tensor, context: Tensor | None, rows: tuple[Tensor, Tensor], options: FitOptions) -> None:
    train, held = rows
    optimizer = torch.optim.Adam([p for p in flow.parameters() if p.requires_grad], lr=options.lr)
    every = max(1, min(500, math.ceil(len(train) / options.batch_size)))
    every = max(every, 50) if len(train) < 50 * options.batch_size else every
    history: list[tuple[int, float, float]] = []
    best, began, step, waited, decays = _Best(flow), time.monotonic(), 0, 0, 0
    stopped, total, batches = "max_steps", torch.zeros((), device=x.device), _batches(train, options.batch_size)
    with progress() as display:
        task = display.add_task("fitting", total=options.max_steps, visible=not options.quiet)
        try:
            while step < options.max_steps:
                flow.train()
                total += _step(flow, optimizer, x, context, next(batches))
                step += 1
                late = options.max_seconds is not None and time.monotonic() - began > options.max_seconds
                if step % every and step < options.max_steps and not late:
                    continue
                nats, error = _evaluate(flow, x, context, held)
                since = step - (history[-1][0] if history else 0)
                history.append((step, -total.item() / since, nats))
                total.zero_()
                waited = 0 if best.offer(step, nats, error) else waited + 1
                display.update(task, completed=step, description=f"fitting: {best.nats:.3f} nats held out")
                if late:
                    stopped = "max_seconds"
                    break
                if waited >= options.patience:
                    if decays == N_DECAYS:
                        stopped = "no improvement"
                        break
                    decays, waited = decays + 1, 0
                    best.restore()
                    for group in optimizer.param_groups:
                        group["lr"] *= DECAY
        finally:
            best.restore()
            flow.eval()
    flow.fitted = FitReport(len(train), len(held), step, best.step, best.nats, best.error,
                            time.monotonic() - began, stopped, *zip(*history, strict=True))  # fmt: skip


def _batches(rows: Tensor, size: int) -> Iterator[Tensor]:
    while True:
        order = rows[torch.randperm(len(rows), device=rows.device)]
        last = len(order) - len(order) % size if len(order) >= size else len(order)
        yield from order[:last].split(size)


def _step(
    flow: Flow, optimizer: torch.optim.Optimizer, x: Tensor, context: Tensor | None, rows: Tensor
) -> Tensor:  # nats, without graph
    loss = flow(x[rows], None if context is None else context[rows])
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def _evaluate(flow: Flow, x: Tensor, context: Tensor | None, rows: Tensor) -> tuple[float, float]:
    flow.eval()
    parts = rows.split(EVALUATION_ROWS)
    nats = torch.cat([flow.log_prob(x[part], None if context is None else context[part]) for part in parts]).double()
    error = nats.std().item() / math.sqrt(len(nats)) if len(nats) > 1 else math.nan
    return nats.mean().item(), error

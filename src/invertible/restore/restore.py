"""Restore a picture from nothing but itself: the Deep Image Prior, with settings and a stop of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from invertible._checks import check_finite, check_floating, describe
from invertible.errors import ConfigError, RangeError, ShapeError
from invertible.instruments import Finding
from invertible.restore._evidence import Evidence
from invertible.restore.engine import INTERRUPTED, Fit, Progress
from invertible.restore.mask import Mask
from invertible.restore.networks import make_prior
from invertible.restore.operator import Identity, Operator, check_operator
from invertible.restore.prior import Prior, check_prior
from invertible.restore.settings import Settings
from invertible.restore.trajectory import Run, Trajectory

MOST_CHANNELS = 32
SMALLEST = 16


@dataclass(frozen=True, eq=False)
class Restored:
    """A restored picture, and how it came about.

    Args:
        image: Shape (channels, height, width), in [0, 1]: the mean over seeds.
        uncertainty: Standard deviation over seeds, mean over channels, shape (height, width); None with one seed.
        trajectory: Loss, statistic and PSNR, step by step.
        stop_step: The step whose picture was kept; of the last seed.
        stop_reason: Why it ended; "interrupted": somebody pressed Ctrl-C, and this is the best until then.
        seconds: All seeds together.
    """

    image: Tensor = field(repr=False)
    uncertainty: Tensor | None = field(repr=False)
    trajectory: Trajectory
    stop_step: int
    stop_reason: str
    seconds: float


def restore(
    image: Tensor,
    operator: Operator | None = None,
    *,
    sigma: float | None = None,
    network: str | nn.Module | Callable[[], nn.Module] = "auto",
    n_seeds: int = 1,
    seconds: float | None = None,
    settings: Settings | None = None,
    truth: Tensor | None = None,
    on_step: Callable[[Progress], None] | None = None,
    seed: int = 0,
) -> Restored:
    """Restore a damaged picture by fitting an untrained network to it.

    Args:
        image: What is at hand, shape (channels, height, width) or (1, channels, height, width), floating point, in
            [0, 1] (noise may go beyond). It is computed where it lies: on a GPU if it is there.
        operator: How it came about; None: there is only noise on it.
        sigma: Standard deviation of the noise, in units of the pixel range; None: unknown, or there is none.
        network: "auto", "skip", "hourglass", "resnet", "deep-decoder"; a module of your own (a `Prior`, or one that
            takes (1, 32, height, width)), which is left as it is: a copy is trained; or a function that makes one.
        n_seeds: So many runs; their mean is better than each.
        seconds: For all runs together; None: as long as they take.
        settings: None: the ones for this kind of damage.
        truth: The wanted picture, for the PSNR in the trajectory; nothing else looks at it.
        on_step: Called with a `Progress` every ten steps.
        seed: Of the first run; the others follow.

    Returns:
        The picture. Ctrl-C gives the best until then.

    Raises:
        ConfigError: If an option is out of range, the operator is not differentiable, or memory does not suffice.
        ShapeError: If shapes do not fit.
        NonFiniteError: If pixels that count are NaN or infinite, or the fit diverges.
        RangeError: If pixels lie far outside [0, 1], or all have one value.
        KeyboardInterrupt: If Ctrl-C comes before the first step is done.

    Source: Ulyanov, Vedaldi & Lempitsky 2018, Deep Image Prior.

    Example:
        >>> clean = torch.linspace(0, 1, 32).expand(1, 32, 32)
        >>> noisy = clean + 0.1 * torch.randn(1, 32, 32, generator=torch.Generator().manual_seed(0))
        >>> restored = restore(noisy, sigma=0.1, settings=Settings(steps=60, coarse_steps=30))
        >>> bool((restored.image - clean).square().mean() < 0.5 * (noisy - clean).square().mean())
        True
    """
    operator = _an_operator(operator)
    measured = _checked(image, operator)
    _check_options(sigma, n_seeds, seconds)
    operator = operator.to(measured.device)
    settings = settings or Settings.for_damage(operator, sigma)
    settings.rule(sigma is not None)  # raises early
    with _enough_memory(measured), torch.inference_mode(False), torch.enable_grad():
        check_operator(operator, measured)
        size = operator.image_size((measured.shape[2], measured.shape[3]))
        wanted = None if truth is None else _truth(truth, (measured.shape[1], *size)).to(measured)
        evidence = Evidence(operator, measured, sigma, wanted, settings.precision)
        began = time.perf_counter()
        fits, pictures = [], []
        for k in range(n_seeds):
            left = None if seconds is None else (seconds - (time.perf_counter() - began)) / (n_seeds - k)
            if k and left is not None and seconds is not None and left < 0.5 * seconds / n_seeds:
                break  # a run of a few steps would spoil the mean
            prior = _fresh(network, measured.shape[1], size, seed + k, measured.device)
            fit = Fit(prior, evidence, settings, settings.rule(bool(sigma)), seed + k, left, on_step)
            try:
                picture = fit.run()
            except KeyboardInterrupt:
                if not pictures:
                    raise
                break
            fits.append(fit)
            pictures.append(picture if sigma else operator.settle(picture, measured))
            if fit.summary.reason == INTERRUPTED:
                break
    return _restored(pictures, fits, settings, time.perf_counter() - began)


def _an_operator(operator: Operator | None) -> Operator:
    if operator is None:
        return Identity()
    if not isinstance(operator, Operator):
        got = f"the class {operator.__name__}" if isinstance(operator, type) else f"a {type(operator).__name__}"
        hint = "an instance of it" if isinstance(operator, type) else "as_operator(function)"
        raise ConfigError("no operator", expected="an Operator", got=got, hint=hint)
    return operator


def _restored(pictures: list[Tensor], fits: list[Fit], settings: Settings, seconds: float) -> Restored:
    stack = torch.cat(pictures)
    uncertainty = stack.std(0).mean(0) if len(pictures) > 1 else None
    runs = tuple(fit.summary for fit in fits)
    moments = tuple(moment for fit in fits for moment in fit.moments)
    trajectory = Trajectory(_findings(runs, settings), moments, runs, fits[0].rule.name)
    return Restored(stack.mean(0), uncertainty, trajectory, runs[-1].stop_step, runs[-1].reason, seconds)


def _findings(runs: tuple[Run, ...], settings: Settings) -> tuple[Finding, ...]:
    found = [
        Finding("note", f"Seed {r.seed}: the picture of step {r.stop_step} of {r.last_step}; {r.reason}.") for r in runs
    ]
    if settings.stop != "never" and any(r.reason == "all steps done" for r in runs):
        hint = "The rule had no reason to stop before the last step: more steps may give a better picture."
        found.append(Finding("note", hint))
    if any("time limit" in r.reason for r in runs):
        found.append(Finding("warning", "The time limit ended the fit: with more time the picture becomes better."))
    if any(r.n_reverts for r in runs):
        found.append(Finding("warning", "The loss jumped and was taken back: a smaller learning_rate is safer."))
    return tuple(found)


def _checked(image: Tensor, operator: Operator) -> Tensor:
    check_floating(image, "restore")
    if image.ndim not in (3, 4) or (image.ndim == 4 and image.shape[0] != 1) or not image.numel():
        expected = "(channels, height, width) or (1, channels, height, width)"
        raise ShapeError("restore takes one picture", expected=expected, got=describe(image))
    if image.shape[-3] > MOST_CHANNELS:
        hint = "image.permute(2, 0, 1), if channels came last"
        raise ShapeError("too many channels", expected="(channels, height, width)", got=describe(image), hint=hint)
    if image.shape[-1] * image.shape[-2] < SMALLEST:
        raise ShapeError("too small a picture", expected=f"{SMALLEST} pixels or more", got=describe(image))
    measured = image.detach().float()
    measured = measured if measured.ndim == 4 else measured.unsqueeze(0)
    seen = operator.start(measured) if isinstance(operator, Mask) else measured
    check_finite(seen, "the picture to restore")
    low, high = float(measured.nan_to_num().min()), float(measured.nan_to_num().max())
    if low < -2 or high > 3:
        hint = "image / 255"
        raise RangeError("no picture", expected="values in [0, 1]", got=f"{low:g} to {high:g}", hint=hint)
    if seen.min() == seen.max():
        hint = "is it the right file? There is nothing to restore in it"
        raise RangeError(
            "the picture is constant", expected="several values", got=f"{float(seen.max()):g} only", hint=hint
        )
    return measured.contiguous(memory_format=torch.channels_last)


def _check_options(sigma: float | None, n_seeds: int, seconds: float | None) -> None:
    numbers = {"sigma": sigma, "n_seeds": n_seeds, "seconds": seconds}
    for name, value in numbers.items():
        if isinstance(value, str):
            hint = "estimate_sigma(image)" if name == "sigma" else "a number"
            raise ConfigError(f"{name} is a text", expected="a number or None", got=repr(value), hint=hint)
    if sigma is not None and not 0 < sigma < 1:
        hint = "sigma / 255 if it is meant for 8-bit values; None: no noise"
        raise ConfigError("no noise level", expected="0 < sigma < 1, in units of the pixel range", got=sigma, hint=hint)
    if not isinstance(n_seeds, int) or n_seeds < 1:
        raise ConfigError("nothing to do", expected="n_seeds >= 1", got=n_seeds)
    if seconds is not None and not seconds > 0:
        raise ConfigError("no time", expected="seconds > 0", got=seconds)


def _truth(truth: Tensor, shape: tuple[int, ...]) -> Tensor:
    found = truth if truth.ndim == 4 else truth.unsqueeze(0)
    if tuple(found.shape) != (1, *shape):
        raise ShapeError("the truth has another shape", expected=shape, got=describe(truth))
    check_finite(found, "the truth")
    if found.min() < -2 or found.max() > 3:
        raise RangeError("no picture as truth", expected="values in [0, 1]", got=f"up to {float(found.max()):g}")
    return found.detach().float()


def _fresh(
    network: str | nn.Module | Callable[[], nn.Module],
    channels: int,
    size: tuple[int, int],
    seed: int,
    device: torch.device,
) -> Prior:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        prior = make_prior(network, channels, size).to(device=device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    prior.train().requires_grad_(True)
    check_prior(prior, prior.draw(size, torch.Generator(device).manual_seed(seed)), (1, channels, *size))
    return prior


@contextmanager
def _enough_memory(measured: Tensor) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error)
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in text:
            raise
        hint = "tiles (`restore.tiled`, on the command line --tile), or a smaller network"
        raise ConfigError("not enough memory", got=f"a picture of {describe(measured)}", hint=hint) from error

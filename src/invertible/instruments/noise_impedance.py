"""Noise impedance: how much faster an untrained network learns a picture than it learns noise."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from invertible._checks import check_finite, check_floating, describe
from invertible.errors import ConfigError, NonFiniteError, ShapeError
from invertible.instruments._compare_plot import Curve
from invertible.instruments.feeding import Bar, check_budget
from invertible.instruments.provenance import Fingerprint, Stopwatch, provenance
from invertible.instruments.result import Finding, Result, Row
from invertible.instruments.untouched import untouched

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TARGETS = ("image", "image + noise", "shuffled pixels", "uniform noise")
"""What is learnt, as in the paper's figure."""


@dataclass(frozen=True)
class NoiseImpedance(Result):
    """How the loss falls on a picture, on the picture with noise, on its shuffled pixels and on noise.

    Args:
        losses: By target, the mean squared error before each step and after the last, divided by the target's variance
            (1: nothing learnt but the mean).
        half_steps: By target, the first step at which half of the variance is learnt; None: never.
        control: The same losses' half-step for the image without a network: its pixels are the parameters.
        noise: Standard deviation of the noise added to the image, in the image's units.
    """

    losses: dict[str, tuple[float, ...]]
    half_steps: dict[str, int | None]
    control: dict[str, int | None]
    noise: float

    @property
    def impedance(self) -> float:
        """Steps that uniform noise needs for half of its variance, over those that the image needs; infinite: never."""
        image, noise = self.half_steps["image"], self.half_steps["uniform noise"]
        if image is None:
            return math.nan
        return math.inf if noise is None else noise / max(image, 1)

    @property
    def table(self) -> list[Row]:
        """A row a step and target."""
        return [
            {"target": target, "step": step, "loss": loss}
            for target, losses in self.losses.items()
            for step, loss in enumerate(losses)
        ]

    @property
    def curves(self) -> Mapping[str, Curve]:
        """The loss by target."""
        return {
            target: Curve(tuple(map(float, range(len(losses)))), losses, "step", f"loss / variance: {target}", log=True)
            for target, losses in self.losses.items()
        }

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the losses.

        Args:
            ax: Where; None: on a new figure.

        Returns:
            The axes.
        """
        import matplotlib.pyplot as plt

        ax = plt.subplots(figsize=(6, 4), layout="constrained")[1] if ax is None else ax
        for target, losses in self.losses.items():
            ax.plot(losses, label=target)
        ax.axhline(0.5, color="0.7", linestyle=":", linewidth=1)
        ax.set(xlabel="step", ylabel="loss / variance of the target", yscale="log")
        ax.legend()
        return ax


def noise_impedance(
    network: nn.Module,
    image: Tensor,
    *,
    inputs: Tensor | int | None = None,
    steps: int = 400,
    learning_rate: float = 0.01,
    noise: float = 25 / 255,
    output: Callable[[Tensor], Tensor] | None = None,
    seconds: float | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> NoiseImpedance:
    """Fit copies of an untrained network to a picture and to noise, and watch which goes faster.

    The network is not touched: each target is learnt by a copy of it, from the same weights, by Adam. The control has
    no network at all, only pixels: there every target goes equally fast.

    Args:
        network: From noise, shape (1, in_channels, height, width), to a picture of the image's shape.
        image: Shape (channels, height, width) or (1, channels, height, width), floating point.
        inputs: The noise it reads, or its number of channels; None: as many as the first convolution takes. Drawn
            uniformly from [0, 0.1), as the paper does.
        steps: For each target.
        learning_rate: Of Adam.
        noise: Standard deviation of the noise that is added to the image, in the image's units.
        output: Applied to what the network returns, e.g. torch.sigmoid; None: nothing is.
        seconds: For all targets together; None: no limit. What ran is compared as far as the shortest got.
        seed: Of noise and shuffling.
        quiet: Show no bar.

    Returns:
        The losses, and how long half of each target's variance took.

    Raises:
        ConfigError: If an option is out of range, or the number of input channels cannot be told.
        ShapeError: If the network makes a picture of another shape.
        NonFiniteError: If the image or a loss is not finite.

    Source: Ulyanov, Vedaldi & Lempitsky 2018, figure 2.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(4, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 1, 1))
        >>> image = torch.linspace(0, 1, 16).expand(1, 16, 16)
        >>> sorted(noise_impedance(network, image, steps=5).losses)
        ['image', 'image + noise', 'shuffled pixels', 'uniform noise']
    """
    check_budget("noise_impedance", None, seconds)
    _check_options(steps, learning_rate, noise)
    picture, watch = _picture(image), Stopwatch()
    with untouched(network), torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
        device = next((p.device for p in network.parameters()), picture.device)
        dtype = next((p.dtype for p in network.parameters()), picture.dtype)
        picture = picture.to(device, dtype)
        generator = torch.Generator().manual_seed(seed)
        read = _inputs(network, inputs, picture, generator).to(device, dtype)
        targets = _targets(picture, noise, generator)
        bar, losses = Bar("noise_impedance", stack, quiet), {}
        for k, (name, target) in enumerate(targets.items()):
            limit = None if seconds is None else seconds * (k + 1) / len(targets)

            def late(done: int, k: int = k, limit: float | None = limit) -> bool:
                bar(watch.seconds, (k + done / steps) / len(targets))
                return limit is not None and watch.seconds > limit

            made = _through(copy.deepcopy(network).train().requires_grad_(True), read, output)
            losses[name] = _fit(*made, target, steps, learning_rate, late)
        n_done = max(min(len(curve) for curve in losses.values()) - 1, 1)
        control = {
            n: _half(_fit(*_pixels(picture), t, n_done, learning_rate, lambda _: False)) for n, t in targets.items()
        }
        stopped = f"seconds={seconds:g}" if any(len(curve) <= steps for curve in losses.values()) else ""
        data = Fingerprint()
        data.add([picture])
        found = provenance(network, watch, seed=seed, data=data.digest(), n_examples=1, stopped=stopped)
    half = {name: _half(curve) for name, curve in losses.items()}
    return NoiseImpedance(_findings(half, control, losses), losses, half, control, noise, provenance=found)


def _check_options(steps: int, learning_rate: float, noise: float) -> None:
    if steps < 1:
        raise ConfigError("noise_impedance has nothing to do", expected="steps >= 1", got=steps)
    if not 0 < learning_rate < math.inf or not 0 < noise < math.inf:
        got = f"learning_rate={learning_rate}, noise={noise}"
        raise ConfigError("noise_impedance cannot run so", expected="numbers above 0", got=got)


def _picture(image: Tensor) -> Tensor:
    check_floating(image, "noise_impedance")
    if image.ndim not in (3, 4) or (image.ndim == 4 and image.shape[0] != 1) or not image.numel():
        expected = "one picture: (channels, height, width) or (1, channels, height, width)"
        raise ShapeError("noise_impedance takes a picture", expected=expected, got=describe(image))
    check_finite(image, "the picture")
    if image.min() == image.max():
        raise ConfigError("the picture is constant", expected="several values", got=f"{float(image.max()):g} only")
    picture = image.detach().clone()
    return picture if picture.ndim == 4 else picture.unsqueeze(0)


def _inputs(network: nn.Module, inputs: Tensor | int | None, picture: Tensor, generator: torch.Generator) -> Tensor:
    if isinstance(inputs, Tensor):
        return inputs.detach().clone()
    if inputs is None:
        first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
        if first is None:
            hint = "inputs=, the noise or its number of channels"
            raise ConfigError("what does the network read?", expected="a Conv2d in it", got="none", hint=hint)
        inputs = first.in_channels
    if inputs < 1:
        raise ConfigError("the network reads nothing", expected="inputs >= 1 channels", got=inputs)
    return 0.1 * torch.rand(1, inputs, *picture.shape[2:], generator=generator)


def _targets(picture: Tensor, noise: float, generator: torch.Generator) -> dict[str, Tensor]:
    height, width = picture.shape[2:]
    order = torch.randperm(height * width, generator=generator).to(picture.device)
    gauss = torch.randn(picture.shape, generator=generator).to(picture)
    uniform = torch.rand(picture.shape, generator=generator).to(picture)
    shuffled = picture.flatten(2)[..., order].view_as(picture)
    low, high = picture.min(), picture.max()
    return dict(zip(TARGETS, (picture, picture + noise * gauss, shuffled, low + (high - low) * uniform), strict=True))


def _through(
    network: nn.Module, inputs: Tensor, output: Callable[[Tensor], Tensor] | None
) -> tuple[Callable[[], Tensor], list[nn.Parameter]]:
    def make() -> Tensor:
        made = network(inputs)
        return made if output is None else output(made)

    return make, list(network.parameters())


def _pixels(picture: Tensor) -> tuple[Callable[[], Tensor], list[nn.Parameter]]:
    pixels = nn.Parameter(picture.mean().expand_as(picture).clone())
    return lambda: pixels, [pixels]


def _fit(
    make: Callable[[], Tensor],
    parameters: list[nn.Parameter],
    target: Tensor,
    steps: int,
    learning_rate: float,
    late: Callable[[int], bool],
) -> tuple[float, ...]:
    if not parameters:
        raise ConfigError("there is nothing to train", expected="a network with parameters", got="none")
    optimizer, scale = torch.optim.Adam(parameters, lr=learning_rate), target.var(correction=0)
    losses = []
    for step in range(steps + 1):
        made = make()
        if made.shape != target.shape:
            raise ShapeError("the network makes another picture", expected=tuple(target.shape), got=describe(made))
        loss = (made - target).square().mean() / scale
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            hint = "a smaller learning_rate"
            raise NonFiniteError("the fit diverged", got=f"a loss of {losses[-1]} at step {step}", hint=hint)
        if step == steps or late(step):
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return tuple(losses)


def _half(losses: tuple[float, ...]) -> int | None:
    return next((step for step, loss in enumerate(losses) if loss <= 0.5), None)


def _findings(
    half: dict[str, int | None], control: dict[str, int | None], losses: dict[str, tuple[float, ...]]
) -> tuple[Finding, ...]:
    image, noise = half["image"], half["uniform noise"]
    never = f"more than {min(map(len, losses.values())) - 1}"
    if image is None:
        text = f"Half of the image's variance takes {never} steps: more steps (or seconds), or a larger learning_rate."
        return (Finding("warning", text),)
    slower = noise is None or noise > 1.5 * image
    verdict = "it resists noise" if slower else "it learns noise as fast as the image: no prior for images"
    text = (
        f"Half of the variance is learnt in {image} steps for the image, {noise or never} for uniform noise: {verdict}."
    )
    pixels = f"{control['image'] or never} and {control['uniform noise'] or never}"
    return (
        Finding("note" if slower else "warning", text),
        Finding("note", f"Without a network (pixels as parameters) it takes {pixels} steps."),
    )

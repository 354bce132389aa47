"""Memorisation (Zhang et al. 2017): the battery on several networks side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from invertible.errors import ConfigError
from invertible.instruments import Memorization, SGDFit, memorization
from invertible.instruments.memorization import joined
from invertible.instruments.result import Finding, Result, Row
from invertible.models import build
from invertible.train.experiments._images import Labelled, train_and_test
from invertible.train.recipe import DataConfig

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Name = Literal["true labels", "random labels", "shuffled pixels", "random pixels", "gaussian pixels"]
NAMES: list[Name] = ["true labels", "random labels", "shuffled pixels", "random pixels", "gaussian pixels"]


@dataclass
class NetConfig:
    """One network of the battery.

    Args:
        label: What it is called in tables.
        name: A name from `invertible.models.names()`.
        arguments: What its constructor gets, beside `in_shape` and `n_classes`, which are the data's.
        lr: Learning rate of the first epoch: the paper has 0.1 for Inception, 0.01 for AlexNet and the MLPs.
    """

    label: str = "MLP 1x512"
    name: str = "mlp"
    arguments: dict[str, Any] = field(default_factory=lambda: {"hidden": [512]})
    lr: float = 0.1


@dataclass
class FitConfig:
    """How every network of the battery is trained.

    Args:
        epochs: At most so many; a training ends when it has fitted.
        batch_size: Images per step.
        momentum: Of the gradients.
        decay: Factor on the learning rate from epoch to epoch; the paper has 0.95, for 50,000 images.
        weight_decay: The paper's figures that are compared have none.
    """

    epochs: int = 150
    batch_size: int = 128
    momentum: float = 0.9
    decay: float = 0.99
    weight_decay: float = 0.0

    def sgd(self, lr: float) -> SGDFit:
        """The training with a learning rate.

        Args:
            lr: It.

        Returns:
            The fit function.
        """
        return SGDFit(self.epochs, self.batch_size, lr, self.momentum, self.decay, self.weight_decay)


@dataclass
class BatteryOptions:
    """Options of `memorization_battery`.

    Args:
        data: Images with labels.
        side: Keep only a square of so many pixels in the middle; null: whole images. The paper has 28, of CIFAR.
        n_test: Only the first so many test images; null: all.
        nets: Networks.
        conditions: Which, beside corrupted labels.
        corruptions: Shares of labels to be drawn anew.
        seeds: Of draws, weights and orders: one training of each for each.
        fit: How networks are trained.
        normalise: "global", "pixel", "image" (the paper's) or "none".
        every: Measure after every so manieth epoch.
    """

    data: DataConfig = field(default_factory=DataConfig)
    side: int | None = None
    n_test: int | None = None
    nets: list[NetConfig] = field(default_factory=lambda: [NetConfig()])
    conditions: list[Name] = field(default_factory=lambda: list(NAMES))
    corruptions: list[float] = field(default_factory=lambda: [0.25, 0.5, 0.75])
    seeds: list[int] = field(default_factory=lambda: [0])
    fit: FitConfig = field(default_factory=FitConfig)
    normalise: Literal["global", "pixel", "image", "none"] = "global"
    every: int = 1

    def __post_init__(self) -> None:
        labels = [net.label for net in self.nets]
        if not labels or len(set(labels)) < len(labels):
            raise ConfigError("bad networks", expected="one or more, each with a label of its own", got=labels)
        if not self.seeds or not [*self.conditions, *self.corruptions]:
            raise ConfigError("nothing to train", expected="seeds and conditions or corruptions", got="none")
        if self.side is not None and self.side < 1:
            raise ConfigError("no such square", expected="side >= 1", got=self.side)


@dataclass(frozen=True)
class Battery(Result):
    """What `memorization_battery` found.

    Args:
        findings: Worst first.
        nets: Names of the networks.
        batteries: What each did.
    """

    nets: tuple[str, ...]
    batteries: tuple[Memorization, ...]

    @property
    def table(self) -> list[Row]:
        """One row per network and condition: "net", "parameters", and those of `memorization`."""
        pairs = zip(self.nets, self.batteries, strict=True)
        return [{"net": net, "parameters": b.n_parameters, **row} for net, b in pairs for row in b.table]

    @property
    def slow_down(self) -> float | str:
        """Epochs to fit random labels over those to fit true ones, of the first network."""
        found = {trained.condition.name: trained for trained in self.batteries[0].conditions}
        true, random = found.get("true labels"), found.get("random labels")
        if true is None or random is None or not (true.is_fitted and random.is_fitted):
            return "not fitted"
        return random.epochs_to_fit.mean / true.epochs_to_fit.mean

    @property
    def pictures(self) -> Mapping[str, Callable[[], Figure]]:
        """The four panels of each network, by its name."""
        pairs = zip(self.nets, self.batteries, strict=True)
        return {f"net-{net.lower().replace(' ', '-').replace(',', '')}": _panels(b) for net, b in pairs}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the test error against the share of corrupted labels, a network a line.

        Args:
            ax: Where; None: on a new figure.

        Returns:
            The axes.
        """
        first, *others = self.batteries
        axes = first.compare(*others, labels=self.nets, curve="test error", ax=ax)
        axes.set(title="what is left to generalise", ylim=(-0.02, 1.02))
        return axes


def memorization_battery(options: BatteryOptions, *, out: Path | None = None, quiet: bool = False) -> Battery:
    """Train networks on true labels, on random ones and on spoilt pixels.

    Args:
        options: What to train, and on what.
        out: Where each finished training is kept, so that a stopped battery goes on.
        quiet: Show no progress.

    Returns:
        Times to fit and accuracies.

    Source: Zhang et al. 2017, "Understanding deep learning requires rethinking generalization", figure 1 and table 1.

    Example:
        >>> small = [NetConfig("small", "mlp", {"hidden": [16]})]
        >>> few = BatteryOptions(DataConfig("digits", n_train=64), nets=small, corruptions=[], fit=FitConfig(epochs=2))
        >>> [row["condition"] for row in memorization_battery(few, quiet=True).table][:2]
        ['true labels', 'random labels']
    """
    train, test = (cropped(images, options.side) for images in train_and_test(options.data, options.n_test))
    batteries = tuple(_of_one(net, options, (train, test), out, quiet) for net in options.nets)
    names = tuple(net.label for net in options.nets)
    return Battery(_findings(names, batteries), names, batteries, provenance=batteries[0].provenance)


def factory(name: str, arguments: Mapping[str, Any], data: Labelled, n_classes: int) -> Callable[[], nn.Module]:
    """What makes a network for images.

    Args:
        name: Of the model.
        arguments: Of its constructor, without the shape of images and the number of classes.
        data: The images, with labels.
        n_classes: How many classes there are.

    Returns:
        A function without arguments.
    """
    given = {"in_shape": list(data[0].shape[1:]), "n_classes": n_classes, **arguments}
    return lambda: build(name, **given)


def count_classes(*sets: Labelled) -> int:
    """How many classes labels have.

    Args:
        *sets: Images with labels.

    Returns:
        The largest label and one.
    """
    return max(int(labels.max()) for _, labels in sets) + 1


def cropped(images: Labelled, side: int | None) -> Labelled:
    """The middle of images.

    Args:
        images: With labels.
        side: Of the square, pixels; None: all.

    Returns:
        They, with labels.

    Raises:
        ConfigError: If they are smaller.
    """
    if side is None:
        return images
    height, width = images[0].shape[2:]
    if min(height, width) < side:
        raise ConfigError("images are smaller than the crop", expected=f"{side}x{side}", got=f"{height}x{width}")
    top, left = (height - side) // 2, (width - side) // 2
    return images[0][:, :, top : top + side, left : left + side].contiguous(), images[1]


def _of_one(
    net: NetConfig, options: BatteryOptions, data: tuple[Labelled, Labelled], out: Path | None, quiet: bool
) -> Memorization:
    n_classes = count_classes(*data)
    make, fit = factory(net.name, net.arguments, data[0], n_classes), options.fit.sgd(net.lr)
    parts = []
    for i, (seed, named, corruptions) in enumerate(_units(options)):
        file = None if out is None else out / f"{_file_name(net.label)}-{i}.json"
        if file is not None and file.exists():
            parts.append(Memorization.load(file))
            continue
        found = memorization(
            make, fit, data, conditions=named, corruptions=corruptions, seeds=(seed,), normalise=options.normalise,
            n_classes=n_classes, every=options.every, quiet=quiet,
        )  # fmt: skip
        if file is not None:
            found.save(file)
        parts.append(found)
    return joined(parts)


def _units(options: BatteryOptions) -> Iterator[tuple[int, Sequence[str], Sequence[float]]]:
    for seed in options.seeds:
        yield from ((seed, (name,), ()) for name in options.conditions)
        yield from ((seed, (), (p,)) for p in options.corruptions)


def _file_name(label: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in label.lower())


def _panels(found: Memorization) -> Callable[[], Figure]:
    def draw() -> Figure:
        figure = found.plot().get_figure(root=True)
        if figure is None:
            raise ConfigError("the picture has no figure", expected="axes on a figure", got="none")
        return figure

    return draw


def _findings(names: Sequence[str], batteries: Sequence[Memorization]) -> tuple[Finding, ...]:
    return tuple(
        replace(finding, sentence=f"{name}: {finding.sentence}", row=None)
        for name, battery in zip(names, batteries, strict=True)
        for finding in battery.findings
    )

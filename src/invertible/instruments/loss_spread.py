"""Do wide networks all end at the same loss? Many small networks per width, as in Choromanska et al. 2015."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from invertible.errors import ConfigError, ShapeError
from invertible.instruments._compare_plot import Curve
from invertible.instruments._labelled import labelled
from invertible.instruments._loss_spread_findings import findings_of
from invertible.instruments._loss_spread_measure import Examples, Plan, default_threads, trained
from invertible.instruments._loss_spread_plot import draw
from invertible.instruments._loss_spread_rows import Width, width_of
from invertible.instruments._many_mlps import Activation
from invertible.instruments._many_mlps_train import Training
from invertible.instruments.feeding import Bar, check_budget
from invertible.instruments.provenance import Fingerprint, Stopwatch, provenance
from invertible.instruments.result import Result, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = "loss_spread"
WIDTHS = (25, 50, 100, 250, 500)


@dataclass(frozen=True)
class LossSpread(Result):
    """What `loss_spread` found.

    Args:
        findings: Worst first.
        widths: One per width, narrowest first.
        n_train: Training examples.
        n_test: Test examples.
        n_epochs: Of training.
        zero: Eigenvalues within it counted as zero.
    """

    widths: tuple[Width, ...]
    n_train: int
    n_test: int
    n_epochs: int
    zero: float

    @property
    def table(self) -> list[Row]:
        """One row per width: losses, spread and correlation with intervals; `widths` has the losses of each network."""
        return [found.row() for found in self.widths]

    @property
    def curves(self) -> dict[str, Curve]:
        """Against the width "spread", the standard deviation of the test loss, and "rho", its correlation to train."""
        x = tuple(float(found.width) for found in self.widths)
        spreads = tuple(found.spread.value for found in self.widths)
        rhos = tuple(found.rho.value for found in self.widths)
        return {
            "spread": Curve(x, spreads, "units of the hidden layer", "std of the test loss, nats", log=True),
            "rho": Curve(x, rhos, "units of the hidden layer", "correlation of train and test loss"),
        }

    def joined(self, *others: LossSpread) -> LossSpread:
        """Put results of different widths together, as if they had been measured at once.

        Args:
            *others: Of the same data and options.

        Returns:
            One result, with findings over all.

        Raises:
            ConfigError: If they are of other data or training, or share a width.
        """
        about = {(r.n_train, r.n_test, r.n_epochs, r.zero, r.provenance and r.provenance.data) for r in (self, *others)}
        if len(about) > 1:
            raise ConfigError(
                "results cannot be joined", expected="the same data and training", got=f"{len(about)} kinds"
            )
        found = sorted((w for result in (self, *others) for w in result.widths), key=lambda w: w.width)
        _check_widths([w.width for w in found])
        return replace(self, findings=findings_of(found, self.zero, ""), widths=tuple(found))

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the distribution of the test loss for each width, with the correlation beside it.

        Args:
            ax: Where, for the distributions alone; None: on a new figure with both.

        Returns:
            The axes of the distributions.
        """
        return draw(ax, self.widths)


def loss_spread(
    train: Any,
    test: Any,
    *,
    widths: Sequence[int] = WIDTHS,
    n_networks: int = 1000,
    side: int | None = None,
    n_epochs: int = 20,
    lr: float = 0.1,
    batch_size: int = 100,
    momentum: float = 0.9,
    decay: float = 0.8,
    activation: Activation = "relu",
    n_index: int = 3,
    index_up_to: int = 3000,
    zero: float = 1e-3,
    n_threads: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> LossSpread:
    """Train many networks of each width, alike but for their random numbers, and compare where they end.

    Networks have one hidden layer. Initial weights and the order of the minibatches differ from network to network;
    network i of a width is the same whatever `n_networks` is. The networks of a width are trained as one computation.

    Args:
        train: (images, labels), or whatever else `feeding.Feed` takes that has labels.
        test: Likewise; other examples of the same classes.
        widths: Units of the hidden layer.
        n_networks: Per width.
        side: Images are averaged down to so many pixels a side; None: as they are. All are scaled to mean 0 and
            variance 1 over all pixels of the training images.
        n_epochs: How often each network sees its data.
        lr: Learning rate of the first epoch.
        batch_size: Examples of a step.
        momentum: Of SGD.
        decay: The rate is multiplied by it after every epoch.
        activation: Of the hidden layer.
        n_index: At how many networks per width the Hessian of the training loss is built.
        index_up_to: Only for networks of at most so many parameters; it takes time as their number cubed.
        zero: Eigenvalues within it count as zero.
        n_threads: Parts that train at the same time; None: as many as PyTorch has threads.
        seconds: Stop after the part of the networks during which so much time ran out; widths that were not reached
            are left out.
        seed: Of all networks.
        quiet: Show no progress.

    Returns:
        A `LossSpread`: losses of all networks, spread and correlation with bootstrap intervals, findings.

    Raises:
        ConfigError: If an option is wrong, there are no labels, or one class only.
        ShapeError: If train and test differ in size, or images cannot be reduced.
        NonFiniteError: If data hold NaN, or a network diverges.
        DataError: If there are no data.

    Source: Choromanska, Henaff, Mathieu, Ben Arous and LeCun 2015, "The loss surfaces of multilayer networks",
    section 5.

    Example:
        >>> x = torch.randn(80, 6, generator=torch.Generator().manual_seed(0))
        >>> data = x[:40], (x[:40, 0] > 0).long()
        >>> found = loss_spread(data, (x[40:], (x[40:, 0] > 0).long()), widths=(2, 8), n_networks=20, n_epochs=5)
        >>> [row["n_parameters"] for row in found.table], found.widths[0].spread.value > found.widths[1].spread.value
        ([20, 74], True)
    """
    training = Training(n_epochs, lr, batch_size, momentum, decay=decay)
    plan = Plan(n_networks, training, activation, n_index, index_up_to, zero, n_threads or default_threads(), seed)
    plan.check()
    check_budget(NAME, None, seconds)
    _check_widths(widths)
    with torch.inference_mode(False):
        examples = _examples(train, test, side)
        watch = Stopwatch()
        found, stopped = _measure(sorted(widths), examples, plan, watch, seconds, quiet)
    fingerprint = Fingerprint()
    fingerprint.add([examples.x, examples.y, examples.test_x, examples.test_y])
    n_examples = len(examples.x) + len(examples.test_x)
    origin = provenance(
        nn.Identity(), watch, seed=seed, data=fingerprint.digest(), n_examples=n_examples, stopped=stopped
    )  # fmt: skip
    sizes = len(examples.x), len(examples.test_x), n_epochs, zero
    return LossSpread(findings_of(found, zero, stopped), tuple(found), *sizes, provenance=origin)


def _measure(
    widths: Sequence[int], examples: Examples, plan: Plan, watch: Stopwatch, seconds: float | None, quiet: bool
) -> tuple[list[Width], str]:
    found: list[Width] = []
    stopped = ""
    with ExitStack() as stack:
        bar = Bar(NAME, stack, quiet)
        for i, width in enumerate(widths):
            start, whole = watch.seconds, sum(widths)

            def after_part(n_done: int, width: int = width, before: int = sum(widths[:i]), whole: int = whole) -> bool:
                bar(watch.seconds, (before + width * n_done / plan.n_networks) / whole)
                return seconds is None or watch.seconds < seconds

            losses, indices = trained(width, examples, plan, after_part)
            sizes = (examples.x.shape[1] + 1) * width + (width + 1) * examples.n_classes
            found.append(width_of(width, sizes, losses, indices, watch.seconds - start, plan.seed))
            n_done = losses.shape[1]
            if seconds is not None and watch.seconds >= seconds and (n_done < plan.n_networks or i < len(widths) - 1):
                stopped = f"seconds={seconds:g}, after {n_done} of {plan.n_networks} networks of width {width}"
                break
    return found, stopped


def _examples(train: Any, test: Any, side: int | None) -> Examples:
    x, y = labelled(NAME, train, side)
    test_x, test_y = labelled(NAME, test, side)
    if x.shape[1] != test_x.shape[1]:
        got = f"{x.shape[1]} and {test_x.shape[1]}"
        raise ShapeError("train and test examples differ", expected="as many numbers in each", got=got)
    mean, scale = x.mean(), x.std()
    if not scale > 0:
        raise ConfigError("training images are all alike", expected="values that differ", got=f"{mean.item():g} alone")
    return Examples((x - mean) / scale, y, (test_x - mean) / scale, test_y)


def _check_widths(widths: Sequence[int]) -> None:
    if not widths or min(widths) < 1 or len(set(widths)) < len(widths):
        raise ConfigError(f"{NAME} has bad widths", expected="different whole numbers from 1", got=tuple(widths))

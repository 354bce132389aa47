"""What a network keeps and separates with depth: the analyses of i-RevNet (Jacobsen, Smeulders and Oyallon 2018)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from invertible.errors import ConfigError
from invertible.instruments._compare_plot import Curve
from invertible.instruments._depth_curves import curves_of
from invertible.instruments._depth_findings import Circumstances, findings_of
from invertible.instruments._depth_measure import Measurement, Options
from invertible.instruments._depth_plot import draw_contraction, draw_dimensions, draw_panels, draw_similarity
from invertible.instruments._depth_plot import draw_separation as _draw_separation
from invertible.instruments._depth_rows import Depth
from invertible.instruments._moments import Axis
from invertible.instruments.feeding import Feed
from invertible.instruments.result import Result, Row
from invertible.instruments.taps import Layers
from invertible.instruments.untouched import Mode, measuring

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = "depth_profile"
Untrained = nn.Module | Callable[[], nn.Module] | Literal["auto", "reset", "none"]


@dataclass(frozen=True)
class DepthProfile(Result):
    """What `depth_profile` found.

    Args:
        findings: Worst first.
        depths: The network's input, then each place in the order they came.
        model: The network's class.
        chance: Share of the largest class: the accuracy of who always says it.
        n_classes: How many classes the examples have.
        n_folds: Of the cross-validation.
        n_projected: Dimensions of the random projection, the same at every place.
        untrained: What the untrained network was: "reset", "given", or why there is none.
    """

    depths: tuple[Depth, ...]
    model: str
    chance: float
    n_classes: int
    n_folds: int
    n_projected: int
    untrained: str

    @property
    def table(self) -> list[Row]:
        """One row per place; accuracies with the ends of their 95 % intervals over folds."""
        return [depth.row() for depth in self.depths]

    @property
    def components(self) -> list[Row]:
        """One row per place and number of principal components: the accuracies on them."""
        return [
            {"place": depth.name, "n_components": found.n, "svm": found.svm.mean, "nearest": found.nearest.mean}
            for depth in self.depths
            for found in depth.components
        ]

    @property
    def curves(self) -> dict[str, Curve]:
        """What `compare` draws.

        Against depth "SVM", "nearest neighbour" (the paper's figure 6), both "after projection", the contraction
        "ratio", "CKA to the input", "CKA to the output"; "SVM on components" and "nearest neighbour on components"
        at the last place (figure 7).
        """
        return curves_of(self.depths)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the paper's figures 6 and 7 and what goes with them.

        Args:
            ax: Where figure 6 goes, alone; None: on a new figure with six panels: figure 6 with its controls, the same
                after a random projection, figure 7, contraction, CKA, dimensions.

        Returns:
            The axes of figure 6.
        """
        return draw_panels(self.depths, self.chance, self.model) if ax is None else self.plot_separation(ax)

    def plot_separation(self, ax: Axes, is_projected: bool = False) -> Axes:
        """Draw accuracies against depth with their controls: figure 6.

        Args:
            ax: Where.
            is_projected: Whether to draw those after the random projection.

        Returns:
            The axes.
        """
        return _draw_separation(ax, self.depths, self.chance, is_projected)

    def plot_dimensions(self, ax: Axes) -> Axes:
        """Draw accuracies against the number of principal components, a line per place: figure 7.

        Args:
            ax: Where.

        Returns:
            The axes.
        """
        return draw_dimensions(ax, self.depths, self.chance)

    def plot_contraction(self, ax: Axes) -> Axes:
        """Draw the squared distance within classes over that between them.

        Args:
            ax: Where.

        Returns:
            The axes.
        """
        return draw_contraction(ax, self.depths)

    def plot_similarity(self, ax: Axes) -> Axes:
        """Draw CKA to the input and to the output.

        Args:
            ax: Where.

        Returns:
            The axes.
        """
        return draw_similarity(ax, self.depths)


def depth_profile(
    model: nn.Module,
    data: Any,
    *,
    layers: Layers = "auto",
    untrained: Untrained = "auto",
    n_examples: int = 1000,
    n_folds: int = 5,
    penalties: Sequence[float] = (0.1,),
    n_projected: int | None = None,
    standardize: bool = True,
    channel_axis: Axis = "auto",
    mode: Mode = "eval",
    batch_fn: Callable[[Any], Any] | None = None,
    batches: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> DepthProfile:
    """Measure at each place how well classes can be told apart, in how many dimensions, and what is left of the input.

    At each place the representation is averaged over space. On these features, with each brought to mean 0 and variance
    1 on the training part: accuracy of a linear SVM and of the nearest neighbour on held-out folds; the same on the
    first principal components and after a random projection; principal components that hold 90, 95, 99 % of the
    variance (of all examples). Mean squared distances within and between classes, over all pairs, and the l2 norm are
    those of the features as they are. Debiased linear CKA compares the whole representation to input and output.

    Controls: the same network untrained, shuffled labels, and the projection of every place to equally many dimensions,
    without which wider places win. Intervals are 95 % over folds and know nothing of other seeds of the training.

    Examples that the network was trained on separate better than new ones: give it test data. For shuffled labels and
    folds there have to be some of each class, so data must not come sorted.

    Args:
        model: Any module. It is left as it is, to the bit.
        data: Batches (x, y) or dicts with labels: whatever `feeding.Feed` takes, with labels 0, 1, ... of shape (n,).
        layers: Where to listen, as in `find_taps`: "auto" takes the blocks.
        untrained: "reset": the network itself with `reset_parameters` of all its layers, PyTorch's defaults, and
            BatchNorm with statistics of the data; "auto": the same where every layer has it; "none"; or a network, or
            a function that makes one, with the same names (better, where the network has an initialisation of its own).
        n_examples: At most so many are used.
        n_folds: Folds; fewer if the smallest class has fewer examples.
        penalties: C of the SVM; of several the best is taken, by cross-validation within the training part.
        n_projected: Dimensions of the random projection; None: the width of the narrowest place, the input aside.
        standardize: Whether features are brought to variance 1 before SVM, nearest neighbour and principal components.
        channel_axis: Which dimension the channels are, as in `signal_propagation`; all others are averaged.
        mode: "eval", "train" or "as is".
        batch_fn: Makes of each batch what the network takes, with labels.
        batches: At most so many.
        seconds: About so long: half for the network, half for the probes, which begin with every other place.
        seed: Of folds, shuffling, projection and untrained weights.
        quiet: Show no progress.

    Returns:
        Figures per place, with findings; see `DepthProfile` and its `depths`.

    Raises:
        ConfigError: If there are no labels, fewer than two of each of two classes, or an option is wrong.
        DtypeError: If model or data are of an unknown kind.
        ShapeError: If a batch is empty.
        NonFiniteError: If data or representations hold NaN or infinity.
        DataError: If there are no data.

    Source: Jacobsen, Smeulders and Oyallon 2018, "i-RevNet: deep invertible networks", section 5, figures 6 and 7.

    Example:
        >>> import torch
        >>> x, y = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 2
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))
        >>> found = depth_profile(network, (x + 4 * y[:, None], y), untrained="none")
        >>> [(depth.name, depth.width, depth.trained.nearest.mean > 0.9) for depth in found.depths]
        [('input', 4, True), ('0', 8, True), ('1', 4, True)]
    """
    options = Options(n_examples, n_folds, tuple(penalties), n_projected, standardize, seconds, seed, quiet)
    options.check()
    if isinstance(untrained, str) and untrained not in ("auto", "reset", "none"):
        expected = '"auto", "reset", "none", a module, or a function that makes one'
        raise ConfigError("unknown untrained network", expected=expected, got=repr(untrained))
    with measuring(model, mode) as network:
        feed = Feed(
            NAME, network, data, batch_fn=batch_fn, batches=batches, seconds=seconds, seed=seed, quiet=quiet
        )  # fmt: skip
        measurement = Measurement(network, feed, options)
        measurement.hear(layers, channel_axis)
        measurement.hear_untrained(untrained, layers, channel_axis, mode)
        depths = measurement.probe()
        feed.stopped = measurement.stopped
        origin = feed.provenance(network)
    prober = measurement.prober
    about = Circumstances(
        chance=measurement.chance, n_folds=measurement.n_folds, wanted_folds=n_folds,
        n_projected=measurement.n_projected,
        untrained=measurement.untrained, n_unconverged=prober.n_unconverged, silent=measurement.silent,
        stopped=measurement.stopped, n_left_out=measurement.n_left_out,
    )  # fmt: skip
    counts = measurement.n_classes, measurement.n_folds, measurement.n_projected, measurement.untrained
    return DepthProfile(
        findings_of(depths, about), depths, type(network).__name__, measurement.chance, *counts, provenance=origin
    )

"""The information plane: what each layer tells of the input and of the label, under several measurements at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from invertible.errors import ConfigError, RangeError
from invertible.instruments._batch import Batch
from invertible.instruments._compare_plot import Curve
from invertible.instruments._information_findings import moment_findings
from invertible.instruments._information_measure import Labels, Sweep, about, measure_places
from invertible.instruments._information_places import Places, enters_unchanged, invertible_places, is_linear
from invertible.instruments._information_plot import draw_moment
from invertible.instruments._information_rows import About, Kind, PlaceInformation
from invertible.instruments.feeding import Feed
from invertible.instruments.result import Result, Row
from invertible.instruments.taps import Layers
from invertible.instruments.untouched import Mode, measuring

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = "information_plane"


@dataclass(frozen=True)
class InformationPlane(Result):
    """What `information_plane` found.

    Args:
        findings: Worst first.
        about: What was measured, with what, and the ceilings.
        places: In the order they ran.
        model: The network's class.
    """

    about: About
    places: tuple[PlaceInformation, ...]
    model: str

    @property
    def table(self) -> list[Row]:
        """One row per place and measurement; bits."""
        return [row for place in self.places for row in place.rows(self.about.measurements)]

    @property
    def curves(self) -> dict[str, Curve]:
        """Against places "I(X;T)" and "I(T;Y)" of the main bins, and with ", KDE upper" or ", KDE lower" after it."""
        found: dict[str, Curve] = {}
        numbers = tuple(float(i) for i in range(len(self.places)))
        kinds: tuple[tuple[Kind, str], ...] = (
            ("binned fixed", ""), ("KDE upper", ", KDE upper"), ("KDE lower", ", KDE lower"),
        )  # fmt: skip
        for kind, end in kinds:
            m = self.about.number_of(kind)
            inputs, labels = tuple(p.inputs[m] for p in self.places), tuple(p.labels[m] for p in self.places)
            found[f"I(X;T){end}"] = Curve(numbers, inputs, "place", "I(X; T), bits")
            found[f"I(T;Y){end}"] = Curve(numbers, labels, "place", "I(T; Y), bits")
        return found

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the plane under the main bins; hollow: with shuffled labels; dashed: the ceilings.

        Args:
            ax: Where; None: on a new figure.

        Returns:
            The axes.
        """
        return draw_moment(ax, self.about, self.places, self.about.number_of("binned fixed"))


def information_plane(
    model: nn.Module,
    data: Any,
    *,
    layers: Layers = "auto",
    n_examples: int = 1000,
    n_bins: Sequence[int] = (30, 15, 60),
    span: tuple[float, float] = (-1.0, 1.0),
    sigma2: Sequence[float] = (1e-3, 1e-4, 1e-2),
    n_kernel: int = 1000,
    n_shuffles: int = 10,
    n_classes: int | None = None,
    mode: Mode = "eval",
    batch_fn: Callable[[Any], Any] | None = None,
    batches: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> InformationPlane:
    """Measure what each place of a network tells of the input, I(X; T), and of the label, I(T; Y).

    Under every measurement of a sweep: bins of a fixed grid and of one that follows the activations' range, upper and
    lower bounds by kernels. With what is needed to read them: the ceilings, the same with shuffled labels, the entropy
    of the activations without any measurement, how many are equal, distances within and between classes.

    These are properties of activations *and* of how they are looked at: a network without noise has I(X; T) = H(T)
    whatever it does, so that a low figure means that activations cluster, not that they cannot be told apart.

    Args:
        model: Any module. It is left as it is, to the bit.
        data: Batches (x, y) or dicts with labels: whatever `feeding.Feed` takes, with labels 0, 1, ... of shape (n,).
        layers: Where to listen, as in `find_taps`; "auto": the blocks, of single linear layers the nonlinearity that
            follows, and the network's output.
        n_examples: At most so many are used. They are the distribution of X: use all there are, if they are few.
        n_bins: Numbers of bins of the sweep; the first is the main one.
        span: Of the fixed grid, which goes on beyond it.
        sigma2: Variances of the kernels' noise; the first is the main one.
        n_kernel: At most so many examples for kernels.
        n_shuffles: How often labels are shuffled.
        n_classes: Labels have to be below it; None: not checked.
        mode: "eval", "train" or "as is".
        batch_fn: Makes of each batch what the network takes, with labels.
        batches: At most so many.
        seconds: Stop taking data after the batch during which so much time ran out.
        seed: Of shuffling, and of which examples kernels see.
        quiet: Show no progress.

    Returns:
        Figures per place and measurement, with findings; see `InformationPlane` and its `places`.

    Raises:
        ConfigError: If there are no labels, or of one class only, a place never ran, or an option is wrong.
        DtypeError: If model or data are of an unknown kind.
        ShapeError: If a batch is empty, or labels are not one number per example.
        RangeError: If labels are no classes 0, 1, ...
        NonFiniteError: If data or activations hold NaN or infinity.
        DataError: If there are no data, or a generator is used up.

    Source: Shwartz-Ziv and Tishby 2017, "Opening the black box of deep neural networks via information"; Saxe et al.
    2018, "On the information bottleneck theory of deep learning"; Goldfeld et al. 2019, "Estimating information flow in
    deep neural networks".

    Example:
        >>> x = torch.tensor([[a, b] for a in (-1.0, 1.0) for b in (-1.0, 1.0)])
        >>> network = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Tanh())
        >>> with torch.no_grad():
        ...     _ = network[0].weight.copy_(torch.tensor([[9.0, 0.0]]))
        >>> found = information_plane(network, (x, torch.tensor([0, 0, 1, 1])))
        >>> [(place.place, place.inputs[0], place.labels[0]) for place in found.places]
        [('1', 1.0, 1.0)]
    """
    sweep = Sweep(tuple(n_bins), span, tuple(sigma2), n_kernel, n_shuffles, seed)
    with measuring(model, mode) as network:
        feed = Feed(
            NAME, network, data, batch_fn=batch_fn, batches=batches, seconds=seconds, seed=seed, quiet=quiet
        )  # fmt: skip
        places = Places(network, layers, feed.first)
        few = collect(feed, n_examples)
        labels = Labels(labels_of(few, NAME, n_classes), sweep)
        heard = places.hear(few)
        known = describe_network(about(inputs_of(few), labels, sweep, 1), network, places, few[0])
        found = tuple(figures for figures, _ in measure_places(heard, labels, sweep))
        origin = feed.provenance(network)
    findings = moment_findings(known, found, feed.stopped)
    return InformationPlane(findings, known, found, type(network).__name__, provenance=origin)


def collect(feed: Feed, n_examples: int) -> list[Batch]:
    """Take the first examples.

    Args:
        feed: The data.
        n_examples: At most so many, 2 or more.

    Returns:
        Batches, the last one cut.

    Raises:
        ConfigError: If it is below 2.
    """
    if isinstance(n_examples, bool) or n_examples < 2:
        raise ConfigError(f"{feed.name} has a bad n_examples", expected="2 or more", got=n_examples)
    found: list[Batch] = []
    n = 0
    for batch in feed:
        left = n_examples - n
        labels = batch.needed_labels(feed.name)
        if batch.n_examples > left:
            batch = replace(batch.few(left), labels=labels[:left])
        found.append(batch)
        n += batch.n_examples
        if n >= n_examples:
            break
    return found


def labels_of(batches: Sequence[Batch], name: str, n_classes: int | None) -> Tensor:
    """The labels of batches.

    Args:
        batches: With labels.
        name: Of the instrument.
        n_classes: Labels have to be below it; None: not checked.

    Returns:
        Shape (N,).

    Raises:
        ConfigError: If there are none.
        RangeError: If one is too large.
    """
    labels = torch.cat([batch.needed_labels(name).cpu() for batch in batches])
    if n_classes is not None and labels.numel() and int(labels.max()) >= n_classes:
        expected, got = f"0 to {n_classes - 1}", f"up to {int(labels.max())}"
        raise RangeError(f"{name} got labels out of range", expected=expected, got=got)
    return labels


def inputs_of(batches: Sequence[Batch]) -> Tensor | None:
    """What enters the network.

    Args:
        batches: One or more.

    Returns:
        All numbers of an example in a row, shape (N, d); None if examples differ in size.
    """
    rows = [[x.double().flatten(1) for x in b.tensors if x.ndim and len(x) == b.n_examples] for b in batches]
    joined = [torch.cat([x if x.ndim > 1 else x.unsqueeze(1) for x in parts], dim=1) for parts in rows if parts]
    same = len(joined) == len(batches) and len({x.shape[1] for x in joined}) == 1
    return torch.cat(joined) if same else None


def describe_network(known: About, network: nn.Module, places: Places, first: Batch) -> About:
    """Add which places are invertible and which linear.

    Args:
        known: Of the data.
        network: The network.
        places: In it.
        first: A batch.

    Returns:
        The whole record.
    """
    inside, parts = invertible_places(network, places.taps)
    keeps = len(parts) == 1 and enters_unchanged(network, parts[0], first)
    taps = places.taps[:-1] if places.is_auto else places.taps  # the last one's are the logits
    linear = tuple(tap.name for tap in taps if is_linear(tap) and tap.name not in inside)
    return replace(known, invertible=tuple(inside), keeps_input=keeps, linear=linear)
